"""The training loop: it learns, and a killed run continues bit for bit."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vp3d.toybox.fit import Plan, fit, rate


def line(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def losses_of(model: nn.Linear, stop_at: int | None = None) -> object:
    count = 0

    def losses(rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal count
        count += 1
        if stop_at is not None and count > stop_at:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.normal(size=(16, 3))).float()
        noise = 0.01 * torch.randn(16, 1, generator=generator)
        return {"loss": (model(x) - (x.sum(1, keepdim=True) + noise)).square().mean()}

    return losses


def test_rate_warms_up_and_falls_to_zero() -> None:
    plan = Plan(steps=100, lr=1.0, warmup=10)
    assert rate(plan, 0) == 0.1 and rate(plan, 10) == 1.0 and rate(plan, 99) < 0.01
    assert all(rate(plan, i) >= rate(plan, i + 1) for i in range(10, 99))


def test_it_learns_a_line(tmp_path: Path) -> None:
    model = line()
    ema = fit("line", model, losses_of(model), Plan(steps=300, lr=0.05, warmup=10, weight_decay=0.0), tmp_path)
    assert torch.allclose(ema["weight"], torch.ones(1, 3), atol=0.05)


def test_an_interrupted_run_ends_where_the_whole_one_does(tmp_path: Path) -> None:
    plan = Plan(steps=40, lr=0.05, warmup=5, save_every_s=0.0)
    whole = line()
    expected = fit("line", whole, losses_of(whole), plan, tmp_path / "whole")
    first = line()
    with contextlib.suppress(KeyboardInterrupt):
        fit("line", first, losses_of(first, stop_at=17), plan, tmp_path / "cut")
    second = line(seed=9)
    resumed = fit("line", second, losses_of(second), plan, tmp_path / "cut")
    assert all(torch.equal(expected[k], resumed[k]) for k in expected)
    assert torch.equal(whole.weight, second.weight)

"""The training loop: it learns, and a killed run continues bit for bit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vp3d.embedded.fit import Plan, fit, half_precision, new_optimizers, rate
from vp3d.embedded.muon import Muon, orthogonal
from vp3d.errors import UserError


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


@pytest.mark.parametrize(("muon", "lr"), [("(?!)", 0.05), ("weight", 0.2)])
def test_it_learns_a_line(tmp_path: Path, muon: str, lr: float) -> None:
    model = line()
    plan = Plan(steps=300, lr=lr, warmup=10, weight_decay=0.0, muon=muon)
    ema = fit("line", model, losses_of(model), plan, tmp_path)
    assert torch.allclose(ema["weight"], torch.ones(1, 3), atol=0.05)


@pytest.mark.parametrize("muon", ["(?!)", "weight"])
def test_an_interrupted_run_ends_where_the_whole_one_does(tmp_path: Path, muon: str) -> None:
    plan = Plan(steps=40, lr=0.05, warmup=5, save_every_s=0.0, muon=muon)
    whole = line()
    expected = fit("line", whole, losses_of(whole), plan, tmp_path / "whole")
    first = line()
    with contextlib.suppress(KeyboardInterrupt):
        fit("line", first, losses_of(first, stop_at=17), plan, tmp_path / "cut")
    second = line(seed=9)
    resumed = fit("line", second, losses_of(second), plan, tmp_path / "cut")
    assert all(torch.equal(expected[k], resumed[k]) for k in expected)
    assert torch.equal(whole.weight, second.weight)


def test_a_checkpoint_of_a_model_of_other_sizes_is_refused_and_kept(tmp_path: Path) -> None:
    plan = Plan(steps=2, lr=0.05, warmup=1)
    model = line()
    fit("line", model, losses_of(model), plan, tmp_path)
    before = (tmp_path / "line.safetensors").read_bytes()
    for other in (nn.Linear(4, 1), nn.Sequential(nn.Linear(3, 1))):
        with pytest.raises(UserError, match="of a model of other sizes.* --fresh"):
            fit("line", other, losses_of(line()), plan, tmp_path)
    assert (tmp_path / "line.safetensors").read_bytes() == before
    model.aid_new = nn.Linear(3, 1)  # an auxiliary head, which no checkpoint needs to have
    assert "aid_new.weight" in fit("line", model, losses_of(model), plan, tmp_path)


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from torch import nn
from safetensors.torch import save_file
from vp3d.embedded.fit import Plan, first_process_first, fit, process_rank
folder, model = Path(sys.argv[1]), nn.Linear(3, 1, bias=False)
torch.distributed.init_process_group(
    "gloo", init_method=(folder / "meeting").as_uri(), rank=int(sys.argv[2]), world_size=2
)
first_process_first(lambda: (folder / "order.txt").open("a").write(str(process_rank())))
nn.init.constant_(model.weight, float(process_rank()))  # the weights of process 0 count
seen = []
def losses(rng, generator):
    seen.append(torch.from_numpy(rng.normal(size=(4, 3))).float())
    return {"loss": model(seen[-1]).sum()}
fit("sum", model, losses, Plan(steps=1, lr=0.5, warmup=1, weight_decay=0.0), folder)
told = {"seen": seen[0], "grad": model.weight.grad, "weight": model.weight.detach()}
save_file(told, folder / f"rank{process_rank()}.safetensors")
"""


def test_processes_draw_their_own_batches_and_step_on_the_mean_gradient(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    processes = [
        subprocess.Popen([sys.executable, script, tmp_path, rank], env=environment)
        for rank in ("0", "1")
    ]
    try:
        assert [process.wait() for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    one, two = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    assert not torch.equal(one["seen"], two["seen"])
    mean = (one["seen"].sum(0) + two["seen"].sum(0)) / 2
    scale = min(1.0, 1.0 / float(mean.norm()))  # the plan clips at 1
    for told in (one, two):
        torch.testing.assert_close(told["grad"][0], mean * scale, rtol=1e-4, atol=1e-6)
    assert torch.equal(one["weight"], two["weight"])
    assert (tmp_path / "order.txt").read_text() == "01"
    assert (tmp_path / "sum.safetensors").exists()


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (16, 144), (3, 3)])
def test_orthogonal_keeps_the_directions_and_evens_their_sizes(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.linspace(0.2, 3.0, shape[1]))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    made = u.T @ orthogonal(matrix) @ v.T
    kept = s > 0.1 * s.max()
    assert (made.diagonal()[kept] > 0.6).all() and (made.diagonal() < 1.3).all()
    assert torch.allclose(made, torch.diag(made.diagonal()), atol=1e-3)


def test_muon_moves_as_far_as_adamw_and_only_what_it_is_given() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Linear(4, 4))
    named = dict(model.named_parameters())
    adamw, muon = new_optimizers(named, Plan(steps=1, lr=0.1, muon=r"0\."))
    assert isinstance(muon, Muon) and [
        p is named["0.weight"] for p in muon.param_groups[0]["params"]
    ] == [True]
    assert len(adamw.param_groups[0]["params"]) == 3
    before = named["0.weight"].detach().clone()
    named["0.weight"].grad = torch.randn_like(before)
    muon.step()
    assert 0.1 < float((named["0.weight"].detach() - before).square().mean().sqrt()) / 0.1 < 0.3


@pytest.mark.parametrize("native", [False, True])
def test_products_are_bfloat16_only_where_the_processor_makes_them_so(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    layer, x = nn.Linear(8, 8), torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    with half_precision(torch.device("cpu")):
        y = layer(x)
    assert y.dtype == (torch.bfloat16 if native else torch.float32)
    y.float().sum().backward()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x), rtol=0.02, atol=0.02)

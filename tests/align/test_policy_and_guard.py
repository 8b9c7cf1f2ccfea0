"""The policy gradient's numbers against scipy and an exact gradient; what the guard decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from vp3d.align.guard import Check, Guard, spread_of
from vp3d.align.policy import advantages, clipped_loss, log_density, mean_and_sigma


def test_the_log_density_is_the_mean_of_scipys() -> None:
    x, mean = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    sigma = torch.tensor(0.3, dtype=torch.float64)
    expected = norm.logpdf(x.numpy(), mean.numpy(), 0.3).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(log_density(x, mean, sigma).numpy(), expected)


def test_a_step_has_the_variance_of_ddpm() -> None:
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    level, following = torch.tensor([0.2, 0.6], dtype=torch.float64)
    _, sigma = mean_and_sigma(x, x, level, following)
    # the posterior variance (1 - a') / (1 - a) * beta, beta = 1 - a / a', by hand: 1/2 * 2/3
    assert float(sigma) == pytest.approx((1.0 / 3.0) ** 0.5)


def test_advantages_compare_drawings_of_one_prompt() -> None:
    found = advantages(torch.tensor([1.0, 3.0, 10.0, 14.0]), ["a", "a", "b", "b"])
    centred = torch.tensor([-1.0, 1.0, -2.0, 2.0])
    torch.testing.assert_close(found, centred / centred.std(), atol=1e-5, rtol=0)
    assert advantages(torch.ones(4), ["a"] * 4).abs().max() == 0.0


def test_the_ratio_gives_no_gradient_once_it_is_clipped() -> None:
    new = torch.tensor([0.5, -0.5], requires_grad=True)
    clipped_loss(torch.tensor([1.0, -1.0]), new, torch.zeros(2), 1e-4).backward()
    assert new.grad is not None and new.grad.abs().max() == 0.0
    fresh = torch.zeros(2, requires_grad=True)
    clipped_loss(torch.tensor([1.0, -1.0]), fresh, torch.zeros(2), 1e-4).backward()
    assert fresh.grad is not None and torch.allclose(fresh.grad, torch.tensor([-0.5, 0.5]))


def test_the_policy_gradient_is_the_gradient_of_the_expected_reward() -> None:
    """x ~ N(theta, 1), reward x: d E[x] / d theta = 1, without baseline or scaling."""
    count = 100_000
    generator = torch.Generator().manual_seed(0)
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    x = torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    log_p = log_density(x, theta.expand_as(x), one)
    clipped_loss(x.flatten(), log_p, log_p.detach(), 1e-4).backward()
    assert theta.grad is not None
    error = float((x.flatten() ** 2).std()) / count**0.5
    assert abs(-float(theta.grad) - 1.0) < 3.0 * error


def check(step: int, held: float, total: float = 0.0, spread: float = 1.0) -> Check:
    return Check(step, {"compress": total}, total, held, 0.01, spread, 0.0, 0.0)


def test_the_guard_stops_after_three_checks_below_and_keeps_the_best_before() -> None:
    guard = Guard("clip", ["compress"])
    for found in (check(0, 0.7), check(10, 0.7, 1.0), check(20, 0.6, 2.0), check(30, 0.6, 3.0)):
        assert guard.add(found) == ""
    assert "stopped at step 40: clip fell from 0.700 to 0.600" in guard.add(check(40, 0.6, 4.0))
    assert guard.best().step == 10


def test_a_recovered_score_does_not_stop_the_run() -> None:
    guard = Guard("clip", ["compress"])
    held = (0.7, 0.6, 0.6, 0.7, 0.6, 0.6)
    assert not any(guard.add(check(i, value)) for i, value in enumerate(held))


def test_the_guard_stops_when_drawings_become_alike() -> None:
    guard = Guard("clip", ["compress"])
    assert guard.add(check(0, 0.7, spread=1.0)) == ""
    assert guard.add(check(10, 0.7, spread=0.51)) == ""
    assert "one picture" in guard.add(check(20, 0.7, spread=0.49))


def test_the_spread_counts_drawings_of_one_prompt_only() -> None:
    rgb = torch.zeros(4, 3, 2, 2)
    rgb[1], rgb[2:] = 0.5, 1.0
    assert spread_of(rgb, ["a", "a", "b", "b"]) == pytest.approx(0.25)

"""The policy gradient's numbers against scipy and an exact gradient; what the guard decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from vp3d.align.guard import Check, Guard, paired_error, sharpness_of, spread_of
from vp3d.align.policy import advantages, clipped_loss, log_density, mean_and_sigma
from vp3d.config.schema import AlignConfig
from vp3d.diffusion.sampling import ddim_step


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


def test_a_step_has_the_mean_and_deviation_of_the_sampler() -> None:
    a, b = torch.tensor(0.3), torch.tensor(0.6)
    x, epsilon, noise = torch.randn(3, 2, 1, 2, 2)
    mean, sigma = mean_and_sigma(x, epsilon, a, b)
    drawn = ddim_step(x, epsilon, a.expand(2), b.expand(2), noise, 1.0)
    torch.testing.assert_close(drawn, mean + sigma * noise)


def test_advantages_compare_drawings_of_one_prompt() -> None:
    found = advantages(torch.tensor([1.0, 3.0, 10.0, 14.0]), ["a", "a", "b", "b"])
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0, -1.0, 1.0]), atol=1e-5, rtol=0)
    once = advantages(torch.tensor([2.0, 4.0, 9.0]), ["a", "a", "b"])  # b: 5 and the variance 26/3
    torch.testing.assert_close(once, torch.tensor([-1.0, 1.0, 4.0 / (26 / 3) ** 0.5]))
    assert advantages(torch.ones(4), ["a"] * 4).abs().max() == 0.0
    many = torch.cat([torch.zeros(99), torch.tensor([100.0])])
    assert float(advantages(many, ["a"] * 100).max()) == 5.0


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


def test_what_is_kept_is_at_most_one_error_below_the_base() -> None:
    """Higher rewards at 1.4 errors below, as compressibility alone has before it collapses."""
    guard = Guard("clip", ["compress"])
    for found in (check(0, 0.7), check(5, 0.692, 1.0), check(10, 0.686, 2.0), check(15, 0.5, 3.0)):
        assert guard.add(found) == ""
    assert guard.best().step == 5


def test_the_error_of_one_picture_in_sixteen_is_what_the_mean_fell() -> None:
    one_picture_in_sixteen = torch.zeros(16)
    one_picture_in_sixteen[0] = -0.4
    assert paired_error(one_picture_in_sixteen, torch.zeros(16)) == pytest.approx(0.4 / 16)


def test_a_recovered_score_does_not_stop_the_run() -> None:
    guard = Guard("clip", ["compress"])
    held = (0.7, 0.6, 0.6, 0.7, 0.6, 0.6)
    assert not any(guard.add(check(i, value)) for i, value in enumerate(held))


def test_the_guard_stops_when_drawings_become_alike() -> None:
    guard = Guard("clip", ["compress"])
    assert guard.add(check(0, 0.7, spread=1.0)) == ""
    assert guard.add(check(10, 0.7, spread=0.51)) == ""
    assert "one picture" in guard.add(check(20, 0.7, spread=0.49))
    other = Guard("clip", ["compress"])
    other.restore(guard.record())
    assert other.checks == guard.checks and other.below == guard.below


def test_a_reward_that_falls_from_the_start_gets_advice() -> None:
    guard = Guard("clip", ["compress"])
    guard.add(check(0, 0.7, total=0.0))
    guard.add(check(10, 0.7, total=-1.0))
    assert guard.advice() == ""  # too early to say
    guard.add(check(20, 0.7, total=-1.0))
    assert "--k fixed:1 and a lower align.lr" in guard.advice()
    guard.add(check(30, 0.7, total=0.5))
    assert guard.advice() == ""


def test_a_score_that_is_not_a_number_stops_the_run() -> None:
    guard = Guard("clip", ["compress"])
    guard.add(check(0, 0.7))
    assert "clip is not a number" in guard.add(check(10, float("nan")))


def test_the_spread_counts_drawings_of_one_prompt_only() -> None:
    rgb = torch.zeros(4, 3, 2, 2)
    rgb[1], rgb[2:] = 0.5, 1.0
    assert spread_of(rgb, ["a", "a", "b", "b"]) == pytest.approx(0.25)
    assert spread_of(rgb, ["a", "b", "c", "d"]) == 0.0


def test_a_blurred_picture_is_less_sharp() -> None:
    generator = torch.Generator().manual_seed(0)
    sharp = torch.rand(2, 3, 8, 8, generator=generator)
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
    assert sharpness_of(blurred) < 0.6 * sharpness_of(sharp)
    assert sharpness_of(torch.full((1, 3, 4, 4), 0.5)) == 0.0
    assert AlignConfig().ema > 0.9  # the average, less noisy than the newest weights, is on

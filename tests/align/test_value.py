"""The Monte-Carlo value: roll-outs, and a fit against a value that is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_models import tiny_prior_config
from vp3d.align.steer import Latents
from vp3d.align.value import Rollouts, fit_value, monte_carlo, roll_out
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.sampling import sample


def noisy_ends(count: int) -> Rollouts:
    """States whose mean is half of the reward, plus noise: r = 2 mean(x) + 0.3 z."""
    generator = torch.Generator().manual_seed(0)
    level = torch.randn(count, generator=generator)
    x = 0.05 * torch.randn(count, 2, 4, 4, generator=generator) + level[:, None, None, None]
    step = torch.randint(1, 4, (count,), generator=generator)
    reward = 2.0 * x.mean((1, 2, 3)) + 0.3 * torch.randn(count, generator=generator)
    return Rollouts(x, step, reward)


def test_the_fit_is_the_mean_of_the_reward_and_not_its_noise():
    torch.manual_seed(0)
    value = fit_value(noisy_ends(3000), 250, torch.Generator().manual_seed(1))
    x = torch.linspace(-1, 1, 9)[:, None, None, None].expand(9, 2, 4, 4)
    found = value(x, torch.full((9,), 2))
    assert float((found - 2.0 * x[:, 0, 0, 0]).abs().max()) < 0.25


def test_the_soft_value_is_above_the_mean_by_half_the_variance_over_alpha():
    """Of a normal reward, alpha log E[exp(r / alpha)] = mean + variance / (2 alpha)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(2)
    x = 0.05 * torch.randn(4000, 2, 4, 4, generator=generator)
    reward = 0.5 * torch.randn(4000, generator=generator)
    rollouts = Rollouts(x, torch.ones(4000, dtype=torch.long), reward)
    value = fit_value(rollouts, 250, torch.Generator().manual_seed(1), alpha=1.0)
    found = value(torch.zeros(1, 2, 4, 4), torch.ones(1, dtype=torch.long))
    assert float(found) == pytest.approx(0.125, abs=0.06)


def test_roll_outs_are_plain_draws(tmp_path: Path):
    prior = load_prior(tiny_prior_config(tmp_path))
    drawing = prior.drawing(["a", "b"], "", 4, 1.0)
    x = prior.noise(2, torch.Generator().manual_seed(0))

    def brightness(rgb: Tensor, owner: Tensor) -> Tensor:
        return rgb.mean((1, 2, 3))

    found = roll_out(drawing, x, brightness, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        end = sample(drawing, x, drawing.levels, eta=1.0, generator=generator)
        expected = brightness(prior.decode(end), torch.arange(2))
    torch.testing.assert_close(found.reward, expected.repeat(3))
    assert found.step.tolist() == [1, 1, 2, 2, 3, 3] and found.x.shape == (6, 4, 8, 8)
    torch.manual_seed(0)
    value = monte_carlo(fit_value(found, 3, torch.Generator().manual_seed(0)))
    state = Latents(drawing, x, 2)
    assert value(state, 1).shape == (2,)
    assert state._epsilon is None  # no call of the denoiser


def test_rewards_that_are_not_finite_are_refused():
    rollouts = Rollouts(
        torch.zeros(2, 1, 4, 4), torch.ones(2).long(), torch.tensor([1.0, torch.nan])
    )
    with pytest.raises(ValueError, match="not finite"):
        fit_value(rollouts, 1, torch.Generator())

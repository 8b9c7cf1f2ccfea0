"""The noise schedule against diffusers' DDIMScheduler and by its own identities."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.tiny_models import scheduler
from vp3d.config.schema import Schedule
from vp3d.diffusion import schedule as S
from vp3d.diffusion.sampling import ddim_step, ddim_timesteps
from vp3d.errors import UserError

import diffusers  # isort: skip

GENERATOR = torch.Generator().manual_seed(0)
X0, NOISE = torch.randn(2, 5, 4, 3, 3, generator=GENERATOR).unbind()
BAR = torch.tensor([0.9991, 0.8, 0.5, 0.1, 0.0047])


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_alpha_bar_agrees_with_diffusers(kind: str, zero_snr: bool) -> None:
    theirs = diffusers.DDIMScheduler(
        num_train_timesteps=300,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=kind,
        rescale_betas_zero_snr=zero_snr,
    )
    ours = S.alpha_bar_from_config(theirs.config)
    torch.testing.assert_close(
        ours, theirs.alphas_cumprod.clamp_min(S.ALPHA_BAR_MIN), atol=1e-6, rtol=2e-4
    )
    assert (ours[1:] <= ours[:-1]).all()
    if zero_snr:
        assert float(ours[-1]) == pytest.approx(1e-6, rel=1e-3), "x0 needs alpha above 0"


def test_trained_betas_are_used() -> None:
    bar = S.alpha_bar_from_config({"trained_betas": [0.1, 0.5]})
    torch.testing.assert_close(bar, torch.tensor([0.9, 0.45]))


def test_cosine_betas_by_hand_end_at_their_cap() -> None:
    """Four steps: 1 - f(i + 1) / f(i) with f(i) = cos^2 of (i / 4 + 0.008) / 1.008 quarter turns.

    f(4) is 0, so the last beta would be 1 and leave nothing; Nichol and Dhariwal cap it.
    """
    config = {"num_train_timesteps": 4, "beta_schedule": "squaredcos_cap_v2"}
    betas = S.betas_from_config(config | {"beta_start": 0.1, "beta_end": 0.2})
    turns = [(i / 4 + 0.008) / 1.008 * 90.0 for i in range(5)]
    f = [math.cos(math.radians(turn)) ** 2 for turn in turns]
    expected = [1 - f[1] / f[0], 1 - f[2] / f[1], 1 - f[3] / f[2], 0.999]
    torch.testing.assert_close(betas, torch.tensor(expected))


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(UserError, match="sigmoid"):
        S.alpha_bar_from_config(
            {
                "num_train_timesteps": 5,
                "beta_schedule": "sigmoid",
                "beta_start": 0.1,
                "beta_end": 0.2,
            }
        )


def test_conversions_invert_each_other() -> None:
    x_t = S.add_noise(X0, NOISE, BAR)
    v = S.v_from_epsilon(x_t, NOISE, BAR)
    alpha, sigma = S.alpha_sigma(BAR)
    torch.testing.assert_close(v, alpha * NOISE - sigma * X0, atol=2e-5, rtol=1e-4)
    for output, kind in ((NOISE, "epsilon"), (v, "v_prediction")):
        epsilon = S.epsilon_from_output(output, x_t, BAR, kind)
        torch.testing.assert_close(epsilon, NOISE, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(S.x0_from_epsilon(x_t, epsilon, BAR), X0, atol=2e-4, rtol=1e-4)
    from_sample = S.epsilon_from_output(X0, x_t, BAR, "sample")
    torch.testing.assert_close(from_sample, NOISE, atol=2e-4, rtol=1e-4)
    with pytest.raises(UserError, match="flow"):
        S.epsilon_from_output(NOISE, x_t, BAR, "flow")


def test_weights() -> None:
    torch.testing.assert_close(
        S.sds_weight(torch.tensor([0.25, 1.0]), "sigma2"), torch.tensor([0.75, 0.0])
    )
    assert torch.equal(S.sds_weight(BAR, "uniform"), torch.ones(5))
    bar, weights = torch.tensor([1.0, 0.5, 0.2, 0.1, 0.005]), [0.0, 1.0, 2.0, 3.0, 10.0]
    assert S.sds_weight(bar, "x0").tolist() == pytest.approx(weights, rel=1e-5)
    with pytest.raises(UserError, match="sigma2"):
        S.sds_weight(BAR, "sds")


def test_t_bounds_follow_progress() -> None:
    fall = Schedule(0.98, 0.5, 0.0, 0.5)
    assert S.t_bounds(Schedule(0.02, 0.02), fall, 0.0, 1000) == (20, 980)
    assert S.t_bounds(Schedule(0.02, 0.02), fall, 0.25, 1000) == (20, 740)
    assert S.t_bounds(Schedule(0.02, 0.02), fall, 1.0, 1000) == (20, 500)
    assert S.t_bounds(Schedule(1.0, 1.0), Schedule(1.0, 1.0), 0.0, 1000) == (999, 999)
    with pytest.raises(UserError, match="t_min"):
        S.t_bounds(Schedule(0.6, 0.6), Schedule(0.5, 0.5), 0.0, 1000)


def test_sampled_t_is_stratified_uniform_and_reproducible() -> None:
    draws = torch.stack([S.sample_t(4, 20, 59, GENERATOR) for _ in range(2000)])
    assert draws.min() == 20 and draws.max() == 59
    assert torch.equal(
        ((draws - 20) // 10).sort(dim=1).values, torch.arange(4).expand(2000, 4)
    )  # one view in each quarter
    counts = torch.bincount(
        draws[:, 0] - 20, minlength=40
    )  # each view alone is uniform: 50 expected a value
    assert counts.min() > 20 and counts.max() < 90
    first, again = (S.sample_t(4, 0, 999, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(S.sample_t(3, 7, 7, GENERATOR), torch.full((3,), 7))


def test_a_share_that_is_rounded_up_to_1_stays_in_the_range() -> None:
    """In float32, 2^21 - 1 and a random number close to 1 are 2^21, as with this seed."""
    batch, seed = 2**21, 5
    generator = torch.Generator().manual_seed(seed)
    stratum = torch.randperm(batch, generator=generator)
    assert ((stratum + torch.rand(batch, generator=generator)) / batch).max() == 1.0
    drawn = S.sample_t(batch, 3, 9, torch.Generator().manual_seed(seed))
    assert drawn.min() == 3 and drawn.max() == 9


@pytest.mark.parametrize("steps", [1, 7, 30, 1000])
def test_timesteps_agree_with_diffusers(steps: int) -> None:
    theirs = scheduler()
    theirs.set_timesteps(steps)
    assert torch.equal(ddim_timesteps(1000, steps), theirs.timesteps)
    with pytest.raises(UserError, match="1000"):
        ddim_timesteps(1000, 1001)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_ddim_step_agrees_with_diffusers(prediction_type: str) -> None:
    theirs = scheduler(prediction_type)
    theirs.set_timesteps(10)
    output = torch.randn(5, 4, 3, 3, generator=GENERATOR)
    for t, t_next in ((999, 899), (499, 399), (99, None)):
        expected = theirs.step(output, t, X0)
        bar = theirs.alphas_cumprod[t].expand(5)
        bar_next = torch.ones(5) if t_next is None else theirs.alphas_cumprod[t_next].expand(5)
        epsilon = S.epsilon_from_output(output, X0, bar, prediction_type)
        x_next = ddim_step(X0, epsilon, bar, bar_next)
        torch.testing.assert_close(x_next, expected.prev_sample, atol=2e-4, rtol=1e-4)


def test_ddim_step_lands_on_x0_when_the_noise_is_known() -> None:
    x_t = S.add_noise(X0, NOISE, BAR)
    torch.testing.assert_close(ddim_step(x_t, NOISE, BAR, torch.ones(5)), X0, atol=2e-4, rtol=1e-4)

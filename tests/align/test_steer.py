"""SVDD on the latents of tiny pipelines: plain sampling at M = 1, two prompts, cost, DPS."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_models import tiny_prior_config
from vp3d.align.steer import (
    Latents,
    SteeredSampler,
    Steering,
    calls_a_row,
    dps,
    posterior_mean,
    propose_latents,
)
from vp3d.align.svdd import Choice, svdd
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.sampling import ddim_step, sample
from vp3d.diffusion.schedule import x0_from_epsilon

PROMPTS = ["a red cube", "two blue spheres"]
STEPS, SCALE = 4, 3.0


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def prior(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prior:
    return load_prior(tiny_prior_config(tmp_path_factory.mktemp("prior"), kind=request.param))


def brightness(rgb: Tensor, owner: Tensor) -> Tensor:
    """The first prompt is to be bright, the second dark."""
    return rgb.mean((1, 2, 3)) * (1.0 - 2.0 * owner)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_one_proposal_is_plain_sampling_bit_for_bit_for_two_prompts_with_guidance(prior: Prior):
    generator, drawing = seeded(), prior.drawing(PROMPTS, "dull", STEPS, SCALE)
    plain = sample(drawing, prior.noise(2, generator), drawing.levels, eta=1.0, generator=generator)
    sampler = SteeredSampler(prior, lambda prompts: brightness, Steering(m=1))
    found = sampler.sample(PROMPTS, "dull", STEPS, SCALE, seeded())
    assert torch.equal(found, prior.decode(plain))
    assert not torch.equal(found[0], found[1]) and sampler.choices == []


@torch.no_grad()
def test_each_prompt_keeps_its_own_text_and_proposals(prior: Prior):
    """A naive loop draws each prompt on its own, from the same noise."""
    m, drawing = 3, prior.drawing(PROMPTS, "", STEPS, SCALE)
    x = prior.noise(2, seeded(1))
    choices: list[Choice] = []
    found = svdd(
        *(Latents(drawing, x), STEPS - 1, propose_latents(), posterior_mean(brightness)),
        *(m, 0.0, seeded(2)),
        on_step=choices.append,
    ).finished()
    generator = seeded(2)
    noises = [torch.randn(2 * m, *x.shape[1:], generator=generator) for _ in range(STEPS - 1)]
    for b in range(2):
        alone, state = prior.drawing([PROMPTS[b]], "", STEPS, SCALE), x[b : b + 1]
        for i in range(STEPS - 1):
            here, after = drawing.levels[i : i + 1], drawing.levels[i + 1 : i + 2]
            e, values, states = alone(state, i), [], []
            for k in range(m):
                z = noises[i][b * m + k : b * m + k + 1]
                y = ddim_step(state, e, here, after, z, 1.0)
                picture = prior.decode(x0_from_epsilon(y, alone(y, i + 1), after))
                values.append(float(brightness(picture, torch.tensor([b]))))
                states.append(y)
            torch.testing.assert_close(
                choices[i].values[b], torch.tensor(values), atol=1e-5, rtol=1e-4
            )
            state = states[int(choices[i].chosen[b])]
            assert values[int(choices[i].chosen[b])] == pytest.approx(max(values), abs=1e-5)
        last = drawing.levels[STEPS - 1 : STEPS]
        clean = ddim_step(state, alone(state, STEPS - 1), last, torch.ones(1))
        torch.testing.assert_close(found[b : b + 1], clean, atol=1e-4, rtol=1e-3)


def test_steering_raises_the_reward_of_each_prompt(prior: Prior):
    def mean_reward(m: int) -> Tensor:
        sampler = SteeredSampler(prior, lambda prompts: brightness, Steering(m=m))
        rgb = sampler.sample(PROMPTS * 4, "", STEPS, 1.0, seeded(3))
        owner = torch.arange(8) % 2
        return brightness(rgb, owner).view(4, 2).mean(0)

    # the sampler gives 8 prompts, so its rewards need the parity of the row
    def parity(rgb: Tensor, owner: Tensor) -> Tensor:
        return brightness(rgb, owner % 2)

    sampler = SteeredSampler(prior, lambda prompts: parity, Steering(m=6))
    rgb = sampler.sample(PROMPTS * 4, "", STEPS, 1.0, seeded(3))
    steered = parity(rgb, torch.arange(8)).view(4, 2).mean(0)
    assert (steered > mean_reward(1)).all()
    assert len(sampler.choices) == STEPS - 1
    assert sampler.frames and sampler.frames[0].pictures.shape[0] == 6


def test_the_cost_is_one_call_and_one_a_proposal_and_step(
    prior: Prior, monkeypatch: pytest.MonkeyPatch
):
    rows = []
    original = Prior.predict_branches

    def counted(self: Prior, texts: object, x: Tensor, *rest: object) -> object:
        rows.append(len(x))
        return original(self, texts, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Prior, "predict_branches", counted)
    rewards = []

    def reward(rgb: Tensor, owner: Tensor) -> Tensor:
        rewards.append(len(rgb))
        return brightness(rgb, owner)

    for m, branch in ((4, (0.0, 1.0)), (3, (0.5, 1.0)), (1, (0.0, 1.0))):
        rows.clear(), rewards.clear()
        SteeredSampler(prior, lambda prompts: reward, Steering(m, 0.0, branch)).sample(
            PROMPTS, "", STEPS, 1.0, seeded()
        )
        assert (sum(rows) // 2, sum(rewards) // 2) == calls_a_row(STEPS, m, branch)
    assert calls_a_row(10, 8) == (73, 72)


def test_proposals_without_noise_are_refused():
    with pytest.raises(ValueError, match="alike without noise"):
        propose_latents(0.0)


def test_dps_follows_the_gradient_and_scale_zero_is_plain_sampling(prior: Prior):
    drawing = prior.drawing(PROMPTS, "", STEPS, 1.0)
    x = prior.noise(2, seeded(4))
    with torch.no_grad():
        plain = sample(drawing, x, drawing.levels, eta=1.0, generator=seeded(5))
    assert torch.equal(dps(drawing, x, brightness, 0.0, seeded(5)), plain)
    owner = torch.arange(2)
    moved = dps(drawing, x, brightness, 0.3, seeded(5))
    with torch.no_grad():
        gain = brightness(prior.decode(moved), owner) - brightness(prior.decode(plain), owner)
    assert (gain > 0).all()


def test_a_picture_that_is_not_finite_is_never_kept(prior: Prior, monkeypatch: pytest.MonkeyPatch):
    """Half precision can overflow; a cut-out of such a picture may still look whole."""
    decode = Prior.decode

    def overflows(self: Prior, latents: Tensor) -> Tensor:
        rgb = decode(self, latents).detach()
        rgb[::3] = torch.nan
        return rgb

    monkeypatch.setattr(Prior, "decode", overflows)
    state = Latents(prior.drawing(["a"], "", STEPS, 1.0), prior.noise(1, seeded()))
    choices: list[Choice] = []
    value = posterior_mean(lambda rgb, owner: torch.ones(len(rgb)))
    svdd(state, 3, propose_latents(), value, 3, 0.0, seeded(), on_step=choices.append)
    assert all(int(choice.chosen) != 0 and choice.unusable == 1 for choice in choices)

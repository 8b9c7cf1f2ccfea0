"""The sampler of visual_prompt.sampler=svdd: rewards by name, one scale, both values, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_models import tiny_prior_config
from vp3d.align.sampler import check_reward, steered_sampler
from vp3d.align.steer import Latents
from vp3d.config.schema import SvddConfig, VisualPromptConfig
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.prior import Prior
from vp3d.errors import UserError


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Prior:
    return load_prior(tiny_prior_config(tmp_path_factory.mktemp("prior")))


class Brightness:
    """A judge that prefers bright pictures, in hundreds."""

    device = torch.device("cpu")

    def target(self, prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts), 1)

    def score(self, rgb: Tensor, target: Tensor) -> Tensor:
        return 100.0 * rgb.mean((1, 2, 3))


class Broken(Brightness):
    """A judge whose scores are not numbers."""

    def score(self, rgb: Tensor, target: Tensor) -> Tensor:
        return torch.full((len(rgb),), torch.nan)


def settings(**svdd: object) -> VisualPromptConfig:
    plan = SvddConfig(**{"reward": "text:1", "m": 4, **svdd})  # type: ignore[arg-type]
    return VisualPromptConfig(steps=4, guidance_scale=1.0, svdd=plan)


def sampler_of(prior: Prior, judge: object = None, **svdd: object):
    generator = torch.Generator().manual_seed(0)
    judge = judge or Brightness()
    return steered_sampler(prior, judge, "a", "", settings(**svdd), generator)


def drawn(sampler: object, count: int = 8) -> Tensor:
    return sampler.sample(["a"] * count, "", 4, 1.0, torch.Generator().manual_seed(1))


def test_steering_raises_the_reward(prior: Prior):
    steered, plain = drawn(sampler_of(prior)), drawn(sampler_of(prior, m=1))
    assert float(steered.mean()) > float(plain.mean())


def test_the_reward_is_in_deviations_of_plain_drawings(prior: Prior):
    """So the same alpha means the same for a judge whose scores are a thousand times larger."""

    class Larger(Brightness):
        def score(self, rgb: Tensor, target: Tensor) -> Tensor:
            return 7.0 + 1000.0 * super().score(rgb, target)

    found = []
    for judge in (Brightness(), Larger()):
        sampler = sampler_of(prior, judge, alpha=0.5)
        drawn(sampler, 2)
        found.append(sampler.choices)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.values, other.values, atol=2e-2, rtol=1e-2)


def test_a_reward_that_is_the_same_everywhere_changes_nothing(prior: Prior):
    """Of tiny random pictures no cut-out is whole, so that reward has no scale of its own."""
    alone, both = (
        drawn(sampler_of(prior, reward=text), 2) for text in ("text:1", "text:1,single:1e-9")
    )
    assert torch.equal(alone, both)


def test_the_monte_carlo_value_asks_the_denoiser_for_no_proposal(
    prior: Prior, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vp3d.align.sampler.ROLLOUTS", 8)
    monkeypatch.setattr("vp3d.align.sampler.UPDATES", 20)
    sampler = sampler_of(prior, value="mc")
    state = Latents(prior.drawing(["a"], "", 4, 1.0), torch.zeros(1, 4, 8, 8), 1)
    assert sampler.value(state, 0).shape == (1,) and state._epsilon is None


def test_the_monte_carlo_value_is_that_of_its_seed_and_skips_what_is_no_number(
    prior: Prior, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vp3d.align.sampler.ROLLOUTS", 8)
    monkeypatch.setattr("vp3d.align.sampler.UPDATES", 20)

    class Patchy(Brightness):
        def score(self, rgb: Tensor, target: Tensor) -> Tensor:
            values = super().score(rgb, target)
            return values.where(torch.arange(len(rgb)) != 0, torch.nan)

    x, found = torch.randn(3, 4, 8, 8), []
    for _ in range(2):
        torch.manual_seed(len(found))  # the state of other work
        value = sampler_of(prior, Patchy(), value="mc").value
        found.append(value(Latents(prior.drawing(["a"] * 3, "", 4, 1.0), x, 1), 0))
    assert torch.equal(*found) and bool(found[0].isfinite().all())


def test_a_reward_without_numbers_is_refused_before_the_drawing(prior: Prior):
    with pytest.raises(UserError, match="the reward text is not a number for any plain drawing"):
        sampler_of(prior, Broken())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("beauty:1", "there is no reward 'beauty'; use text, "),
        ("os:system", "there is no reward 'os:system'"),  # a config names no code
        ("text:0", "write NAME or NAME:WEIGHT"),
        ("", "write NAME or NAME:WEIGHT"),
        ("text,text", "twice"),
    ],
)
def test_rewards_that_cannot_be_used_are_named(text: str, match: str):
    with pytest.raises(UserError, match=match) as refused:
        check_reward(text)
    assert "visual_prompt.svdd.reward" in str(refused.value)

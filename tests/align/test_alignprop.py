"""AlignProp's gradient, truncation and steps, against naive second versions."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.tiny_models import tiny_prior_config
from vp3d.align.alignprop import draw, repeat_last
from vp3d.align.learner import Law, parse_law
from vp3d.diffusion.drawing import Drawing
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.lora import attach
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.sampling import ddim_step
from vp3d.errors import UserError

STEPS = 5


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def prior(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prior:
    kind = str(request.param)
    prior = load_prior(tiny_prior_config(tmp_path_factory.mktemp(kind), kind=kind))
    parameters = attach({"unet": prior.unet}, "a", 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for key, value in parameters.items():
            if ".lora_B." in key:
                value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    prior.lora = parameters  # type: ignore[attr-defined]
    return prior


def drawing_of(prior: Prior) -> Drawing:
    return prior.drawing(["a red cube", "a blue cone"], "", STEPS, 2.0)


def gradient(prior: Prior, x0: torch.Tensor) -> torch.Tensor:
    parameters = list(prior.lora.values())  # type: ignore[attr-defined]
    found = torch.autograd.grad(x0.square().sum(), parameters)
    return torch.cat([part.flatten() for part in found])


def naive(drawing: Drawing, x: torch.Tensor, keep: int, stop_input: bool) -> torch.Tensor:
    """The chain written out; predictions before the last `keep` are detached one by one."""
    for i in range(STEPS):
        epsilon = drawing(x.detach() if stop_input else x, i)
        if i < STEPS - keep:
            epsilon = epsilon.detach()
        here, there = (drawing.levels[j].expand(len(x)) for j in (i, i + 1))
        x = ddim_step(x, epsilon, here, there)
    return x


@pytest.mark.parametrize("keep", [1, 3, STEPS])
@pytest.mark.parametrize("stop_input", [False, True])
def test_checkpointed_gradient_is_that_of_the_naive_graph(
    prior: Prior, keep: int, stop_input: bool
) -> None:
    drawing, x = drawing_of(prior), prior.noise(2, torch.Generator().manual_seed(3))
    ours = draw(drawing, x, keep, input_gradient=not stop_input)
    theirs = naive(drawing, x, keep, stop_input)
    torch.testing.assert_close(ours, theirs)
    expected = gradient(prior, theirs)
    assert expected.norm() > 0.0
    difference = (gradient(prior, ours) - expected).norm() / expected.norm()
    assert float(difference) < 1e-4


def test_visit_hears_each_live_step_once(prior: Prior) -> None:
    drawing, x = drawing_of(prior), prior.noise(2, torch.Generator().manual_seed(3))
    visited: list[int] = []
    gradient(prior, draw(drawing, x, 3, visit=lambda _, i: visited.append(i)))
    assert visited == [2, 3, 4]
    visited.clear()
    draw(drawing, x, 0, visit=lambda _, i: visited.append(i))
    assert visited == [4]  # what the last step would be trained on


def test_saved_tensors_grow_with_k_by_latents_and_not_by_activations(prior: Prior) -> None:
    drawing, x = drawing_of(prior), prior.noise(2, torch.Generator().manual_seed(3))

    def saved(keep: int) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            draw(drawing, x, keep)
        return sum(sizes)

    a_step = (saved(STEPS) - saved(1)) / (STEPS - 1)
    assert a_step < 40 * x.numel()


def test_repeated_last_step_belongs_to_its_prompt(prior: Prior) -> None:
    drawing, x0 = drawing_of(prior), prior.noise(2, torch.Generator().manual_seed(3))
    noise = torch.randn((3, *x0.shape), generator=torch.Generator().manual_seed(4))
    found = repeat_last(drawing, x0, noise)
    assert found.shape == (6, *x0.shape[1:])
    level = drawing.levels[STEPS - 1]
    noisy = level.sqrt() * x0.repeat(3, 1, 1, 1) + (1.0 - level).sqrt() * noise.flatten(0, 1)
    one = drawing(noisy[2:4], STEPS - 1)
    expected = (noisy[2:4] - (1.0 - level).sqrt() * one) / level.sqrt()
    torch.testing.assert_close(found[2:4], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("law", "mean"), [(Law("uniform", 5), 3.0), (Law("gaussian"), 3.7)])
def test_truncation_laws_stay_in_range_with_their_mean(law: Law, mean: float) -> None:
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor([law.draw(20, generator) for _ in range(2000)]).double()
    assert int(found.min()) >= 1 and int(found.max()) < 20
    assert abs(float(found.mean()) - mean) < 0.3


def test_laws_are_parsed_and_never_longer_than_the_draw() -> None:
    generator = torch.Generator().manual_seed(0)
    assert parse_law("fixed:9").draw(4, generator) == 4
    assert parse_law("gaussian").draw(1, generator) == 1
    for wrong in ("", "fixed", "fixed:0", "uniform:x", "normal:3", "gaussian:2"):
        with pytest.raises(UserError, match="--k"):
            parse_law(wrong)

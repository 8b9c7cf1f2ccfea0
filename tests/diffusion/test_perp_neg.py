"""Perp-Neg by hand values, by properties, and against a second version written sample by sample as
it is printed.
"""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.tiny_models import tiny_prior_config
from vp3d.config.schema import GuidanceConfig, Schedule
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.perp_neg import perp_neg, perpendicular, view_negatives
from vp3d.diffusion.prior import Prior
from vp3d.guidance.condition import build_condition
from vp3d.guidance.vp_sds import Guidance
from vp3d.types import Camera

GENERATOR = torch.Generator().manual_seed(0)
CAMERA = Camera(
    torch.tensor([20.0, -100.0]),
    torch.tensor([0.0, 40.0]),
    torch.full((2,), 2.9),
    torch.full((2,), 40.0),
)


def test_perpendicular_by_hand() -> None:
    x, y = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2), torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)
    assert torch.equal(perpendicular(x, y), torch.tensor([0.0, 4.0]).view(1, 1, 1, 2))
    assert torch.equal(perpendicular(x, torch.zeros_like(y)), x)


def test_perpendicular_is_orthogonal_in_each_sample_and_stays_so() -> None:
    x, y = torch.randn(2, 5, 4, 6, 6, generator=GENERATOR).unbind()
    found = perpendicular(x, y)
    assert (found * y).sum((1, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(perpendicular(found, y), found, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(perpendicular(x, 100.0 * y), found, atol=1e-4, rtol=1e-3)
    assert perpendicular(3.0 * y, y).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("azimuth", "places", "weights"),
    [
        (0.0, (0.0, 90.0), (4 * math.exp(-0.5) - 2.426, 4 - 2.426)),
        (45.0, (0.0, 90.0), (4 * math.exp(-0.25) - 2.426, 4 * math.exp(-0.25) - 2.426)),
        (-45.0, (0.0, -90.0), (4 * math.exp(-0.25) - 2.426, 4 * math.exp(-0.25) - 2.426)),
        (90.0, (90.0, 0.0), (math.exp(-0.5) - 0.606, math.exp(-0.5) + 0.967)),
        (-135.0, (-90.0, 0.0), (math.exp(-0.25) - 0.606, math.exp(-0.25) + 0.967)),
        (180.0, (-90.0, 0.0), (1 - 0.606, 1 + 0.967)),
        (540.0 - 45.0, (90.0, 0.0), (math.exp(-0.25) - 0.606, math.exp(-0.25) + 0.967)),
    ],
)
def test_negatives_of_a_view_by_hand(azimuth: float, places: tuple, weights: tuple) -> None:
    found_places, found_weights = view_negatives(torch.tensor([azimuth]))
    assert found_places.tolist() == [list(places)]
    torch.testing.assert_close(found_weights, torch.tensor([weights]))


def test_weights_are_never_negative_and_grow_away_from_the_front() -> None:
    _, weights = view_negatives(torch.linspace(-180.0, 180.0, 721))
    assert weights.min() >= 0
    _, turning = view_negatives(torch.tensor([1.0, 30.0, 60.0, 89.0]))
    assert (
        turning[:, 0].diff() > 0
    ).all()  # the front is pushed away more the further the view has turned


def naive(
    null: torch.Tensor, positive: torch.Tensor, negatives: list[torch.Tensor], weights: torch.Tensor
) -> torch.Tensor:
    rows = []
    for b in range(len(null)):
        e_pos = (positive[b] - null[b]).flatten().double()
        total = torch.zeros_like(e_pos)
        for i, negative in enumerate(negatives):
            e_i = (negative[b] - null[b]).flatten().double()
            total += float(weights[b, i]) * (
                e_i - torch.dot(e_i, e_pos) / torch.dot(e_pos, e_pos) * e_pos
            )
        rows.append(total.float().view_as(null[b]))
    return torch.stack(rows)


def test_sum_is_the_printed_formula() -> None:
    null, positive, *negatives = torch.randn(4, 3, 4, 5, 5, generator=GENERATOR).unbind()
    weights = torch.rand(3, 2, generator=GENERATOR)
    found = perp_neg(null, positive, negatives, weights)
    torch.testing.assert_close(
        found, naive(null, positive, negatives, weights), atol=1e-5, rtol=1e-4
    )
    same = perp_neg(
        null, positive, [positive, positive], weights
    )  # asks for what the positive text asks for
    assert same.abs().max() < 1e-5


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Prior:
    return load_prior(tiny_prior_config(tmp_path_factory.mktemp("tiny"), kind="sdxl"))


@pytest.mark.parametrize(
    ("change", "scale", "branches"),
    [
        ({}, 7.0, 4),
        ({"mode": "split"}, 5.0, 5),
        ({"guidance_scale": 1.0}, 1.0, 4),
        ({"lam": Schedule(0.0, 0.0)}, 7.0, 4),
        ({"guidance_scale": 0.0}, 0.0, 1),
    ],
)
def test_guidance_subtracts_it(prior: Prior, change: dict, scale: float, branches: int) -> None:
    """e_hat with Perp-Neg is e_hat without, less s * share * the sum over the neighbouring views,
    from single denoiser calls.
    """
    settings = {
        "guidance_scale": 7.0,
        "text_scale": 5.0,
        "image_scale": 2.0,
        "lam": Schedule(0.6, 0.6),
    }
    settings |= {"denoise_steps": 1} | change
    picture = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(6))
    condition = build_condition(prior, "a red cube", "blurry", picture)
    latents = prior.noise(2, torch.Generator().manual_seed(1))
    sizes: list[int] = []
    hook = prior.unet.conv_in.register_forward_hook(
        lambda _m, args, _out: sizes.append(len(args[0]))
    )
    plain, with_it = (
        Guidance(prior, GuidanceConfig(**settings, perp_neg=share)).estimate(
            latents, CAMERA, condition, 0.0, torch.Generator().manual_seed(2)
        )
        for share in (0.0, 0.5)
    )
    hook.remove()
    assert sizes[1] == 2 * branches
    bar = prior.alpha_bar[plain.t][:, None, None, None]
    noised = bar.sqrt() * latents + (1 - bar).sqrt() * plain.noise
    lam = settings["lam"].start
    none, image = (None, None) if lam == 0.0 else (prior.null_image, condition.image)
    places, weights = view_negatives(CAMERA.azimuth_deg)
    told = [
        ["front view", "left side view"],
        ["right side view from above", "front view from above"],
    ]
    views = ["front view", "right side view from above"]
    rows = []
    for b in range(2):
        args = (noised[b : b + 1], plain.t[b : b + 1])
        gate = torch.full((1,), lam)
        null = prior.predict_noise(*args, condition.null, none, gate)
        full = prior.predict_noise(
            *args, prior.encode_text([f"a red cube, {views[b]}"]), image, gate
        )
        others = [
            prior.predict_noise(*args, prior.encode_text([f"a red cube, {view}"]), none, gate)
            for view in told[b]
        ]
        rows.append(naive(null, full, others, weights[b : b + 1]))
    expected = plain.e_hat - 0.5 * scale * torch.cat(rows)
    torch.testing.assert_close(with_it.e_hat, expected, atol=2e-4, rtol=1e-3)
    assert places.shape == (2, 2) and (
        scale == 0.0 or (with_it.e_hat - plain.e_hat).abs().max() > 1e-3
    )

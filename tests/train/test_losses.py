"""The regularisers against hand values, their bounds and their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from vp3d.train import losses


def test_opacity_entropy_by_hand() -> None:
    assert losses.opacity_entropy(torch.full((7,), 0.5)).item() == pytest.approx(
        math.log(2.0), rel=1e-6
    )
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert losses.opacity_entropy(torch.tensor([0.25, 0.75])).item() == pytest.approx(
        quarter, rel=1e-6
    )
    assert losses.opacity_entropy(torch.tensor([0.0, 1.0])).item() < 0.01


def test_opacity_entropy_pushes_to_the_nearer_end_and_is_finite_at_both() -> None:
    opacity = torch.tensor([0.0, 0.2, 0.8, 1.0], requires_grad=True)
    losses.opacity_entropy(opacity).backward()
    assert torch.isfinite(opacity.grad).all()
    assert opacity.grad[1] > 0 > opacity.grad[2]
    assert opacity.grad[0] == 0 == opacity.grad[3]


def test_opacity_entropy_gradient() -> None:
    opacity = (
        torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    )
    assert torch.autograd.gradcheck(losses.opacity_entropy, (opacity.requires_grad_(),))


def test_sparsity_is_the_mean() -> None:
    assert losses.sparsity(torch.tensor([0.0, 0.5, 1.0, 0.1])).item() == pytest.approx(0.4)


def test_fog_by_hand() -> None:
    """Own colours 0.5, 0.58 and 0.9 on a background of 0.5, and an empty ray."""
    opacity = torch.tensor([0.5, 1.0, 1.0, 0.0])
    own = torch.tensor([[0.5, 0.5, 0.5], [0.58, 0.5, 0.5], [0.5, 0.5, 0.9], [0.0, 0.0, 0.0]])
    found = losses.fog(opacity[:, None] * own, opacity, torch.full((4, 3), 0.5))
    assert found.item() == pytest.approx((0.5 + math.exp(-1.0)) / 4, rel=1e-4)


def test_fog_removes_only_what_has_the_colour_of_the_background() -> None:
    opacity = torch.tensor([0.6, 0.6], requires_grad=True)
    own = torch.tensor([[0.52, 0.5, 0.5], [0.2, 0.8, 0.9]], requires_grad=True)
    losses.fog(opacity[:, None] * own, opacity, torch.full((2, 3), 0.51)).backward()
    assert opacity.grad[0] > 0.4 and abs(opacity.grad[1]) < 1e-5
    assert own.grad is None, "it moves no colour"


def test_fog_counts_only_where_the_guidance_wants_background_too() -> None:
    opacity, grey = torch.tensor([0.6, 0.6, 0.6]), torch.full((3, 3), 0.5)
    target = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.42, 0.5], [0.9, 0.1, 0.1]])
    found = losses.fog(opacity[:, None] * grey, opacity, grey, target)
    assert found.item() == pytest.approx(0.6 * (1.0 + math.exp(-1.0)) / 3, rel=1e-4)


def test_orientation_sees_only_normals_that_face_away() -> None:
    direction = torch.tensor([[1.0, 0.0, 0.0]])
    facing, away, half = (
        torch.tensor([[-1.0, 0, 0]]),
        torch.tensor([[1.0, 0, 0]]),
        torch.tensor([[0.3, 0.4, 0]]),
    )
    assert losses.orientation(facing, direction).item() == 0.0
    assert losses.orientation(away, direction).item() == 1.0
    assert losses.orientation(half, direction).item() == pytest.approx(0.09)


def test_orientation_never_exceeds_the_per_sample_sum() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        normals = torch.nn.functional.normalize(torch.randn(12, 3, generator=generator), dim=-1)
        weights = torch.softmax(torch.randn(12, generator=generator), 0) * 0.9
        direction = torch.nn.functional.normalize(torch.randn(1, 3, generator=generator), dim=-1)
        per_sample = sum(
            float(w) * max(0.0, float(n @ direction[0])) ** 2
            for w, n in zip(weights, normals, strict=True)
        )
        per_ray = losses.orientation(
            (weights[:, None] * normals).sum(0, keepdim=True), direction
        ).item()
        assert per_ray <= per_sample + 1e-6

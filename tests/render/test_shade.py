"""The toybox light: hand values, bounds, and deferred shading of a Render."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vp3d.render.shade import (
    AMBIENT,
    DIFFUSE,
    LIGHT_DIRECTION,
    lambert,
    lambert_shade,
    shade_render,
)
from vp3d.types import Render


def test_constants() -> None:
    assert (AMBIENT, DIFFUSE) == (0.55, 0.45)
    assert math.sqrt(sum(c * c for c in LIGHT_DIRECTION)) == pytest.approx(1.0)
    assert LIGHT_DIRECTION[0] / LIGHT_DIRECTION[2] == pytest.approx(0.45 / 0.82)
    assert LIGHT_DIRECTION[1] / LIGHT_DIRECTION[2] == pytest.approx(0.35 / 0.82)


def test_lambert_by_hand() -> None:
    light = torch.tensor(LIGHT_DIRECTION)
    across = F.normalize(torch.linalg.cross(light, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    slanted = 0.5 * light + math.sqrt(0.75) * across  # 60 degrees from the light
    rgb = lambert(
        torch.tensor([[0.2, 0.4, 1.0]]).expand(4, 3), torch.stack([light, across, -light, slanted])
    )
    # (1 + cos) / 2 is 1, 1/2, 0 and 3/4.
    factors = torch.tensor([1.0, 0.775, 0.55, 0.55 + 0.45 * 0.75])
    assert torch.allclose(rgb, factors[:, None] * torch.tensor([0.2, 0.4, 1.0]), atol=1e-6)


def test_bounds_and_gradient() -> None:
    normal = F.normalize(
        torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    ).requires_grad_()
    shade = lambert_shade(normal)
    assert shade.min() >= AMBIENT and shade.max() <= AMBIENT + DIFFUSE + 1e-6
    shade.sum().backward()
    # The gradient is the same everywhere: no side is without relief.
    assert torch.allclose(normal.grad, 0.5 * DIFFUSE * torch.tensor(LIGHT_DIRECTION).expand(64, 3))


def test_shade_render_lights_by_the_renormalised_normal() -> None:
    up = torch.tensor([[0.0, 0.0, 1.0]])
    render = Render(
        torch.full((2, 3), 0.5), torch.ones(2), torch.ones(2), torch.cat([0.3 * up, 0.0 * up])
    )
    lit = shade_render(render)
    assert torch.allclose(
        lit.rgb[0],
        0.5 * (AMBIENT + DIFFUSE * 0.5 * (1 + LIGHT_DIRECTION[2])) * torch.ones(3),
        atol=1e-6,
    )
    # Without a normal: the mean light.
    assert torch.allclose(lit.rgb[1], 0.5 * (AMBIENT + 0.5 * DIFFUSE) * torch.ones(3))
    with pytest.raises(ValueError, match="want_normal"):
        shade_render(Render(torch.zeros(1, 3), torch.zeros(1), torch.zeros(1)))

"""The light of the toybox world: a distant lamp and an ambient term, fixed in the world frame.

    shade = AMBIENT + DIFFUSE * (1 + n . LIGHT_DIRECTION) / 2

This is half-Lambert shading: the side away from the lamp keeps its relief. It multiplies displayed
(sRGB-encoded) colours; nothing here is linear. AMBIENT + DIFFUSE = 1, so a shaded colour stays in
[0, 1]. The toybox renders its ground truth with the same numbers.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vp3d.types import Render

AMBIENT = 0.55
DIFFUSE = 0.45
_TOWARDS_LIGHT = (0.45, 0.35, 0.82)
_LENGTH = math.sqrt(sum(c * c for c in _TOWARDS_LIGHT))
# Unit vector from the object towards the lamp.
LIGHT_DIRECTION: tuple[float, float, float] = (
    _TOWARDS_LIGHT[0] / _LENGTH,
    _TOWARDS_LIGHT[1] / _LENGTH,
    _TOWARDS_LIGHT[2] / _LENGTH,
)


def lambert_shade(normal: Tensor) -> Tensor:
    """Factor of the light for unit outward normals `[N, 3]`: `[N]`, from AMBIENT to 1."""
    light = torch.tensor(LIGHT_DIRECTION, dtype=normal.dtype, device=normal.device)
    return AMBIENT + DIFFUSE * 0.5 * (1.0 + (normal * light).sum(-1))


def lambert(albedo: Tensor, normal: Tensor) -> Tensor:
    """Shaded colour `[N, 3]` in [0, 1].

    Args:
        albedo: Unlit colour `[N, 3]` in [0, 1].
        normal: Unit outward normals `[N, 3]` in the world frame.
    """
    return albedo * lambert_shade(normal)[:, None]


def shade_render(render: Render) -> Render:
    """Deferred shading: the Render with its albedo lit by its own mean normal, renormalised.

    This evaluates the light once for a ray rather than once for a sample. The picture is the same
    wherever a ray meets a single surface.

    Args:
        render: A Render with normals whose rgb is premultiplied albedo in [0, 1].

    Raises:
        ValueError: The Render has no normals.
    """
    if render.normal is None:
        raise ValueError(
            "shade_render needs a Render with normals: call render_rays(..., want_normal=True)"
        )
    normal = F.normalize(render.normal, dim=-1, eps=1e-6)
    return dataclasses.replace(render, rgb=lambert(render.rgb, normal))

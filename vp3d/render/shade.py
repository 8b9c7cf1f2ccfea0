"""The light of the toybox world: one distant lamp and an ambient term, fixed in the world frame.

    shade = AMBIENT + DIFFUSE * (1 + n . LIGHT_DIRECTION) / 2        (half-Lambert: no side goes flat)

applied to displayed (sRGB-encoded) colours, as everything here is. AMBIENT + DIFFUSE = 1, so a shaded colour stays in
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
LIGHT_DIRECTION: tuple[float, float, float] = (
    _TOWARDS_LIGHT[0] / _LENGTH,
    _TOWARDS_LIGHT[1] / _LENGTH,
    _TOWARDS_LIGHT[2] / _LENGTH,
)  # unit, from the object towards the lamp


def lambert_shade(normal: Tensor) -> Tensor:
    """The factor of the light for unit outward normals `[N, 3]`: `[N]` in [AMBIENT, AMBIENT + DIFFUSE]."""
    light = torch.tensor(LIGHT_DIRECTION, dtype=normal.dtype, device=normal.device)
    return AMBIENT + DIFFUSE * 0.5 * (1.0 + (normal * light).sum(-1))


def lambert(albedo: Tensor, normal: Tensor) -> Tensor:
    """Lambertian colour: albedo `[N, 3]` in [0, 1] under unit outward normals `[N, 3]`; rgb `[N, 3]` in [0, 1]."""
    return albedo * lambert_shade(normal)[:, None]


def shade_render(render: Render) -> Render:
    """Deferred shading: a Render whose rgb is albedo, lit by its own (renormalised) mean normal, rgb in [0, 1].

    One light evaluation a ray instead of one a sample; the same picture wherever a ray meets a single surface.
    """
    if render.normal is None:
        raise ValueError(
            "shade_render needs a Render with normals: call render_rays(..., want_normal=True)"
        )
    return dataclasses.replace(
        render, rgb=lambert(render.rgb, F.normalize(render.normal, dim=-1, eps=1e-6))
    )

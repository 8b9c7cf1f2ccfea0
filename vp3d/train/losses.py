"""Regularisers of the coarse stage: pure functions, each an unweighted scalar.

Conventions: `opacity` is a flat per-ray tensor `[N]` in [0, 1]; directions point from the camera into the scene, unit
length; normals point outwards. Every loss is a mean, so weights do not depend on the resolution or the number of views.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vp3d.fields.nerf import Field

ENTROPY_CLAMP = (
    1.0e-3  # opacities nearer to 0 or 1 than this count as decided: no pull, and a finite gradient
)


def opacity_entropy(opacity: Tensor) -> Tensor:
    """Mean binary entropy of opacity `[N]` in [0, 1]; scalar in [0, ln 2], lowest where every ray hits or misses.

    H(o) = -o ln o - (1 - o) ln(1 - o), as the `loss_opaque` of threestudio's DreamFusion.
    """
    o = opacity.clamp(ENTROPY_CLAMP, 1.0 - ENTROPY_CLAMP)
    return -(o * o.log() + (1.0 - o) * (1.0 - o).log()).mean()


def sparsity(opacity: Tensor) -> Tensor:
    """Mean opacity `[N]` in [0, 1]; scalar in [0, 1]. Its pull is the same everywhere, so it dissolves what nothing holds."""
    return opacity.mean()


def smoothness(field: Field) -> Tensor:
    """The field's own total variation of density and albedo; scalar >= 0 (see `Field.smoothness`)."""
    return field.smoothness()


def orientation(normal: Tensor, directions: Tensor) -> Tensor:
    """Penalty on visible normals that face away from the camera; scalar in [0, 1].

    normal     [N, 3] opacity-weighted outward normals of rays, length in [0, 1]
    directions [N, 3] unit ray directions

    Ref-NeRF (Verbin et al. 2022), eq. 11: sum_i w_i max(0, n_i . d)^2 over the samples of a ray. Here the weighted
    normal of the whole ray is used, max(0, sum_i w_i n_i . d)^2, which is never more than that sum (Jensen).
    """
    away = (normal * directions).sum(dim=-1)
    return torch.relu(away).square().mean()

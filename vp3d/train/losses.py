"""Regularisers of the coarse stage: pure functions, each returns one unweighted scalar.

Conventions: `opacity` is a flat per-ray tensor `[N]` in [0, 1]. Directions point from the camera
into the scene and have unit length; normals point outwards. Every loss is a mean, so that weights
do not depend on the resolution or the number of views.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vp3d.fields.nerf import Field

# Opacities closer than this to 0 or 1 count as decided: their gradient is zero instead of huge.
ENTROPY_CLAMP = 1.0e-3
# Difference of colours, in [0, 1], at which a ray still counts 1 / e as fog.
FOG_WIDTH = 0.08


def opacity_entropy(opacity: Tensor) -> Tensor:
    """Mean binary entropy of opacity `[N]` in [0, 1]: lowest where every ray hits or misses.

    H(o) = -o ln o - (1 - o) ln(1 - o), as `loss_opaque` of threestudio's DreamFusion.

    Args:
        opacity: `[N]` in [0, 1].

    Returns:
        A scalar in [0, ln 2].

    Example:
        >>> round(float(opacity_entropy(torch.tensor([0.5]))), 4)
        0.6931
    """
    o = opacity.clamp(ENTROPY_CLAMP, 1.0 - ENTROPY_CLAMP)
    return -(o * o.log() + (1.0 - o) * (1.0 - o).log()).mean()


def sparsity(opacity: Tensor) -> Tensor:
    """Mean opacity `[N]` in [0, 1]; a scalar in [0, 1].

    Its gradient is the same for every ray, so it removes density that no other loss supports.
    """
    return opacity.mean()


def fog(rgb: Tensor, opacity: Tensor, background: Tensor, target: Tensor | None = None) -> Tensor:
    """Mean opacity of rays that show the background's own colour; a scalar in [0, 1].

    Matter in the colour of the background changes no picture, so the guidance neither supports nor
    removes it, and the entropy makes it solid: a film closes the hole of a ring. Each ray counts
    exp(-(d / FOG_WIDTH)^2), where d is the largest difference between the background and a channel
    of its own colour or of what the guidance wants to see there; that factor carries no gradient.
    Without the latter, the first steps count nearly every ray: the field begins in grey.

    Args:
        rgb: `[N, 3]` in [0, 1], premultiplied by opacity.
        opacity: `[N]` in [0, 1].
        background: `[N, 3]` in [0, 1].
        target: `[N, 3]` in [0, 1], the guidance's estimate of each pixel; None if it has none.
    """
    with torch.no_grad():
        color = rgb / opacity.clamp_min(ENTROPY_CLAMP)[:, None]
        difference = (color - background).abs().amax(dim=-1)
        if target is not None:
            difference = difference.maximum((target - background).abs().amax(dim=-1))
        likeness = torch.exp(-(difference / FOG_WIDTH).square())
    return (opacity * likeness).mean()


def smoothness(field: Field) -> Tensor:
    """The field's own total variation of density and albedo, a scalar >= 0 (`Field.smoothness`)."""
    return field.smoothness()


def orientation(normal: Tensor, directions: Tensor) -> Tensor:
    """Penalty on visible normals that face away from the camera.

    Ref-NeRF (Verbin et al., arXiv 2112.03907), eq. 11, sums w_i max(0, n_i . d)^2 over the samples
    of a ray. This uses the weighted normal of the ray instead, max(0, sum_i w_i n_i . d)^2, which
    is never larger than that sum (Jensen's inequality).

    Args:
        normal: `[N, 3]`, opacity-weighted outward normals of the rays, length in [0, 1].
        directions: `[N, 3]`, unit ray directions.

    Returns:
        A scalar in [0, 1].
    """
    away = (normal * directions).sum(dim=-1)
    return torch.relu(away).square().mean()

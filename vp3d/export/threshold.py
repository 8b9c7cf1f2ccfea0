"""The density threshold of the surface, chosen by silhouette IoU with the field's renders."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vp3d.errors import EmptyFieldError
from vp3d.export.marching_cubes import HIGHEST_SHARE, LOWEST_SHARE, Surface, marching_cubes
from vp3d.export.repair import drop_floaters
from vp3d.render.raster import rasterize
from vp3d.types import Camera, Mesh

COARSE_LEVELS = 8  # thresholds tried over the whole range
FINE_LEVELS = 4  # thresholds tried around the best of them
FAINTEST = 0.05  # largest opacity below which a render counts as empty


def silhouette(opacity: Tensor) -> Tensor:
    """Where `opacity` (any shape, in [0, 1]) is over half of its largest value: bool, same shape. Not-a-number is 0."""
    opacity = torch.nan_to_num(opacity.detach().float().cpu(), 0.0)
    return opacity > 0.5 * opacity.max().clamp_min(FAINTEST)


def silhouette_iou(mesh: Mesh, cameras: Camera, opacity: Tensor) -> float:
    """IoU in [0, 1] of the mesh's silhouettes and those of the reference `opacity [B, H, W]` in [0, 1], over all views."""
    reference = silhouette(opacity)
    drawn = rasterize(mesh, cameras.to("cpu"), *reference.shape[1:]).face_index >= 0
    union = int((drawn | reference).sum())
    return float((drawn & reference).sum()) / union if union else 0.0


def choose_threshold(grid: np.ndarray, cameras: Camera, opacity: Tensor) -> Surface:
    """The best of several level sets of `grid [R, R, R]` >= 0 by `silhouette_iou` against `opacity [B, H, W]` in [0, 1]."""
    top = float(np.percentile(grid, 99.9))
    top = top if top > 0 else float(grid.max())
    if not top > 0:
        raise _empty(grid)

    def cut(threshold: float) -> Surface:
        mesh = drop_floaters(marching_cubes(grid, threshold))
        return Surface(
            mesh, threshold, silhouette_iou(mesh, cameras, opacity) if len(mesh.faces) else -1.0
        )

    if not bool(silhouette(opacity).any()):
        raise _empty(grid)
    levels = np.geomspace(LOWEST_SHARE * top, HIGHEST_SHARE * top, COARSE_LEVELS)
    best = max((cut(float(level)) for level in levels), key=lambda s: s.iou)
    step = float(levels[1] / levels[0])
    around = best.threshold * np.geomspace(1 / step, step, FINE_LEVELS + 2)[1:-1]
    best = max((best, *(cut(float(level)) for level in around)), key=lambda s: s.iou)
    if best.iou <= 0:
        raise _empty(grid)
    return best


def _empty(grid: np.ndarray) -> EmptyFieldError:
    edges = [0.0, 0.01, 0.1, 1.0, 10.0, 100.0, np.inf]
    counts = np.histogram(grid, bins=edges)[0]
    shares = ", ".join(
        f"<{high:g}: {100 * n / grid.size:.1f}%"
        for high, n in zip(edges[1:], counts, strict=True)
        if n
    )
    return EmptyFieldError(
        f"the field is empty, there is no surface to export (highest density {grid.max():.3g}; shares by density {shares}); "
        "try another seed or lower loss.sparsity"
    )

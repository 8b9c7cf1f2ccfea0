"""The density threshold of the surface, chosen by the silhouettes of the field's own renders.

Marching cubes runs at several thresholds. The mesh whose silhouettes have the highest IoU with the
rendered opacity is chosen. Conventions: opacity is in [0, 1]; its silhouette is where it exceeds
half of its largest value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vp3d.errors import EmptyFieldError
from vp3d.export.marching_cubes import marching_cubes
from vp3d.export.repair import drop_floaters
from vp3d.render.raster import rasterize
from vp3d.types import Camera, Mesh

# Range of the thresholds, as shares of the 99.9th percentile of the density.
LOWEST_SHARE, HIGHEST_SHARE = 0.01, 0.8
COARSE_LEVELS = 8  # thresholds tried over the full range
FINE_LEVELS = 4  # thresholds tried around the best of these
LOWEST_OPACITY = 0.05  # smallest value that counts as the largest opacity of a render
HISTOGRAM_EDGES = [0.0, 0.01, 0.1, 1.0, 10.0, 100.0, np.inf]  # of the message about an empty field


@dataclass(frozen=True)
class Surface:
    """A mesh without colours, cut from a density grid.

    Attributes:
        mesh: The mesh.
        threshold: The density at which it was cut.
        iou: Its silhouette IoU with the field's renders, in [0, 1].
        full: The mesh before its decimation, with vertex normals; None if it was not decimated.
    """

    mesh: Mesh
    threshold: float
    iou: float
    full: Mesh | None = None


def silhouette(opacity: Tensor) -> Tensor:
    """Where `opacity` (any shape, in [0, 1]) exceeds half of its largest value: bool, same shape.

    The largest value counts as at least LOWEST_OPACITY, so that haze has no silhouette. NaN counts
    as 0.
    """
    opacity = torch.nan_to_num(opacity.detach().float().cpu(), 0.0)
    return opacity > 0.5 * opacity.max().clamp_min(LOWEST_OPACITY)


def silhouette_iou(mesh: Mesh, cameras: Camera, opacity: Tensor) -> float:
    """Intersection over union of silhouettes, over all pixels of all views, in [0, 1].

    Args:
        mesh: The mesh.
        cameras: B cameras.
        opacity: Reference opacity `[B, H, W]` in [0, 1].
    """
    reference = silhouette(opacity)
    drawn = rasterize(mesh, cameras.to("cpu"), *reference.shape[1:]).face_index >= 0
    union = int((drawn | reference).sum())
    return float((drawn & reference).sum()) / union if union else 0.0


def choose_threshold(grid: np.ndarray, cameras: Camera, opacity: Tensor) -> Surface:
    """The level set of a density grid with the highest silhouette IoU.

    Args:
        grid: Density `[R, R, R]` >= 0, indexed [x, y, z].
        cameras: B cameras.
        opacity: The field's rendered opacity `[B, H, W]` in [0, 1].

    Raises:
        EmptyFieldError: The density or the opacity is zero everywhere, or no level set is visible.
    """
    top = float(np.percentile(grid, 99.9))
    top = top if top > 0 else float(grid.max())
    if not top > 0 or not bool(silhouette(opacity).any()):
        raise empty_field_error(grid)

    def cut(threshold: float) -> Surface:
        mesh = drop_floaters(marching_cubes(grid, threshold))
        iou = silhouette_iou(mesh, cameras, opacity) if len(mesh.faces) else -1.0
        return Surface(mesh, threshold, iou)

    levels = np.geomspace(LOWEST_SHARE * top, HIGHEST_SHARE * top, COARSE_LEVELS)
    best = max((cut(float(level)) for level in levels), key=lambda s: s.iou)
    step = float(levels[1] / levels[0])
    around = best.threshold * np.geomspace(1 / step, step, FINE_LEVELS + 2)[1:-1]
    best = max((best, *(cut(float(level)) for level in around)), key=lambda s: s.iou)
    if best.iou <= 0:
        raise empty_field_error(grid)
    return best


def empty_field_error(grid: np.ndarray) -> EmptyFieldError:
    """The error for a density grid `[R, R, R]` without a surface, with a histogram of the grid."""
    counts = np.histogram(grid, bins=HISTOGRAM_EDGES)[0]
    shares = ", ".join(
        f"<{high:g}: {100 * n / grid.size:.1f}%"
        for high, n in zip(HISTOGRAM_EDGES[1:], counts, strict=True)
        if n
    )
    return EmptyFieldError(
        f"the field is empty, so there is no surface to export (highest density {grid.max():.3g}; "
        f"shares by density: {shares}); try another seed or a lower loss.sparsity"
    )

"""Level sets of a density field: its values on a grid, and marching cubes.

Conventions: the grid has `cells` cells a side over [-1, 1]^3, so cells + 1 nodes, indexed
[x, y, z]. Density is >= 0. Meshes are closed and their faces wind counter-clockwise from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vp3d.types import Mesh


class SurfaceField(Protocol):
    """The part of a field that the export reads; points `x [N, 3]` are in [-1, 1]."""

    def density(self, x: Tensor) -> Tensor:
        """Density `[N]` >= 0."""
        ...

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Density `[N]` >= 0 and albedo `[N, 3]` in [0, 1]."""
        ...


@torch.no_grad()
def density_grid(
    density: Callable[[Tensor], Tensor],
    cells: int,
    chunk: int = 262_144,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Density on the nodes of a grid.

    Args:
        density: `x [N, 3]` in [-1, 1] -> `[N]`.
        cells: Cells of a side.
        chunk: Points evaluated at once.
        device: Where `density` is evaluated.

    Returns:
        float32 `[cells + 1, cells + 1, cells + 1]` >= 0, indexed [x, y, z]. Negative and
        non-finite values become 0.
    """
    axis = torch.linspace(-1.0, 1.0, cells + 1, device=device)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    values = torch.cat([density(part).float().reshape(-1) for part in points.split(chunk)])
    grid = torch.nan_to_num(values, 0.0, 0.0, 0.0).clamp_min(0.0)
    return grid.reshape(cells + 1, cells + 1, cells + 1).cpu().numpy()


def marching_cubes(grid: np.ndarray, threshold: float) -> Mesh:
    """Level set of a density grid as a closed mesh in [-1, 1]^3 (Lorensen and Cline 1987).

    The grid is padded with one layer of zeros and the vertices are clipped to the cube, so that
    matter at the border is closed too.

    Args:
        grid: Density `[R, R, R]` >= 0, indexed [x, y, z].
        threshold: Density of the surface, > 0.

    Returns:
        The mesh with outward faces. It has no faces if no density is above the threshold.
    """
    from skimage.measure import marching_cubes as skimage_marching_cubes

    if not grid.max() > threshold:
        return Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64))
    spacing = 2.0 / (grid.shape[0] - 1)
    vertices, faces, _, _ = skimage_marching_cubes(
        np.pad(grid, 1),
        threshold,
        spacing=(spacing,) * 3,
        gradient_direction="ascent",
        allow_degenerate=False,
    )
    vertices = np.clip(vertices - (1.0 + spacing), -1.0, 1.0)
    return Mesh(vertices.astype(np.float32), faces.astype(np.int64))

"""From a density grid to triangles: sampling, marching cubes and the surface's type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vp3d.types import Mesh

LOWEST_SHARE, HIGHEST_SHARE = (
    0.01,
    0.8,
)  # the range, as shares of the 99.9th percentile of the density


class SurfaceField(Protocol):
    """What the export asks of a field; `x [N, 3]` is in [-1, 1]."""

    def density(self, x: Tensor) -> Tensor:
        """sigma [N] >= 0."""
        ...

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """sigma [N] >= 0 and albedo [N, 3] in [0, 1]."""
        ...


@torch.no_grad()
def density_grid(
    density: Callable[[Tensor], Tensor],
    cells: int,
    chunk: int = 262_144,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """`density(x [N, 3]) -> [N]` on the nodes of a grid of `cells` a side over [-1, 1]^3.

    Returns float32 [cells+1, cells+1, cells+1] >= 0 indexed [x, y, z]; non-finite values become 0.
    """
    axis = torch.linspace(-1.0, 1.0, cells + 1, device=device)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    values = torch.cat([density(part).float().reshape(-1) for part in points.split(chunk)])
    grid = torch.nan_to_num(values, 0.0, 0.0, 0.0).clamp_min(0.0)
    return grid.reshape(cells + 1, cells + 1, cells + 1).cpu().numpy()


def marching_cubes(grid: np.ndarray, threshold: float) -> Mesh:
    """The level set of `grid [R, R, R]` >= 0 at `threshold` > 0 as a closed mesh in [-1, 1]^3, outward faces; may be empty."""
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


@dataclass(frozen=True)
class Surface:
    """A mesh without colours, the density threshold it was cut at, and its silhouette IoU in [0, 1]."""

    mesh: Mesh
    threshold: float
    iou: float

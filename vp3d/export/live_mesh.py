"""A rough mesh of a field that is still being optimised: quick, small, and only for looking at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vp3d.export.bake import bake_vertex_colors
from vp3d.export.marching_cubes import SurfaceField, density_grid, marching_cubes
from vp3d.export.repair import drop_floaters
from vp3d.export.surface import decimate, vertex_normals
from vp3d.types import Mesh

CELLS = 40  # of the density grid along a side
FACES = 5000  # most triangles: with vertex colours about 120 kB of GLB
LEVEL = 0.2  # of the surface, as a share of the 99.9th percentile of the density


def rough_mesh(
    field: SurfaceField, within: Callable[[Tensor], Tensor], device: torch.device | str
) -> Mesh | None:
    """The field's surface at a fixed share of its density, with vertex colours.

    Nothing random is drawn, and the field is not changed.

    Args:
        field: The field.
        within: `x [N, 3] -> [N]` bool, where density counts.
        device: Where the field is evaluated.

    Returns:
        At most `FACES` triangles; None if the field has no surface yet.
    """
    with torch.no_grad():
        grid = density_grid(lambda x: field.density(x) * within(x), CELLS, device=device)
        top = float(np.percentile(grid, 99.9))
        if not top > 0.0:
            return None
        mesh = decimate(drop_floaters(marching_cubes(grid, LEVEL * top)), FACES)
        if not len(mesh.faces):
            return None
        return bake_vertex_colors(field, vertex_normals(mesh), 2.0 / CELLS, device)

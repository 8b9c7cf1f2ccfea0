"""Field to textured mesh: surface, texture atlas and bake in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vp3d.config.schema import ExportConfig
from vp3d.export.bake import bake_texture, bake_vertex_colors
from vp3d.export.marching_cubes import SurfaceField, density_grid
from vp3d.export.repair import is_watertight
from vp3d.export.surface import extract_surface
from vp3d.export.uv import unwrap
from vp3d.types import Camera, Mesh

XATLAS_WARNING = (
    "xatlas failed or took more than {seconds:g} s, so the texture uses VP3D's own atlas, in which "
    "no two triangles are joined; for more time: `launch.py export RUN export.unwrap_deadline_s=N`"
)


def export_mesh(
    field: SurfaceField,
    config: ExportConfig,
    cameras: Camera,
    reference_opacity: Tensor,
    device: torch.device | str = "cpu",
    event: Callable[..., None] | None = None,
    within: Callable[[Tensor], Tensor] | None = None,
) -> Mesh:
    """The field's surface as a closed mesh with normals, UVs, texture and vertex colours.

    Args:
        field: The field.
        config: Resolution of the grid and the texture, number of faces, deadline of xatlas.
        cameras: B cameras.
        reference_opacity: The field's own rendering from these cameras, `[B, H, W]` or
            `[B, 1, H, W]` in [0, 1]. Its silhouettes choose the density threshold.
        device: Where the field is evaluated.
        event: Called as event(kind, **data), as `RunFolder.event`: with "mesh" and the figures of
            the mesh, and before it with "warning" if xatlas did not deliver an atlas.
        within: `x [N, 3] -> [N]` bool, where density counts. It must be the bounds that the field
            was rendered with. None for everywhere.

    Returns:
        The mesh, with vertices split at the seams of the atlas.

    Raises:
        EmptyFieldError: The field has no visible surface.
    """
    opacity = reference_opacity.detach().reshape(len(cameras), *reference_opacity.shape[-2:])
    density = field.density if within is None else lambda x: field.density(x) * within(x)
    grid = density_grid(density, config.grid, device=device)
    surface = extract_surface(grid, cameras, opacity, config.faces)
    cell = 2.0 / config.grid
    mesh = bake_vertex_colors(field, surface.mesh, cell, device)
    atlas = unwrap(mesh.vertices, mesh.faces, config.texture_size, config.unwrap_deadline_s)
    split = {
        name: getattr(mesh, name)[atlas.mapping]
        for name in ("vertices", "normals", "vertex_colors")
    }
    mesh = replace(mesh, faces=atlas.faces, uv=atlas.uv, **split)
    mesh = bake_texture(field, mesh, config.texture_size, cell, device)
    if event is not None:
        if atlas.method != "xatlas" and config.unwrap_deadline_s > 0.0:
            event("warning", message=XATLAS_WARNING.format(seconds=config.unwrap_deadline_s))
        event(
            "mesh",
            threshold=surface.threshold,
            silhouette_iou=surface.iou,
            faces=len(mesh.faces),
            watertight=is_watertight(surface.mesh),
            atlas=atlas.method,
        )
    return mesh

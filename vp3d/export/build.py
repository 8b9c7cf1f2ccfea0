"""Field to textured mesh: surface, atlas and bake in one call."""

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

OWN_ATLAS = (
    "xatlas failed or took more than {seconds:g} s: the texture has our own atlas, where every triangle lies alone; "
    "`launch.py export RUN export.unwrap_deadline_s=N` gives it more time"
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
    """The field's surface as a closed textured mesh with normals, UVs, texture and vertex colours.

    `reference_opacity [B, H, W]` (or `[B, 1, H, W]`) in [0, 1] is the field's own rendering from the B `cameras`.
    `within(x [N, 3]) -> [N]` bool says where matter counts (everywhere), as it did when the field was rendered.
    `event(kind, **figures)` (as `RunFolder.event`) is told the threshold, IoU and face count, whether it is closed,
    and who made the atlas; and it is warned where xatlas was to make it and did not.
    Raises EmptyFieldError when there is no surface.
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
    mesh = bake_texture(
        field,
        replace(mesh, faces=atlas.faces, uv=atlas.uv, **split),
        config.texture_size,
        cell,
        device,
    )
    if event is not None:
        if atlas.method != "xatlas" and config.unwrap_deadline_s > 0.0:
            event("warning", message=OWN_ATLAS.format(seconds=config.unwrap_deadline_s))
        event(
            "mesh", threshold=surface.threshold, silhouette_iou=surface.iou, faces=len(mesh.faces),
            watertight=is_watertight(surface.mesh), atlas=atlas.method,
        )  # fmt: skip
    return mesh

"""Surface to textured meshes: simplify, unwrap, bake and map, once for each level of detail.

A `Source` is what a mesh is made from: a fine surface, and colours at any point near it. It comes
from a field (`field_source`) or from a mesh of any origin (vp3d/export/foreign.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vp3d.config.paths import program
from vp3d.config.schema import ExportConfig
from vp3d.export.bake import bake_texture, bake_vertex_colors
from vp3d.export.maps import Detail, detail_of, with_maps
from vp3d.export.marching_cubes import SurfaceField, density_grid
from vp3d.export.repair import drop_floaters, is_watertight
from vp3d.export.surface import extract_surface, simplify, vertex_normals
from vp3d.export.uv import unwrap
from vp3d.types import Camera, Mesh

XATLAS_WARNING = (
    "xatlas failed or took more than {seconds:g} s, so the texture uses VP3D's own atlas, in which "
    "no two triangles are joined; for more time: "
    f"`{program()} export RUN export.unwrap_deadline_s=N`"
)
Event = Callable[..., None]


class Source(Protocol):
    """A fine surface with colours, from which meshes of any number of triangles are made."""

    @property
    def detail(self) -> Detail:
        """The points, normals and occlusion that maps are made from."""
        ...

    def simplified(self, faces: int) -> Mesh:
        """The surface with at most `faces` triangles (0: all), with vertex normals."""
        ...

    def with_vertex_colors(self, mesh: Mesh) -> Mesh:
        """`mesh`, near the surface, with its colours at the vertices."""
        ...

    def with_texture(self, mesh: Mesh, size: int) -> Mesh:
        """`mesh`, near the surface and with UVs, with its colours as a texture."""
        ...


@dataclass(frozen=True)
class FieldSource:
    """The surface of a field.

    Attributes:
        field: The field.
        full: Its surface before decimation, with vertex normals.
        cells: Cells of a side of the density grid.
        solid: Where the density is above the threshold, on the nodes of the grid, bool; None if
            no occlusion is needed.
        device: Where the field is evaluated.
    """

    field: SurfaceField
    full: Mesh
    cells: int
    solid: np.ndarray | None
    device: torch.device | str

    @cached_property
    def detail(self) -> Detail:
        """The vertices of the surface before decimation."""
        return detail_of(self.full, self.solid)

    def simplified(self, faces: int) -> Mesh:
        """The surface with at most `faces` triangles, cleaned, with vertex normals."""
        return vertex_normals(drop_floaters(simplify(self.full, faces)))

    def with_vertex_colors(self, mesh: Mesh) -> Mesh:
        """See `bake_vertex_colors`."""
        return bake_vertex_colors(self.field, mesh, 2.0 / self.cells, self.device)

    def with_texture(self, mesh: Mesh, size: int) -> Mesh:
        """See `bake_texture`."""
        return bake_texture(self.field, mesh, size, 2.0 / self.cells, self.device)


def export_levels(
    field: SurfaceField,
    config: ExportConfig,
    cameras: Camera,
    reference_opacity: Tensor,
    device: torch.device | str = "cpu",
    event: Event | None = None,
    within: Callable[[Tensor], Tensor] | None = None,
) -> list[Mesh]:
    """The field's surface as closed meshes with normals, UVs, texture, maps and vertex colours.

    Args:
        field: The field.
        config: Resolution of the grid and the texture, number of faces, deadline of xatlas, maps
            and levels of detail.
        cameras: B cameras.
        reference_opacity: The field's own rendering from these cameras, `[B, H, W]` or
            `[B, 1, H, W]` in [0, 1]. Its silhouettes choose the density threshold.
        device: Where the field is evaluated.
        event: Called as event(kind, **data), as `RunFolder.event`: with "mesh" and the figures of
            the mesh, and before it with "warning" if xatlas did not deliver an atlas.
        within: `x [N, 3] -> [N]` bool, where density counts. It must be the bounds that the field
            was rendered with. None for everywhere.

    Returns:
        The mesh, with vertices split at the seams of the atlas, and its levels of detail.

    Raises:
        EmptyFieldError: The field has no visible surface.
    """
    opacity = reference_opacity.detach().reshape(len(cameras), *reference_opacity.shape[-2:])
    density = field.density if within is None else lambda x: field.density(x) * within(x)
    grid = density_grid(density, config.grid, device=device)
    surface = extract_surface(grid, cameras, opacity, config.faces)
    solid = grid > surface.threshold if "occlusion" in config.maps else None
    full = surface.mesh if surface.full is None else surface.full
    source = FieldSource(field, full, config.grid, solid, device)
    mesh, method = textured(source, surface.mesh, config, event)
    if event is not None:
        event(
            "mesh",
            threshold=surface.threshold,
            silhouette_iou=surface.iou,
            faces=len(mesh.faces),
            watertight=is_watertight(surface.mesh),
            atlas=method,
        )
    return [mesh, *levels_of_detail(source, len(mesh.faces), config)]


def textured(
    source: Source, mesh: Mesh, config: ExportConfig, event: Event | None = None
) -> tuple[Mesh, str]:
    """A mesh with vertex normals, unwrapped, baked and mapped; and the method of its atlas.

    Args:
        source: Where colours and maps come from.
        mesh: The mesh.
        config: Its size of the texture, deadline of xatlas and maps are read.
        event: As for `export_levels`.
    """
    mesh = source.with_vertex_colors(mesh)
    atlas = unwrap(mesh.vertices, mesh.faces, config.texture_size, config.unwrap_deadline_s)
    split = {
        name: getattr(mesh, name)[atlas.mapping]
        for name in ("vertices", "normals", "vertex_colors")
    }
    mesh = replace(mesh, faces=atlas.faces, uv=atlas.uv, **split)
    mesh = source.with_texture(mesh, config.texture_size)
    if set(config.maps) & {"normal", "occlusion"}:
        mesh = with_maps(mesh, source.detail, config.maps)
    if event is not None and atlas.method != "xatlas" and config.unwrap_deadline_s > 0.0:
        event("warning", message=XATLAS_WARNING.format(seconds=config.unwrap_deadline_s))
    return mesh, atlas.method


def levels_of_detail(source: Source, faces: int, config: ExportConfig) -> list[Mesh]:
    """A mesh for each share of `config.lods` below 1, each with an atlas and a texture of its own.

    Args:
        source: Where they come from.
        faces: Triangles of the mesh that the shares are of.
        config: As for `textured`.
    """
    found = []
    for share in (share for share in config.lods if share < 1.0):
        mesh = source.simplified(max(round(share * faces), 4))
        if len(mesh.faces):
            found.append(textured(source, mesh, config)[0])
    return found

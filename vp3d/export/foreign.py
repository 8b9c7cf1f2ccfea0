"""Meshes of any origin as a `Source`: decimate, unwrap and bake what another program wrote.

The colours of a decimated mesh come from points spread over the original surface: a texel takes
the colour of the nearest one. Open meshes stay open.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.spatial import cKDTree

from vp3d.config.schema import ExportConfig
from vp3d.export.bake import surface_texels
from vp3d.export.build import Event, levels_of_detail, textured
from vp3d.export.maps import Detail, occlusion_spread, with_maps
from vp3d.export.mesh_data import vertex_normals_of
from vp3d.export.ply import weld
from vp3d.export.surface import decimate, vertex_normals
from vp3d.render.raster import base_color, interpolate
from vp3d.types import Mesh

FEWEST_POINTS, MOST_POINTS = 60_000, 1_500_000  # spread over the surface
CELLS = 96  # of the grid of solid cells that occlusion is computed with


@dataclass(frozen=True)
class Points:
    """Points spread over a surface.

    Attributes:
        at: `[N, 3]`.
        normals: Unit normals `[N, 3]`.
        colors: sRGB `[N, 3]` in [0, 1].
    """

    at: np.ndarray
    normals: np.ndarray
    colors: np.ndarray


@dataclass(frozen=True)
class MeshSource:
    """A mesh inside [-1, 1]^3 with colours.

    Attributes:
        mesh: The mesh.
        texture_size: Texels of a side of the textures to bake: how densely it is sampled.
        shaded: Whether occlusion is needed.
    """

    mesh: Mesh
    texture_size: int
    shaded: bool

    @cached_property
    def points(self) -> Points:
        """Points spread evenly over the surface, about two for each texel."""
        count = int(np.clip(2 * self.texture_size**2, FEWEST_POINTS, MOST_POINTS))
        return spread(self.mesh, count)

    @cached_property
    def tree(self) -> cKDTree:
        """The search tree of `points`."""
        return cKDTree(self.points.at)

    @cached_property
    def detail(self) -> Detail:
        """The points with normals and occlusion."""
        points = self.points
        light = np.ones(len(points.at))
        if self.shaded:
            light = occlusion_spread(points.at, points.normals, shell(points.at))
        return Detail(points.at, points.normals, light)

    def simplified(self, faces: int) -> Mesh:
        """The welded mesh with at most `faces` triangles, with vertex normals."""
        whole = weld(self.mesh)
        a, b, c = whole.faces.T
        kept = whole.faces[(a != b) & (b != c) & (c != a)]
        return vertex_normals(decimate(Mesh(whole.vertices, kept), faces))

    def with_vertex_colors(self, mesh: Mesh) -> Mesh:
        """The colour of the nearest point at each vertex."""
        return replace(mesh, vertex_colors=self._colors(mesh.vertices).astype(np.float32))

    def with_texture(self, mesh: Mesh, size: int) -> Mesh:
        """The colour of the nearest point at each texel."""
        covered, at, nearest = surface_texels(mesh, (size, size))
        texture = np.zeros((size, size, 3), np.float32)
        texture[covered] = self._colors(interpolate(mesh.vertices, mesh.faces, *at))
        return replace(mesh, texture=np.round(255.0 * texture[nearest]).astype(np.uint8))

    def _colors(self, places: np.ndarray) -> np.ndarray:
        return self.points.colors[self.tree.query(places)[1]]


def spread(mesh: Mesh, count: int) -> Points:
    """About `count` points on a mesh, at least one a face; the same for the same mesh.

    A face has points by its area, at the places of a low-discrepancy sequence (R2, Roberts 2018).
    """
    a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(np.float64) for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    shares = np.ceil(count * area / max(float(area.sum()), 1e-30)).astype(np.int64)
    number = np.maximum(shares, 1)
    face = np.repeat(np.arange(len(mesh.faces)), number)
    order = np.arange(len(face)) - np.repeat(np.cumsum(number) - number, number)
    u, v = ((0.5 + order * step) % 1.0 for step in (0.7548776662466927, 0.5698402909980532))
    outside = u + v > 1.0
    u, v = np.where(outside, 1.0 - u, u), np.where(outside, 1.0 - v, v)
    barycentric = np.stack([1.0 - u - v, u, v], -1)
    normals = interpolate(vertex_normals_of(mesh).astype(np.float64), mesh.faces, face, barycentric)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    at = interpolate(mesh.vertices.astype(np.float64), mesh.faces, face, barycentric)
    return Points(at, normals, np.asarray(base_color(mesh, face, barycentric), np.float64))


def shell(points: np.ndarray) -> np.ndarray:
    """The cells `[R, R, R]` bool over [-1, 1]^3 that have one of `points [N, 3]` in them."""
    solid = np.zeros((CELLS + 1,) * 3, bool)
    at = np.clip(np.round((points + 1.0) * 0.5 * CELLS).astype(np.int64), 0, CELLS)
    solid[at[:, 0], at[:, 1], at[:, 2]] = True
    return solid


def remade(mesh: Mesh, config: ExportConfig, event: Event | None = None) -> list[Mesh]:
    """A mesh of any origin as level 0, and its levels of detail.

    It keeps its triangles, UVs and texture unless `config.faces` asks for fewer triangles; then
    it is decimated, unwrapped and baked. Occlusion and, on a decimated mesh, a normal map are
    added as `config.maps` asks.

    Args:
        mesh: The mesh, inside [-1, 1]^3.
        config: Faces, texture, maps and levels of detail are read.
        event: As for `build.export_levels`.
    """
    source = MeshSource(mesh, config.texture_size, "occlusion" in config.maps)
    if 0 < config.faces < len(mesh.faces):
        first = textured(source, source.simplified(config.faces), config, event)[0]
    else:
        first = replace(mesh, normals=vertex_normals_of(mesh))
        if "occlusion" in config.maps and mesh.texture is not None and mesh.uv is not None:
            first = with_maps(first, source.detail, ["occlusion"])
    return [first, *levels_of_detail(source, len(first.faces), config)]

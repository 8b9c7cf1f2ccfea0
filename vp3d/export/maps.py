"""Normal map, occlusion and tangents of a textured mesh, taken from a finer surface.

Both maps are transferred from the vertices of the undecimated surface: a texel takes the mean of
its NEIGHBOURS nearest ones, weighted by inverse distance, of those that face the same way.

Tangents. t is the direction in which u grows, made orthogonal to the vertex normal n; the
bitangent, in which v (up) grows, is `sign * cross(n, t)`. A normal map stores the fine normal in
the frame (t, bitangent, n), as (x, y, z) -> 127.5 * (1 + (x, y, z)): glTF's convention, green up.

Occlusion. The share of the sky that a surface point can see: RAYS directions around its normal,
more of them near it (a cosine), each followed through a grid of solid cells. A hit counts less
the farther it is, and nothing beyond REACH (ambient occlusion with falloff, Zhukov et al. 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from vp3d.export.bake import surface_texels
from vp3d.export.mesh_data import vertex_normals_of
from vp3d.render.raster import interpolate
from vp3d.types import Mesh

NEIGHBOURS = 4
MOST_TRACED = 12_000  # points whose rays are followed
RAYS, STEPS = 32, 14
REACH = 0.6  # world units
FIRST_STEP = 2.5  # cells from the surface to the first sample of a ray
LEAST_Z = 0.05  # smallest z of a normal in a map: a texel never faces away from its triangle
FLAT = np.array([128, 128, 255], np.uint8)


@dataclass(frozen=True)
class Detail:
    """Points of the fine surface with what the maps show.

    Attributes:
        points: `[N, 3]`.
        normals: Outward unit normals `[N, 3]`.
        occlusion: Share of ambient light `[N]` in [0, 1]; all 1 if it was not asked for.
    """

    points: np.ndarray
    normals: np.ndarray
    occlusion: np.ndarray


def detail_of(mesh: Mesh, solid: np.ndarray | None) -> Detail:
    """The vertices of a fine mesh with normals, and occlusion by a grid.

    Args:
        mesh: The mesh.
        solid: `[R, R, R]` bool over [-1, 1]^3, indexed [x, y, z]; None for no occlusion.
    """
    normals = vertex_normals_of(mesh).astype(np.float64)
    light = np.ones(len(normals))
    if solid is not None:
        light = occlusion_spread(mesh.vertices, normals, solid)
    return Detail(mesh.vertices.astype(np.float64), normals, light)


def occlusion_spread(points: np.ndarray, normals: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """`occlusion` at an even choice of at most MOST_TRACED points; others take the nearest one's.

    Its arguments and its result are those of `occlusion`.
    """
    step = -(-len(points) // MOST_TRACED)
    if step <= 1:
        return occlusion(points, normals, solid)
    chosen = slice(None, None, step)
    light = occlusion(points[chosen], normals[chosen], solid)
    nearest = cKDTree(np.c_[points[chosen], 0.1 * normals[chosen]]).query(
        np.c_[points, 0.1 * normals]
    )[1]
    return np.asarray(light[nearest])


def with_maps(mesh: Mesh, detail: Detail, maps: Sequence[str]) -> Mesh:
    """The mesh with the maps "normal" and "occlusion", as far as `maps` names them.

    Args:
        mesh: A mesh with UVs, texture and vertex normals.
        detail: The fine surface.
        maps: Names of maps; others are ignored.
    """
    wanted = [name for name in ("normal", "occlusion") if name in maps]
    if not wanted or mesh.uv is None or mesh.texture is None or not len(detail.points):
        return mesh
    shape = mesh.texture.shape[:2]
    if "normal" in wanted:
        mesh = replace(mesh, tangents=tangents_of(mesh))
    covered, at, nearest = surface_texels(mesh, shape)
    points = interpolate(mesh.vertices, mesh.faces, *at)
    normals = _unit(interpolate(vertex_normals_of(mesh), mesh.faces, *at))
    fine, light = _transferred(points, normals, detail)
    found = {}
    if "normal" in wanted:
        local = _to_tangent_space(mesh, at, fine)
        local[:, 2] = np.maximum(local[:, 2], LEAST_Z)
        pixels = np.tile(FLAT, (*covered.shape, 1))
        pixels[covered] = np.round(127.5 * (1.0 + _unit(local))).astype(np.uint8)
        found["normal"] = pixels[nearest]
    if "occlusion" in wanted:
        grey = np.full(covered.shape, 255, np.uint8)
        grey[covered] = np.round(255.0 * np.clip(light, 0.0, 1.0)).astype(np.uint8)
        found["occlusion"] = grey[nearest]
    return replace(mesh, maps={**mesh.maps, **found})


def _transferred(
    points: np.ndarray, normals: np.ndarray, detail: Detail
) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals `[K, 3]` and occlusion `[K]` of the fine surface at points of a coarse one."""
    count = min(NEIGHBOURS, len(detail.points))
    distance, index = cKDTree(detail.points).query(points, k=count)
    distance, index = distance.reshape(-1, count), index.reshape(-1, count)
    facing = np.einsum("knc,kc->kn", detail.normals[index], normals)
    weight = np.clip(facing, 0.0, None) / (distance + 1e-4)
    lost = weight.sum(1) <= 0.0  # the nearest points all face away
    weight[lost] = 1.0
    weight /= weight.sum(1, keepdims=True)
    fine = np.einsum("kn,knc->kc", weight, detail.normals[index])
    fine[lost] = normals[lost]
    return _unit(fine), np.einsum("kn,kn->k", weight, detail.occlusion[index])


def tangents_of(mesh: Mesh) -> np.ndarray:
    """Tangents `[V, 4]` float32 of a mesh with UVs: the unit vector along u, and the sign.

    The mean over the faces of a vertex, weighted by their area in the texture.
    """
    if mesh.uv is None:
        raise ValueError("tangents need uv")
    normals = _unit(vertex_normals_of(mesh).astype(np.float64))
    a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(np.float64) for k in range(3))
    ua, ub, uc = (mesh.uv[mesh.faces[:, k]].astype(np.float64) for k in range(3))
    (du1, dv1), (du2, dv2) = (ub - ua).T, (uc - ua).T
    area = du1 * dv2 - du2 * dv1
    sign = np.sign(area)[:, None]
    along_u = sign * ((b - a) * dv2[:, None] - (c - a) * dv1[:, None])
    along_v = sign * ((c - a) * du1[:, None] - (b - a) * du2[:, None])
    u, v = (_scattered(mesh, values) for values in (along_u, along_v))
    tangent = u - normals * np.einsum("vc,vc->v", u, normals)[:, None]
    lost = np.linalg.norm(tangent, axis=1) < 1e-12
    tangent[lost] = _any_tangent(normals[lost])
    tangent = _unit(tangent)
    handed = np.einsum("vc,vc->v", np.cross(normals, tangent), v)
    return np.c_[tangent, np.where(handed < 0.0, -1.0, 1.0)].astype(np.float32)


def _scattered(mesh: Mesh, values: np.ndarray) -> np.ndarray:
    """Sums `[V, 3]` of face values `[F, 3]` at the vertices."""
    corners = mesh.faces.ravel()
    sums = [np.bincount(corners, values[:, k].repeat(3), len(mesh.vertices)) for k in range(3)]
    return np.stack(sums, -1)


def _any_tangent(normals: np.ndarray) -> np.ndarray:
    """A vector `[N, 3]` orthogonal to each unit normal `[N, 3]`."""
    axis = np.where(np.abs(normals[:, :1]) < 0.9, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    return axis - normals * np.einsum("nc,nc->n", axis, normals)[:, None]


def _bases(mesh: Mesh, at: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The frames `[K, 3, 3]` of K surface points, as a viewer interpolates them, in columns."""
    if mesh.tangents is None:
        raise ValueError("a normal map needs tangents")
    normals = _unit(interpolate(vertex_normals_of(mesh).astype(np.float64), mesh.faces, *at))
    tangents = interpolate(mesh.tangents.astype(np.float64), mesh.faces, *at)
    axis = _unit(tangents[:, :3])
    bitangents = np.sign(tangents[:, 3:]) * np.cross(normals, axis)
    return np.stack([axis, bitangents, normals], -1)


def _to_tangent_space(
    mesh: Mesh, at: tuple[np.ndarray, np.ndarray], directions: np.ndarray
) -> np.ndarray:
    """World directions `[K, 3]` at surface points in the frames of these points."""
    bases = _bases(mesh, at)
    singular = np.abs(np.linalg.det(bases)) < 1e-3
    bases[singular] = np.eye(3)
    local = np.linalg.solve(bases, directions[..., None])[..., 0]
    local[singular] = (0.0, 0.0, 1.0)
    return local


def mapped_normals(mesh: Mesh, face_index: np.ndarray, barycentric: np.ndarray) -> np.ndarray:
    """Unit normals `[K, 3]` of surface points as a viewer computes them from the normal map.

    Args:
        mesh: A mesh with UVs, tangents and a normal map.
        face_index: Face of each point `[K]`.
        barycentric: Barycentric coordinates of each point `[K, 3]`.
    """
    from vp3d.render.raster import sample_texture

    if mesh.uv is None:
        raise ValueError("a normal map needs uv")
    uv = interpolate(mesh.uv, mesh.faces, face_index, barycentric)
    local = sample_texture(mesh.maps["normal"], uv).astype(np.float64) * 2.0 - 1.0
    bases = _bases(mesh, (face_index, barycentric))
    return _unit(np.einsum("kij,kj->ki", bases, local))


def occlusion(points: np.ndarray, normals: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """The share of ambient light `[N]` in [0, 1] at surface points (see the top of this module).

    Args:
        points: `[N, 3]` in [-1, 1].
        normals: Outward unit normals `[N, 3]`.
        solid: `[R, R, R]` bool over [-1, 1]^3, indexed [x, y, z].
    """
    cells = solid.shape[0] - 1
    first = FIRST_STEP * 2.0 / cells
    lengths = np.geomspace(first, max(REACH, 2.0 * first), STEPS)
    side = _unit(_any_tangent(normals))
    other = np.cross(normals, side)
    blocked = np.zeros(len(points))
    for ray in _hemisphere():
        direction = ray[0] * side + ray[1] * other + ray[2] * normals
        open_, hit = np.ones(len(points), bool), np.zeros(len(points))
        for length in lengths:
            place = points + length * direction
            at = np.round((place + 1.0) * 0.5 * cells).astype(np.int64)
            inside = ((at >= 0) & (at <= cells)).all(1)
            at = np.clip(at, 0, cells)
            met = open_ & inside & solid[at[:, 0], at[:, 1], at[:, 2]]
            hit[met] = 1.0 - (length - first) / (lengths[-1] - first)
            open_ &= ~met
        blocked += hit
    return 1.0 - blocked / RAYS


def _hemisphere() -> np.ndarray:
    """RAYS unit vectors `[RAYS, 3]` around +z with density proportional to z, on a spiral."""
    share = (np.arange(RAYS) + 0.5) / RAYS
    angle = np.arange(RAYS) * np.pi * (3.0 - np.sqrt(5.0))
    radius = np.sqrt(share)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.sqrt(1.0 - share)], -1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """`vectors [N, 3]` with length 1; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

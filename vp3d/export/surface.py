"""From a density grid to a clean closed triangle mesh.

The level set whose silhouettes agree best with the field's own renders (threshold.py) is cleaned,
smoothed, decimated, and cleaned again (repair.py), because decimation pinches edges together.
Conventions: grids are `[R, R, R]`, indexed [x, y, z], over [-1, 1]^3; meshes stay in that cube.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.sparse import coo_matrix
from torch import Tensor

from vp3d.errors import UserError
from vp3d.export.mesh_data import computed_normals
from vp3d.export.repair import clean, drop_floaters
from vp3d.export.threshold import Surface, choose_threshold, empty_field_error, silhouette_iou
from vp3d.types import Camera, Mesh

# Factors of the shrinking and the growing step of a Taubin iteration.
SHRINK, GROW = 0.5, 0.53
AGGRESSIVENESS = (5.0, 7.0, 10.0, 10.0)  # of fast_simplification, one attempt each
SIMPLIFY_ROUNDS = 4


def extract_surface(
    grid: np.ndarray, cameras: Camera, opacity: Tensor, faces: int = 0, smoothing: int = 4
) -> Surface:
    """The finished surface of a density grid: watertight, outward faces, vertex normals.

    Args:
        grid: Density `[R, R, R]` >= 0, indexed [x, y, z].
        cameras: B cameras.
        opacity: The field's rendered opacity `[B, H, W]` in [0, 1].
        faces: Largest number of triangles; 0 keeps all.
        smoothing: Iterations of `smooth`.

    Returns:
        The mesh, its threshold, the silhouette IoU of the finished mesh, and the mesh before its
        decimation.

    Raises:
        EmptyFieldError: The grid has no visible surface.
        UserError: There is a surface, but it cannot be drawn with so few `faces`.
    """
    raw = choose_threshold(grid, cameras, opacity)
    full = smooth(clean(raw.mesh), smoothing)
    mesh = drop_floaters(simplify(full, faces))
    if not len(mesh.faces):
        left = len(drop_floaters(full).faces)
        if not left:
            raise empty_field_error(grid)
        raise UserError(
            f"export.faces={faces} is too few: nothing remains of a surface of {left:,} "
            "triangles; give more, or 0 to keep all"
        )
    mesh = vertex_normals(mesh)
    iou = silhouette_iou(mesh, cameras, opacity)
    return Surface(mesh, raw.threshold, iou, vertex_normals(drop_floaters(full)))


def smooth(mesh: Mesh, iterations: int) -> Mesh:
    """Taubin smoothing with uniform weights; removes the steps of the grid and keeps the volume.

    Taubin 1995, "A signal processing approach to fair surface design".
    """
    if not iterations or not len(mesh.faces):
        return mesh
    a, b = mesh.faces[:, [0, 1, 2]].ravel(), mesh.faces[:, [1, 2, 0]].ravel()
    both_ways = np.r_[a, b], np.r_[b, a]
    links = coo_matrix((np.ones(2 * len(a)), both_ways), shape=(len(mesh.vertices),) * 2).tocsr()
    links.data[:] = 1.0  # an edge of two faces was counted twice
    degree = np.maximum(np.asarray(links.sum(1)), 1.0)
    vertices = mesh.vertices.astype(np.float64)
    for _ in range(iterations):
        for step in (SHRINK, -GROW):
            vertices = vertices + step * (links @ vertices / degree - vertices)
    return replace(mesh, vertices=np.clip(vertices, -1.0, 1.0).astype(np.float32))


def decimate(mesh: Mesh, faces: int) -> Mesh:
    """At most `faces` triangles by quadric edge collapse (Garland and Heckbert 1997); 0 keeps all.

    The collapse may miss the target, so it is tried with growing aggressiveness.
    """
    import fast_simplification

    for aggressiveness in AGGRESSIVENESS:
        if not 0 < faces < len(mesh.faces):
            break
        vertices, triangles = fast_simplification.simplify(
            mesh.vertices.astype(np.float32),
            mesh.faces.astype(np.int32),
            target_count=faces,
            agg=aggressiveness,
        )
        vertices = np.clip(vertices, -1.0, 1.0).astype(np.float32)
        mesh = Mesh(vertices, np.asarray(triangles, np.int64))
    return mesh


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """`decimate` and `clean`, with at most `faces` triangles after both; 0 keeps all.

    Cleaning may add triangles. If the result has too many, the target of the decimation is lowered
    by the excess, up to SIMPLIFY_ROUNDS times.
    """
    target = faces
    for _ in range(SIMPLIFY_ROUNDS):
        result = clean(decimate(mesh, target))
        excess = len(result.faces) - faces
        if not faces or excess <= 0:
            break
        target = max(target - excess, 4)
    return result


def vertex_normals(mesh: Mesh) -> Mesh:
    """The mesh with the vertex normals of `unit_normals`."""
    return replace(mesh, normals=unit_normals(mesh))


def unit_normals(mesh: Mesh) -> np.ndarray:
    """Unit outward vertex normals `[V, 3]` (see `mesh_data.computed_normals`).

    A vertex without a normal gets (0, 0, 1).
    """
    normals = computed_normals(mesh)
    length = np.linalg.norm(normals, axis=1)
    normals[length < 0.5] = (0.0, 0.0, 1.0)
    return normals

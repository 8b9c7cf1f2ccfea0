"""From a density field to a clean closed triangle mesh.

Density is sampled on the nodes of a grid over [-1, 1]^3, marching cubes runs at several thresholds, and the mesh whose
silhouette agrees best (IoU) with the field's own rendered opacity (cut at half of its maximum) is taken. Then it is
cleaned, smoothed, decimated, and made manifold again: decimation pinches edges together, see `part_sheets`.

Closed at the border: one layer of zeros is put around the grid and vertices are clipped back to the cube.
Which pieces stay: a piece (connected component) stays if it encloses positive volume and has at least `KEEP_SHARE` of
the surface area of the largest such piece. Area rather than volume, so that a thin real part beside a big one
stays; cavities (negative volume) are never seen from outside and always go.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import trimesh
from scipy.sparse import coo_matrix
from torch import Tensor

from vp3d.export.marching_cubes import Surface
from vp3d.export.repair import clean, drop_floaters
from vp3d.export.threshold import _empty, choose_threshold, silhouette_iou
from vp3d.types import Camera, Mesh

TAUBIN = (
    0.5,
    0.53,
)  # shrinking and growing step (Taubin 1995, "A signal processing approach to fair surface design")


def smooth(mesh: Mesh, iterations: int) -> Mesh:
    """Taubin smoothing with uniform weights: takes the staircase of the grid off and keeps the volume."""
    if not iterations or not len(mesh.faces):
        return mesh
    a, b = mesh.faces[:, [0, 1, 2]].ravel(), mesh.faces[:, [1, 2, 0]].ravel()
    count = len(mesh.vertices)
    links = coo_matrix(
        (np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, a])), shape=(count, count)
    ).tocsr()
    links.data[:] = 1.0
    degree = np.maximum(np.asarray(links.sum(1)), 1.0)
    vertices = mesh.vertices.astype(np.float64)
    for _ in range(iterations):
        for step in (TAUBIN[0], -TAUBIN[1]):
            vertices = vertices + step * (links @ vertices / degree - vertices)
    return replace(mesh, vertices=np.clip(vertices, -1.0, 1.0).astype(np.float32))


def decimate(mesh: Mesh, faces: int) -> Mesh:
    """At most `faces` triangles by quadric edge collapse (Garland and Heckbert 1997); 0 keeps all."""
    import fast_simplification

    for aggressiveness in (5.0, 7.0, 10.0, 10.0):
        if not 0 < faces < len(mesh.faces):
            break
        vertices, triangles = fast_simplification.simplify(
            mesh.vertices.astype(np.float32),
            mesh.faces.astype(np.int32),
            target_count=faces,
            agg=aggressiveness,
        )
        mesh = Mesh(
            np.clip(vertices, -1.0, 1.0).astype(np.float32), np.asarray(triangles, np.int64)
        )
    return mesh


def reduce(mesh: Mesh, faces: int) -> Mesh:
    """`decimate` and `clean`, still at most `faces` triangles (0 keeps all) after the repair has added some."""
    target = faces
    for _ in range(4):
        made = clean(decimate(mesh, target))
        excess = len(made.faces) - faces
        if not faces or excess <= 0:
            break
        target = max(target - excess, 4)
    return made


def vertex_normals(mesh: Mesh) -> Mesh:
    """The mesh with unit outward vertex normals [V, 3], the angle-weighted mean of the faces around each vertex."""
    normals = np.array(
        trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).vertex_normals, np.float32
    )
    length = np.linalg.norm(normals, axis=1)
    normals[length < 0.5] = (0.0, 0.0, 1.0)
    return replace(mesh, normals=normals)


def extract_surface(
    grid: np.ndarray, cameras: Camera, opacity: Tensor, faces: int = 0, smoothing: int = 4
) -> Surface:
    """The finished surface of `grid [R, R, R]` >= 0: threshold by silhouette against `opacity [B, H, W]` in [0, 1].

    At most `faces` triangles (0 keeps all), watertight, outward, with vertex normals; `iou` is that of the finished mesh.
    """
    raw = choose_threshold(grid, cameras, opacity)
    mesh = drop_floaters(reduce(smooth(clean(raw.mesh), smoothing), faces))
    if not len(mesh.faces):
        raise _empty(grid)
    mesh = vertex_normals(mesh)
    return Surface(mesh, raw.threshold, silhouette_iou(mesh, cameras, opacity))

"""Measures of a triangle mesh: what is inside, points and the nearest point on it, its holes.

A point is inside if the winding number along the grid columns through it is not 0. A mesh with
holes has different answers along x, y and z, so the majority counts; meshes of other programs can
be measured too. Points are world coordinates, float64. Nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import trimesh
from scipy.spatial import cKDTree

from vp3d.system.compiled import compiled
from vp3d.types import Mesh

# Offset of the grid in cells, so that no column passes through a vertex with round coordinates.
GRID_OFFSET = (0.618e-4, 0.271e-4, 0.414e-4)
# Steps of the R2 sequence (Roberts 2018), which covers a square evenly.
R2_STEPS = (0.7548776662466927, 0.5698402909980532)


def euler_number(mesh: Mesh) -> int:
    """Vertices minus edges plus faces, of the mesh with vertices at equal positions merged.

    For closed surfaces it is the sum over all of 2 - 2 * (number of through holes): 2 for a ball,
    0 for a ring, 4 for two balls.
    """
    _, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    faces = index.reshape(-1)[mesh.faces]
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    edges = edges[edges[:, 0] < edges[:, 1]]
    solid = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    return len(np.unique(faces)) - len(np.unique(edges, axis=0)) + int(solid.sum())


@compiled()
def _winding(corners: np.ndarray, low: np.ndarray, cell: float, count: int) -> np.ndarray:
    """Winding numbers `[count, count, count]` of cell centres.

    They are the sums of the signed crossings above each centre along the last axis.
    """
    change = np.zeros((count, count, count + 1), np.int32)
    for f in range(len(corners)):
        a = (corners[f, 0] - low) / cell
        b = (corners[f, 1] - low) / cell
        c = (corners[f, 2] - low) / cell
        area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
        if area == 0.0:
            continue
        first_i = max(int(min(a[0], b[0], c[0]) - 0.5), 0)
        end_i = min(int(max(a[0], b[0], c[0])) + 1, count)
        first_j = max(int(min(a[1], b[1], c[1]) - 0.5), 0)
        end_j = min(int(max(a[1], b[1], c[1])) + 1, count)
        for i in range(first_i, end_i):
            for j in range(first_j, end_j):
                x, y = i + 0.5, j + 0.5
                u = ((x - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (y - a[1])) / area
                v = ((b[0] - a[0]) * (y - a[1]) - (x - a[0]) * (b[1] - a[1])) / area
                if u >= 0.0 and v >= 0.0 and u + v <= 1.0:
                    z = a[2] + u * (b[2] - a[2]) + v * (c[2] - a[2])
                    k = min(max(int(np.ceil(z - 0.5)), 0), count)
                    change[i, j, k] += 1 if area > 0.0 else -1
    inside = np.zeros((count, count, count), np.int32)
    for i in range(count):
        for j in range(count):
            above = 0
            for k in range(count - 1, -1, -1):
                above += change[i, j, k + 1]
                inside[i, j, k] = above
    return inside


def inside_points(mesh: Mesh, cells: int = 96) -> tuple[np.ndarray, float]:
    """The grid cells inside a mesh, and its volume.

    The volume is exact (divergence theorem) for a closed mesh that winds once around its inside.
    Otherwise it is that of the cells, which may be some per cent off if flat sides are parallel to
    the grid.

    Args:
        mesh: the mesh.
        cells: cells along the longest side of its bounding box.

    Returns:
        Centres `[N, 3]` of the cells inside (N is 0 for a mesh that encloses nothing), and the
        volume in cubed world units.
    """
    vertices = mesh.vertices.astype(np.float64)
    low, high = vertices.min(0), vertices.max(0)
    cell = max(float((high - low).max()), 1e-9) / cells
    low = low - cell * (0.5 + np.array(GRID_OFFSET))
    corners, votes = vertices[mesh.faces], np.zeros((cells + 1,) * 3, np.int8)
    simple = True
    for axis in range(3):
        turn = [(axis + 1) % 3, (axis + 2) % 3, axis]
        winding = _winding(np.ascontiguousarray(corners[..., turn]), low[turn], cell, cells + 1)
        simple = simple and winding.min() * winding.max() == 0 and abs(winding).max() == 1
        votes += np.transpose(winding != 0, np.argsort(turn)).astype(np.int8)
    points = low + cell * (np.argwhere(votes >= 2) + 0.5)
    if simple and not ((votes == 1) | (votes == 2)).any():
        cross = np.cross(corners[:, 1], corners[:, 2])
        return points, abs(float(np.einsum("fc,fc->f", corners[:, 0], cross).sum())) / 6.0
    return points, len(points) * cell**3


@dataclass(frozen=True)
class SurfacePoints:
    """N points on a mesh.

    Attributes:
        points: `[N, 3]`, world coordinates.
        face_index: `[N]` int64, the face of each point.
        barycentric: `[N, 3]` >= 0, sum 1.
    """

    points: np.ndarray
    face_index: np.ndarray
    barycentric: np.ndarray


def surface_points(mesh: Mesh, count: int) -> SurfacePoints:
    """`count` points spread evenly over the area of a mesh.

    Faces are chosen by systematic sampling, points in a face by an R2 sequence.

    Raises:
        ValueError: all faces are degenerate.
    """
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = 0.5 * np.linalg.norm(cross, axis=1)
    if not area.sum() > 0:
        raise ValueError("the mesh has no surface: all its faces are degenerate")
    at = (np.arange(count) + 0.5) / count * area.sum()
    face = np.minimum(np.searchsorted(np.cumsum(area), at), len(area) - 1)
    u, v = ((np.arange(count) * step) % 1.0 for step in R2_STEPS)
    root = np.sqrt(u)
    barycentric = np.stack([1.0 - root, root * (1.0 - v), root * v], -1)
    return SurfacePoints(np.einsum("nk,nkc->nc", barycentric, corners[face]), face, barycentric)


class SurfaceIndex:
    """Finds the nearest surface points of a mesh.

    The faces of the nearest sample points are the candidates; among them the distance is exact.

    Args:
        mesh: the mesh.
        density: the number of sample points.
        candidates: how many of the nearest sample points are considered.
    """

    def __init__(self, mesh: Mesh, density: int = 20_000, candidates: int = 6) -> None:
        self.mesh, self.samples, self.candidates = mesh, surface_points(mesh, density), candidates
        self.tree = cKDTree(self.samples.points)
        self.corners = mesh.vertices.astype(np.float64)[mesh.faces]

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, SurfacePoints]:
        """Distances `[N]` >= 0 from `points [N, 3]` to the surface, and the nearest points."""
        _, near = self.tree.query(points, k=self.candidates)
        face = self.samples.face_index[near]
        queries = np.repeat(points, self.candidates, axis=0)
        found = trimesh.triangles.closest_point(self.corners[face.ravel()], queries)
        distance = np.linalg.norm(found - queries, axis=1).reshape(face.shape)
        best = distance.argmin(1)
        rows = np.arange(len(points))
        position, hit = found.reshape(*face.shape, 3)[rows, best], face[rows, best]
        barycentric = trimesh.triangles.points_to_barycentric(self.corners[hit], position)
        barycentric = np.clip(np.nan_to_num(barycentric, nan=1 / 3), 0.0, 1.0)
        return distance[rows, best], SurfacePoints(position, hit, barycentric)


def moved(mesh: Mesh, matrix: np.ndarray, shift: np.ndarray) -> Mesh:
    """The mesh under `x -> matrix @ x + shift`; normals are rotated too.

    Args:
        mesh: the mesh.
        matrix: `[3, 3]`, a rotation times a positive scale.
        shift: `[3]`, world units.
    """
    normals = None
    if mesh.normals is not None:
        turned = mesh.normals.astype(np.float64) @ matrix.T
        length = np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-12)
        normals = (turned / length).astype(np.float32)
    vertices = (mesh.vertices.astype(np.float64) @ matrix.T + shift).astype(np.float32)
    return replace(mesh, vertices=vertices, normals=normals)

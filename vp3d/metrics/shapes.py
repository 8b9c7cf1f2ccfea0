"""Measuring a triangle mesh: what is inside it, points on its surface, and the nearest surface point. Nothing is random.

Inside means a winding number other than 0 along grid columns; where a mesh has holes, the columns along x, y and z take a
vote, so meshes of other programs can be measured too. Points are world coordinates, float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numba
import numpy as np
import trimesh
from scipy.spatial import cKDTree

from vp3d.types import Mesh

OFF_THE_EDGES = (
    0.618e-4,
    0.271e-4,
    0.414e-4,
)  # of a cell: columns pass beside corners with round coordinates
PLASTIC = (
    0.7548776662466927,
    0.5698402909980532,
)  # of the R2 sequence (Roberts 2018), evenly spread over a square


@numba.njit(cache=True)
def _winding(corners: np.ndarray, low: np.ndarray, cell: float, count: int) -> np.ndarray:
    """Winding number [count, count, count] of cell centres from the crossings above them along the last axis."""
    change = np.zeros((count, count, count + 1), np.int32)
    for f in range(len(corners)):
        a, b, c = (
            (corners[f, 0] - low) / cell,
            (corners[f, 1] - low) / cell,
            (corners[f, 2] - low) / cell,
        )
        area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
        if area == 0.0:
            continue
        for i in range(
            max(int(min(a[0], b[0], c[0]) - 0.5), 0), min(int(max(a[0], b[0], c[0])) + 1, count)
        ):
            for j in range(
                max(int(min(a[1], b[1], c[1]) - 0.5), 0), min(int(max(a[1], b[1], c[1])) + 1, count)
            ):
                x, y = i + 0.5, j + 0.5
                u = ((x - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (y - a[1])) / area
                v = ((b[0] - a[0]) * (y - a[1]) - (x - a[0]) * (b[1] - a[1])) / area
                if u >= 0.0 and v >= 0.0 and u + v <= 1.0:
                    z = a[2] + u * (b[2] - a[2]) + v * (c[2] - a[2])
                    change[i, j, min(max(int(np.ceil(z - 0.5)), 0), count)] += (
                        1 if area > 0.0 else -1
                    )
    inside = np.zeros((count, count, count), np.int32)
    for i in range(count):
        for j in range(count):
            above = 0
            for k in range(count - 1, -1, -1):
                above += change[i, j, k + 1]
                inside[i, j, k] = above
    return inside


def inside_points(mesh: Mesh, cells: int = 96) -> tuple[np.ndarray, float]:
    """Centres [N, 3] of the grid cells inside `mesh` (`cells` along its longest side), and its volume in world units cubed.

    The volume is exact (divergence theorem) for a closed mesh that winds once around everything inside it, else that of the
    cells, which may be some per cent off where flat sides lie along the grid. N is 0 for a mesh that encloses nothing.
    """
    vertices = mesh.vertices.astype(np.float64)
    low, high = vertices.min(0), vertices.max(0)
    cell = max(float((high - low).max()), 1e-9) / cells
    low = low - cell * (0.5 + np.array(OFF_THE_EDGES))
    corners, votes = vertices[mesh.faces], np.zeros((cells + 1,) * 3, np.int8)
    simple = True
    for axis in range(3):
        turn = [(axis + 1) % 3, (axis + 2) % 3, axis]
        winding = _winding(np.ascontiguousarray(corners[..., turn]), low[turn], cell, cells + 1)
        simple = simple and winding.min() * winding.max() == 0 and abs(winding).max() == 1
        votes += np.transpose(winding != 0, np.argsort(turn)).astype(np.int8)
    points = low + cell * (np.argwhere(votes >= 2) + 0.5)
    if simple and not ((votes == 1) | (votes == 2)).any():
        return points, abs(
            float(
                np.einsum("fc,fc->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum()
            )
        ) / 6.0
    return points, len(points) * cell**3


@dataclass(frozen=True)
class SurfacePoints:
    """N points of a mesh: `points [N, 3]`, `face_index [N]` int64, `barycentric [N, 3]` >= 0, sum 1."""

    points: np.ndarray
    face_index: np.ndarray
    barycentric: np.ndarray


def surface_points(mesh: Mesh, count: int) -> SurfacePoints:
    """`count` points spread evenly over the area of `mesh`: systematic sampling of the faces, an R2 sequence within them."""
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    area = 0.5 * np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    if not area.sum() > 0:
        raise ValueError("the mesh has no surface: all its faces are degenerate")
    at = (np.arange(count) + 0.5) / count * area.sum()
    face = np.minimum(np.searchsorted(np.cumsum(area), at), len(area) - 1)
    u, v = ((np.arange(count) * step) % 1.0 for step in PLASTIC)
    root = np.sqrt(u)
    barycentric = np.stack([1.0 - root, root * (1.0 - v), root * v], -1)
    return SurfacePoints(np.einsum("nk,nkc->nc", barycentric, corners[face]), face, barycentric)


class SurfaceIndex:
    """Nearest surface points of a mesh: the faces of the nearest `candidates` of `density` points, then exact triangles."""

    def __init__(self, mesh: Mesh, density: int = 20_000, candidates: int = 6) -> None:
        self.mesh, self.samples, self.candidates = mesh, surface_points(mesh, density), candidates
        self.tree = cKDTree(self.samples.points)
        self.corners = mesh.vertices.astype(np.float64)[mesh.faces]

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, SurfacePoints]:
        """Distance [N] >= 0 of `points [N, 3]` to the surface, and where on it they come nearest."""
        _, near = self.tree.query(points, k=self.candidates)
        face = self.samples.face_index[near]
        asked = np.repeat(points, self.candidates, axis=0)
        found = trimesh.triangles.closest_point(self.corners[face.ravel()], asked)
        distance = np.linalg.norm(found - asked, axis=1).reshape(face.shape)
        best = distance.argmin(1)
        rows = np.arange(len(points))
        place, hit = found.reshape(*face.shape, 3)[rows, best], face[rows, best]
        barycentric = trimesh.triangles.points_to_barycentric(self.corners[hit], place)
        return distance[rows, best], SurfacePoints(
            place, hit, np.clip(np.nan_to_num(barycentric, nan=1 / 3), 0.0, 1.0)
        )


def moved(mesh: Mesh, matrix: np.ndarray, shift: np.ndarray) -> Mesh:
    """`mesh` under `x -> matrix @ x + shift` (a rotation times a positive scale), normals turned along."""
    normals = None
    if mesh.normals is not None:
        turned = mesh.normals.astype(np.float64) @ matrix.T
        normals = (
            turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-12)
        ).astype(np.float32)
    vertices = (mesh.vertices.astype(np.float64) @ matrix.T + shift).astype(np.float32)
    return replace(mesh, vertices=vertices, normals=normals)

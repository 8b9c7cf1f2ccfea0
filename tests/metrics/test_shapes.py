"""Inside, surface points and nearest points of meshes, against what is known by hand."""

from __future__ import annotations

import numpy as np
import trimesh

from vp3d.metrics.shapes import SurfaceIndex, inside_points, moved, surface_points
from vp3d.types import Mesh


def box(side: float, keep: int = 12) -> Mesh:
    """A cube around the origin, or the first `keep` of its triangles."""
    body = trimesh.creation.box((side, side, side))
    return Mesh(np.asarray(body.vertices, np.float32), np.asarray(body.faces, np.int64)[:keep])


def test_a_cube_is_inside_to_the_last_cell_and_its_volume_is_exact() -> None:
    points, volume = inside_points(box(0.6), cells=20)
    assert abs(volume - 0.6**3) < 1e-6 and np.abs(points).max() < 0.3 + 1e-6
    assert (
        abs(len(points) * 0.03**3 - 0.6**3) < 0.08 * 0.6**3 and np.abs(points.mean(0)).max() < 0.02
    )


def test_holes_and_turned_faces_and_shells_that_overlap() -> None:
    closed, _ = inside_points(box(0.6), cells=20)
    # One side is missing: the columns of two axes out of three agree.
    holed, _ = inside_points(box(0.6, keep=10), cells=20)
    assert len(holed) == len(closed)
    turned = Mesh(box(0.6).vertices, box(0.6).faces[:, ::-1])
    assert abs(inside_points(turned, cells=20)[1] - 0.6**3) < 1e-6
    twice = Mesh(
        np.concatenate([box(0.6).vertices] * 2),
        np.concatenate([box(0.6).faces, box(0.6).faces + 8]),
    )
    assert (
        len(inside_points(twice, cells=20)[0]) == len(closed)
        and abs(inside_points(twice, cells=60)[1] - 0.216) < 0.02
    )
    assert len(inside_points(box(0.6, keep=1), cells=20)[0]) == 0


def test_surface_points_are_even_over_the_area() -> None:
    long = moved(box(1.0), np.diag([2.0, 1.0, 1.0]), np.zeros(3))
    at = surface_points(long, 5000)
    ends = np.abs(np.abs(at.points[:, 0]) - 1.0) < 1e-9
    assert abs(ends.mean() - 2 / 10) < 0.01  # the two ends have 2 of the 10 units of area
    assert np.abs(at.points[~ends][:, 0].mean()) < 0.02 and np.allclose(at.barycentric.sum(1), 1.0)


def test_nearest_is_exact_where_a_slow_search_over_every_triangle_says_so() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=2, radius=0.7)
    mesh = Mesh(np.asarray(sphere.vertices, np.float32), np.asarray(sphere.faces, np.int64))
    points = np.random.default_rng(0).uniform(-1, 1, (60, 3))
    distance, place = SurfaceIndex(mesh).nearest(points)
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    for point, found in zip(points, distance, strict=True):
        every = trimesh.triangles.closest_point(corners, np.repeat(point[None], len(corners), 0))
        assert abs(np.linalg.norm(every - point, axis=1).min() - found) < 1e-9
    again = np.einsum("nk,nkc->nc", place.barycentric, corners[place.face_index])
    assert np.abs(again - place.points).max() < 1e-6

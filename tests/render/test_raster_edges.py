"""Edges of triangles on pixel centres, and the samples of a pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vp3d.render import raster
from vp3d.render.camera import orbit
from vp3d.types import Mesh


@pytest.mark.parametrize("turn", range(4))
def test_pixel_centres_on_an_edge_belong_to_the_triangle(turn: int) -> None:
    """Corners at centres, the right angle at each corner of the picture: 5 + 4 + 3 + 2 + 1."""
    corners = np.array([[[1.5, 1.5], [5.5, 1.5], [1.5, 5.5]]])
    if turn % 2:
        corners[..., 0] = 7.0 - corners[..., 0]
    if turn // 2:
        corners[..., 1] = 7.0 - corners[..., 1]
    face_index, _ = raster.fill_triangles(corners, np.ones((1, 3)), 7, 7)
    expected = np.full((7, 7), -1)
    for i in range(5):
        expected[1 + i, 1 : 6 - i] = 0
    expected = expected[:: -1 if turn // 2 else 1, :: -1 if turn % 2 else 1]
    np.testing.assert_array_equal(face_index, expected)


def test_a_pixel_has_two_by_two_samples_unless_asked_otherwise() -> None:
    """A half-plane y < 0 that covers the left half of each row; its edge is a quarter too far."""
    camera = orbit(0.0, 0.0, 3.0, 40.0)
    pixel = 2 * 3.0 * np.tan(np.radians(20.0)) / 8  # world units at the origin, in 8 pixels
    edge = 0.3 * pixel  # between the first and the second of two samples, or of three
    corners = np.float32([[0, -9, -9], [0, edge, -9], [0, edge, 9], [0, -9, 9]])
    mesh = Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]))
    for options, share in (({}, 0.5), ({"supersample": 3}, 1 / 3), ({"supersample": 1}, 0.0)):
        _, opacity = raster.render_mesh(mesh, camera, 8, 8, **options)
        row = torch.tensor([1.0, 1, 1, 1, share, 0, 0, 0])
        torch.testing.assert_close(opacity[0, 0], row.expand(8, 8))

"""Parts of a file joined into one mesh: each keeps its own colours, whatever the others have."""

from __future__ import annotations

import numpy as np
import pytest

from vp3d.export import read
from vp3d.render.raster import sample_texture
from vp3d.types import Mesh

CORNERS = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
FACES = np.array([[0, 1, 2], [0, 2, 3]])
UV = np.float32([[0, 0], [1, 0], [1, 1], [0, 1]])  # v up: the corners of the picture


def textured(texture: np.ndarray) -> Mesh:
    return Mesh(CORNERS, FACES, uv=UV, texture=np.uint8(texture))


def plain(*color: int) -> Mesh:
    return Mesh(CORNERS, FACES, vertex_colors=np.tile(np.float32(color) / 255.0, (4, 1)))


def at_corners(mesh: Mesh) -> list[list[int]]:
    """The colour of each vertex as bytes."""
    assert mesh.texture is not None and mesh.uv is not None
    return np.round(255.0 * sample_texture(mesh.texture, mesh.uv)).astype(int).tolist()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_pictures_of_different_heights_keep_every_row_and_every_edge(
    order: tuple[int, ...],
) -> None:
    """Five rows by one column, one row by three columns, and a single colour."""
    tall = np.array([[[10 * row, 200, 0]] for row in range(5)])
    wide = np.array([[[0, 0, 50], [0, 0, 100], [0, 0, 150]]])
    parts = [textured(tall), textured(wide), plain(255, 255, 0)]
    bottom_left, top_left = [40, 200, 0], [0, 200, 0]
    left, right = [0, 0, 50], [0, 0, 150]
    expected = [
        [bottom_left, bottom_left, top_left, top_left],
        [left, right, right, left],
        [[255, 255, 0]] * 4,
    ]
    mesh = read.join([parts[n] for n in order])
    assert mesh.texture is not None and mesh.texture.shape == (5, 5, 3)
    assert at_corners(mesh) == [color for n in order for color in expected[n]]


def test_a_picture_of_greys_is_no_single_colour() -> None:
    greys = np.repeat([[0, 85], [170, 255]], 3).reshape(2, 2, 3)
    mesh = read.join([textured(greys), plain(200, 0, 0)])
    assert at_corners(mesh)[:4] == [[170] * 3, [255] * 3, [85] * 3, [0] * 3]
    assert at_corners(mesh)[4:] == [[200, 0, 0]] * 4


def test_a_picture_of_one_colour_is_that_colour() -> None:
    red = np.tile(np.uint8([200, 0, 0]), (2, 2, 1))
    mesh = read.join([textured(red), plain(0, 100, 0)])
    assert mesh.texture is None and mesh.vertex_colors is not None
    found = np.round(255.0 * mesh.vertex_colors).astype(int).tolist()
    assert found == [[200, 0, 0]] * 4 + [[0, 100, 0]] * 4

"""Tangents, normal maps and occlusion, against geometry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vp3d.export.maps import (
    FLAT,
    detail_of,
    mapped_normals,
    occlusion,
    tangents_of,
    with_maps,
)
from vp3d.types import Mesh


def square(flip: bool = False) -> Mesh:
    """A square in the plane z = 0, u along x and v along y; `flip` mirrors u."""
    corners = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]], np.float32)
    uv = corners[:, :2] + 0.5
    uv[:, 0] = 1 - uv[:, 0] if flip else uv[:, 0]
    normals = np.tile(np.float32([0, 0, 1]), (4, 1))
    grey = np.full((32, 32, 3), 100, np.uint8)
    return Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), normals, None, uv, grey)


def test_tangents_run_along_u_and_the_sign_says_where_v_is() -> None:
    np.testing.assert_allclose(tangents_of(square()), [[1, 0, 0, 1]] * 4, atol=1e-6)
    np.testing.assert_allclose(tangents_of(square(True)), [[-1, 0, 0, -1]] * 4, atol=1e-6)


def test_a_flat_surface_has_a_flat_normal_map() -> None:
    mesh = square()
    mapped = with_maps(mesh, detail_of(mesh, None), ["normal"])
    assert set(mapped.maps) == {"normal"}
    assert np.abs(mapped.maps["normal"].astype(int) - FLAT).max() <= 1


def test_a_tilted_fine_surface_comes_back_from_the_map_in_both_orientations() -> None:
    tilt = np.float32([0.3, 0.4, np.sqrt(1 - 0.25)])
    for flip in (False, True):
        mesh = square(flip)
        fine = replace(mesh, normals=np.tile(tilt, (4, 1)))
        mapped = with_maps(mesh, detail_of(fine, None), ["normal"])
        found = mapped_normals(mapped, np.array([0, 1]), np.full((2, 3), 1 / 3))
        np.testing.assert_allclose(found, [tilt, tilt], atol=0.01)
        sign = -1 if flip else 1
        middle = mapped.maps["normal"][16, 16] / 127.5 - 1
        np.testing.assert_allclose(middle, [sign * 0.3, 0.4, tilt[2]], atol=0.01)


def test_open_ground_sees_the_sky_and_a_pit_does_not() -> None:
    solid = np.zeros((65, 65, 65), bool)
    solid[:, :, :32] = True  # the ground is z <= 0
    up = np.array([[0.0, 0.0, 1.0]])
    assert occlusion(np.zeros((1, 3)), up, solid)[0] > 0.99
    solid[:24, :, :48] = solid[40:, :, :48] = True  # two walls half a unit high
    walled = occlusion(np.zeros((1, 3)), up, solid)[0]
    solid[:, :24, :48] = solid[:, 40:, :48] = True
    pit = occlusion(np.zeros((1, 3)), up, solid)[0]
    assert 0.2 < pit < walled < 0.9


def test_maps_that_are_not_asked_for_are_not_made() -> None:
    mesh = square()
    assert with_maps(mesh, detail_of(mesh, None), ["base"]) is mesh
    shaded = with_maps(mesh, detail_of(mesh, np.zeros((9, 9, 9), bool)), ["occlusion"])
    assert set(shaded.maps) == {"occlusion"} and shaded.tangents is None
    assert (shaded.maps["occlusion"] == 255).all()

"""The rasteriser against rays, by hand, and for what a picture must look like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from vp3d.render import raster
from vp3d.render.camera import orbit, ring
from vp3d.render.shade import lambert
from vp3d.types import Mesh


def soup(count: int, seed: int) -> Mesh:
    """Random triangles that cut through one another, with vertex colours."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-0.5, 0.5, (count, 1, 3))
    vertices = (centres + rng.uniform(-0.4, 0.4, (count, 3, 3))).reshape(-1, 3).astype(np.float32)
    return Mesh(
        vertices,
        np.arange(3 * count).reshape(-1, 3),
        vertex_colors=rng.random((3 * count, 3)).astype(np.float32),
    )


def ball(subdivisions: int = 3, radius: float = 0.6) -> Mesh:
    body = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return Mesh(
        np.asarray(body.vertices, np.float32),
        np.asarray(body.faces, np.int64),
        np.asarray(body.vertex_normals, np.float32),
    )


@pytest.mark.parametrize("size", [(24, 24), (20, 30)])
def test_agrees_with_ray_casting(size: tuple[int, int]) -> None:
    mesh, cameras = (
        soup(30, 0),
        orbit([0.0, 130.0, 250.0], [0.0, 35.0, -20.0], 2.5, [40.0, 60.0, 30.0]),
    )
    fast, slow = (
        raster.rasterize(mesh, cameras, *size),
        raster.rasterize_reference(mesh, cameras, *size),
    )
    same = fast.face_index == slow.face_index
    assert (slow.face_index >= 0).float().mean() > 0.2
    assert same.float().mean() > 0.998  # a pixel centre on an edge may go either way
    torch.testing.assert_close(fast.barycentric[same], slow.barycentric[same], atol=2e-4, rtol=0)
    torch.testing.assert_close(fast.depth[same], slow.depth[same], atol=1e-4, rtol=0)


def test_compiled_and_plain_kernel_are_equal() -> None:
    rng = np.random.default_rng(2)
    corners, z = rng.uniform(-4, 20, (25, 3, 2)), rng.uniform(0.5, 3, (25, 3))
    face_index, barycentric = raster.fill_triangles(corners, z, 16, 18)
    again = np.full((16, 18), -1, np.int64), np.zeros((16, 18, 3), np.float32)
    raster._fill(corners, z, *again, np.zeros((16, 18)))
    np.testing.assert_array_equal(face_index, again[0])
    np.testing.assert_allclose(barycentric, again[1], atol=1e-6)


def test_barycentric_coordinates_give_back_the_pixel() -> None:
    corners = np.array([[[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]]])
    face_index, barycentric = raster.fill_triangles(corners, np.ones((1, 3)), 8, 8)
    i, j = np.nonzero(face_index == 0)
    assert len(i) == 36  # 1 + 2 + ... + 8 centres, the long side included
    np.testing.assert_allclose(
        barycentric[i, j] @ corners[0], np.stack([j + 0.5, i + 0.5], -1), atol=1e-6
    )


def test_nearer_face_wins_and_the_first_of_two_equals() -> None:
    corners = np.tile(np.array([[[-9.0, -9.0], [30.0, -9.0], [-9.0, 30.0]]]), (3, 1, 1))
    assert (
        raster.fill_triangles(corners, np.array([[2.0] * 3, [1.0] * 3, [1.0] * 3]), 4, 4)[0] == 1
    ).all()


def test_faces_behind_the_camera_and_degenerate_ones_are_left_out() -> None:
    corners = np.array([[[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]]])
    assert (raster.fill_triangles(corners, np.array([[1.0, -1.0, 1.0]]), 8, 8)[0] == -1).all()
    assert (raster.fill_triangles(corners * np.nan, np.ones((1, 3)), 8, 8)[0] == -1).all()
    assert (raster.fill_triangles(corners * [1.0, 0.0], np.ones((1, 3)), 8, 8)[0] == -1).all()


def test_closed_mesh_has_no_cracks_and_the_right_size() -> None:
    cameras = ring(3, 20.0, 3.0, 40.0)
    _, opacity = raster.render_mesh(ball(), cameras, 64, 64)
    half = np.tan(np.arcsin(0.6 / 3.0)) / np.tan(np.radians(20.0)) * 32
    np.testing.assert_allclose(opacity.sum((1, 2, 3)).numpy(), np.pi * half**2, rtol=0.015)
    assert (opacity[:, 0, 28:36, 28:36] == 1).all()


def test_depth_is_the_distance_along_the_ray() -> None:
    visible = raster.rasterize(ball(5), orbit(40.0, 10.0, 3.0, 40.0), 33, 33)
    assert float(visible.depth[0, 16, 16]) == pytest.approx(3.0 - 0.6, abs=1e-3)
    assert (visible.depth[visible.face_index < 0] == 0).all()


def test_texture_is_bilinear_with_v_up() -> None:
    texture = np.zeros((2, 2, 3), np.uint8)
    texture[0, 0] = texture[1, 1] = 200  # row 0 is the top: v = 1
    uv = np.array([[0.25, 0.75], [0.25, 0.25], [0.5, 0.5], [0.0, 1.0], [0.375, 0.75]])
    np.testing.assert_allclose(
        raster.sample_texture(texture, uv)[:, 0] * 255, [200, 0, 100, 200, 150], atol=1e-3
    )


def square(texture: np.ndarray | None) -> Mesh:
    """The square |y|, |z| <= 0.5 at x = 0, viewed from the front; u grows with y, v with z."""
    corners = np.float32([[0, -0.5, -0.5], [0, 0.5, -0.5], [0, 0.5, 0.5], [0, -0.5, 0.5]])
    uv = corners[:, 1:] + 0.5
    return Mesh(
        corners,
        np.array([[0, 1, 2], [0, 2, 3]]),
        None,
        np.full((4, 3), 0.25, np.float32),
        uv,
        texture,
    )


def test_picture_has_left_at_the_right_of_the_front_view_and_top_on_top() -> None:
    texture = np.uint8([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]])
    rgb, opacity = raster.render_mesh(
        square(texture), orbit(0.0, 0.0, 3.0, 40.0), 32, 32, background=0.5
    )
    got = [rgb[0, :, i, j].round().tolist() for i, j in ((11, 11), (11, 20), (20, 11), (20, 20))]
    assert got == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]
    assert rgb[0, :, 0, 0].tolist() == [0.5] * 3 and opacity[0, 0, 0, 0] == 0


def test_vertex_colours_background_and_plain_grey() -> None:
    camera = orbit(0.0, 0.0, 3.0, 40.0)
    rgb, _ = raster.render_mesh(square(None), camera, 16, 16, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(rgb[0, :, 8, 8], torch.full((3,), 0.25))
    torch.testing.assert_close(rgb[0, :, 0, 0], torch.tensor([0.0, 0.5, 1.0]))
    bare = Mesh(square(None).vertices, square(None).faces)
    assert float(raster.render_mesh(bare, camera, 16, 16)[0][0, 0, 8, 8]) == pytest.approx(
        raster.PLAIN_COLOR
    )


def test_lambert_uses_the_toybox_light_and_face_normals_agree_with_vertex_normals() -> None:
    mesh, camera = ball(4), orbit(30.0, 20.0, 3.0, 40.0)
    rgb, _ = raster.render_mesh(mesh, camera, 33, 33, shading="lambert")
    direction = torch.nn.functional.normalize(
        torch.tensor([[0.8137977, 0.4698463, 0.3420201]]), dim=-1
    )
    expected = lambert(torch.full((1, 3), raster.PLAIN_COLOR), direction)[0]
    torch.testing.assert_close(rgb[0, :, 16, 16], expected, atol=5e-3, rtol=0)
    flat, _ = raster.render_mesh(Mesh(mesh.vertices, mesh.faces), camera, 33, 33, shading="lambert")
    assert (flat - rgb).abs().max() < 0.03
    with pytest.raises(ValueError, match="shading"):
        raster.render_mesh(mesh, camera, 8, 8, shading="phong")


def test_kernel_works_where_numba_cannot_write_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    whole = numba.njit

    def no_place(*args: object, **options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return whole(*args, **options)

    monkeypatch.setattr(numba, "njit", no_place)
    raster._compiled_fill.cache_clear()
    try:
        corners = np.array([[[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]]])
        assert (raster.fill_triangles(corners, np.ones((1, 3)), 8, 8)[0] == 0).sum() == 36
    finally:
        raster._compiled_fill.cache_clear()

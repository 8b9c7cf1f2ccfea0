"""The library of meshes: what is read, packed, rendered and recoloured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vp3d.worlds.mesh_library import PAINT, LibraryMesh, from_obj, load_mesh, save_mesh
from vp3d.worlds.mesh_render import LEAST_ALPHA, build_scene, render_depth, render_scene
from vp3d.worlds.obj_reader import read_obj
from vp3d.worlds.toybox.images import view_vectors
from vp3d.worlds.toybox.scenes import BALL_RADIUS

CUBE = """
mtllib cube.mtl
v -1 -1 -1
v 1 -1 -1
v 1 1 -1
v -1 1 -1
v -1 -1 1
v 1 -1 1
v 1 1 1
v -1 1 1
usemtl sides
f 1 4 3 2
f 2 3 7 6
f 4 8 7 3
f 1 5 8 4
f 1 2 6 5
usemtl front
f -4 -3 -2 -1
"""
MTL = "newmtl sides\nKd 0.2 0.4 0.6\nnewmtl front\nKd 1 0 0\nd 1\n"


def cube(mtl: str = MTL) -> LibraryMesh:
    files = {"a/cube.obj": CUBE.encode(), "a/cube.mtl": mtl.encode()}
    return from_obj(read_obj("a/cube.obj", files.get))


def cameras(*azimuth_deg: float) -> np.ndarray:
    azimuth = np.array(azimuth_deg)
    full = np.ones(len(azimuth))
    return view_vectors(azimuth, 0.0 * full, 2.9 * full, 40.0 * full)


def test_a_model_is_turned_to_face_x_and_fills_the_ball() -> None:
    mesh = cube()
    assert len(mesh.triangles) == 12 and len(mesh.materials) == 2
    assert np.linalg.norm(mesh.position, axis=1).max() == pytest.approx(BALL_RADIUS, abs=1e-6)
    front = mesh.position[mesh.triangles[mesh.material == 1]]
    assert (front[..., 0] > 0.4).all(), "the face at +z of the file is at +x of the world"
    normal = mesh.normal[mesh.triangles[mesh.material == 1]]
    np.testing.assert_allclose(normal, np.broadcast_to([1.0, 0.0, 0.0], normal.shape), atol=1e-6)


def test_the_size_of_the_catalogue_stretches_the_turned_model() -> None:
    files = {"cube.obj": CUBE.encode()}
    turn = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    mesh = from_obj(read_obj("cube.obj", files.get), turn, np.array([3.0, 2.0, 1.0]))
    extent = np.ptp(mesh.position, axis=0)  # depth, width, height
    np.testing.assert_allclose(extent / extent[0], [1.0, 3.0, 2.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "reason"), [("v 0 0 0\n", "no faces"), ("v 0 0 0\nf 1 2 3\n", "does not exist")]
)
def test_a_damaged_model_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_obj("x.obj", {"x.obj": text.encode()}.get)


def test_a_packed_mesh_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (16, 8, 4), dtype=np.uint8)
    mesh = cube()
    uv = rng.uniform(-2, 2, (len(mesh.position), 2)).astype(np.float32)
    whole = LibraryMesh(
        mesh.position, mesh.normal, uv, mesh.triangles, mesh.material, mesh.materials, (texture,),
        mesh.names,
    )  # fmt: skip
    save_mesh(whole, tmp_path / "cube.npz")
    found = load_mesh(tmp_path / "cube.npz")
    np.testing.assert_allclose(found.position, mesh.position, atol=3e-5)
    np.testing.assert_allclose(found.normal, mesh.normal, atol=0.01)
    moved = found.uv - uv
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-3)
    assert np.allclose(moved[0], np.rint(moved[0]), atol=1e-3), "textures repeat with period 1"
    assert np.array_equal(found.textures[0], texture) and found.names == mesh.names
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match="not a packed mesh"):
        load_mesh(tmp_path / "bad.npz")


def test_each_side_shows_its_colour_and_covers_what_geometry_says() -> None:
    images, coverage = render_scene(
        build_scene([cube()], [None]), cameras(0.0, 180.0), np.array([0.5, 0.5]), 64
    )
    red, blue = images[0, 32, 32], images[1, 32, 32]
    assert red[0] > 120 and red[1] == red[2] == 0
    assert blue[2] > blue[1] > blue[0] > 0
    assert (images[:, 0, 0] == 128).all()
    half = BALL_RADIUS / np.sqrt(3)
    side = half / ((2.9 - half) * np.tan(np.deg2rad(20.0)))  # of the front face, in the picture
    assert coverage[0, 0].mean() == pytest.approx(side**2, abs=0.01)
    depth = render_depth(build_scene([cube()], [None]), cameras(0.0), 64)
    assert depth[0, 32, 32] == pytest.approx(2.9 - half, abs=1e-3) and np.isinf(depth[0, 0, 0])


def test_paint_alone_is_recoloured() -> None:
    mesh = cube()
    materials = mesh.materials.copy()
    materials[1, PAINT] = 1.0
    painted = LibraryMesh(
        mesh.position, mesh.normal, mesh.uv, mesh.triangles, mesh.material, materials,
        mesh.textures, mesh.names,
    )  # fmt: skip
    green = build_scene([painted], [np.array([0.0, 1.0, 0.0])])
    plain = build_scene([painted], [None])
    views, grounds = cameras(0.0, 180.0), np.array([0.5, 0.5])
    recoloured, own = (render_scene(s, views, grounds, 64)[0] for s in (green, plain))
    assert recoloured[0, 32, 32, 1] > 120 and recoloured[0, 32, 32, 0] == 0
    assert np.array_equal(recoloured[1], own[1]), "the back is not paint"


def test_glass_lets_the_background_through() -> None:
    clear, opaque = (
        render_scene(build_scene([cube(m)], [None]), cameras(0.0), np.array([1.0]), 64)[0][0]
        for m in (MTL.replace("\nd 1", "\nd 0.05"), MTL)
    )
    back = np.array([0.2, 0.4, 0.6])  # the far side, seen through the red front
    shown = clear[32, 32] / 255.0
    front = opaque[32, 32] / 255.0
    behind = (shown - LEAST_ALPHA * front) / (1 - LEAST_ALPHA)
    ratio = behind / back
    assert np.ptp(ratio) < 0.03 and 0.5 < ratio.mean() <= 1.0

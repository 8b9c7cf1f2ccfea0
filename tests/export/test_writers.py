"""Each format: shape, handedness, normals, colours and frames survive the way out and back."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from tests.helpers.assets import asset_of
from vp3d.errors import UserError
from vp3d.export import formats, glb, mesh_data, read
from vp3d.export.repair import face_measures
from vp3d.render.camera import orbit
from vp3d.render.raster import render_mesh, sample_texture
from vp3d.system import srgb
from vp3d.types import Asset, Mesh

FORMATS = sorted(formats.WRITERS)
CENTRE = np.array([0.15, 0.0, 0.0])


def glb_json(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    magic, version, length, size, kind = struct.unpack("<IIIII", data[:20])
    assert (magic, version, length, kind) == (0x46546C67, 2, len(data), 0x4E4F534A)
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def accessor(tree: dict, blob: bytes, index: int) -> np.ndarray:
    entry = tree["accessors"][index]
    view = tree["bufferViews"][entry["bufferView"]]
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[entry["type"]]
    kind = {5126: np.float32, 5125: np.uint32, 5123: np.uint16}[entry["componentType"]]
    flat = np.frombuffer(
        blob, kind, entry["count"] * width, view.get("byteOffset", 0) + entry.get("byteOffset", 0)
    )
    return flat.reshape(-1, width)


@pytest.mark.parametrize("kind", FORMATS)
def test_sphere_comes_back_with_radius_handedness_and_normals(
    kind: str, sided: Mesh, tmp_path: Path
) -> None:
    formats.WRITERS[kind](asset_of(sided), tmp_path / f"m.{kind}")
    mesh = read.read_mesh(tmp_path / f"m.{kind}")
    radii = np.linalg.norm(mesh.vertices - CENTRE, axis=1)
    assert abs(radii.mean() - 0.6) < 0.02 * 0.6
    assert face_measures(mesh)[1].sum() == pytest.approx(face_measures(sided)[1].sum(), rel=1e-4)
    assert mesh.normals is not None
    assert ((mesh.vertices - CENTRE) * mesh.normals).sum(1).min() > 0.9 * 0.6


@pytest.mark.parametrize("kind", ["glb", "obj", "ply"])
@pytest.mark.parametrize("textured", [True, False])
def test_red_stays_at_plus_y(kind: str, textured: bool, sided: Mesh, tmp_path: Path) -> None:
    source = sided if textured else replace(sided, uv=None, texture=None)
    formats.WRITERS[kind](asset_of(source), tmp_path / f"m.{kind}")
    mesh = read.read_mesh(tmp_path / f"m.{kind}")
    assert (mesh.texture is not None) == (textured and kind != "ply")
    rgb, _ = render_mesh(mesh, orbit([90.0, 270.0], 0.0, 2.9, 40.0), 48, 48)
    left, right = (rgb[b, :, 16:32, 16:32].mean((1, 2)) for b in range(2))
    torch.testing.assert_close(left, torch.tensor([0.9, 0.1, 0.1]), atol=0.03, rtol=0)
    torch.testing.assert_close(right, torch.tensor([0.9, 0.8, 0.1]), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", FORMATS)
def test_equal_meshes_give_equal_bytes_and_no_leftovers(
    kind: str, sided: Mesh, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        formats.WRITERS[kind](Asset("a ball", sided, tmp_path), tmp_path / folder / f"m.{kind}")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(["m.mtl", "m.obj", "m.png"] if kind == "obj" else [f"m.{kind}"])
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_glb_as_the_gltf_standard_wants_it(sided: Mesh, tmp_path: Path) -> None:
    sided = replace(sided, maps={}, tangents=None)
    glb.write_glb(asset_of(sided), tmp_path / "m.glb")
    tree, blob = glb_json(tmp_path / "m.glb")
    (mesh,) = tree["meshes"]
    (part,) = mesh["primitives"]
    assert len(tree["buffers"]) == 1 and "uri" not in tree["buffers"][0]
    assert all("uri" not in image and image["mimeType"] == "image/png" for image in tree["images"])
    material = tree["materials"][part["material"]]["pbrMetallicRoughness"]
    assert material["metallicFactor"] == 0.0 and material["roughnessFactor"] == 0.9
    assert material.get("baseColorFactor", [1, 1, 1, 1]) == [1, 1, 1, 1]
    assert set(part["attributes"]) == {"POSITION", "NORMAL", "TEXCOORD_0"}
    position, normal, uv = (
        accessor(tree, blob, part["attributes"][k]) for k in ("POSITION", "NORMAL", "TEXCOORD_0")
    )
    np.testing.assert_array_equal(position, sided.vertices[:, [1, 2, 0]])
    np.testing.assert_allclose(normal, sided.normals[:, [1, 2, 0]], atol=1e-6)
    np.testing.assert_allclose(uv, np.c_[sided.uv[:, 0], 1 - sided.uv[:, 1]], atol=1e-6)
    assert uv.min() >= 0 and uv.max() <= 1
    view = tree["bufferViews"][tree["images"][0]["bufferView"]]
    start = view.get("byteOffset", 0)
    png = Image.open(BytesIO(blob[start : start + view["byteLength"]]))
    np.testing.assert_array_equal(np.asarray(png), sided.texture)


def test_glb_has_a_clamped_sampler_and_targets(sided: Mesh, tmp_path: Path) -> None:
    glb.write_glb(asset_of(sided), tmp_path / "m.glb")
    tree, _ = glb_json(tmp_path / "m.glb")
    (sampler,) = tree["samplers"]
    assert len(tree["textures"]) == 3 and all(t["sampler"] == 0 for t in tree["textures"])
    assert (sampler["wrapS"], sampler["wrapT"]) == (33071, 33071)
    (part,) = tree["meshes"][0]["primitives"]
    views, accessors = tree["bufferViews"], tree["accessors"]
    assert views[accessors[part["indices"]]["bufferView"]]["target"] == 34963
    for index in part["attributes"].values():
        assert views[accessors[index]["bufferView"]]["target"] == 34962
    assert "target" not in views[tree["images"][0]["bufferView"]]


@pytest.mark.parametrize("textured", [True, False])
def test_names_come_from_the_prompt(textured: bool, sided: Mesh, tmp_path: Path) -> None:
    mesh = sided if textured else replace(sided, uv=None, texture=None)
    asset = Asset("A red ball,  next to 2 cubes!", mesh, tmp_path)
    name = "a-red-ball-next-to-2-cubes"
    glb.write_glb(asset, tmp_path / "m.glb")
    tree, _ = glb_json(tmp_path / "m.glb")
    assert name in [node.get("name") for node in tree["nodes"]]
    assert [mesh["name"] for mesh in tree["meshes"]] == [name]
    formats.WRITERS["obj"](asset, tmp_path / "m.obj")
    lines = (tmp_path / "m.obj").read_text().splitlines()
    assert f"o {name}" in lines and (f"usemtl {name}" in lines) == textured
    if textured:
        assert [material["name"] for material in tree["materials"]] == [name]
        assert f"newmtl {name}" in (tmp_path / "m.mtl").read_text().splitlines()


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red ball", "a-red-ball"),
        ("", "object"),
        ("!?", "object"),
        ("Ein grünes Häuschen", "ein-grünes-häuschen"),
        ("一个红色的球", "一个红色的球"),
        ("a_b  c/d\\e\n#f", "a-b-c-d-e-f"),
        ("word " * 40, "-".join(["word"] * 12)),
        ("x" * 100, "x" * 60),
    ],
)
def test_object_names(prompt: str, name: str) -> None:
    assert mesh_data.object_name(prompt) == name


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_the_mesh_read_back_is_the_one_written(kind: str, sided: Mesh, tmp_path: Path) -> None:
    formats.WRITERS[kind](asset_of(sided), tmp_path / f"m.{kind}")
    mesh = read.read_mesh(tmp_path / f"m.{kind}")
    np.testing.assert_array_equal(mesh.texture, sided.texture)
    corners = [each[one.faces] for one in (sided, mesh) for each in (one.vertices, one.uv)]
    np.testing.assert_allclose(corners[2], corners[0], atol=1e-6)
    np.testing.assert_allclose(corners[3], corners[1], atol=1e-6)
    if kind == "glb":  # trimesh computes the normals of an OBJ again
        np.testing.assert_allclose(mesh.normals[mesh.faces], sided.normals[sided.faces], atol=2e-6)


def test_glb_front_is_plus_z_and_up_is_plus_y(tmp_path: Path) -> None:
    """A tetrahedron with a corner at the front (+x), left (+y) and top (+z) of our frame."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 0.5, 0], [0, 0, 0.25]], np.float32)
    mesh = Mesh(corners, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))
    glb.write_glb(asset_of(mesh), tmp_path / "m.glb")
    tree, blob = glb_json(tmp_path / "m.glb")
    position = accessor(tree, blob, tree["meshes"][0]["primitives"][0]["attributes"]["POSITION"])
    np.testing.assert_array_equal(position, [[0, 0, 0], [0, 0, 1], [0.5, 0, 0], [0, 0.25, 0]])


def test_gltf_vertex_colours_are_linear(tmp_path: Path) -> None:
    colors = np.tile(np.float32([0.5, 0.25, 1.0]), (3, 1))
    mesh = Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]), vertex_colors=colors)
    glb.write_glb(asset_of(mesh), tmp_path / "m.glb")
    tree, blob = glb_json(tmp_path / "m.glb")
    index = tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]
    start = tree["bufferViews"][tree["accessors"][index]["bufferView"]]["byteOffset"]
    stored = np.frombuffer(blob, np.uint8, 4, start)
    assert stored.tolist() == [55, 13, 255, 255]  # 255 * ((c + 0.055) / 1.055) ** 2.4 by hand
    np.testing.assert_allclose(read.read_mesh(tmp_path / "m.glb").vertex_colors, colors, atol=0.01)


def test_srgb_curve_and_its_inverse() -> None:
    x = np.linspace(0, 1, 101)
    np.testing.assert_allclose(srgb.linear_to_srgb(srgb.srgb_to_linear(x)), x, atol=1e-6)
    assert srgb.srgb_to_linear(np.array(0.5)) == pytest.approx(0.21404, abs=1e-5)


@pytest.mark.parametrize("byte", list(b" \t\n\v\f\r"))
def test_no_ply_begins_with_a_byte_that_readers_skip(byte: int, tmp_path: Path) -> None:
    """assimp skips white space after the header, and the numbers would shift by a byte."""
    (leftmost,) = struct.unpack("<f", bytes([byte, 0, 0, 0xBF]))  # about -0.5, and sorted first
    corners = np.array([[leftmost, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    path = tmp_path / "model.ply"
    formats.WRITERS["ply"](Asset("a cone", Mesh(corners, faces), tmp_path), path)
    data = path.read_bytes()
    assert data[data.index(b"end_header\n") + 11] != byte
    found = read.read_mesh(path)
    triangles = {frozenset(map(tuple, corner)) for corner in found.vertices[found.faces]}
    assert triangles == {frozenset(map(tuple, corner)) for corner in corners[faces]}


def test_ply_and_stl_are_closed_again_after_the_atlas_split_them(
    sided: Mesh, tmp_path: Path
) -> None:
    for kind in ("ply", "stl"):
        formats.WRITERS[kind](asset_of(sided), tmp_path / f"m.{kind}")
        assert trimesh.load_mesh(tmp_path / f"m.{kind}").is_watertight


def test_foreign_scene_is_joined_with_its_transforms_and_colours(tmp_path: Path) -> None:
    """A red box, moved by the scene graph, and a textured plane; glTF's +X, +Y are our +y, +z."""
    box = trimesh.creation.box((0.2, 0.2, 0.2))
    red = trimesh.visual.material.PBRMaterial(baseColorFactor=[255, 0, 0, 255])
    box.visual = trimesh.visual.TextureVisuals(uv=np.zeros((len(box.vertices), 2)), material=red)
    image = Image.fromarray(np.uint8([[[0, 0, 255], [0, 255, 0]]]))
    plane = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    plane.visual = trimesh.visual.TextureVisuals(
        uv=np.array([[0, 0], [1, 0], [0, 1.0]]), material=material
    )
    scene = trimesh.Scene([plane])
    scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([0.5, 0, 0]))
    (tmp_path / "s.glb").write_bytes(scene.export(file_type="glb"))
    mesh = read.read_mesh(tmp_path / "s.glb")
    assert len(mesh.faces) == 13 and mesh.texture is not None and mesh.uv is not None
    colors = sample_texture(mesh.texture, mesh.uv)
    reds = np.all(np.abs(colors - [1, 0, 0]) < 0.01, 1)
    assert reds.sum() == len(mesh.vertices) - 3
    np.testing.assert_allclose(mesh.vertices[reds].mean(0), [0, 0.5, 0], atol=1e-6)
    at_right = np.all(np.isclose(mesh.vertices, [0, 1, 0]), 1)
    np.testing.assert_allclose(colors[at_right], [[0, 1, 0]], atol=0.01)


def test_parts_with_vertex_colours_join_as_vertex_colours() -> None:
    corners, faces = np.eye(3, dtype=np.float32), np.array([[0, 1, 2]])
    colored = Mesh(corners, faces, vertex_colors=np.eye(3, dtype=np.float32))
    textured = Mesh(
        corners, faces, uv=np.zeros((3, 2), np.float32), texture=np.full((2, 2, 3), 51, np.uint8)
    )
    mesh = read.join([colored, textured])
    np.testing.assert_allclose(
        mesh.vertex_colors, np.r_[np.eye(3), np.full((3, 3), 0.2)], atol=1e-6
    )
    assert mesh.texture is None and mesh.faces.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("damage", ["empty", "foreign", "short"])
def test_damaged_files_are_user_errors(kind: str, damage: str, sided: Mesh, tmp_path: Path) -> None:
    path = tmp_path / f"m.{kind}"
    formats.WRITERS[kind](asset_of(sided), path)
    whole = path.read_bytes()
    short = whole[: len(whole) // 3] if kind != "obj" else b"v 0 0 0\nv 1 0 0\nf 1 2 9\n"
    path.write_bytes({"empty": b"", "foreign": b"not a mesh at all", "short": short}[damage])
    with pytest.raises(UserError) as caught:
        read.read_mesh(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_texture_coordinates_that_are_no_numbers_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / "m.mtl").write_text("newmtl a\nmap_Kd m.png\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "m.png")
    text = "mtllib m.mtl\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\n"
    text += "vt 0 0\nvt nan nan\nvt 0 1\nf 1/1 2/2 3/3\n"
    (tmp_path / "m.obj").write_text(text)
    with pytest.raises(UserError, match="not numbers"):
        read.read_mesh(tmp_path / "m.obj")


@pytest.mark.parametrize("end", ["\n", " \r\n"])
@pytest.mark.parametrize("second", ["vt 0.5", "vt 0.5 0", "vt 0.5 0 0"])
def test_a_texture_coordinate_of_one_number_has_v_zero(
    second: str, end: str, tmp_path: Path
) -> None:
    """The OBJ specification: "vt u v w", where v and w are 0 if they are left out."""
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(tmp_path / "m.png")
    (tmp_path / "m.mtl").write_text("newmtl a\nmap_Kd m.png\nnewmtl b\nKd 0 1 0\n")
    rows = ["mtllib m.mtl", *(f"v {n % 3} {n // 3} {n * n % 5}" for n in range(6))]
    rows += ["vt 0.25 0.75", second, "vt 1 1"]
    one, other = ["o a", "usemtl a", "f 1/1 2/2 3/3"], ["o b", "usemtl b", "f 4/1 5/2 6/3"]
    (tmp_path / "one.obj").write_bytes("".join(row + end for row in [*rows, *one]).encode())
    mesh = read.read_mesh(tmp_path / "one.obj")
    np.testing.assert_allclose(mesh.uv, [[0.25, 0.75], [0.5, 0.0], [1.0, 1.0]])
    text = "".join(row + end for row in [*rows, *one, *other])
    (tmp_path / "two.obj").write_bytes(text.encode())
    joined = read.read_mesh(tmp_path / "two.obj")
    same = [np.flatnonzero((joined.vertices == v).all(1))[0] for v in mesh.vertices]
    np.testing.assert_allclose(joined.uv[same, 1], [0.75, 0.0, 1.0])
    assert (joined.texture == [0, 255, 0]).all(-1).any(), "the other part's texel"


def test_missing_and_unknown_files_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no mesh file"):
        read.read_mesh(tmp_path / "missing.glb")
    with pytest.raises(UserError, match=".glb"):
        read.read_mesh(tmp_path / "model.fbx")


def test_fit_to_cube_scales_only_what_does_not_fit(sided: Mesh) -> None:
    assert read.fit_to_cube(sided) is sided
    big = read.fit_to_cube(replace(sided, vertices=sided.vertices * 100 + 7))
    assert abs(big.vertices).max() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("size", [1.0, 1.0e-6])
def test_triangles_without_area_are_one_line_and_small_ones_are_none(
    size: float, tmp_path: Path
) -> None:
    rows = [f"v {size * x} {size * y} 0" for x, y in ((0, 0), (1, 0), (2, 0), (0, 1))]
    (tmp_path / "flat.obj").write_text("\n".join([*rows, "f 1 2 3", "f 1 1 2"]))
    with pytest.raises(
        UserError, match=r"^[^\n]*flat.obj shows nothing: no triangle has an area[^\n]*$"
    ):
        read.read_mesh(tmp_path / "flat.obj")
    (tmp_path / "thin.obj").write_text("\n".join([*rows, "f 1 2 3", "f 1 2 4"]))
    assert len(read.read_mesh(tmp_path / "thin.obj").faces) == 2

"""glTF of other programs: numbers, triangles and nodes; and files that are refused in one line."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.gltf import (
    GREEN,
    QUAD,
    QUAD_UV,
    RED,
    Builder,
    colors_of,
    of_texture,
    solid,
)
from vp3d.errors import UserError
from vp3d.export.read import read_mesh


def test_sparse_positions_with_and_without_a_base(tmp_path: Path) -> None:
    for base in (True, False):
        builder = Builder()
        part = builder.quad()
        at, values = builder.view(np.uint8([2]).tobytes()), np.float32([[1, 1, 5]])
        sparse = {
            "count": 1,
            "indices": {"bufferView": at, "componentType": 5121},
            "values": {"bufferView": builder.view(values.tobytes())},
        }
        accessor = builder.tree["accessors"][part["attributes"]["POSITION"]]
        accessor["sparse"] = sparse
        expected = QUAD.copy()
        if not base:
            del accessor["bufferView"]
            expected[:] = 0
            part["mode"] = 4
        expected[2] = values[0]
        if not base:
            with pytest.raises(UserError, match="no triangle has an area"):
                read_mesh(builder.write(tmp_path / "m.glb"))
            continue
        mesh = read_mesh(builder.write(tmp_path / "m.glb"))
        np.testing.assert_allclose(mesh.vertices, expected[:, [2, 0, 1]])


@pytest.mark.parametrize(
    ("positions", "normalized", "size"),
    [
        (np.uint8(QUAD * 200), False, 200.0),
        (np.int8(QUAD * 127), True, 1.0),
        (np.int16(QUAD * 32767), True, 1.0),
        (np.uint16(QUAD * 65535), True, 1.0),
        (np.int16(QUAD * -32768), True, -1.0),
    ],
)
def test_quantised_positions(
    positions: np.ndarray, normalized: bool, size: float, tmp_path: Path
) -> None:
    builder = Builder()
    part = builder.quad()
    part["attributes"]["POSITION"] = builder.accessor(positions, normalized=normalized)
    builder.require("KHR_mesh_quantization")
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    np.testing.assert_allclose(mesh.vertices, size * QUAD[:, [2, 0, 1]], rtol=1e-4)


def test_interleaved_attributes(tmp_path: Path) -> None:
    builder = Builder()
    part = builder.quad()
    rows = np.c_[QUAD, QUAD_UV].astype(np.float32)
    view = builder.view(rows.tobytes(), byteStride=20)
    for name, kind, offset in (("POSITION", "VEC3", 0), ("TEXCOORD_0", "VEC2", 12)):
        entry = {"bufferView": view, "byteOffset": offset, "count": 4, "type": kind}
        part["attributes"][name] = builder.add("accessors", {**entry, "componentType": 5126})
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    np.testing.assert_allclose(mesh.vertices, QUAD[:, [2, 0, 1]])


@pytest.mark.parametrize(
    ("mode", "order"),
    [(5, [0, 1, 3, 2]), (6, [0, 1, 2, 3]), (4, [0, 1, 2, 0, 2, 3]), (4, [0, 1, 2, 0, 2, 3, 1])],
)
@pytest.mark.parametrize("indexed", [True, False])
def test_strips_and_fans_face_the_right_way(
    mode: int, order: list[int], indexed: bool, tmp_path: Path
) -> None:
    builder = Builder()
    part = builder.quad()
    part["mode"] = mode
    if indexed:
        part["indices"] = builder.accessor(np.uint8(order))
    else:
        part["attributes"] = {"POSITION": builder.accessor(QUAD[order])}
        del part["indices"]
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    assert len(mesh.faces) == 2
    corners = mesh.vertices[mesh.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    np.testing.assert_allclose(across, [[1, 0, 0], [1, 0, 0]])  # glTF's +Z is our +x


TURN = [0.0, 0.0, float(np.sin(np.pi / 4)), float(np.cos(np.pi / 4))]  # 90 degrees about +Z


@pytest.mark.parametrize(
    ("node", "point"),
    [
        ({"translation": [1, 2, 3]}, (2, 2, 3)),
        ({"scale": [2, 1, 1]}, (2, 0, 0)),
        ({"rotation": TURN}, (0, 1, 0)),
        ({"rotation": [2 * v for v in TURN], "scale": [3, 1, 1]}, (0, 3, 0)),
        ({"matrix": [0, 1, 0, 0, -1, 0, 0, 0, 0, 0, 1, 0, 5, 0, 0, 1]}, (5, 1, 0)),
        ({"scale": [-1, 1, 1]}, (-1, 0, 0)),
        ({"scale": [-1, -1, -1]}, (-1, 0, 0)),
        ({"scale": [-1, -1, 1]}, (-1, 0, 0)),
    ],
)
def test_nodes_move_the_corner_and_keep_the_outside(
    node: dict, point: tuple[float, float, float], tmp_path: Path
) -> None:
    """Where corner (1, 0, 0) comes to, in glTF's axes, and which side of the square is outside."""
    builder = Builder()
    builder.quad(NORMAL=np.tile(np.float32([0, 0, 1]), (4, 1)))
    builder.tree["nodes"] = [{"mesh": 0, **node}]
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    np.testing.assert_allclose(mesh.vertices[1][[1, 2, 0]], point, atol=1e-6)
    corners = mesh.vertices[mesh.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((across / np.linalg.norm(across, axis=1, keepdims=True)) @ mesh.normals[0]).min() > 0.99


def test_a_mirrored_parent_and_child_cancel(tmp_path: Path) -> None:
    builder = Builder()
    builder.quad()
    builder.tree["nodes"] = [
        {"children": [1], "scale": [-1, 1, 1], "translation": [4, 0, 0]},
        {"mesh": 0, "scale": [-1, 1, 1]},
    ]
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    np.testing.assert_allclose(mesh.vertices[:, 1], 4 + QUAD[:, 0])
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_instances(tmp_path: Path) -> None:
    builder = Builder()
    builder.quad()
    moves = builder.accessor(np.float32([[0, 0, 0], [3, 0, 0], [6, 0, 0]]))
    extension = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": moves}}}
    builder.tree["nodes"] = [{"mesh": 0, "extensions": extension}]
    builder.require("EXT_mesh_gpu_instancing")
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    assert sorted(set(mesh.vertices[:, 1].tolist())) == [0, 1, 3, 4, 6, 7]


def test_skin_in_its_rest_pose_ignores_the_node(tmp_path: Path) -> None:
    builder = Builder()
    part = builder.quad()
    part["attributes"]["JOINTS_0"] = builder.accessor(np.uint8([[0, 1, 0, 0]] * 4))
    weights = np.float32([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0]])
    part["attributes"]["WEIGHTS_0"] = builder.accessor(weights)
    bind = np.tile(np.eye(4, dtype=np.float32).reshape(-1), (2, 1))
    builder.tree["skins"] = [{"joints": [1, 2], "inverseBindMatrices": builder.accessor(bind)}]
    builder.tree["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [50, 50, 50]},
        {"translation": [10, 0, 0]},
        {"translation": [0, 10, 0]},
    ]
    builder.tree["scenes"] = [{"nodes": [0, 1, 2]}]
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    right = np.float32([[10, 0, 0], [11, 0, 0], [1, 11, 0], [5, 6, 0]])
    np.testing.assert_allclose(mesh.vertices[:, [1, 2, 0]], right, atol=1e-4)


@pytest.mark.parametrize("joint", [0, 1])
def test_a_skin_of_one_joint_has_no_second_one(joint: int, tmp_path: Path) -> None:
    builder = Builder()
    part = builder.quad()
    part["attributes"]["JOINTS_0"] = builder.accessor(np.uint8([[joint, 0, 0, 0]] * 4))
    weights = np.float32([[1, 0, 0, 0]] * 4)
    part["attributes"]["WEIGHTS_0"] = builder.accessor(weights)
    builder.tree["skins"] = [{"joints": [1]}]
    builder.tree["nodes"] = [{"mesh": 0, "skin": 0}, {"translation": [10, 0, 0]}]
    builder.tree["scenes"] = [{"nodes": [0, 1]}]
    path = builder.write(tmp_path / "m.glb")
    if joint:
        with pytest.raises(UserError, match="a skin with joints that do not exist"):
            read_mesh(path)
    else:
        right = QUAD + np.float32([10, 0, 0])
        np.testing.assert_allclose(read_mesh(path).vertices[:, [1, 2, 0]], right, atol=1e-4)


@pytest.mark.parametrize("where", ["mesh", "node"])
def test_morph_targets_by_their_default_weights(where: str, tmp_path: Path) -> None:
    builder = Builder()
    part = builder.quad()
    part["targets"] = [{"POSITION": builder.accessor(np.tile(np.float32([0, 0, 4]), (4, 1)))}]
    entry = builder.tree["meshes"][0] if where == "mesh" else builder.tree["nodes"][0]
    entry["weights"] = [0.25]
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    np.testing.assert_allclose(mesh.vertices[:, 0], 1.0)


def test_gltf_with_files_next_to_it_and_with_data_inside(tmp_path: Path) -> None:
    for inside in (True, False):
        builder = Builder()
        builder.quad(of_texture(builder, solid(GREEN)))
        data = base64.b64encode(builder.blob).decode()
        uri = "data:application/octet-stream;base64," + data if inside else "a%20b.bin"
        (tmp_path / "a b.bin").write_bytes(builder.blob)
        builder.tree["buffers"] = [{"byteLength": len(builder.blob), "uri": uri}]
        (tmp_path / "m.gltf").write_text(json.dumps(builder.tree))
        assert np.abs(colors_of(read_mesh(tmp_path / "m.gltf")) - GREEN).max() <= 1


@pytest.mark.parametrize(
    "head",
    [
        "data:;base64,",
        "data:application/gltf-buffer;base64,",
        "data:text/plain;charset=utf-8;base64,",
        "DATA:application/octet-stream;BASE64,",
    ],
)
@pytest.mark.parametrize("style", ["plain", "no padding", "lines", "url-safe"])
def test_data_uris_in_every_style(head: str, style: str, tmp_path: Path) -> None:
    builder = Builder()
    builder.quad({"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}})
    builder.blob += b"\xff\xfe\xfb"  # + and / in base64, and no multiple of three
    text = base64.b64encode(builder.blob).decode()
    text = {
        "plain": text,
        "no padding": text.rstrip("="),
        "lines": "\n".join(text[i : i + 60] for i in range(0, len(text), 60)),
        "url-safe": base64.urlsafe_b64encode(builder.blob).decode(),
    }[style]
    builder.tree["buffers"] = [{"byteLength": len(builder.blob), "uri": head + text}]
    (tmp_path / "m.gltf").write_text(json.dumps(builder.tree))
    assert np.abs(colors_of(read_mesh(tmp_path / "m.gltf")) - RED).max() <= 1


@pytest.mark.parametrize("stray", [np.nan, np.inf, 1e9])
def test_vertices_that_no_face_uses_do_not_count(stray: float, tmp_path: Path) -> None:
    builder = Builder()
    positions = np.float32([*QUAD, [stray] * 3])
    builder.quad(POSITION=positions, TEXCOORD_0=np.float32([*QUAD_UV, [0, 0]]))
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    assert len(mesh.vertices) == 4 and len(mesh.faces) == 2
    np.testing.assert_array_equal(np.ptp(mesh.vertices, axis=0), [0, 1, 1])


def test_invisible_nodes_and_their_children_are_left_out(tmp_path: Path) -> None:
    builder = Builder()
    builder.quad()
    hidden = {"extensions": {"KHR_node_visibility": {"visible": False}}}
    builder.tree["nodes"] = [
        {"mesh": 0},
        {"mesh": 0, "children": [2], "translation": [5, 0, 0], **hidden},
        {"mesh": 0, "translation": [9, 0, 0]},
    ]
    builder.tree["scenes"] = [{"nodes": [0, 1]}]
    builder.require("KHR_node_visibility")
    assert len(read_mesh(builder.write(tmp_path / "m.glb")).faces) == 2


@pytest.mark.parametrize(
    ("material", "shown"),
    [
        ({"alphaMode": "BLEND"}, False),
        ({"alphaMode": "MASK"}, False),
        ({"alphaMode": "OPAQUE"}, True),
        ({}, True),
    ],
)
def test_a_part_that_its_factor_makes_transparent_is_left_out(
    material: dict, shown: bool, tmp_path: Path
) -> None:
    builder = Builder()
    builder.quad()
    factor = {"pbrMetallicRoughness": {"baseColorFactor": [1, 1, 1, 0]}}
    builder.quad(material | factor)
    builder.tree["nodes"] = [{"mesh": 0}, {"mesh": 1, "translation": [0, 0, 3]}]
    builder.tree["scenes"] = [{"nodes": [0, 1]}]
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    assert len(mesh.faces) == (4 if shown else 2)


def test_numbers_beyond_their_range_are_one_line(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    builder = Builder()
    builder.quad()
    builder.tree["nodes"][0]["scale"] = [1e39] * 3
    with pytest.raises(UserError, match=r"^[^\n]+$"):
        read_mesh(builder.write(tmp_path / "m.glb"))
    assert not recwarn.list


def test_a_damaged_texture_is_named_without_the_words_of_a_library(tmp_path: Path) -> None:
    builder = Builder()
    builder.quad({"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}})
    builder.tree["textures"] = [{"source": 0}]
    builder.tree["images"] = [{"uri": "data:image/png;base64,AAAA"}]
    with pytest.raises(UserError, match="a texture that is damaged or no picture"):
        read_mesh(builder.write(tmp_path / "m.glb"))


@pytest.mark.parametrize(
    "uri",
    [
        "../out.bin",
        "/etc/hostname",
        "file:///etc/hostname",
        "https://example.com/a.bin",
        "..%2Fout.bin",
        "link.bin",
        "pipe",
        "a\\b.bin",
        "missing.bin",
        "data:;base64,@@@",
    ],
)
def test_files_elsewhere_are_refused_in_one_line(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    builder = Builder()
    builder.quad()
    (tmp_path / "out.bin").write_bytes(builder.blob)
    (folder / "link.bin").symlink_to(tmp_path / "out.bin")
    os.mkfifo(folder / "pipe")
    builder.tree["buffers"] = [{"byteLength": len(builder.blob), "uri": uri}]
    (folder / "m.gltf").write_text(json.dumps(builder.tree))
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        read_mesh(folder / "m.gltf")
    assert str(folder / "m.gltf") in str(caught.value)


@pytest.mark.parametrize(
    ("extension", "words"),
    [
        ("EXT_meshopt_compression", "meshopt compression"),
        ("KHR_texture_basisu", "Basis Universal"),
        ("ACME_secret", "ACME_secret"),
    ],
)
def test_required_extensions_that_are_not_read_are_named(
    extension: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    builder = Builder()
    builder.quad()
    builder.require(extension)
    with pytest.raises(UserError, match=rf"^[^\n]*{words}[^\n]*export it without it$"):
        read_mesh(builder.write(tmp_path / "m.glb"))
    assert capfd.readouterr() == ("", "")


def _draco_without_requiring_it(builder: Builder) -> None:
    part = builder.quad()
    part["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {}}}
    for accessor in builder.tree["accessors"]:
        del accessor["bufferView"]


def _basis_only(builder: Builder) -> None:
    material = of_texture(builder, solid(RED))
    builder.tree["textures"] = [{"extensions": {"KHR_texture_basisu": {"source": 0}}}]
    builder.quad(material)


@pytest.mark.parametrize("change", [_draco_without_requiring_it, _basis_only])
def test_compressed_data_without_a_fallback_is_named(
    change: Callable[[Builder], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vp3d.export.gltf_scene.has_draco", lambda: False)  # an optional package
    builder = Builder()
    change(builder)
    with pytest.raises(UserError, match=r"^[^\n]*(Draco|Basis)[^\n]*export it without it$"):
        read_mesh(builder.write(tmp_path / "m.glb"))


def _set(*path: object) -> Callable[[dict], None]:
    """Sets the last of `path` at the keys before it."""

    def change(tree: dict) -> None:
        for key in path[:-2]:
            tree = tree[key]
        tree[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("accessors", 0, "count", 10**12),
        _set("accessors", 0, "count", -1),
        _set("accessors", 0, "byteOffset", 99999),
        _set("accessors", 0, "componentType", "x"),
        _set("accessors", 1, "bufferView", -1),
        _set("accessors", 1, "type", "MAT9"),
        _set("bufferViews", 0, "byteLength", 10**9),
        _set("bufferViews", 0, "buffer", 7),
        _set("meshes", 0, "primitives", 0, "attributes", "POSITION", 99),
        _set("meshes", 0, "primitives", 0, "attributes", []),
        _set("meshes", 0, "primitives", 0, "material", 5),
        _set("nodes", 0, "matrix", [1, 2]),
        _set("nodes", 0, "scale", [1, 1, float("nan")]),
        _set("nodes", 0, "children", [0]),
        _set("scenes", 0, "nodes", [True]),
        _set("scenes", []),
        _set("nodes", None),
        _set("asset", {"version": "1.0"}),
        _set("asset", None),
    ],
)
def test_damaged_trees_are_one_line(change: Callable[[dict], None], tmp_path: Path) -> None:
    builder = Builder()
    builder.quad(of_texture(builder, solid(RED)))
    change(builder.tree)
    path = builder.write(tmp_path / "m.glb")
    if builder.tree["scenes"] == []:
        assert len(read_mesh(path).faces) == 2  # the roots are the nodes without a parent
        return
    with pytest.raises(UserError, match=r"^[^\n]*m\.glb[^\n]*$"):
        read_mesh(path)


def test_deep_brackets_and_a_huge_picture_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.gltf").write_text("[" * 200_000)
    with pytest.raises(UserError, match="JSON"):
        read_mesh(tmp_path / "m.gltf")


def test_a_node_in_two_parents_is_refused(tmp_path: Path) -> None:
    """Twenty levels of two references each would be a million meshes."""
    builder = Builder()
    builder.quad()
    builder.tree["nodes"] = [{"children": [k + 1, k + 1]} for k in range(20)] + [{"mesh": 0}]
    with pytest.raises(UserError, match="contained twice"):
        read_mesh(builder.write(tmp_path / "m.glb"))

"""glTF of other programs: every way to write a colour, a shape or a number that the reader knows.

Colours are compared in the middle of the rendered faces. The right values follow from the
specification by hand: linear factors are encoded as sRGB, textures are sRGB already.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.gltf import QUAD, QUAD_UV, Builder
from vp3d.errors import UserError
from vp3d.export.layers import LINEAR
from vp3d.export.mesh_data import linear_to_srgb
from vp3d.export.read import join, read_mesh
from vp3d.render.raster import base_color
from vp3d.types import Mesh

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 200, 0), (0, 0, 255), (255, 255, 255)
FOUR = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]]  # rows from the top
HALF = 188  # sRGB of linear 0.5


def colors_of(mesh: Mesh, at: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)) -> np.ndarray:
    """The 8-bit colour `[F, 3]` of each face at barycentric coordinates `at`."""
    faces = np.arange(len(mesh.faces))
    return np.round(255 * base_color(mesh, faces, np.tile(np.float32(at), (len(faces), 1))))


def color_at(mesh: Mesh, x: float, y: float) -> np.ndarray:
    """The 8-bit colour of the quad at glTF's (x, y), which are our y and z."""
    for number, face in enumerate(mesh.faces):
        corners = np.c_[mesh.vertices[face][:, 1:], np.ones(3)]
        weights = np.linalg.solve(corners.T, [x, y, 1.0])
        if (weights > -1e-6).all():
            point = base_color(mesh, np.array([number]), np.float32([weights]))
            return np.round(255 * point[0])
    raise AssertionError("no face there")


def flat(builder: Builder, tmp_path: Path, right: tuple[int, int, int], within: int = 2) -> None:
    """Assert that every face has one colour."""
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    assert np.abs(colors_of(mesh) - right).max() <= within, colors_of(mesh)


def solid(color: tuple[int, ...], side: int = 4) -> np.ndarray:
    return np.tile(np.uint8(color), (side, side, 1))


def of_texture(
    builder: Builder, pixels: object, factor: list | None = None, **info: object
) -> dict:
    rough = {"baseColorTexture": {"index": builder.texture(pixels), **info}}
    return {"pbrMetallicRoughness": rough | ({"baseColorFactor": factor} if factor else {})}


@pytest.mark.parametrize(
    ("colors", "right"),
    [
        (np.uint8([[200, 30, 30, 255]] * 4), (229, 96, 96)),
        (np.uint8([[200, 30, 30]] * 4), (229, 96, 96)),
        (np.uint16([[51400, 7710, 7710, 65535]] * 4), (229, 96, 96)),
        (np.float32([[0.5, 0.0, 1.0]] * 4), (HALF, 0, 255)),
        (np.float32([[0.5, 0.0, 1.0, 0.3]] * 4), (HALF, 0, 255)),
    ],
)
@pytest.mark.parametrize("material", [None, {}, {"pbrMetallicRoughness": {}}])
def test_vertex_colours_survive_any_material(
    colors: np.ndarray, right: tuple[int, int, int], material: dict | None, tmp_path: Path
) -> None:
    builder = Builder()
    builder.quad(material, COLOR_0=colors)
    flat(builder, tmp_path, right)


def test_vertex_colours_times_factor(tmp_path: Path) -> None:
    builder = Builder()
    material = {"pbrMetallicRoughness": {"baseColorFactor": [0.5, 1.0, 0.0, 1.0]}}
    builder.quad(material, COLOR_0=np.float32([[1.0, 0.5, 1.0]] * 4))
    flat(builder, tmp_path, (HALF, HALF, 0))


def test_vertex_colours_times_texture_times_factor(tmp_path: Path) -> None:
    builder = Builder()
    material = of_texture(builder, solid((255, 188, 255)), [1.0, 1.0, 0.5, 1.0])
    builder.quad(material, COLOR_0=np.float32([[1.0, 1.0, 0.5]] * 4))
    flat(builder, tmp_path, (255, 188, 137))  # 0.25 linear is 137


def test_texture_times_vertex_colours_that_differ(tmp_path: Path) -> None:
    """Left half of the texture white, right half green; colour from 1 at the bottom to 0.5."""
    builder = Builder()
    pixels = np.uint8([[WHITE] * 8 + [(0, 255, 0)] * 8] * 16)
    colors = np.float32([[1, 1, 1], [1, 1, 1], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    builder.quad(of_texture(builder, pixels), COLOR_0=colors)
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    for y in (0.1, 0.5, 0.9):
        level = 255 * float(linear_to_srgb(np.array(1.0 - 0.5 * y)))
        assert np.abs(color_at(mesh, 0.25, y) - level).max() <= 4
        assert np.abs(color_at(mesh, 0.8, y) - [0, level, 0]).max() <= 4


def test_vertex_colours_that_differ_without_a_texture_stay_vertex_colours(tmp_path: Path) -> None:
    builder = Builder()
    colors = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    builder.quad(COLOR_0=colors)
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    np.testing.assert_allclose(mesh.vertex_colors, colors, atol=1e-6)
    assert mesh.texture is None


@pytest.mark.parametrize(
    ("transform", "right"),
    [
        ({"offset": [0.5, 0.0]}, (0, 255, 0)),
        ({"offset": [0.0, 0.5]}, (0, 0, 255)),
        ({"offset": [0.5, 0.5]}, (255, 255, 0)),
        ({"offset": [1.5, -0.5]}, (255, 255, 0)),
        ({"scale": [3.0, 1.0]}, (0, 255, 0)),
        ({"scale": [1.0, 3.0]}, (0, 0, 255)),
        # (0.25, 0.25) turned counter-clockwise in the picture is (0.25, -0.25)
        ({"rotation": np.pi / 2}, (0, 0, 255)),
        ({"rotation": -np.pi / 2}, (0, 255, 0)),
        ({"rotation": np.pi / 2, "offset": [0.5, 0.5]}, (0, 255, 0)),
        ({"rotation": np.pi / 2, "scale": [3.0, 1.0], "offset": [0.0, 1.0]}, (255, 0, 0)),
        ({"texCoord": 1}, (255, 255, 0)),
        ({}, (255, 0, 0)),
    ],
)
@pytest.mark.parametrize("required", [True, False])
def test_texture_transform(
    transform: dict, right: tuple[int, int, int], required: bool, tmp_path: Path
) -> None:
    """All corners look up (0.25, 0.25), or in the second set (0.75, 0.75)."""
    builder = Builder()
    pixels = np.uint8(FOUR).repeat(8, 0).repeat(8, 1)
    info = {"extensions": {"KHR_texture_transform": transform}}
    builder.quad(
        of_texture(builder, pixels, **info),
        TEXCOORD_0=np.full((4, 2), 0.25, np.float32),
        TEXCOORD_1=np.full((4, 2), 0.75, np.float32),
    )
    if required:
        builder.require("KHR_texture_transform")
    flat(builder, tmp_path, right)


def test_second_uv_set(tmp_path: Path) -> None:
    builder = Builder()
    pixels = np.uint8(FOUR).repeat(8, 0).repeat(8, 1)
    corner = np.full((4, 2), 0.75, np.float32)
    builder.quad(of_texture(builder, pixels, texCoord=1), TEXCOORD_1=corner)
    flat(builder, tmp_path, (255, 255, 0))


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_normalised_uvs(kind: str, tmp_path: Path) -> None:
    builder = Builder()
    pixels = np.uint8(FOUR).repeat(8, 0).repeat(8, 1)
    uv = np.round(np.full((4, 2), 0.75) * np.iinfo(kind).max).astype(kind)
    builder.quad(of_texture(builder, pixels), TEXCOORD_0=uv)
    flat(builder, tmp_path, (255, 255, 0))


EMISSIVE = "KHR_materials_emissive_strength"
GLOSS = "KHR_materials_pbrSpecularGlossiness"
BLACK = {"baseColorFactor": [0.0, 0.0, 0.0, 1.0]}


@pytest.mark.parametrize(
    ("material", "right"),
    [
        ({"pbrMetallicRoughness": BLACK, "emissiveFactor": [0.0, 0.5, 0.0]}, (0, HALF, 0)),
        ({"pbrMetallicRoughness": BLACK, "emissiveFactor": [0.2, 0.5, 1.0]}, (124, HALF, 255)),
        (
            {
                "pbrMetallicRoughness": BLACK,
                "emissiveFactor": [1.0, 0.5, 0.0],
                "extensions": {EMISSIVE: {"emissiveStrength": 8.0}},
            },
            (255, HALF, 0),
        ),
        (
            {
                "pbrMetallicRoughness": BLACK,
                "emissiveFactor": [0.1, 0.0, 0.0],
                "extensions": {EMISSIVE: {"emissiveStrength": 5.0}},
            },
            (HALF, 0, 0),
        ),
        (
            {
                "pbrMetallicRoughness": {"baseColorFactor": [0.5, 0.0, 0.0, 1.0]},
                "emissiveFactor": [0.0, 0.0, 0.5],
            },
            (HALF, 0, HALF),
        ),
        (
            {
                "pbrMetallicRoughness": {"baseColorFactor": [0.5, 0.0, 0.0, 1.0]},
                "emissiveFactor": [0.0, 0.0, 1.0],
                "extensions": {"KHR_materials_unlit": {}},
            },
            (HALF, 0, 0),
        ),
        ({"extensions": {GLOSS: {"diffuseFactor": [0.5, 0.0, 1.0, 1.0]}}}, (HALF, 0, 255)),
        (
            {
                "pbrMetallicRoughness": {"baseColorFactor": [0.0, 1.0, 0.0, 1.0]},
                "extensions": {GLOSS: {"diffuseFactor": [1.0, 0.0, 0.0, 1.0]}},
            },
            RED,
        ),
        (
            {
                "extensions": {
                    GLOSS: {"diffuseFactor": [0, 0, 0, 1], "specularFactor": [1.0, 0.5, 0.0]}
                }
            },
            (255, HALF, 0),
        ),
        ({"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 0.2]}, "alphaMode": "BLEND"}, RED),
        ({"pbrMetallicRoughness": BLACK}, (0, 0, 0)),
        ({}, WHITE),
    ],
)
def test_factors_of_materials(material: dict, right: tuple[int, int, int], tmp_path: Path) -> None:
    builder = Builder()
    builder.quad(material)
    flat(builder, tmp_path, right)


def test_emissive_texture_alone(tmp_path: Path) -> None:
    builder = Builder()
    index = builder.texture(solid(GREEN))
    emissive = {"emissiveTexture": {"index": index}, "emissiveFactor": [1, 1, 1]}
    builder.quad({"pbrMetallicRoughness": BLACK, **emissive})
    flat(builder, tmp_path, GREEN)


def test_emissive_texture_with_its_own_uvs_over_a_base_texture(tmp_path: Path) -> None:
    """A dark red base; the right half glows blue in the second set, which is mirrored."""
    builder = Builder()
    material = of_texture(builder, np.uint8([[(137, 0, 0)] * 8 + [(138, 0, 0)] * 8] * 16))
    glow = builder.texture(np.uint8([[BLUE] * 8 + [(0, 0, 0)] * 8] * 16))
    material |= {"emissiveTexture": {"index": glow, "texCoord": 1}, "emissiveFactor": [1, 1, 1]}
    builder.quad(material, TEXCOORD_1=np.float32([1, 0]) + np.float32([-1, 1]) * QUAD_UV)
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    assert np.abs(color_at(mesh, 0.2, 0.5) - [137, 0, 0]).max() <= 3
    assert np.abs(color_at(mesh, 0.8, 0.5) - [138, 0, 255]).max() <= 3


def test_one_texture_as_base_and_emission_counts_once(tmp_path: Path) -> None:
    builder = Builder()
    material = of_texture(builder, solid((150, 60, 20)))
    material |= {"emissiveTexture": {"index": 0}, "emissiveFactor": [1, 1, 1]}
    builder.quad(material)
    flat(builder, tmp_path, (150, 60, 20))


def test_specular_glossiness_texture_with_transform(tmp_path: Path) -> None:
    builder = Builder()
    index = builder.texture(np.uint8(FOUR).repeat(8, 0).repeat(8, 1))
    moved = {"KHR_texture_transform": {"offset": [0.5, 0.5]}}
    info = {"index": index, "extensions": moved}
    material = {"extensions": {GLOSS: {"diffuseTexture": info}}}
    builder.quad(material, TEXCOORD_0=np.full((4, 2), 0.25, np.float32))
    flat(builder, tmp_path, (255, 255, 0))


@pytest.mark.parametrize("fallback", [True, False])
def test_webp_texture(fallback: bool, tmp_path: Path) -> None:
    builder = Builder()
    index = builder.texture(solid(GREEN), "WEBP")
    source = builder.tree["textures"][index].pop("source")
    builder.tree["textures"][index]["extensions"] = {"EXT_texture_webp": {"source": source}}
    if fallback:
        builder.tree["textures"][index]["source"] = 1 + source
        builder.texture(solid(RED))
        builder.tree["extensionsUsed"] = ["EXT_texture_webp"]
    else:
        builder.require("EXT_texture_webp")
    builder.quad({"pbrMetallicRoughness": {"baseColorTexture": {"index": index}}})
    flat(builder, tmp_path, GREEN)


@pytest.mark.parametrize("grey", [0x5000, 0xFFFF, 0x0080])
def test_16_bit_grey_texture(grey: int, tmp_path: Path) -> None:
    builder = Builder()
    index = builder.texture(solid(RED))
    from io import BytesIO

    from PIL import Image

    data = BytesIO()
    Image.fromarray(np.full((4, 4), grey, np.uint16)).save(data, "PNG")
    builder.tree["images"][0] = {"bufferView": builder.view(data.getvalue())}
    builder.quad({"pbrMetallicRoughness": {"baseColorTexture": {"index": index}}})
    flat(builder, tmp_path, (round(grey / 257),) * 3, within=1)


@pytest.mark.parametrize(
    ("wrap", "u", "right"),
    [(10497, 1.25, RED), (33071, 1.25, BLUE), (33648, 1.25, BLUE), (33648, 1.75, RED)],
)
def test_wrap_modes(wrap: int, u: float, right: tuple[int, int, int], tmp_path: Path) -> None:
    builder = Builder()
    index = builder.texture([[RED] * 8 + [BLUE] * 8] * 16, sampler={"wrapS": wrap, "wrapT": wrap})
    uv = np.tile(np.float32([u, 0.5]), (4, 1))
    builder.quad({"pbrMetallicRoughness": {"baseColorTexture": {"index": index}}}, TEXCOORD_0=uv)
    flat(builder, tmp_path, right)


@pytest.mark.parametrize("wrap", [10497, 33648, 33071])
def test_a_texture_that_repeats_is_drawn_and_not_averaged(wrap: int, tmp_path: Path) -> None:
    """Three columns of red and blue over one square, which has colours at its corners only."""
    builder = Builder()
    index = builder.texture([[RED] * 8 + [BLUE] * 8] * 16, sampler={"wrapS": wrap, "wrapT": wrap})
    uv = QUAD_UV * np.float32([3.0, 1.0])
    builder.quad({"pbrMetallicRoughness": {"baseColorTexture": {"index": index}}}, TEXCOORD_0=uv)
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    for tile in range(3):
        for half, color in enumerate((RED, BLUE)):
            if wrap == 33648 and tile % 2:
                color = (BLUE, RED)[half]
            if wrap == 33071 and tile:
                color = BLUE
            found = color_at(mesh, (tile + 0.25 + 0.5 * half) / 3, 0.4)
            assert np.abs(found - color).max() <= 3, (tile, half)


def test_hard_pixels_stay_hard(tmp_path: Path) -> None:
    """Two pixels without filtering: the border is in the middle, and nothing is mixed beside it."""
    builder = Builder()
    index = builder.texture([[RED, BLUE]], sampler={"magFilter": 9728})
    builder.quad({"pbrMetallicRoughness": {"baseColorTexture": {"index": index}}})
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    assert color_at(mesh, 0.45, 0.5).tolist() == list(RED)
    assert color_at(mesh, 0.55, 0.5).tolist() == list(BLUE)


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


def test_several_primitives_keep_their_own_colours(tmp_path: Path) -> None:
    """A texture, a factor, vertex colours that differ, the same texture again; points are left."""
    builder = Builder()
    pixels = np.uint8(FOUR).repeat(8, 0).repeat(8, 1)
    parts = [builder.quad(of_texture(builder, pixels))]
    parts.append(builder.quad({"pbrMetallicRoughness": {"baseColorFactor": [0.5, 0, 0.5, 1]}}))
    colors = np.float32([[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]])
    parts.append(builder.quad(COLOR_0=colors))
    parts.append(builder.quad({"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}))
    parts.append({**builder.quad(), "mode": 0})
    for k, part in enumerate(parts):
        part["attributes"]["POSITION"] = builder.accessor(QUAD + np.float32([2 * k, 0, 0]))
    builder.tree["meshes"] = [{"primitives": parts}]
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    assert len(mesh.faces) == 8
    for x in (0, 6):
        assert np.abs(color_at(mesh, x + 0.25, 0.25) - [0, 0, 255]).max() <= 2
        assert np.abs(color_at(mesh, x + 0.75, 0.75) - [0, 255, 0]).max() <= 2
    assert np.abs(color_at(mesh, 2.5, 0.5) - [HALF, 0, HALF]).max() <= 2
    assert np.abs(color_at(mesh, 4.5, 0.01) - RED).max() <= 40
    assert np.abs(color_at(mesh, 4.5, 0.5) - [HALF, 0, HALF]).max() <= 6


def test_parts_that_share_a_picture_have_it_once(tmp_path: Path) -> None:
    builder = Builder()
    material = of_texture(builder, np.uint8(FOUR).repeat(8, 0).repeat(8, 1))
    parts = [builder.quad(material), builder.quad(material)]
    builder.tree["meshes"] = [{"primitives": parts}]
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    assert mesh.texture.shape == (16, 16, 3)
    np.testing.assert_allclose(mesh.uv, np.tile(QUAD_UV * [1, -1] + [0, 1], (2, 1)))


def test_many_large_pictures_are_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vp3d.export.read.MAX_TEXELS", 1000)
    corners, faces = np.eye(3, dtype=np.float32), np.array([[0, 1, 2]])
    uv = np.float32([[0, 0], [1, 0], [0, 1]])
    noise = np.random.default_rng(0).integers(0, 255, (5, 40, 40, 3), np.uint8)
    mesh = join([Mesh(corners, faces, uv=uv, texture=picture) for picture in noise])
    assert mesh.texture.shape[0] * mesh.texture.shape[1] <= 1100
    assert mesh.uv.min() >= 0 and mesh.uv.max() <= 1


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
    import os

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
        ("KHR_draco_mesh_compression", "Draco compression"),
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
    change: Callable[[Builder], None], tmp_path: Path
) -> None:
    builder = Builder()
    change(builder)
    with pytest.raises(UserError, match=r"^[^\n]*(Draco|Basis)[^\n]*export it without it$"):
        read_mesh(builder.write(tmp_path / "m.glb"))


@pytest.mark.parametrize(
    "name", ["KHR_materials_clearcoat", "KHR_materials_unlit", "KHR_lights_punctual"]
)
def test_extensions_that_change_no_base_colour_are_read(name: str, tmp_path: Path) -> None:
    builder = Builder()
    builder.quad({"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}})
    builder.require(name)
    flat(builder, tmp_path, RED)


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


def test_faces_that_are_too_many_for_an_atlas_get_vertex_colours(tmp_path: Path) -> None:
    """A grid of squares with a repeating texture: 2 x 300 x 300 triangles."""
    side = 301
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    points = np.stack([x, y, 0 * x], -1).reshape(-1, 3).astype(np.float32)
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    faces = np.stack([corner, corner + 1, corner + side + 1], -1)
    other = np.stack([corner, corner + side + 1, corner + side], -1)
    builder = Builder()
    index = builder.texture(np.uint8(FOUR).repeat(8, 0).repeat(8, 1))
    uv = (points[:, :2] / 10 + 0.25).astype(np.float32)
    part = builder.quad({"pbrMetallicRoughness": {"baseColorTexture": {"index": index}}})
    part["attributes"] = {"POSITION": builder.accessor(points), "TEXCOORD_0": builder.accessor(uv)}
    part["indices"] = builder.accessor(np.r_[faces, other].reshape(-1).astype(np.uint32))
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    assert mesh.texture is None and mesh.vertex_colors is not None
    assert np.abs(255 * mesh.vertex_colors[0] - FOUR[0][0]).max() <= 2


def test_bytes_are_decoded_as_srgb() -> None:
    assert LINEAR[188] == pytest.approx(0.5, abs=0.005) and LINEAR[255] == 1.0

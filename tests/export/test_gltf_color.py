"""glTF of other programs: every way to write a colour that the reader knows.

The right values follow from the specification by hand: linear factors are encoded as sRGB, textures
are sRGB already.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.gltf import (
    BLUE,
    FOUR,
    GREEN,
    HALF,
    QUAD,
    QUAD_UV,
    RED,
    WHITE,
    Builder,
    color_at,
    flat,
    of_texture,
    solid,
)
from vp3d.export.layers import LINEAR
from vp3d.export.read import join, read_mesh
from vp3d.system.srgb import linear_to_srgb
from vp3d.types import Mesh


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


@pytest.mark.parametrize(
    "name", ["KHR_materials_clearcoat", "KHR_materials_unlit", "KHR_lights_punctual"]
)
def test_extensions_that_change_no_base_colour_are_read(name: str, tmp_path: Path) -> None:
    builder = Builder()
    builder.quad({"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}})
    builder.require(name)
    flat(builder, tmp_path, RED)


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

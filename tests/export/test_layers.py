"""Colour layers by hand: wrap modes, tiles, samples in linear light, and sums of layers."""

from __future__ import annotations

import numpy as np
import pytest

from vp3d.export.layers import (
    CLAMP,
    MIRROR,
    REPEAT,
    Layer,
    colored,
    drawn,
    in_one_tile,
    sample_linear,
    simplified,
)
from vp3d.types import Mesh

SQUARE = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
TWO_FACES = np.array([[0, 1, 2], [0, 2, 3]])
UV = np.float32([[0, 1], [1, 1], [1, 0], [0, 0]])  # v down
ALL = np.arange(4)
BLACK_WHITE = np.uint8([[[0] * 3, [255] * 3]])  # one row, white on the right


def square() -> Mesh:
    return Mesh(SQUARE, TWO_FACES)


def linear(byte: float) -> float:
    """IEC 61966-2-1, one value."""
    value = byte / 255.0
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def encoded(value: float) -> int:
    value = min(value, 1.0)
    return round(
        255.0 * (12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055)
    )


def test_a_texture_takes_the_factor_and_the_constant_layers_in_linear_light() -> None:
    texture = np.uint8([[[200, 100, 50], [30, 60, 255]]])
    layers = [
        Layer(np.array([0.5, 1.0, 0.8]), texture, UV),
        Layer(np.array([0.0, 0.2, 0.1])),
        Layer(np.array([0.02, 0.0, 0.3])),
    ]
    found = colored(square(), layers)
    assert found.texture is not None and found.vertex_colors is None
    factor, rest = (0.5, 1.0, 0.8), (0.02, 0.2, 0.4)
    expected = [
        [encoded(linear(b) * f + r) for b, f, r in zip(texel, factor, rest, strict=True)]
        for texel in texture[0].tolist()
    ]
    assert found.texture.tolist() == [expected]
    np.testing.assert_allclose(found.uv, [[0, 0], [1, 0], [1, 1], [0, 1]])


def test_a_texture_alone_keeps_its_bytes_and_its_factor_is_not_forgotten() -> None:
    texture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    kept = colored(square(), [Layer(np.ones(3), texture, UV)])
    assert kept.texture is texture
    tinted = colored(square(), [Layer(np.array([1.0, 1.0, 0.0]), texture, UV)])
    assert (
        tinted.texture is not None
        and tinted.texture.tolist() == (texture * np.uint8([1, 1, 0])).tolist()
    )


def test_layers_without_a_texture_are_added_at_the_vertices() -> None:
    shades = np.array([[1, 1, 1], [0.5, 1, 1], [0, 1, 1], [0.25, 1, 1]])
    layers = [Layer(np.array([0.5, 0.2, 0.0]), colors=shades), Layer(np.array([0.1, 0.9, 0.3]))]
    found = colored(square(), layers).vertex_colors
    assert found is not None and found.dtype == np.float32
    right = [[encoded(0.5 * s + 0.1), 255, encoded(0.3)] for s in (1.0, 0.5, 0.0, 0.25)]
    assert np.round(255 * found).astype(int).tolist() == right


@pytest.mark.parametrize(
    ("mode", "u", "expected"),
    [
        (REPEAT, (0.0, 1.0), (0.0, 1.0)),
        (REPEAT, (3.25, 3.75), (0.25, 0.75)),
        (REPEAT, (-0.75, -0.25), (0.25, 0.75)),
        (REPEAT, (1.0005, 1.0008), (0.0005, 0.0008)),
        (REPEAT, (-0.0005, 0.5), (0.0, 0.5)),
        (REPEAT, (0.5, 1.0005), (0.5, 1.0)),
        (REPEAT, (0.5, 1.002), None),
        (REPEAT, (-0.002, 0.5), None),
        (MIRROR, (1.25, 1.5), (0.75, 0.5)),
        (MIRROR, (2.25, 2.5), (0.25, 0.5)),
        (MIRROR, (0.25, 0.5), (0.25, 0.5)),
        (CLAMP, (0.25, 1.0005), (0.25, 1.0)),
        (CLAMP, (1.25, 1.5), None),
        (CLAMP, (-0.002, 0.5), None),
        (CLAMP, (-0.0005, 0.5), (0.0, 0.5)),
    ],
)
def test_uvs_of_one_tile_are_moved_into_it(
    mode: int, u: tuple[float, float], expected: tuple[float, float] | None
) -> None:
    """In u, and so in v, whose direction changes; a vertex that no face uses does not count."""
    for axis in (0, 1):
        uv = np.full((3, 2), 0.5)
        uv[:2, axis] = u
        uv[2, axis] = 7.0
        wrap = (mode, REPEAT) if axis == 0 else (REPEAT, mode)
        layer = Layer(np.ones(3), BLACK_WHITE, uv, wrap)
        found = in_one_tile(layer, np.arange(2))
        if expected is None:
            assert found is None
        else:
            assert found is not None
            right = np.array(expected) if axis == 0 else 1.0 - np.array(expected)
            np.testing.assert_allclose(found[:2, axis], right, atol=1e-6)
            np.testing.assert_allclose(found[:2, 1 - axis], 0.5)
    assert in_one_tile(Layer(np.ones(3), BLACK_WHITE), ALL) is None


@pytest.mark.parametrize(
    ("mode", "u", "expected"),
    [
        (REPEAT, 0.25, 0.0),
        (REPEAT, 0.375, 0.25),
        (REPEAT, 0.5, 0.5),
        (REPEAT, 0.75, 1.0),
        (REPEAT, 0.0, 0.5),
        (REPEAT, 1.125, 0.25),
        (REPEAT, -0.125, 0.75),
        (CLAMP, 0.0, 0.0),
        (CLAMP, 1.0, 1.0),
        (CLAMP, 5.0, 1.0),
        (CLAMP, -5.0, 0.0),
        (MIRROR, 0.0, 0.0),
        (MIRROR, 1.0, 1.0),
        (MIRROR, 1.25, 1.0),
        (MIRROR, 1.75, 0.0),
        (MIRROR, 1.625, 0.25),
        (MIRROR, -0.75, 1.0),
        (MIRROR, 2.375, 0.25),
    ],
)
def test_samples_between_texels_are_mixed_in_linear_light(
    mode: int, u: float, expected: float
) -> None:
    """Black at u = 0.25, white at 0.75; and the same downwards."""
    across = sample_linear(BLACK_WHITE, np.array([[u, 0.5]]), (mode, CLAMP))
    down = sample_linear(BLACK_WHITE.transpose(1, 0, 2), np.array([[0.5, u]]), (CLAMP, mode))
    np.testing.assert_allclose(across, [[expected] * 3], atol=1e-6)
    np.testing.assert_allclose(down, [[expected] * 3], atol=1e-6)


def test_a_sample_is_bilinear_and_each_colour_has_its_own() -> None:
    texture = np.uint8([[[0, 0, 0], [255, 0, 0]], [[0, 255, 0], [0, 0, 255]]])
    found = sample_linear(texture, np.array([[0.375, 0.625]]), (CLAMP, CLAMP))
    # a quarter to the right and three quarters down
    np.testing.assert_allclose(found, [[0.25 * 0.25, 0.75 * 0.75, 0.25 * 0.75]], atol=1e-6)


def test_what_is_the_same_everywhere_goes_into_the_factor() -> None:
    near = np.array([[0.5, 0.2, 0.4]] * 4)
    near[0, 0] += 0.0019
    same, differ = simplified(
        [
            Layer(np.array([0.5, 1.0, 1.0]), colors=near),
            Layer(np.ones(3), colors=near + np.array([[0.0002, 0, 0]] + [[0, 0, 0]] * 3)),
        ],
        ALL,
    )
    assert same.colors is None and differ.colors is not None
    np.testing.assert_allclose(same.factor, [0.5 * (0.5 + 0.0019 / 4), 0.2, 0.4])
    np.testing.assert_allclose(differ.factor, 1.0)


def test_only_used_vertices_decide_whether_colours_differ() -> None:
    colors = np.array([[0.5] * 3, [0.5] * 3, [0.5] * 3, [1.0] * 3])
    (found,) = simplified([Layer(np.ones(3), colors=colors)], np.arange(3))
    assert found.colors is None
    np.testing.assert_allclose(found.factor, 0.5)


def test_plain_textures_become_factors_and_black_layers_go() -> None:
    plain = np.full((2, 2, 3), 188, np.uint8)
    striped = plain.copy()
    striped[1, 1, 2] = 189
    one, two = simplified(
        [
            Layer(np.array([0.5, 1.0, 0.0]), plain, UV),
            Layer(np.zeros(3), striped, UV),
            Layer(np.ones(3), striped, UV),
        ],
        ALL,
    )
    assert one.texture is None and one.uv is None and two.texture is striped and two.uv is UV
    np.testing.assert_allclose(one.factor, [0.5 * linear(188), linear(188), 0.0], rtol=1e-5)
    (nothing,) = simplified([Layer(np.zeros(3))], ALL)
    assert nothing.factor.tolist() == [0.0, 0.0, 0.0] and nothing.texture is None


@pytest.mark.parametrize(
    ("shape", "side"),
    [
        ((100, 100), 150),  # the diagonal of 141.4 texels, and 8 for the cell's border
        ((30, 40), 64),  # 50 texels: the least side
        ((60, 80), 108),
    ],
)
def test_an_atlas_is_as_fine_as_the_longest_edge(shape: tuple[int, int], side: int) -> None:
    texture = np.zeros((*shape, 3), np.uint8)
    found = drawn(square(), [Layer(np.ones(3)), Layer(np.ones(3), texture, UV)])
    assert found.texture is not None and found.texture.shape == (side, side, 3)


def test_an_atlas_has_the_sum_of_its_layers_and_splits_the_vertices() -> None:
    shades = np.array([[1.0] * 3, [0.0] * 3, [1.0] * 3, [1.0] * 3])
    half = np.full((4, 4, 3), 188, np.uint8)
    layers = [
        Layer(np.array([1.0, 0.0, 0.0]), half, UV),
        Layer(np.array([0.0, 0.25, 0.0]), colors=shades),
    ]
    normals = np.float32([[0, 0, 1]] * 4)
    found = drawn(Mesh(SQUARE, TWO_FACES, normals), layers)
    assert found.texture is not None and found.uv is not None and found.normals is not None
    assert found.vertices.shape == (6, 3) and found.normals.tolist() == [[0, 0, 1]] * 6
    corners = found.uv[found.faces]  # v up
    share = np.array([0.5, 0.25, 0.25])  # of the first corner, white; the second is black
    for face, green in ((0, 0.25 * 0.75), (1, 0.25)):
        u, v = share @ corners[face]
        size = len(found.texture)
        color = found.texture[int((1.0 - v) * size), int(u * size)]
        assert np.abs(color.astype(int) - [188, encoded(green), 0]).max() <= 2

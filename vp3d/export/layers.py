"""Colour layers of a foreign mesh, as the one texture or the vertex colours of a `Mesh`.

A colour is a sum of layers in linear light, each a factor times a texture times vertex colours. A
`Mesh` has one texture, which does not repeat, or vertex colours. So layers of one texture become
that texture, multiplied; layers without one become vertex colours; and everything else (a texture
that repeats, two textures, a texture times vertex colours that differ) is drawn into a new atlas.

UVs of layers have v down, as glTF; those of a `Mesh` have v up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vp3d.export.bake import dilate
from vp3d.export.mesh_data import color_to_uint8
from vp3d.export.uv import unwrap_cells
from vp3d.render.raster import fill_triangles, interpolate
from vp3d.system.srgb import linear_to_srgb, srgb_to_linear
from vp3d.types import Mesh

REPEAT, CLAMP, MIRROR = 10497, 33071, 33648  # wrap modes, by glTF's numbers
UV_MARGIN = 1e-3  # UVs further outside a tile of the texture mean that it repeats
SAME_COLOR = 2e-3  # linear vertex colours that differ by less are one colour
ATLAS_SIDE, ATLAS_LEAST, CELL_LEAST = 2048, 64, 8  # texels of an atlas and of its cells
LINEAR = srgb_to_linear(np.arange(256) / 255.0).astype(np.float32)  # of each byte


@dataclass(frozen=True)
class Layer:
    """One summand of a colour, in linear light.

    Attributes:
        factor: `[3]` >= 0.
        texture: `[H, W, 3]` uint8 sRGB, or None.
        uv: `[V, 2]`, v down, any range; with a texture only.
        wrap: The modes of u and v outside [0, 1].
        colors: `[V, 3]` in [0, 1], or None.
    """

    factor: np.ndarray
    texture: np.ndarray | None = None
    uv: np.ndarray | None = None
    wrap: tuple[int, int] = (REPEAT, REPEAT)
    colors: np.ndarray | None = None

    def at(self, uv: np.ndarray | None, colors: np.ndarray | None) -> np.ndarray:
        """Linear values `[K, 3]`, or `[1, 3]` if they are the same everywhere.

        Args:
            uv: Texture coordinates of the points `[K, 2]`, with a texture.
            colors: Vertex colours at the points `[K, 3]`, if the layer has them.
        """
        value = self.factor[None].astype(np.float32)
        if self.texture is not None and uv is not None:
            value = value * sample_linear(self.texture, uv, self.wrap)
        return value if colors is None else value * colors


def colored(mesh: Mesh, layers: list[Layer]) -> Mesh:
    """A mesh without colours, coloured by its layers (see the top of this module)."""
    textured = [layer for layer in layers if layer.texture is not None]
    if not textured:
        total = _total([layer.at(None, layer.colors) for layer in layers])
        colors = np.broadcast_to(linear_to_srgb(total), mesh.vertices.shape)
        return replace(mesh, vertex_colors=np.ascontiguousarray(colors, np.float32))
    first = textured[0]
    used = np.unique(mesh.faces)
    if len(textured) == 1 and all(layer.colors is None for layer in layers):
        uv = in_one_tile(first, used)
        if uv is not None:
            rest = _total([x.at(None, None) for x in layers if x is not first] or [np.zeros(3)])
            return replace(mesh, uv=uv, texture=_tinted(first, rest))
    return drawn(mesh, layers)


def simplified(layers: list[Layer], used: np.ndarray) -> list[Layer]:
    """The layers without black ones, and with what is the same everywhere inside the factor.

    Args:
        layers: The layers.
        used: The vertices that count.
    """
    result = []
    for layer in layers:
        factor, colors, texture = layer.factor, layer.colors, layer.texture
        if colors is not None and np.ptp(colors[used], axis=0).max() < SAME_COLOR:
            factor, colors = factor * colors[used].mean(0), None
        if texture is not None and not np.ptp(texture.reshape(-1, 3), axis=0).any():
            factor, texture = factor * LINEAR[texture[0, 0]], None
        uv = None if texture is None else layer.uv
        if factor.any():
            result.append(replace(layer, factor=factor, texture=texture, uv=uv, colors=colors))
    return result or [Layer(np.zeros(3))]


def in_one_tile(layer: Layer, used: np.ndarray) -> np.ndarray | None:
    """The layer's UVs in [0, 1] with v up, or None if its triangles use more than one tile.

    Args:
        layer: A layer with a texture.
        used: The vertices that count.
    """
    if layer.uv is None:
        return None
    columns = []
    for axis, mode in enumerate(layer.wrap):
        values = layer.uv[:, axis].astype(np.float64)
        low, high = values[used].min(), values[used].max()
        tile = 0.0 if mode == CLAMP else np.floor(low + UV_MARGIN)
        if low < tile - UV_MARGIN or high > tile + 1.0 + UV_MARGIN:
            return None
        values = values - tile
        columns.append(1.0 - values if mode == MIRROR and tile % 2 else values)
    uv = np.clip(np.stack([columns[0], 1.0 - columns[1]], -1), 0.0, 1.0)
    return uv.astype(np.float32)


def drawn(mesh: Mesh, layers: list[Layer]) -> Mesh:
    """The mesh with its layers drawn into a new texture, vertices split at every triangle.

    With more triangles than the texture has cells, the colours go to the vertices.
    """
    count = len(mesh.faces)
    cells = int(np.ceil(np.sqrt((count + 1) // 2)))
    if cells * CELL_LEAST > ATLAS_SIDE:
        total = _total([layer.at(layer.uv, layer.colors) for layer in layers])
        return replace(mesh, vertex_colors=linear_to_srgb(total).astype(np.float32))
    wanted = max(_longest(mesh.faces, layer) for layer in layers) + CELL_LEAST
    side = int(np.clip(np.ceil(wanted * cells), max(ATLAS_LEAST, CELL_LEAST * cells), ATLAS_SIDE))
    atlas = unwrap_cells(mesh.faces, side)
    corners = np.stack([atlas.uv[:, 0], 1.0 - atlas.uv[:, 1]], -1)[atlas.faces] * float(side)
    face, weights = fill_triangles(corners, np.ones(mesh.faces.shape), side, side)
    covered = face >= 0
    at = (mesh.faces, face[covered], weights[covered])
    values = []
    for layer in layers:
        uv, colors = (
            None if part is None else interpolate(part, *at) for part in (layer.uv, layer.colors)
        )
        values.append(layer.at(uv, colors))
    texture = np.zeros((side, side, 3), np.float32)
    texture[covered] = linear_to_srgb(_total(values))
    image = color_to_uint8(dilate(texture, covered))
    normals = None if mesh.normals is None else mesh.normals[atlas.mapping]
    return Mesh(mesh.vertices[atlas.mapping], atlas.faces, normals, uv=atlas.uv, texture=image)


def sample_linear(texture: np.ndarray, uv: np.ndarray, wrap: tuple[int, int]) -> np.ndarray:
    """Bilinear samples of a texture in linear light.

    Args:
        texture: `[H, W, 3]` uint8 sRGB.
        uv: Texture coordinates `[K, 2]`, v down, any range.
        wrap: The modes of u and v outside [0, 1].

    Returns:
        Linear values `[K, 3]` float32 in [0, 1].
    """
    pairs, shares = [], []
    for axis, mode in enumerate(wrap):
        size = texture.shape[1 - axis]
        position = uv[:, axis].astype(np.float64) * size - 0.5
        lower = np.floor(position)
        shares.append((position - lower)[:, None].astype(np.float32))
        pairs.append([_wrapped(lower.astype(np.int64) + k, size, mode) for k in (0, 1)])
    (x0, x1), (y0, y1) = pairs
    fx, fy = shares
    upper = LINEAR[texture[y0, x0]] * (1 - fx) + LINEAR[texture[y0, x1]] * fx
    lower_row = LINEAR[texture[y1, x0]] * (1 - fx) + LINEAR[texture[y1, x1]] * fx
    return upper * (1 - fy) + lower_row * fy


def _tinted(layer: Layer, rest: np.ndarray) -> np.ndarray:
    """The layer's texture times its factor plus the constant `rest`; unchanged for 1 and 0."""
    texture = layer.texture
    if texture is None:
        raise ValueError("a layer without a texture")
    if np.allclose(layer.factor, 1.0) and not rest.any():
        return texture
    table = _total([LINEAR[:, None] * layer.factor[None] + rest])  # [256, 3]
    encoded = color_to_uint8(linear_to_srgb(table))
    return np.stack([encoded[texture[..., c], c] for c in range(3)], -1)


def _total(values: list[np.ndarray]) -> np.ndarray:
    """The sum of linear values, in [0, 1]."""
    return np.clip(sum(values[1:], values[0]), 0.0, 1.0)


def _longest(faces: np.ndarray, layer: Layer) -> float:
    """Length in texels of the layer's longest edge in its texture, 0 without a texture."""
    if layer.texture is None or layer.uv is None:
        return 0.0
    corners = layer.uv[faces] * np.array(layer.texture.shape[1::-1])
    return float(np.linalg.norm(corners - np.roll(corners, 1, 1), axis=2).max())


def _wrapped(index: np.ndarray, size: int, mode: int) -> np.ndarray:
    """Texel numbers of any range, brought into [0, size) by a wrap mode."""
    if mode == CLAMP:
        return np.clip(index, 0, size - 1)
    if mode == MIRROR:
        index = index % (2 * size)
        return np.where(index < size, index, 2 * size - 1 - index)
    return index % size

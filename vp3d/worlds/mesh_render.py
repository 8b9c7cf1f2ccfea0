"""Pictures of meshes with textures: a z-buffer renderer in numba.

Light, cameras and backgrounds are those of the toybox (`vp3d.worlds.toybox.images`), each pixel is
the mean of 2 x 2 samples, textures are perspective-correct and bilinear. Normals face the camera,
because many models have inconsistent ones. The nearest transparent surface is blended over the
opaque one; textures with holes are cut out where their opacity is under one half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vp3d.render.shade import AMBIENT, DIFFUSE, LIGHT_DIRECTION
from vp3d.system.compiled import compiled
from vp3d.worlds.mesh_library import LibraryMesh

CELLS = 8  # side of the coverage maps
LEAST_ALPHA = 0.3  # of glass: thinner glass would not be visible at all
_AMBIENT, _DIFFUSE = float(AMBIENT), float(DIFFUSE)
_LX, _LY, _LZ = (float(v) for v in LIGHT_DIRECTION)


@dataclass(frozen=True)
class Scene:
    """One or more meshes as the flat arrays of the renderer.

    Attributes:
        position: [V, 3] float32.
        normal: [V, 3] float32.
        uv: [V, 2] float32.
        triangles: [T, 3] int32.
        material: [T] int32.
        table: [M, 10] float32: colour (3), opacity, first texel, width, height (0 without texture),
            whether the texture has holes, number of the object, whether the colour multiplies the
            texture's brightness.
        texels: [K, 4] uint8.
    """

    position: np.ndarray
    normal: np.ndarray
    uv: np.ndarray
    triangles: np.ndarray
    material: np.ndarray
    table: np.ndarray
    texels: np.ndarray


def build_scene(
    meshes: Sequence[LibraryMesh],
    colors: Sequence[np.ndarray | None],
    scales: Sequence[float] = (1.0,),
    offsets: Sequence[np.ndarray] = (np.zeros(3),),
) -> Scene:
    """The scene of meshes.

    Args:
        meshes: The meshes; the number of each is the number of its object.
        colors: For each mesh the sRGB colour [3] of its paint, None for its own.
        scales: Factors of the meshes.
        offsets: Where their centres are moved to.
    """
    parts: dict[str, list[np.ndarray]] = {k: [] for k in Scene.__dataclass_fields__}
    corners = rows = first = 0
    for number, (mesh, color, scale, offset) in enumerate(
        zip(meshes, colors, scales, offsets, strict=True)
    ):
        table = np.zeros((len(mesh.materials), 10), dtype=np.float32)
        table[:, :4] = mesh.materials[:, :4]
        table[:, 8] = number
        starts = []
        for texture in mesh.textures:
            starts.append(first)
            first += texture.shape[0] * texture.shape[1]
            parts["texels"].append(texture.reshape(-1, 4))
        for row, material in zip(table, mesh.materials, strict=True):
            if material[4] >= 0:
                texture = mesh.textures[int(material[4])]
                row[4:8] = [
                    starts[int(material[4])],
                    texture.shape[1],
                    texture.shape[0],
                    float((texture[..., 3] < 128).any()),
                ]
            if material[5] and color is not None:
                row[:3] = color
                if material[4] >= 0:
                    row[9] = 255.0 / max(float(_luminance(texture[..., :3])), 1.0)
        parts["position"].append((mesh.position * scale + offset).astype(np.float32))
        parts["normal"].append(mesh.normal)
        parts["uv"].append(mesh.uv)
        parts["triangles"].append(mesh.triangles + np.int32(corners))
        parts["material"].append(mesh.material + np.int32(rows))
        parts["table"].append(table)
        corners, rows = corners + len(mesh.position), rows + len(table)
    parts["texels"].append(np.zeros((1, 4), dtype=np.uint8))
    return Scene(**{k: np.concatenate(v) for k, v in parts.items()})


def _luminance(rgb: np.ndarray) -> np.ndarray:
    return (rgb.reshape(-1, 3) @ np.array([0.299, 0.587, 0.114])).mean()


def render_scene(
    scene: Scene, views: np.ndarray, grounds: np.ndarray, size: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of a scene.

    Args:
        scene: The scene.
        views: Cameras [N, 13] (`vp3d.worlds.toybox.images.view_vectors`).
        grounds: Grey levels of the backgrounds [N] in [0, 1].
        size: Side of a picture in pixels, a multiple of 8.

    Returns:
        Pictures [N, size, size, 3] uint8 sRGB, and the share of each of 8 x 8 cells that each of
        two objects covers [N, 2, 8, 8] float32.
    """
    images = np.empty((len(views), size, size, 3), dtype=np.uint8)
    coverage = np.zeros((len(views), 2, CELLS, CELLS), dtype=np.float32)
    _render(
        scene.position, scene.normal, scene.uv, scene.triangles, scene.material, scene.table,
        scene.texels, views.astype(np.float64), grounds.astype(np.float64), images, coverage,
    )  # fmt: skip
    return images, coverage


def render_depth(scene: Scene, views: np.ndarray, size: int = 128) -> np.ndarray:
    """Distance along the camera's axis [N, size, size] float32 to the surface, inf beside it."""
    depth = np.empty((len(views), size, size), dtype=np.float32)
    opaque = np.ones_like(scene.table)
    opaque[:, 4:8] = scene.table[:, 4:8]
    _depths(
        scene.position, scene.uv, scene.triangles, scene.material, opaque, scene.texels,
        views.astype(np.float64), depth,
    )  # fmt: skip
    return depth


@compiled()
def _project(position: np.ndarray, view: np.ndarray, side: int) -> np.ndarray:
    """Columns, rows and distances [V, 3] of points in a picture of `side` samples."""
    found = np.empty((len(position), 3))
    for n in range(len(position)):
        x = position[n, 0] - view[0]
        y = position[n, 1] - view[1]
        z = position[n, 2] - view[2]
        depth = x * view[9] + y * view[10] + z * view[11]
        depth = max(depth, 1e-3)
        u = (x * view[3] + y * view[4] + z * view[5]) / (depth * view[12])
        v = (x * view[6] + y * view[7] + z * view[8]) / (depth * view[12])
        found[n, 0] = (u + 1.0) * 0.5 * side
        found[n, 1] = (1.0 - v) * 0.5 * side
        found[n, 2] = depth
    return found


@compiled()
def _texel(texels: np.ndarray, row: np.ndarray, u: float, v: float, out: np.ndarray) -> None:
    """Bilinear colour and opacity [4] in [0, 1] of a texture at (u, v)."""
    first, width, height = int(row[4]), int(row[5]), int(row[6])
    x = (u - math.floor(u)) * width - 0.5
    y = (1.0 - (v - math.floor(v))) * height - 0.5
    x0, y0 = int(math.floor(x)), int(math.floor(y))
    fx, fy = x - x0, y - y0
    xa, xb = (x0 + width) % width, (x0 + 1) % width
    ya, yb = (y0 + height) % height, (y0 + 1) % height
    for c in range(4):
        top = (
            texels[first + ya * width + xa, c] * (1 - fx) + texels[first + ya * width + xb, c] * fx
        )
        low = (
            texels[first + yb * width + xa, c] * (1 - fx) + texels[first + yb * width + xb, c] * fx
        )
        out[c] = (top * (1 - fy) + low * fy) / 255.0


@compiled()
def _raster(
    projected: np.ndarray,
    uv: np.ndarray,
    triangles: np.ndarray,
    material: np.ndarray,
    table: np.ndarray,
    texels: np.ndarray,
    glass: bool,
    limit: np.ndarray,
    nearest: np.ndarray,
    hit: np.ndarray,
    weights: np.ndarray,
) -> None:
    """The nearest triangle of each sample, among the opaque ones or among the transparent ones."""
    side = nearest.shape[0]
    rgba = np.empty(4)
    for t in range(len(triangles)):
        row = table[material[t]]
        if (row[3] < 0.99) != glass:
            continue
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ax, ay, bx, by = projected[a, 0], projected[a, 1], projected[b, 0], projected[b, 1]
        cx, cy = projected[c, 0], projected[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-9:
            continue
        low_x = max(int(math.floor(min(ax, min(bx, cx)) - 0.5)), 0)
        high_x = min(int(math.ceil(max(ax, max(bx, cx)) + 0.5)), side)
        low_y = max(int(math.floor(min(ay, min(by, cy)) - 0.5)), 0)
        high_y = min(int(math.ceil(max(ay, max(by, cy)) + 0.5)), side)
        inverse = 1.0 / area
        za, zb, zc = 1.0 / projected[a, 2], 1.0 / projected[b, 2], 1.0 / projected[c, 2]
        for y in range(low_y, high_y):
            py = y + 0.5
            for x in range(low_x, high_x):
                px = x + 0.5
                wb = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) * inverse
                wc = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) * inverse
                wa = 1.0 - wb - wc
                if wa < 0.0 or wb < 0.0 or wc < 0.0:
                    continue
                near = wa * za + wb * zb + wc * zc  # 1 / depth
                if near <= nearest[y, x] or near <= limit[y, x]:
                    continue
                ka, kb = wa * za / near, wb * zb / near
                if row[7] > 0.0:
                    kc = 1.0 - ka - kb
                    u = ka * uv[a, 0] + kb * uv[b, 0] + kc * uv[c, 0]
                    v = ka * uv[a, 1] + kb * uv[b, 1] + kc * uv[c, 1]
                    _texel(texels, row, u, v, rgba)
                    if rgba[3] < 0.5:
                        continue
                nearest[y, x] = near
                hit[y, x] = t
                weights[y, x, 0] = ka
                weights[y, x, 1] = kb


@compiled()
def _color(
    t: int,
    ka: float,
    kb: float,
    position: np.ndarray,
    normal: np.ndarray,
    uv: np.ndarray,
    triangles: np.ndarray,
    row: np.ndarray,
    texels: np.ndarray,
    view: np.ndarray,
    out: np.ndarray,
) -> None:
    """Lit colour [3] of a point of triangle t, and its opacity, in `out` [4]."""
    a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
    kc = 1.0 - ka - kb
    nx = ka * normal[a, 0] + kb * normal[b, 0] + kc * normal[c, 0]
    ny = ka * normal[a, 1] + kb * normal[b, 1] + kc * normal[c, 1]
    nz = ka * normal[a, 2] + kb * normal[b, 2] + kc * normal[c, 2]
    length = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9
    ex = view[0] - (ka * position[a, 0] + kb * position[b, 0] + kc * position[c, 0])
    ey = view[1] - (ka * position[a, 1] + kb * position[b, 1] + kc * position[c, 1])
    ez = view[2] - (ka * position[a, 2] + kb * position[b, 2] + kc * position[c, 2])
    if nx * ex + ny * ey + nz * ez < 0.0:
        length = -length
    light = _AMBIENT + _DIFFUSE * 0.5 * (1.0 + (nx * _LX + ny * _LY + nz * _LZ) / length)
    if row[5] > 0.0:
        u = ka * uv[a, 0] + kb * uv[b, 0] + kc * uv[c, 0]
        v = ka * uv[a, 1] + kb * uv[b, 1] + kc * uv[c, 1]
        _texel(texels, row, u, v, out)
        if row[9] > 0.0:
            gray = (0.299 * out[0] + 0.587 * out[1] + 0.114 * out[2]) * row[9]
            gray = min(max(gray, 0.4), 1.25)
            for i in range(3):
                out[i] = min(row[i] * gray, 1.0)
        out[3] = row[3] * out[3] if row[3] < 0.99 else 1.0
    else:
        for i in range(3):
            out[i] = row[i]
        out[3] = row[3]
    for i in range(3):
        out[i] *= light


@compiled()
def _render(
    position: np.ndarray,
    normal: np.ndarray,
    uv: np.ndarray,
    triangles: np.ndarray,
    material: np.ndarray,
    table: np.ndarray,
    texels: np.ndarray,
    views: np.ndarray,
    grounds: np.ndarray,
    images: np.ndarray,
    coverage: np.ndarray,
) -> None:
    size = images.shape[1]
    side, cell = 2 * size, 2 * size // CELLS
    has_glass = False
    for m in range(len(table)):
        has_glass = has_glass or table[m, 3] < 0.99
    near = np.empty((side, side))
    near_glass = np.empty((side, side))
    hit = np.empty((side, side), dtype=np.int32)
    hit_glass = np.empty((side, side), dtype=np.int32)
    weights = np.empty((side, side, 2))
    weights_glass = np.empty((side, side, 2))
    nothing = np.zeros((side, side))
    rgba, over = np.empty(4), np.empty(4)
    total = np.empty((size, size, 3))
    for n in range(len(views)):
        view = views[n]
        projected = _project(position, view, side)
        near[:] = 0.0
        hit[:] = -1
        _raster(
            projected, uv, triangles, material, table, texels, False, nothing, near, hit, weights
        )
        if has_glass:
            near_glass[:] = 0.0
            hit_glass[:] = -1
            _raster(
                projected, uv, triangles, material, table, texels, True, near, near_glass,
                hit_glass, weights_glass,
            )  # fmt: skip
        total[:] = 0.0
        for y in range(side):
            for x in range(side):
                t = hit[y, x]
                front = -1
                if t >= 0:
                    row = table[material[t]]
                    _color(t, weights[y, x, 0], weights[y, x, 1], position, normal, uv, triangles,
                           row, texels, view, rgba)  # fmt: skip
                    front = int(row[8])
                else:
                    rgba[0] = rgba[1] = rgba[2] = grounds[n]
                if has_glass and hit_glass[y, x] >= 0:
                    t = hit_glass[y, x]
                    row = table[material[t]]
                    _color(t, weights_glass[y, x, 0], weights_glass[y, x, 1], position, normal, uv,
                           triangles, row, texels, view, over)  # fmt: skip
                    alpha = max(over[3], LEAST_ALPHA)
                    for i in range(3):
                        rgba[i] = alpha * over[i] + (1.0 - alpha) * rgba[i]
                    front = int(row[8])
                for i in range(3):
                    total[y // 2, x // 2, i] += rgba[i]
                if front >= 0 and front < 2:
                    coverage[n, front, y // cell, x // cell] += 1.0 / (cell * cell)
        for y in range(size):
            for x in range(size):
                for i in range(3):
                    images[n, y, x, i] = int(min(total[y, x, i] * 63.75, 255.0) + 0.5)


@compiled()
def _depths(
    position: np.ndarray,
    uv: np.ndarray,
    triangles: np.ndarray,
    material: np.ndarray,
    table: np.ndarray,
    texels: np.ndarray,
    views: np.ndarray,
    depth: np.ndarray,
) -> None:
    side = depth.shape[1]
    near = np.empty((side, side))
    hit = np.empty((side, side), dtype=np.int32)
    weights = np.empty((side, side, 2))
    nothing = np.zeros((side, side))
    for n in range(len(views)):
        projected = _project(position, views[n], side)
        near[:] = 0.0
        _raster(
            projected, uv, triangles, material, table, texels, False, nothing, near, hit, weights
        )
        for y in range(side):
            for x in range(side):
                depth[n, y, x] = 1.0 / near[y, x] if near[y, x] > 0.0 else np.inf

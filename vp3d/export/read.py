"""Read meshes from files: our own, or another program's.

glTF (vp3d/export/gltf_scene.py), 3MF and USDZ are read by our own readers, the others by trimesh.
Conventions: the result is a `Mesh` in our frame with sRGB colours, whatever the format;
vp3d/export/mesh_data.py states how the formats differ. A `Mesh` has at most one texture, so
several textured parts are merged into one (see `join`).
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

from vp3d.errors import UserError, in_one_line
from vp3d.export.gltf import UnsupportedError, pixels_of
from vp3d.export.gltf_scene import read_gltf
from vp3d.export.layers import Layer, colored, drawn
from vp3d.export.mesh_data import (
    color_to_uint8,
    vertex_colors_of,
    vertex_normals_of,
)
from vp3d.export.obj_input import open_obj
from vp3d.export.ply_input import plain_ply
from vp3d.export.threemf import read_3mf
from vp3d.export.usdz import read_usdz
from vp3d.system.srgb import srgb_to_linear
from vp3d.types import Mesh

GLTF = (".glb", ".gltf")
SUFFIXES = (*GLTF, ".obj", ".ply", ".stl", ".3mf", ".usdz")
MIN_AREA = 1.0e-9  # of the largest triangle, doubled, as a share of the mesh's squared size
MAX_TEXELS = 2**26  # of the image that holds the textures of all parts
SAME_COLOR = 1e-3  # vertex colours that differ by less are one colour
CUBE_MARGIN = 1.001  # largest coordinate of a mesh that counts as inside the cube
MIN_EXTENT = 0.4  # smallest extent of a mesh that is not scaled up, a fifth of the cube
FITTED_EXTENT = 1.6  # extent of a mesh that is scaled


def read_mesh(path: Path) -> Mesh:
    """The mesh in a .glb, .gltf, .obj, .ply, .stl or .3mf file, in our frame.

    USDZ is read as well if VP3D wrote it.

    All parts of a scene are joined (see `join`). Textures, vertex colours and base colours of
    materials are kept.

    Raises:
        UserError: The file is missing, unreadable, empty or damaged, or no triangle has an area.

    Example:
        >>> mesh = read_mesh(Path("outputs/RUN/model.glb"))  # doctest: +SKIP
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"cannot read {path} as a mesh: give a file ending in {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise UserError(f"there is no mesh file {path}; check the path")
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            parts = [_without_unused(part) for part in _reader(path)(path)]
    except UnsupportedError as error:
        raise UserError(f"cannot read the mesh {path}: {error}") from error
    except Exception as error:  # the parsers of trimesh raise many kinds of errors
        reason = in_one_line(error)
        raise UserError(
            f"cannot read the mesh {path}: it is damaged or has another format ({reason}); "
            "export it again"
        ) from error
    if not parts:
        raise UserError(f"the mesh file {path} has no triangles; export it again")
    mesh = join(parts)
    in_range = mesh.faces.min() >= 0 and mesh.faces.max() < len(mesh.vertices)
    if not np.isfinite(mesh.vertices).all() or not in_range:
        raise UserError(
            f"the mesh {path} is damaged: faces use vertices that do not exist or are not finite; "
            "export it again"
        )
    if not has_area(mesh):
        raise UserError(f"the mesh {path} shows nothing: no triangle has an area; export it again")
    return mesh


def _reader(path: Path) -> Callable[[Path], list[Mesh]]:
    """The reader of the parts of a file, by its suffix."""
    ours = dict.fromkeys(GLTF, read_gltf) | {".3mf": read_3mf, ".usdz": read_usdz}
    return ours.get(path.suffix.lower(), _read_other)


def _without_unused(part: Mesh) -> Mesh:
    """The part without vertices that no face uses: they show nothing, and may be anywhere."""
    used = np.zeros(len(part.vertices), bool)
    if not len(part.faces) or part.faces.min() < 0 or part.faces.max() >= len(used):
        return part
    used[part.faces] = True
    if used.all():
        return part
    columns = {
        name: values[used]
        for name in ("vertices", "normals", "uv", "vertex_colors")
        if (values := getattr(part, name)) is not None
    }
    return replace(part, faces=(np.cumsum(used) - 1)[part.faces], **columns)


def has_area(mesh: Mesh) -> bool:
    """Whether any triangle has an area above the rounding error of the mesh's own size."""
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    doubled = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return bool(doubled.max() > MIN_AREA * float(np.ptp(mesh.vertices, axis=0).max()) ** 2)


def join(parts: Sequence[Mesh]) -> Mesh:
    """Several meshes as one.

    Textures are put side by side in one image, each once, and smaller ones if they would have more
    than MAX_TEXELS together. A part with a single colour counts as a texture of
    one texel, and several vertex colours next to a texture are drawn into one. If there is no
    texture, or a part has too many faces for that, the result has vertex colours.
    """
    if len(parts) == 1:
        return parts[0]
    parts = [_without_uniform_texture(part) for part in parts]
    if any(part.texture is not None for part in parts):
        parts = [_as_textured(part) for part in parts]
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    faces = [part.faces + offset for part, offset in zip(parts, offsets, strict=True)]
    mesh = Mesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate(faces),
        np.concatenate([vertex_normals_of(part) for part in parts]),
    )
    tiles = [tile for part in parts if (tile := _tile_of(part)) is not None]
    if len(tiles) < len(parts) or all(part.texture is None for part in parts):
        colors = np.concatenate([vertex_colors_of(part) for part in parts])
        return replace(mesh, vertex_colors=colors)
    uv, texture = _side_by_side(
        [part.uv for part in parts], tiles, [len(p.vertices) for p in parts]
    )
    return replace(mesh, uv=uv, texture=texture)


def _side_by_side(
    uvs: Sequence[np.ndarray | None], tiles: Sequence[np.ndarray], counts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """One image of the tiles, each once, and the UVs `[sum of counts, 2]` in it.

    Args:
        uvs: UVs of each part in its tile; None for a tile of one texel.
        tiles: The picture of each part `[H, W, 3]` uint8; equal ones are one object.
        counts: Vertices of each part.
    """
    pictures = {id(tile): tile for tile in tiles}
    known = [
        np.zeros((count, 2), np.float32) if uv is None else uv
        for uv, count in zip(uvs, counts, strict=True)
    ]
    if len(pictures) == 1:
        return np.concatenate(known), tiles[0]
    height = max(len(tile) for tile in tiles)
    total = height * sum(tile.shape[1] for tile in pictures.values())
    shrink = min(1.0, (MAX_TEXELS / total) ** 0.5)
    height = max(round(height * shrink), 1)
    images, spans, width = [], {}, 0
    for key, tile in pictures.items():
        columns = max(round(tile.shape[1] * shrink), 1)
        stretched = Image.fromarray(tile).resize((columns, height), Image.Resampling.NEAREST)
        images.append(np.asarray(stretched))
        spans[key] = (width, columns)
        width += columns
    moved = []
    for uv, tile in zip(known, tiles, strict=True):
        left, columns = spans[id(tile)]
        # From the centre of the tile's first texel to that of its last, so that no colour of a
        # neighbouring tile bleeds in.
        moved.append(np.stack([(left + 0.5 + uv[:, 0] * (columns - 1)) / width, uv[:, 1]], -1))
    return np.concatenate(moved).astype(np.float32), np.concatenate(images, 1)


def fit_to_cube(mesh: Mesh) -> Mesh:
    """The mesh, centred and scaled to [-0.8, 0.8] unless it already fits into the cube.

    A mesh fits if it is inside [-1, 1]^3 and its largest extent is at least a fifth of the cube's.
    """
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    extent = (high - low).max()
    if max(abs(low).max(), abs(high).max()) <= CUBE_MARGIN and extent >= MIN_EXTENT:
        return mesh
    scale = FITTED_EXTENT / max(float(extent), 1e-12)
    vertices = (mesh.vertices - (low + high) / 2) * scale
    return replace(mesh, vertices=vertices.astype(np.float32))


def _read_other(path: Path) -> list[Mesh]:
    """The parts of an .obj, .ply or .stl file; the messages of its parser are dropped."""
    logging.getLogger("trimesh").addHandler(logging.NullHandler())
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        scene = _scene_of(path)
        solids = [g for g in scene.dump() if isinstance(g, trimesh.Trimesh) and len(g.faces)]
        return [_part_of(solid) for solid in solids]


def _scene_of(path: Path) -> trimesh.Scene:
    """The scene of a file, which is put into the form that trimesh reads."""
    suffix = path.suffix.lower()
    if suffix == ".obj":
        text, folder = open_obj(path)
        return trimesh.load_scene(io.BytesIO(text), "obj", resolver=folder, process=False)
    if suffix == ".ply":
        data, near = plain_ply(path.read_bytes()), trimesh.resolvers.FilePathResolver(str(path))
        return trimesh.load_scene(io.BytesIO(data), "ply", resolver=near, process=False)
    return trimesh.load_scene(path, process=False)


def _part_of(solid: trimesh.Trimesh) -> Mesh:
    """One part of a scene."""
    visual = solid.visual
    bare = visual is None or not visual.defined
    if bare and len(solid.vertices) == 3 * len(solid.faces):
        solid.merge_vertices()  # as in an STL, where faces do not share vertices
    vertices, normals = (np.asarray(v, np.float32) for v in (solid.vertices, solid.vertex_normals))
    mesh = Mesh(vertices, np.asarray(solid.faces, np.int64), normals)
    if isinstance(visual, trimesh.visual.TextureVisuals):
        return _textured(mesh, visual)
    if visual is None or bare:
        return mesh
    colors = np.asarray(visual.vertex_colors, np.float32)[:, :3] / 255.0
    return replace(mesh, vertex_colors=colors)


def _textured(mesh: Mesh, visual: trimesh.visual.TextureVisuals) -> Mesh:
    """The mesh with the texture of `visual`, or with the base colour of its material."""
    image = getattr(visual.material, "image", None)
    if image is None or visual.uv is None:
        colors = np.broadcast_to(_diffuse_of(visual.material), mesh.vertices.shape)
        return replace(mesh, vertex_colors=np.ascontiguousarray(colors, np.float32))
    uv = np.asarray(visual.uv, np.float32)[:, :2]
    if not np.isfinite(uv).all():
        raise ValueError("texture coordinates that are not numbers")
    down = np.stack([uv[:, 0], 1.0 - uv[:, 1]], -1)
    texture = pixels_of(image)
    return colored(mesh, [Layer(np.ones(3), texture, down)])


def _diffuse_of(material: object) -> np.ndarray:
    """The material's diffuse colour `[3]` sRGB in [0, 1], white if it has none."""
    factor = getattr(material, "diffuse", None)
    if factor is None:
        return np.ones(3)
    values = np.asarray(factor)[:3]
    return values / 255.0 if values.dtype == np.uint8 else values.astype(np.float64)


def _without_uniform_texture(part: Mesh) -> Mesh:
    """The part; a texture of one colour becomes that colour at every vertex."""
    if part.texture is None or np.ptp(part.texture.reshape(-1, 3), axis=0).any():
        return part
    color = np.float32(part.texture[0, 0] / 255.0)
    colors = np.tile(color, (len(part.vertices), 1))
    return replace(part, uv=None, texture=None, vertex_colors=colors)


def _as_textured(part: Mesh) -> Mesh:
    """The part; several vertex colours are drawn into a texture unless it has too many faces."""
    if part.texture is not None or _tile_of(part) is not None:
        return part
    colors = srgb_to_linear(vertex_colors_of(part)).astype(np.float32)
    textured = drawn(part, [Layer(np.ones(3), colors=colors)])
    return part if textured.texture is None else textured


def _tile_of(part: Mesh) -> np.ndarray | None:
    """The part's texture, or one texel of its single colour, or None if it has several."""
    if part.texture is not None and part.uv is not None:
        return part.texture
    colors = vertex_colors_of(part)
    return color_to_uint8(colors[:1])[None] if np.ptp(colors, axis=0).max() < SAME_COLOR else None

"""Read meshes from files: our own GLB, OBJ, PLY and STL, or another program's.

Conventions: the result is a `Mesh` in our frame with sRGB colours, whatever the format;
vp3d/export/mesh_data.py states how the formats differ. A `Mesh` has at most one texture, so
several textured parts are merged into one (see `join`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

from vp3d.errors import UserError
from vp3d.export.mesh_data import (
    FROM_GLTF,
    color_to_uint8,
    linear_to_srgb,
    srgb_to_linear,
    vertex_colors_of,
    vertex_normals_of,
)
from vp3d.render.raster import sample_texture
from vp3d.types import Mesh

SUFFIXES = (".glb", ".obj", ".ply", ".stl")
MIN_AREA = 1.0e-9  # of the largest triangle, doubled, as a share of the mesh's squared size
UV_MARGIN = 1e-3  # texture coordinates further outside [0, 1] mean a repeating texture
SAME_COLOR = 1e-3  # vertex colours that differ by less are one colour
CUBE_MARGIN = 1.001  # largest coordinate of a mesh that counts as inside the cube
MIN_EXTENT = 0.4  # smallest extent of a mesh that is not scaled up, a fifth of the cube
FITTED_EXTENT = 1.6  # extent of a mesh that is scaled


def read_mesh(path: Path) -> Mesh:
    """The mesh in a .glb, .obj, .ply or .stl file, in our frame.

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
    gltf = path.suffix.lower() == ".glb"
    try:
        scene = trimesh.load_scene(path, process=False)
        solids = [g for g in scene.dump() if isinstance(g, trimesh.Trimesh) and len(g.faces)]
        parts = [_part_of(solid, gltf) for solid in solids]
    except Exception as error:  # the parsers of trimesh raise many kinds of errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
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


def has_area(mesh: Mesh) -> bool:
    """Whether any triangle has an area above the rounding error of the mesh's own size."""
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    doubled = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return bool(doubled.max() > MIN_AREA * float(np.ptp(mesh.vertices, axis=0).max()) ** 2)


def join(parts: Sequence[Mesh]) -> Mesh:
    """Several meshes as one.

    Textures are put side by side in one image. A part with a single colour counts as a texture of
    one texel. If a part has several vertex colours, the result has vertex colours instead.
    """
    if len(parts) == 1:
        return parts[0]
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
    height, width = max(len(t) for t in tiles), sum(t.shape[1] for t in tiles)
    images, uvs, left = [], [], 0
    for part, tile in zip(parts, tiles, strict=True):
        columns = tile.shape[1]
        stretched = Image.fromarray(tile).resize((columns, height), Image.Resampling.NEAREST)
        images.append(np.asarray(stretched))
        uv = np.zeros((len(part.vertices), 2), np.float32) if part.uv is None else part.uv
        # From the centre of the tile's first texel to that of its last, so that no colour of a
        # neighbouring tile bleeds in.
        uvs.append(np.stack([(left + 0.5 + uv[:, 0] * (columns - 1)) / width, uv[:, 1]], -1))
        left += columns
    uv = np.concatenate(uvs).astype(np.float32)
    return replace(mesh, uv=uv, texture=np.concatenate(images, 1))


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


def _part_of(solid: trimesh.Trimesh, gltf: bool) -> Mesh:
    """One part of a scene in our frame and colours; `gltf` says how the file stores them."""
    visual = solid.visual
    bare = visual is None or not visual.defined
    if bare and not gltf and len(solid.vertices) == 3 * len(solid.faces):
        solid.merge_vertices()  # as in an STL, where faces do not share vertices
    axes = FROM_GLTF if gltf else [0, 1, 2]
    vertices, normals = (
        np.asarray(v, np.float32)[:, axes] for v in (solid.vertices, solid.vertex_normals)
    )
    mesh = Mesh(vertices, np.asarray(solid.faces, np.int64), normals)
    if isinstance(visual, trimesh.visual.TextureVisuals):
        return _textured(mesh, visual, gltf)
    if visual is None or bare:
        return mesh
    colors = np.asarray(visual.vertex_colors, np.float32)[:, :3] / 255.0
    colors = linear_to_srgb(colors) if gltf else colors
    return replace(mesh, vertex_colors=np.asarray(colors, np.float32))


def _textured(mesh: Mesh, visual: trimesh.visual.TextureVisuals, gltf: bool) -> Mesh:
    """The mesh with the texture or colours of `visual`.

    A mesh of ours has no repeating texture; the colours of one are moved to the vertices.
    """
    image, tint = _material_of(visual.material, gltf)
    if image is None or visual.uv is None:
        colors = np.broadcast_to(tint, mesh.vertices.shape)
        if gltf and "color" in visual.vertex_attributes:
            linear = np.asarray(visual.vertex_attributes["color"], np.float32)[:, :3] / 255.0
            colors = linear_to_srgb(linear * srgb_to_linear(colors))
        return replace(mesh, vertex_colors=np.ascontiguousarray(colors, np.float32))
    texture = np.array(image.convert("RGB"), np.uint8)
    if gltf and (tint < 1.0).any():
        linear = srgb_to_linear(texture / 255.0) * srgb_to_linear(tint)
        texture = color_to_uint8(linear_to_srgb(linear))
    uv = np.asarray(visual.uv, np.float32)[:, :2]
    if not np.isfinite(uv).all():
        raise ValueError("texture coordinates that are not numbers")
    if uv.min() < -UV_MARGIN or uv.max() > 1.0 + UV_MARGIN:
        return replace(mesh, vertex_colors=sample_texture(texture, uv - np.floor(uv)))
    return replace(mesh, uv=np.clip(uv, 0.0, 1.0), texture=texture)


def _material_of(material: object, gltf: bool) -> tuple[Image.Image | None, np.ndarray]:
    """The base-colour image, if there is one, and the base colour `[3]` sRGB in [0, 1]."""
    image_name = "baseColorTexture" if gltf else "image"
    factor_name = "baseColorFactor" if gltf else "diffuse"
    image, factor = getattr(material, image_name, None), getattr(material, factor_name, None)
    if factor is None:
        return image, np.ones(3)
    values = np.asarray(factor)[:3]
    tint = values / 255.0 if values.dtype == np.uint8 else values.astype(np.float64)
    return image, np.asarray(linear_to_srgb(tint) if gltf else tint)


def _tile_of(part: Mesh) -> np.ndarray | None:
    """The part's texture, or one texel of its single colour, or None if it has several."""
    if part.texture is not None and part.uv is not None:
        return part.texture
    colors = vertex_colors_of(part)
    return color_to_uint8(colors[:1])[None] if np.ptp(colors, axis=0).max() < SAME_COLOR else None

"""Meshes to files and back.

Frames: GLB is Y up as glTF demands; our (x, y, z), z up and facing +x, is written as (y, z, x), so the object stands on
its feet and faces +Z, glTF's forward. OBJ, PLY and STL keep our own frame: z up, facing +x.
Colour: textures are sRGB PNGs; glTF vertex colours (written only when there is no texture) are linear, the rest sRGB.
UVs: v up in memory and in OBJ; glTF counts v downwards, and trimesh flips it on both ways.
Every file is written whole or not at all, and equal meshes give equal bytes. STL holds no colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

from vp3d.errors import UserError
from vp3d.export.mesh_data import (
    FROM_GLTF,
    _normals_of,
    _to_bytes,
    linear_to_srgb,
    srgb_to_linear,
    vertex_colors_of,
)
from vp3d.render.raster import sample_texture
from vp3d.types import Mesh

SUFFIXES = (".glb", ".obj", ".ply", ".stl")


def read_mesh(path: Path) -> Mesh:
    """The mesh in a .glb, .obj, .ply or .stl file, in our frame; our own or another program's.

    All parts of a scene are joined (see `join`); textures, vertex colours and material base colours are kept.
    Raises UserError for a missing, unreadable, empty or broken file, and for one whose triangles are all without area.
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
    except Exception as error:  # trimesh raises whatever its parsers stumble over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot read the mesh {path}: it is damaged or not of its kind ({reason}); export it again"
        ) from error
    if not parts:
        raise UserError(f"the mesh file {path} holds no triangles; export it again")
    mesh = join(parts)
    if (
        not np.isfinite(mesh.vertices).all()
        or mesh.faces.min() < 0
        or mesh.faces.max() >= len(mesh.vertices)
    ):
        raise UserError(
            f"the mesh {path} is damaged: it has corners that do not exist; export it again"
        )
    if not has_area(mesh):
        raise UserError(
            f"the mesh {path} shows nothing: all its triangles are without area; export it again"
        )
    return mesh


def has_area(mesh: Mesh) -> bool:
    """Whether any triangle of `mesh` can be seen: is wider than a rounding error of the mesh's own size."""
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    doubled = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return bool(doubled.max() > 1.0e-9 * float(np.ptp(mesh.vertices, axis=0).max()) ** 2)


def join(parts: Sequence[Mesh]) -> Mesh:
    """Several meshes as one.

    Textures are put side by side, a part of a single colour counting as a texture of that colour; if a part has
    several vertex colours, all parts become vertex-coloured.
    """
    if len(parts) == 1:
        return parts[0]
    tiles = [_tile_of(part) for part in parts]
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    vertices = np.concatenate([part.vertices for part in parts])
    faces = np.concatenate(
        [part.faces + offset for part, offset in zip(parts, offsets, strict=True)]
    )
    normals = np.concatenate([_normals_of(part) for part in parts])
    strip = [tile for tile in tiles if tile is not None]
    if len(strip) < len(parts) or all(part.texture is None for part in parts):
        return Mesh(
            vertices, faces, normals, np.concatenate([vertex_colors_of(part) for part in parts])
        )
    height, width = max(len(t) for t in strip), sum(t.shape[1] for t in strip)
    images, uvs, left = [], [], 0
    for part, tile in zip(parts, strip, strict=True):
        images.append(
            np.asarray(
                Image.fromarray(tile).resize((tile.shape[1], height), Image.Resampling.NEAREST)
            )
        )
        uv = np.zeros((len(part.vertices), 2), np.float32) if part.uv is None else part.uv
        uvs.append(np.stack([(left + 0.5 + uv[:, 0] * (tile.shape[1] - 1)) / width, uv[:, 1]], -1))
        left += tile.shape[1]
    return Mesh(
        vertices,
        faces,
        normals,
        None,
        np.concatenate(uvs).astype(np.float32),
        np.concatenate(images, 1),
    )


def fit_to_cube(mesh: Mesh) -> Mesh:
    """The mesh as it is when it fits into [-1, 1]^3 and fills a fifth of it at least, else centred and scaled to [-0.8, 0.8]."""
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    if max(abs(low).max(), abs(high).max()) <= 1.001 and (high - low).max() >= 0.4:
        return mesh
    vertices = (mesh.vertices - (low + high) / 2) * (1.6 / max(float((high - low).max()), 1e-12))
    return Mesh(
        vertices.astype(np.float32),
        mesh.faces,
        mesh.normals,
        mesh.vertex_colors,
        mesh.uv,
        mesh.texture,
    )


def _part_of(solid: trimesh.Trimesh, gltf: bool) -> Mesh:
    visual = solid.visual
    bare = visual is None or not visual.defined
    if (
        bare and not gltf and len(solid.vertices) == 3 * len(solid.faces)
    ):  # an STL has no shared vertices
        solid.merge_vertices()
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
    return Mesh(
        vertices,
        mesh.faces,
        normals,
        np.asarray(linear_to_srgb(colors) if gltf else colors, np.float32),
    )


def _textured(mesh: Mesh, visual: trimesh.visual.TextureVisuals, gltf: bool) -> Mesh:
    image, tint = _material_of(visual.material, gltf)
    if image is None or visual.uv is None:
        colors = np.broadcast_to(tint, mesh.vertices.shape)
        if gltf and "color" in visual.vertex_attributes:
            linear = np.asarray(visual.vertex_attributes["color"], np.float32)[:, :3] / 255.0
            colors = linear_to_srgb(linear * srgb_to_linear(colors))
        return Mesh(
            mesh.vertices, mesh.faces, mesh.normals, np.ascontiguousarray(colors, np.float32)
        )
    texture = np.array(image.convert("RGB"), np.uint8)
    if gltf and (tint < 1.0).any():
        texture = _to_bytes(linear_to_srgb(srgb_to_linear(texture / 255.0) * srgb_to_linear(tint)))
    uv = np.asarray(visual.uv, np.float32)[:, :2]
    if not np.isfinite(uv).all():
        raise ValueError("texture coordinates that are not numbers")
    if (
        uv.min() < -1e-3 or uv.max() > 1.001
    ):  # a repeating texture: our meshes have none, so its colours go to the vertices
        return Mesh(
            mesh.vertices, mesh.faces, mesh.normals, sample_texture(texture, uv - np.floor(uv))
        )
    return Mesh(mesh.vertices, mesh.faces, mesh.normals, None, np.clip(uv, 0.0, 1.0), texture)


def _material_of(material: object, gltf: bool) -> tuple[Image.Image | None, np.ndarray]:
    """The base-colour image, if any, and the base colour [3] sRGB in [0, 1]."""
    image = (
        getattr(material, "baseColorTexture", None) if gltf else getattr(material, "image", None)
    )
    factor = (
        getattr(material, "baseColorFactor", None) if gltf else getattr(material, "diffuse", None)
    )
    if factor is None:
        return image, np.ones(3)
    values = np.asarray(factor)[:3]
    tint = values / 255.0 if values.dtype == np.uint8 else values.astype(np.float64)
    return image, np.asarray(linear_to_srgb(tint) if gltf else tint)


def _tile_of(part: Mesh) -> np.ndarray | None:
    """The part's texture, or one texel of its single colour; None when it has several vertex colours."""
    if part.texture is not None and part.uv is not None:
        return part.texture
    colors = vertex_colors_of(part)
    return _to_bytes(colors[:1])[None] if np.ptp(colors, axis=0).max() < 1e-3 else None

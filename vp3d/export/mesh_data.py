"""Colours and normals of a `Mesh` as the file formats need them."""

from __future__ import annotations

import numpy as np
import trimesh

from vp3d.render.raster import PLAIN_COLOR, sample_texture
from vp3d.types import Asset, Mesh

FROM_GLTF = [2, 0, 1]
FRAME = "VP3D mesh, right-handed, z up, facing +x"


def srgb_to_linear(color: np.ndarray) -> np.ndarray:
    """sRGB-encoded values in [0, 1] to linear light in [0, 1], any shape (IEC 61966-2-1)."""
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(color: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] to sRGB-encoded values in [0, 1], any shape (IEC 61966-2-1)."""
    return np.where(
        color <= 0.0031308, color * 12.92, 1.055 * np.maximum(color, 0.0031308) ** (1 / 2.4) - 0.055
    )


def vertex_colors_of(mesh: Mesh) -> np.ndarray:
    """sRGB vertex colours [V, 3] in [0, 1]: the mesh's own, else its texture at the vertices, else plain grey."""
    if mesh.vertex_colors is not None:
        return mesh.vertex_colors
    if mesh.texture is not None and mesh.uv is not None:
        return sample_texture(mesh.texture, mesh.uv)
    return np.full((len(mesh.vertices), 3), PLAIN_COLOR, np.float32)


def _mesh_of(source: Asset | Mesh) -> Mesh:
    return source.mesh if isinstance(source, Asset) else source


def _normals_of(mesh: Mesh) -> np.ndarray:
    if mesh.normals is not None:
        return mesh.normals
    return np.array(
        trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).vertex_normals, np.float32
    )


def _to_bytes(color: np.ndarray) -> np.ndarray:
    return np.round(255.0 * np.clip(color, 0.0, 1.0)).astype(np.uint8)

"""Textures and vertex colours from the field.

Conventions: colours are sRGB-encoded, in [0, 1]; a texture is `[size, size, 3]` uint8 with row 0 at
v = 1; `cell` is the spacing of the density grid in world units.

The colour of a surface point is that of the visible surface. A volume renderer shows the weighted
mean of the albedo along the ray, `sum_i T_i alpha_i c_i` (Max 1995). The bake computes the same sum
along the inward normal, from OUTSIDE grid cells before the surface to INSIDE cells behind it, and
divides it by the total weight. A point without density takes the albedo at the point itself.

Texels that no triangle covers take the colour of the nearest covered one, so that neither bilinear
filtering nor mip-mapping mixes background into the surface.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from vp3d.export.marching_cubes import SurfaceField
from vp3d.render.raster import fill_triangles, interpolate
from vp3d.types import Mesh

OUTSIDE, INSIDE = 1.5, 3.5  # grid cells before and behind the surface
SAMPLES = 11  # along the normal of a surface point
WEIGHT_FLOOR = 1e-4  # total opacity at or below which a point counts as without density


@torch.no_grad()
def surface_color(
    field: SurfaceField, points: Tensor, normals: Tensor, cell: float, chunk: int = 65_536
) -> Tensor:
    """Visible colour at surface points: the normalised sum at the top of this module.

    Args:
        field: The field.
        points: Surface points `[N, 3]` in [-1, 1].
        normals: Their outward unit normals `[N, 3]`.
        cell: Spacing of the density grid, in world units.
        chunk: Points processed at once.

    Returns:
        Colours `[N, 3]` in [0, 1].
    """
    offsets = torch.linspace(OUTSIDE, -INSIDE, SAMPLES, device=points.device) * cell
    step = (OUTSIDE + INSIDE) * cell / (SAMPLES - 1)
    colors = []
    for p, n in zip(points.split(chunk), normals.split(chunk), strict=True):
        walk = p[:, None] + offsets[:, None] * n[:, None]
        inside = (walk.abs() <= 1.0).all(-1)
        sigma, albedo = field(walk.clamp(-1, 1).reshape(-1, 3))
        sigma, albedo = sigma.reshape(walk.shape[:2]) * inside, albedo.reshape(walk.shape)
        alpha = 1.0 - torch.exp(-sigma * step)
        passed = torch.cat([torch.ones_like(alpha[:, :1]), 1.0 - alpha[:, :-1]], 1)
        weight = torch.cumprod(passed, 1) * alpha
        total = weight.sum(1, keepdim=True)
        mean = (weight[..., None] * albedo).sum(1) / total.clamp_min(WEIGHT_FLOOR)
        colors.append(torch.where(total > WEIGHT_FLOOR, mean, field(p)[1]))
    return torch.cat(colors).clamp(0, 1) if colors else torch.zeros(0, 3)


def bake_vertex_colors(
    field: SurfaceField, mesh: Mesh, cell: float, device: torch.device | str = "cpu"
) -> Mesh:
    """The mesh with vertex colours `[V, 3]` in [0, 1] from the field.

    Args:
        field: The field.
        mesh: A mesh with vertex normals.
        cell: Spacing of the density grid, in world units.
        device: Where the field is evaluated.

    Raises:
        ValueError: The mesh has no normals.
    """
    if mesh.normals is None:
        raise ValueError("bake_vertex_colors needs vertex normals")
    return replace(mesh, vertex_colors=_colors_at(field, mesh.vertices, mesh.normals, cell, device))


def bake_texture(
    field: SurfaceField, mesh: Mesh, size: int, cell: float, device: torch.device | str = "cpu"
) -> Mesh:
    """The mesh with a texture `[size, size, 3]` uint8 sRGB from the field.

    Args:
        field: The field.
        mesh: A mesh with UVs and vertex normals.
        size: Texels of a side.
        cell: Spacing of the density grid, in world units.
        device: Where the field is evaluated.

    Returns:
        The same mesh with the texture.

    Raises:
        ValueError: The mesh has no UVs or no normals.
    """
    if mesh.uv is None or mesh.normals is None:
        raise ValueError("bake_texture needs uv and vertex normals")
    covered, at, nearest = surface_texels(mesh, (size, size))
    at_faces = (mesh.faces, *at)
    points, normals = interpolate(mesh.vertices, *at_faces), interpolate(mesh.normals, *at_faces)
    texture = np.zeros((size, size, 3), np.float32)
    texture[covered] = _colors_at(field, points, normals, cell, device)
    return replace(mesh, texture=np.round(255.0 * texture[nearest]).astype(np.uint8))


def surface_texels(
    mesh: Mesh, shape: tuple[int, int]
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Where the texels of a mesh with UVs are on its surface.

    Args:
        mesh: A mesh with UVs.
        shape: Rows and columns (H, W) of the texture.

    Returns:
        covered `[H, W]` bool; face `[K]` and barycentric coordinates `[K, 3]` of its K covered
        texels, in the order of `image[covered]`; and the row and the column `[H, W]` of the
        covered texel nearest to each.

    Raises:
        ValueError: The mesh has no UVs.
    """
    if mesh.uv is None:
        raise ValueError("surface_texels needs uv")
    scale = np.array([shape[1], shape[0]], np.float64)
    corners = np.stack([mesh.uv[:, 0], 1.0 - mesh.uv[:, 1]], -1)[mesh.faces] * scale
    face_index, barycentric = fill_triangles(corners, np.ones(mesh.faces.shape), *shape)
    covered = face_index >= 0
    nearest = nearest_covered(covered)
    return covered, (face_index[covered], barycentric[covered]), nearest


def nearest_covered(covered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column `[H, W]` of the nearest pixel where `covered [H, W]` is true.

    Each pixel's own if none is.
    """
    if not covered.any():
        rows, columns = np.indices(covered.shape)
        return np.asarray(rows), np.asarray(columns)
    row, column = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return np.asarray(row), np.asarray(column)


def dilate(image: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """`image [H, W, C]` with each pixel outside `covered [H, W]` set to the nearest covered one."""
    row, column = nearest_covered(covered)
    return image[row, column]


def _colors_at(
    field: SurfaceField,
    points: np.ndarray,
    normals: np.ndarray,
    cell: float,
    device: torch.device | str,
) -> np.ndarray:
    """`surface_color` for arrays `[N, 3]`; the normals may have any length > 0."""
    unit = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    p, n = (torch.from_numpy(np.asarray(v, np.float32)).to(device) for v in (points, unit))
    return surface_color(field, p, n, cell).float().cpu().numpy()

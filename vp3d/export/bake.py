"""Textures and vertex colours from the field.

What colour a surface point has: that of the visible surface. A volume renderer sees the weighted mean of the albedo
along the ray, `sum_i T_i alpha_i c_i` (Max 1995), so the bake walks the same sum along the inward normal, from `OUTSIDE`
grid cells before the surface to `INSIDE` behind it, and divides by the total weight. A point without any density there
takes the albedo at the surface itself. Texels no triangle covers take the nearest covered one, so that neither bilinear
look-up nor mip-mapping bleeds the ground in.
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

OUTSIDE, INSIDE = 1.5, 3.5  # grid cells walked before and behind the surface
SAMPLES = 11
WEIGHT_FLOOR = 1e-4  # total opacity below which the walk saw nothing


@torch.no_grad()
def surface_color(
    field: SurfaceField, points: Tensor, normals: Tensor, cell: float, chunk: int = 65_536
) -> Tensor:
    """Visible colour at `points [N, 3]` in [-1, 1] with outward unit `normals [N, 3]`; `cell` is the grid spacing.

    Returns [N, 3] in [0, 1] (the normalised volume-rendering sum stated at the top).
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
        transmittance = torch.cumprod(
            torch.cat([torch.ones_like(alpha[:, :1]), 1.0 - alpha[:, :-1]], 1), 1
        )
        weight = transmittance * alpha
        total = weight.sum(1, keepdim=True)
        seen = (weight[..., None] * albedo).sum(1) / total.clamp_min(WEIGHT_FLOOR)
        colors.append(torch.where(total > WEIGHT_FLOOR, seen, field(p)[1]))
    return torch.cat(colors).clamp(0, 1) if colors else torch.zeros(0, 3)


def _colors_at(
    field: SurfaceField,
    points: np.ndarray,
    normals: np.ndarray,
    cell: float,
    device: torch.device | str,
) -> np.ndarray:
    unit = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    p, n = (torch.from_numpy(np.asarray(v, np.float32)).to(device) for v in (points, unit))
    return surface_color(field, p, n, cell).float().cpu().numpy()


def bake_vertex_colors(
    field: SurfaceField, mesh: Mesh, cell: float, device: torch.device | str = "cpu"
) -> Mesh:
    """The mesh (with normals) with vertex colours [V, 3] in [0, 1] taken from the field."""
    if mesh.normals is None:
        raise ValueError("bake_vertex_colors needs vertex normals")
    return replace(mesh, vertex_colors=_colors_at(field, mesh.vertices, mesh.normals, cell, device))


def bake_texture(
    field: SurfaceField, mesh: Mesh, size: int, cell: float, device: torch.device | str = "cpu"
) -> Mesh:
    """The mesh (with uv and normals) with a texture [size, size, 3] uint8 sRGB taken from the field."""
    if mesh.uv is None or mesh.normals is None:
        raise ValueError("bake_texture needs uv and vertex normals")
    corners = np.stack([mesh.uv[:, 0], 1.0 - mesh.uv[:, 1]], -1)[mesh.faces] * float(size)
    face_index, barycentric = fill_triangles(corners, np.ones(mesh.faces.shape), size, size)
    covered = face_index >= 0
    at = (mesh.faces, face_index[covered], barycentric[covered])
    texture = np.zeros((size, size, 3), np.float32)
    texture[covered] = _colors_at(
        field, interpolate(mesh.vertices, *at), interpolate(mesh.normals, *at), cell, device
    )
    return replace(mesh, texture=np.round(255.0 * dilate(texture, covered)).astype(np.uint8))


def dilate(image: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """`image [H, W, C]` with every pixel where `covered [H, W]` is false set to the nearest covered one (any range)."""
    if not covered.any():
        return image
    row, column = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return image[row, column]

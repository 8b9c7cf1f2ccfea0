"""Verify an exported file: read it back, render it, and compare it with the field's own renders.

Conventions: pictures `[B, 3, H, W]` in [0, 1], sRGB-encoded, over a grey background.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vp3d.export.read import read_mesh
from vp3d.export.threshold import silhouette
from vp3d.render.raster import render_mesh
from vp3d.types import Camera, Mesh

PSNR_CEILING = 99.0  # dB, reported for equal pictures


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two tensors of one shape with values in [0, 1].

    At most PSNR_CEILING, which equal or empty tensors get.

    Example:
        >>> round(psnr(torch.zeros(4), torch.full((4,), 0.1)), 3)
        20.0
    """
    error = float((a - b).pow(2).mean()) if a.numel() else 0.0
    if not error > 0:
        return PSNR_CEILING
    return min(-10.0 * float(torch.log10(torch.tensor(error))), PSNR_CEILING)


def verify_export(
    path: Path,
    cameras: Camera,
    reference_rgb: Tensor,
    reference_opacity: Tensor,
    background: float = 1.0,
    shading: str = "flat",
    restore: Callable[[Mesh], Mesh] | None = None,
) -> dict[str, float]:
    """Figures of an exported mesh against the field's renders.

    Args:
        path: The mesh file.
        cameras: B cameras.
        reference_rgb: The field's renders `[B, 3, H, W]` in [0, 1], over `background`.
        reference_opacity: Their opacity `[B, H, W]` or `[B, 1, H, W]` in [0, 1].
        background: Grey of the background, in [0, 1].
        shading: As in `render_mesh`.
        restore: Brings the mesh of the file to the frame and the light of the renders.

    Returns:
        `iou` of the silhouettes; and, unless the format has no colour, `psnr` of the complete
        pictures and `psnr_object` inside the union of both silhouettes, in dB.

    Raises:
        UserError: The file cannot be read (see `read_mesh`).
    """
    reference_rgb, cameras = reference_rgb.detach().cpu(), cameras.to("cpu")
    height, width = reference_rgb.shape[-2:]
    mesh = read_mesh(path)
    mesh = mesh if restore is None else restore(mesh)
    rgb, opacity = render_mesh(mesh, cameras, height, width, background, shading)
    reference = silhouette(reference_opacity).reshape(opacity.shape)
    drawn = opacity > 0.5
    union = drawn | reference
    figures = {"iou": float((drawn & reference).sum()) / max(int(union.sum()), 1)}
    if mesh.texture is not None or mesh.vertex_colors is not None:
        figures["psnr"] = psnr(rgb, reference_rgb)
        inside = union.expand_as(rgb)
        figures["psnr_object"] = psnr(rgb[inside], reference_rgb[inside])
    return figures

"""Judge an exported file by what it shows: load it again, render it, compare with the field's own renders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vp3d.export.read import read_mesh
from vp3d.export.threshold import silhouette
from vp3d.render.raster import render_mesh
from vp3d.types import Camera

PSNR_CEILING = 99.0  # dB reported for equal pictures


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two equally shaped tensors with values in [0, 1], at most `PSNR_CEILING`."""
    error = float((a - b).pow(2).mean()) if a.numel() else 0.0
    return (
        min(-10.0 * float(torch.log10(torch.tensor(error))), PSNR_CEILING)
        if error > 0
        else PSNR_CEILING
    )


def verify_export(
    path: Path,
    cameras: Camera,
    reference_rgb: Tensor,
    reference_opacity: Tensor,
    background: float = 1.0,
    shading: str = "flat",
) -> dict[str, float]:
    """Figures of the file at `path` against the field's renders from the B `cameras`.

    `reference_rgb [B, 3, H, W]` in [0, 1] lies over the grey `background`; `reference_opacity [B, H, W]` or
    `[B, 1, H, W]` in [0, 1]. Returns `iou` of the silhouettes and, unless the format has no colour,
    `psnr` of the whole pictures and `psnr_object` inside the union of both silhouettes, in dB.
    """
    reference_rgb, cameras = reference_rgb.detach().cpu(), cameras.to("cpu")
    height, width = reference_rgb.shape[-2:]
    mesh = read_mesh(path)
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

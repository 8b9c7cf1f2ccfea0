"""What every frozen image tower starts with: resize and normalise, inside the graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def channels(values: Sequence[float], device: torch.device | str) -> Tensor:
    """Three numbers, one a colour channel, as `[1, 3, 1, 1]`."""
    return torch.tensor(list(values), device=device).view(1, 3, 1, 1)


def resize_normalize(
    rgb: Tensor, size: int, mean: Tensor, std: Tensor, interpolation: str = "bicubic"
) -> Tensor:
    """`[B, 3, size, size]` normalised, of `rgb [B, 3, H, H]` in [0, 1]; mean and std `[1, 3, 1, 1]`; differentiable.

    Antialiased resize as in torchvision's tensor path; bicubic overshoot is kept, so that gradients pass everywhere.
    """
    if rgb.ndim != 4 or rgb.shape[1] != 3 or rgb.shape[2] != rgb.shape[3]:
        raise ValueError(f"rewards need square pictures [B, 3, H, H], got {tuple(rgb.shape)}")
    if rgb.shape[-1] != size:
        mode = "bilinear" if interpolation == "bilinear" else "bicubic"
        rgb = F.interpolate(rgb, (size, size), mode=mode, align_corners=False, antialias=True)
    return (rgb - mean) / std

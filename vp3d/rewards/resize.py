"""The input of every frozen image tower: resize and normalise, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def channels(values: Sequence[float], device: torch.device | str) -> Tensor:
    """Three numbers, one per colour channel, as `[1, 3, 1, 1]`."""
    return torch.tensor(list(values), device=device).view(1, 3, 1, 1)


def resize_normalize(
    rgb: Tensor, size: int, mean: Tensor, std: Tensor, interpolation: str = "bicubic"
) -> Tensor:
    """Resize pictures with antialiasing, as torchvision does for tensors, and normalise them.

    Bicubic values outside [0, 1] are kept, so that the gradient is nonzero everywhere.

    Args:
        rgb: `[B, 3, H, H]` in [0, 1]; the gradient flows back into it.
        size: Side of the result in pixels; nothing is resized if it is H.
        mean: `[1, 3, 1, 1]`, subtracted.
        std: `[1, 3, 1, 1]`, the divisor.
        interpolation: "bilinear"; any other value is bicubic.

    Returns:
        `[B, 3, size, size]`.

    Raises:
        ValueError: `rgb` does not have the shape of square pictures.
    """
    if rgb.ndim != 4 or rgb.shape[1] != 3 or rgb.shape[2] != rgb.shape[3]:
        raise ValueError(f"rewards need square pictures [B, 3, H, H], got {tuple(rgb.shape)}")
    if rgb.shape[-1] != size:
        mode = "bilinear" if interpolation == "bilinear" else "bicubic"
        rgb = F.interpolate(rgb, (size, size), mode=mode, align_corners=False, antialias=True)
    return (rgb - mean) / std

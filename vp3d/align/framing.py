"""Rewards for a picture that 3D can use: one object, whole, centred, on a plain background.

They read the cut-out (visual_prompt/cutout.py), so they have no gradient: they steer (SVDD) or
choose. All take pictures `rgb [B, 3, H, W]` in [0, 1] and return `[B]` in [0, 1]; a picture without
a usable cut-out has 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vp3d.visual_prompt.cutout import border_flood, is_usable, steadiness

TOLERANCE = 0.12  # colour distance to the border up to which a pixel is background
FILLED = (0.6, 0.8)  # shares of the side that the object may take up without loss


def steady(rgb: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """How little the cut-out depends on its tolerance."""
    return _each(rgb, lambda picture, mask: steadiness(picture, tolerance), tolerance)


def whole(rgb: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """One less the share of the border that the object touches, times 4: 0 from a quarter on."""

    def score(picture: Tensor, mask: np.ndarray) -> float:
        border = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
        return max(0.0, 1.0 - 4.0 * float(border.mean()))

    return _each(rgb, score, tolerance)


def centred(rgb: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """One less the distance of the middle of the object from that of the picture, in half sides."""

    def score(picture: Tensor, mask: np.ndarray) -> float:
        top, bottom, left, right = _box(mask)
        height, width = mask.shape
        down = ((top + bottom) / height) - 1.0
        across = ((left + right) / width) - 1.0
        return max(0.0, 1.0 - float(np.hypot(down, across)))

    return _each(rgb, score, tolerance)


def filled(rgb: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """1 where the longer side of the object is within `FILLED` of the picture's, less outside."""

    def score(picture: Tensor, mask: np.ndarray) -> float:
        top, bottom, left, right = _box(mask)
        share = max((bottom - top) / mask.shape[0], (right - left) / mask.shape[1])
        low, high = FILLED
        return max(0.0, 1.0 - 2.5 * max(low - share, share - high, 0.0))

    return _each(rgb, score, tolerance)


def plain(rgb: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """One less 10 times the standard deviation of the colours behind the object."""

    def score(picture: Tensor, mask: np.ndarray) -> float:
        behind = picture.permute(1, 2, 0).numpy()[~mask]
        return max(0.0, 1.0 - 10.0 * float(behind.std(0).mean())) if len(behind) else 0.0

    return _each(rgb, score, tolerance)


def _each(rgb: Tensor, score: Callable[[Tensor, np.ndarray], float], tolerance: float) -> Tensor:
    """`score(picture [3, H, W], mask [H, W])` of each picture that has a usable cut-out, else 0."""
    found = []
    for picture in torch.nan_to_num(rgb.detach().float().cpu()).clamp(0.0, 1.0):
        mask = border_flood(picture, tolerance)
        usable = is_usable(mask)
        found.append(score(picture, (mask[0] > 0.5).numpy()) if usable else 0.0)
    return torch.tensor(found, device=rgb.device)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """First and last row (excluded), first and last column (excluded) of a mask [H, W]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1

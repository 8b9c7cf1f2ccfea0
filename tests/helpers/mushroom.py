"""A mushroom with a strong cap and a pale stem, as a picture and as its cut-out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vp3d.visual_prompt.reference import Cutout, cut_out

SIDE = 160
CAP, STEM = np.array([200, 30, 30]) / 255, np.array([240, 235, 225]) / 255
Y, X = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE


def truth() -> np.ndarray:
    """The mushroom's mask `[H, W]` in {0, 1}."""
    return (cap() + stem() > 0).astype(float)


def cap() -> np.ndarray:
    return (((X - 0.5) / 0.3) ** 2 + ((Y - 0.5) / 0.34) ** 2 < 1) & (Y < 0.5)


def stem() -> np.ndarray:
    return (np.abs(X - 0.5) < 0.08) & (Y >= 0.5) & (Y < 0.84)


def mushroom(background: object = 1.0) -> np.ndarray:
    """The mushroom on a background, `[H, W, 3]` in [0, 1]."""
    rgb = np.zeros((SIDE, SIDE, 3)) + background
    rgb[cap()], rgb[stem()] = CAP, STEM
    return rgb


def found(path: Path, rgb: np.ndarray, alpha: np.ndarray | None = None, **options: int) -> Cutout:
    """The cut-out of a picture, written to `path` and read back."""
    layers = rgb if alpha is None else np.concatenate([rgb, alpha[..., None]], -1)
    Image.fromarray((layers.clip(0, 1) * 255).round().astype(np.uint8)).save(path, **options)
    return cut_out(path, 0.12)


def iou(cutout: Cutout, expected: np.ndarray) -> float:
    mask, target = cutout.mask[0].numpy() > 0.5, expected > 0.5
    return float((mask & target).sum() / (mask | target).sum())

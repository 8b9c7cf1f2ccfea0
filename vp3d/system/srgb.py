"""The curve of sRGB, between encoded values and linear light."""

from __future__ import annotations

import numpy as np


def srgb_to_linear(color: np.ndarray) -> np.ndarray:
    """sRGB-encoded values in [0, 1] as linear light in [0, 1], any shape (IEC 61966-2-1)."""
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(color: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] as sRGB-encoded values in [0, 1], any shape (IEC 61966-2-1)."""
    curve = 1.055 * np.maximum(color, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(color <= 0.0031308, color * 12.92, curve)

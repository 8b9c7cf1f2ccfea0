"""Smaller numbers for a GLB: KHR_mesh_quantization.

Positions become 16-bit shares of a cube around the mesh, which the node scales back; normals and
tangents 8-bit, texture coordinates and colours 16-bit. A cube and not a box, so that the scale
is the same on all axes and normals keep their direction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Attributes = dict[str, np.ndarray]  # glTF's name -> values [V, C]


def quantized(attributes: Attributes) -> tuple[Attributes, dict[str, Any]]:
    """The attributes as normalised integers, and the node's entries that undo it.

    Args:
        attributes: float32 by glTF's names; UVs and colours in [0, 1], directions of length 1.
    """
    points = attributes["POSITION"].astype(np.float64)
    low = points.min(0)
    side = max(float((points.max(0) - low).max()), 1e-9)
    found: Attributes = {"POSITION": _shares((points - low) / side, 16)}
    for name, values in attributes.items():
        if name in ("NORMAL", "TANGENT"):
            found[name] = np.round(np.clip(values, -1.0, 1.0) * 127.0).astype("i1")
        elif name != "POSITION":
            found[name] = _shares(values.astype(np.float64), 16)
    return found, {"translation": low.tolist(), "scale": [side] * 3}


def _shares(values: np.ndarray, bits: int) -> np.ndarray:
    """Values in [0, 1] as unsigned integers of `bits` bits."""
    largest = 2**bits - 1
    return np.round(np.clip(values, 0.0, 1.0) * largest).astype(f"<u{bits // 8}")

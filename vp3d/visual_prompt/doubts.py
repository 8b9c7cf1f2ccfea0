"""Shapes of a mask that an object rarely has, so that a user looks at the cut-out first.

Conventions: a mask is `[H, W]` in [0, 1], 1 on the object. A doubt is one clause about it.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from vp3d.visual_prompt.alpha import card_inside

ALL_BORDER = 0.95  # share of the border from which a mask with a hole seems inverted
LEAST_HOLE = 0.01  # share of the picture that this hole takes up
FLOOR_SIDE = 0.98  # share of a side that a floor or wall covers, ...
FLOOR_EDGE = 0.03  # ... and of the two sides next to it, at least
THIN = 0.05  # thickness of lines as a share of the longer side of their bounding box
HALF_OPAQUE = 0.15  # share of the object from which its half-transparent part is worth a warning


def shape_doubts(mask: np.ndarray) -> list[str]:
    """Doubts about the shape of a mask, however it was found."""
    solid = mask > 0.5
    if not solid.any() or solid.all():
        return []
    sides = [solid[0], solid[:, -1], solid[-1], solid[:, 0]]  # clockwise from the top
    holes, _ = ndimage.label(~solid)
    border = np.concatenate([holes[0], holes[:, -1], holes[-1], holes[:, 0]])
    enclosed = np.isin(holes, np.setdiff1d(holes, border))
    if np.concatenate(sides).mean() >= ALL_BORDER:
        if enclosed.mean() >= LEAST_HOLE:
            return [
                "it surrounds a hole and covers the border, as if object and background swapped"
            ]
        return []
    doubts = []
    for n, side in enumerate(sides):
        near = min(sides[n - 1].mean(), sides[(n + 1) % 4].mean())
        if side.mean() >= FLOOR_SIDE and near >= FLOOR_EDGE:
            doubts.append("it covers one side of the picture, as a floor or a wall does")
            break
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    longest = max(np.ptp(rows), np.ptp(columns)) + 1
    thickness = 2.0 * float(ndimage.distance_transform_edt(np.pad(solid, 1)).max())
    if thickness <= max(THIN * longest, 2.0):
        doubts.append("it is thin lines alone, as of a drawing without colours")
    return doubts


def card_doubts(mask: np.ndarray) -> list[str]:
    """Doubts about a mask that was found by the background's colour alone."""
    if card_inside(mask) is not None:
        return ["it is a rectangle, as a picture inside the picture is"]
    return []


def alpha_doubts(alpha: np.ndarray) -> list[str]:
    """Doubts about a mask from an alpha channel."""
    between = ((alpha > 0.1) & (alpha < 0.9)).sum()
    if between > HALF_OPAQUE * max((alpha > 0.1).sum(), 1):
        return ["a part of it is half-transparent, which may be a shadow"]
    return []


def pieces_note(mask: np.ndarray) -> tuple[str, ...]:
    """A note if the mask has several pieces."""
    _, count = ndimage.label(mask > 0.5, structure=np.ones((3, 3)))
    return (f"the object has {count} separate pieces, all of which are kept",) if count > 1 else ()

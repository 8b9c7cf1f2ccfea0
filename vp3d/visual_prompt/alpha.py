"""What the alpha channel of a user's picture says of its object.

Conventions: alpha and masks are `[H, W]` in [0, 1], 1 on the object.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

EMPTY = 0.02  # alpha below this is empty
FULL_SPREAD = 0.15  # an alpha channel whose values differ by less says nothing
MOST_RESIDUE = 0.2  # alpha all around the object that a matting tool left
LEAST_TOP = 0.05  # a picture fainter than this shows nothing
SOLID = 0.9  # alpha from which a pixel is opaque
CARD_FILL = 0.97  # share of its bounding box that an opaque card covers
CARD_SHARE = 0.4  # share of the picture that a card takes up, at least
SOFT_WIDTH = 2.0  # mean width in pixels of an edge from which it is made steeper
STEEP_FROM, STEEP_TO = 0.3, 0.7  # alpha that becomes 0 and 1 at such an edge


def usable_alpha(alpha: np.ndarray) -> np.ndarray | None:
    """Alpha stretched so that the background is 0 and the object 1; None if it says nothing.

    A residue all around the object becomes 0, and a half-transparent object 1.
    """
    if np.quantile(alpha, 0.999) < LEAST_TOP:
        return alpha
    if alpha.min() > MOST_RESIDUE and np.quantile(alpha, 0.99) - alpha.min() < FULL_SPREAD:
        return None
    low = float(np.median(_border(alpha)))
    bottom = low if low < MOST_RESIDUE else float(alpha.min())
    above = alpha[alpha > bottom + EMPTY]
    top = float(np.quantile(above, 0.9)) if above.size else 1.0
    if top - bottom < LEAST_TOP:
        return None
    if bottom < EMPTY and top > 1.0 - EMPTY:
        return alpha
    return ((alpha - bottom) / (top - bottom)).clip(0.0, 1.0)


def card_inside(alpha: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of an opaque rectangle that alpha outlines, without its rounded corners.

    A screenshot of a window and a picture with rounded corners have such an alpha channel. None if
    alpha has another shape.
    """
    solid = alpha > SOLID
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    if len(rows) == 0:
        return None
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside = solid[box]
    if inside.size < CARD_SHARE * alpha.size or inside.mean() < 0.9:
        return None
    # Corners may be round; the middle of every side must be straight and all inside opaque.
    height, width = inside.shape
    cross = inside[height // 4 : -height // 4].mean(), inside[:, width // 4 : -width // 4].mean()
    if min(cross) < CARD_FILL:
        return None
    # Bands along the sides from which the rounded corners are missing are cut off.
    margin = 1
    while margin < min(height, width) // 6:
        if inside[margin:-margin, margin:-margin].all():
            break
        margin += 1
    return (
        slice(box[0].start + margin, box[0].stop - margin),
        slice(box[1].start + margin, box[1].stop - margin),
    )


def square_in_disc(alpha: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of the rectangle inside an opaque disc that alpha outlines.

    A picture that was cropped round has such an alpha channel, and so has a ball. None if alpha has
    another shape, or the disc is small.
    """
    solid = alpha > SOLID
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    if len(rows) == 0 or solid.mean() < CARD_SHARE:
        return None
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    y, x = np.ogrid[: alpha.shape[0], : alpha.shape[1]]
    middle_y, middle_x = (rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2
    disc = ((y - middle_y) / height) ** 2 + ((x - middle_x) / width) ** 2 <= 0.25
    if (disc & solid).sum() < CARD_FILL * (disc | solid).sum():
        return None
    half_y, half_x = int(height * 0.34), int(width * 0.34)
    top, left = round(middle_y) - half_y, round(middle_x) - half_x
    return slice(top, top + 2 * half_y + 1), slice(left, left + 2 * half_x + 1)


def soft_width(alpha: np.ndarray) -> float:
    """Mean width in pixels of the edge over which alpha falls from object to background."""
    outline = (alpha > 0.5) & ~ndimage.binary_erosion(alpha > 0.5)
    between = ((alpha > 0.1) & (alpha < 0.9)).sum()
    return float(between / max(outline.sum(), 1))


def without_matte(rgb: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours `[H, W, 3]` and alpha of an object with a wide soft edge, which is made steeper.

    The colours of such an edge are mixed with those of the old background. They are replaced with
    the colour of the nearest opaque pixel.
    """
    opaque = alpha >= SOLID
    if soft_width(alpha) < SOFT_WIDTH or opaque.sum() < 0.3 * (alpha > 0.5).sum():
        return rgb, alpha
    _, (rows, columns) = ndimage.distance_transform_edt(~opaque, return_indices=True)
    steep = ((alpha - STEEP_FROM) / (STEEP_TO - STEEP_FROM)).clip(0.0, 1.0)
    return rgb[rows, columns], steep


def _border(alpha: np.ndarray) -> np.ndarray:
    return np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])

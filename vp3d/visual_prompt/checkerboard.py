"""The checkerboard that picture editors show for transparency, drawn into a file without alpha.

Conventions: `values` is `[H, W, 3]` in [0, 1] sRGB, colour distance as in `cutout`.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from vp3d.visual_prompt.cutout import color_distance

CONTRAST = (0.02, 0.7)  # colour distance of its two colours
SHARE = 0.85  # share of the border that has one of the colours, ...
EACH = 0.25  # ... and that each of them has
LEAST_RUNS = 3  # changes of the colour along each side
LEAST_CELL = 2  # side of a square, pixels
MOST_CELL = 1 / 8  # side of a square as a share of the picture's shorter side
GREY = 0.02  # colour distance of its colours to grey, at most
TOLERANCE = 0.01  # colour distance to the line between the two colours, at least


def without_checkerboard(values: np.ndarray) -> np.ndarray | None:
    """The picture with one colour instead of the checkerboard; None if it has none."""
    most_cell = MOST_CELL * min(values.shape[:2])
    if most_cell < LEAST_CELL:
        return None
    sides = [values[1], values[:, -2], values[-2, ::-1], values[::-1, 1]]
    border = np.concatenate(sides)
    grey = border.mean(-1)
    dark, light = (np.median(border[part], axis=0) for part in _halves(grey))
    span = light - dark
    contrast = float(np.sqrt((span**2).mean()))
    if not CONTRAST[0] <= contrast <= CONTRAST[1] or _tint(dark) > GREY or _tint(light) > GREY:
        return None
    tone, off = _along(border, dark, span)
    on = (np.abs(tone - tone.round()) < 0.3) & (off < 2 * GREY)
    tones = tone.round().astype(int)
    shares = [float((on & (tones == n)).mean()) for n in (0, 1)]
    runs = np.flatnonzero(np.diff(tones))
    ends = np.cumsum([len(side) for side in sides])[:-1]
    changes = min(np.count_nonzero(np.diff(side)) for side in np.split(tones, ends))
    if sum(shares) < SHARE or min(shares) < EACH or changes < LEAST_RUNS:
        return None
    cell = int(np.median(np.diff(runs)))
    if not LEAST_CELL <= cell <= most_cell:
        return None
    tolerance = max(TOLERANCE, 1.5 * float(np.quantile(off[on], 0.95)))
    tone, off = _along(values, dark, span)
    # A part of the object with one of the colours has no square of the other one next to it.
    window = 2 * cell + 1
    mixed = (ndimage.maximum_filter(tone, window) > 0.7) & (
        ndimage.minimum_filter(tone, window) < 0.3
    )
    is_square = mixed & (off <= tolerance) & (tone > -0.3) & (tone < 1.3)
    return np.where(is_square[..., None], light, values)


def _halves(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    middle = 0.5 * float(np.quantile(grey, 0.1) + np.quantile(grey, 0.9))
    return grey <= middle, grey >= middle


def _tint(color: np.ndarray) -> float:
    return float(color_distance(color, color.mean()))


def _along(values: np.ndarray, dark: np.ndarray, span: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where values are on the line from dark (0) to light (1), and their distance to it."""
    tone = ((values - dark) * span).sum(-1) / (span**2).sum()
    return tone, np.sqrt(((values - dark - tone[..., None] * span) ** 2).mean(-1))

"""The background of a user's picture: frames trimmed off, and a smooth field of its colour.

Conventions: `values` is `[H, W, 3]` in [0, 1] sRGB. Colour distance is the root mean square over
the channels, so it is in [0, 1] too.

A backdrop is rarely one colour: light falls off from one side (a gradient) or to the corners (a
vignette). Its colour is fitted as a polynomial of the position, first to the border and then to
all that turns out to be background. Its noise decides how small a difference counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from vp3d.visual_prompt.cutout import color_distance

FRAME_STEP = 0.012  # colour distance across the straight edge of a frame
FRAME_SHARE = 0.9  # share of a side's length along which the edge must run
BAR_SHARE = 0.98  # the same, for a bar deeper than LINE_DEPTH
FRAME_SPREAD = 0.06  # largest spread of the colour along a line of a frame
FRAME_DEPTH = 0.35  # share of the picture's height or width that a bar may take, ...
LINE_DEPTH = 0.08  # ... and a line, or a frame inside another one

RING_SHARE = 1 / 32  # width of the border ring as a share of the shorter side
SEGMENT_STEP = 0.05  # colour distance between neighbours of the ring that belong together
CENTRE_WEIGHT = 0.75  # of the centre's share of a colour, against its share of the border
SAME_COLOR = 0.07  # colour distance of two segments of the ring that are both background

GRAIN = 2.0  # standard deviation in pixels of the blur that removes the grain
DEGREES = (1, 2, 2, 3, 3, 4, 4)  # of the polynomial, one fit each
LEAST_FIT_TOLERANCE, MOST_FIT_TOLERANCE = 0.008, 0.06
RIDGE = 1e-4
LOCAL_FROM = 0.006  # misfit of the polynomial at the border from which it is corrected locally
LOCAL_ROUNDS = 10  # corrections of the fit at most, ...
LOCAL_SHARE = 1 / 24  # ... blurred by this share of the shorter side


@dataclass(frozen=True)
class Border:
    """Which part of the border shows the background.

    Attributes:
        seeds: `[H, W]` bool, pixels of the ring that are background.
        share: Share of the ring that is background.
        margin: How much better this reading of the border is than the second best, in [0, 1].
    """

    seeds: np.ndarray
    share: float
    margin: float


@dataclass(frozen=True)
class Backdrop:
    """The background of a picture.

    Attributes:
        field: `[H, W, 3]` in [0, 1], its colour at every pixel, also behind the object.
        noise: Colour distance of its grain, which 95 % of its pixels stay below.
        texture: Colour distance of coarser structure to the field, likewise for 85 % at the border.
    """

    field: np.ndarray
    noise: float
    texture: float


def trim_frame(values: np.ndarray) -> tuple[slice, slice]:
    """The part of the picture inside frames, lines and bars along its border.

    A frame ends at a straight edge that runs parallel to a side over almost its full length, and
    all that is outside the edge is of nearly one colour along the side.

    Returns:
        Slices of the rows and columns inside; the complete picture if there is no frame.
    """
    box = [0, values.shape[0], 0, values.shape[1]]
    used = [0, 0, 0, 0]
    for _ in range(3):  # a frame inside a frame
        before = list(box)
        for side in range(4):
            inside = values[box[0] : box[1], box[2] : box[3]]
            lines = np.swapaxes(inside, 0, 1) if side >= 2 else inside
            lines = lines[::-1] if side % 2 else lines
            length = values.shape[side // 2]
            share = FRAME_DEPTH if used[side] == 0 else LINE_DEPTH
            depth = _frame_depth(lines, round(share * length), round(LINE_DEPTH * length))
            used[side] += depth
            box[side] += -depth if side % 2 else depth
        if box == before:
            break
    return slice(box[0], box[1]), slice(box[2], box[3])


def _frame_depth(lines: np.ndarray, most: int, shallow: int) -> int:
    """How many of the first rows of `lines [H, W, 3]` are a frame; 0 for none.

    A bar deeper than `shallow` must run over the full length.
    """
    most = min(most, len(lines) // 2)
    found = 0
    for depth in range(1, most):
        outside, inside = lines[depth - 1], lines[depth : depth + 2].mean(0)
        spread = np.quantile(color_distance(outside, np.median(outside, axis=0)), 0.8)
        if spread > FRAME_SPREAD:
            break
        share = FRAME_SHARE if depth <= shallow else BAR_SHARE
        if _is_straight_edge(outside, inside, FRAME_STEP, share):
            found = depth
        elif found and depth > found + 2:
            break
    # An edge is blurred over a pixel or two by shrinking and by JPEG.
    while found and found < min(most, len(lines) - 2):
        if not _is_straight_edge(lines[found], lines[found + 1], FRAME_STEP / 2, FRAME_SHARE):
            break
        found += 1
    return found


def _is_straight_edge(outside: np.ndarray, inside: np.ndarray, least: float, share: float) -> bool:
    """Whether two lines `[W, 3]` differ by one step, of at least `least`, at a `share` of them."""
    steps = ndimage.median_filter(outside - inside, (5, 1), mode="nearest")
    mean = np.median(steps, axis=0)
    size = float(np.sqrt((mean**2).mean()))
    if size < least:
        return False
    along = (steps * mean).mean(-1) / size
    return bool((along > 0.4 * size).mean() >= share)


def read_border(values: np.ndarray) -> Border:
    """Decide which part of the border is background: it may be partly covered by the object.

    The ring along the border is cut into segments at steps of its colour. Each reading takes one
    segment and all of the same colour as background. The best one covers much of the ring, the
    corners and the upper half most of all, and is rare in the centre of the picture.
    """
    height, width = values.shape[:2]
    path = _ring_path(height, width)
    ring = max(1, round(min(height, width) * RING_SHARE))
    smooth = ndimage.uniform_filter(values, (min(ring, 5), min(ring, 5), 1), mode="nearest")
    colors = ndimage.median_filter(smooth[path[:, 0], path[:, 1]], (5, 1), mode="wrap")
    labels = _segments(colors)
    weights = _ring_weights(path, height, width)
    middle = smooth[height // 4 : -height // 4, width // 4 : -width // 4][::3, ::3].reshape(-1, 3)
    readings = []
    for label in np.unique(labels[labels >= 0]):
        chosen = _joined(colors, labels, label)
        share = float(weights[chosen].sum() / weights.sum())
        palette = colors[chosen][:: max(1, int(chosen.sum()) // 24)]
        nearest = color_distance(middle[:, None], palette[None]).min(1)
        readings.append(
            (share - CENTRE_WEIGHT * float((nearest < SEGMENT_STEP).mean()), tuple(chosen))
        )
    if not readings:
        return Border(_ring_mask(height, width, ring), 1.0, 0.0)
    ranked = sorted({chosen: score for score, chosen in readings}.items(), key=lambda r: -r[1])
    chosen = np.array(ranked[0][0])
    margin = ranked[0][1] - ranked[1][1] if len(ranked) > 1 else 1.0
    seeds = np.zeros((height, width), dtype=bool)
    seeds[path[chosen, 0], path[chosen, 1]] = True
    near = _ring_mask(height, width, ring)
    _, (rows, columns) = ndimage.distance_transform_edt(
        ~_on_path(path, height, width), return_indices=True
    )
    return Border(seeds[rows, columns] & near, float(chosen.mean()), float(margin))


def _on_path(path: np.ndarray, height: int, width: int) -> np.ndarray:
    on = np.zeros((height, width), dtype=bool)
    on[path[:, 0], path[:, 1]] = True
    return on


def _ring_path(height: int, width: int) -> np.ndarray:
    """Rows and columns `[P, 2]` of a walk around the picture, a few pixels inside its border."""
    m = max(1, round(min(height, width) * RING_SHARE)) // 2
    top = [(m, x) for x in range(m, width - m)]
    right = [(y, width - 1 - m) for y in range(m, height - m)]
    bottom = [(height - 1 - m, x) for x in range(width - 1 - m, m - 1, -1)]
    left = [(y, m) for y in range(height - 1 - m, m - 1, -1)]
    return np.array(top + right + bottom + left)


def _ring_weights(path: np.ndarray, height: int, width: int) -> np.ndarray:
    """Weights of the ring: more in the corners, and more at the top, than where things stand."""
    y, x = np.abs(path[:, 0] / height * 2 - 1), np.abs(path[:, 1] / width * 2 - 1)
    corner = np.minimum(x, y) > 0.7
    top = path[:, 0] < height / 2
    return (1.0 + 1.0 * corner) * (1.0 + 0.5 * top)


def _segments(colors: np.ndarray) -> np.ndarray:
    """A label for each point of a closed walk of `colors [P, 3]`; -1 at its steps."""
    around = np.roll(colors, -2, axis=0), np.roll(colors, 2, axis=0)
    flat = color_distance(*around) < SEGMENT_STEP
    labels, count = ndimage.label(flat)
    if count > 1 and flat[0] and flat[-1]:
        labels[labels == labels[-1]] = labels[0]
    return labels - 1


def _joined(colors: np.ndarray, labels: np.ndarray, label: int) -> np.ndarray:
    """`[P]` bool: the segment `label` and all that are close to what is joined already."""
    chosen = labels == label
    others = [n for n in np.unique(labels[labels >= 0]) if n != label]
    grown = True
    while grown:
        grown = False
        palette = colors[chosen][:: max(1, int(chosen.sum()) // 48)]
        for other in list(others):
            inside = np.median(colors[labels == other], axis=0)
            # Not the very nearest: at the ends of a segment colours are mixed.
            if np.quantile(color_distance(inside[None], palette), 0.08) < SAME_COLOR:
                chosen = chosen | (labels == other)
                others.remove(other)
                grown = True
    return chosen


def _ring_mask(height: int, width: int, ring: int) -> np.ndarray:
    mask = np.ones((height, width), dtype=bool)
    mask[ring:-ring, ring:-ring] = False
    return mask


def smooth_field(values: np.ndarray, border: Border) -> Backdrop:
    """Fit the colour of the background at every pixel, and measure its noise and texture."""
    seeds = border.seeds
    background = seeds
    field = np.zeros_like(values)
    for degree in DEGREES:
        field = _fit(values, background, degree)
        background = _grown(values, field, seeds)
    coarse = ndimage.gaussian_filter(values, (GRAIN, GRAIN, 0.0))
    texture = float(np.quantile(color_distance(coarse, field)[seeds], 0.85))
    for _ in range(
        LOCAL_ROUNDS if texture > LOCAL_FROM else 0
    ):  # what a polynomial cannot follow, such as a spotlight
        field = _corrected(values, field, background)
        before, background = background, _grown(values, field, seeds)
        if (background ^ before).mean() < 0.002:
            break
    inner = ndimage.binary_erosion(background, iterations=round(3 * GRAIN), border_value=1)
    inner = inner if inner.sum() > 64 else background
    noise = float(np.quantile(color_distance(values, coarse)[inner], 0.95))
    return Backdrop(field, noise, texture)


def _grown(values: np.ndarray, field: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The background so far: close to `field` and connected to `seeds`, without its outline."""
    distance = color_distance(values, field)
    misfit = float(np.quantile(distance[seeds], 0.7))
    tolerance = float(np.clip(1.5 * misfit, LEAST_FIT_TOLERANCE, MOST_FIT_TOLERANCE))
    near = (distance <= tolerance) | (seeds & (distance <= MOST_FIT_TOLERANCE))
    pieces, _ = ndimage.label(near)
    background = np.isin(pieces, np.setdiff1d(pieces[seeds], 0))
    background = ndimage.binary_erosion(background, border_value=1)
    return background if background.sum() >= max(32, seeds.sum() // 4) else seeds


def _corrected(values: np.ndarray, field: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The field plus the blurred difference of the background to it, fading out away from it."""
    width = min(values.shape[:2]) * LOCAL_SHARE
    weight = ndimage.gaussian_filter(background.astype(np.float64), width)
    offset = np.where(background[..., None], values - field, 0.0)
    offset = ndimage.gaussian_filter(offset, (width, width, 0.0)) / (weight + 0.02)[..., None]
    return np.clip(field + offset, 0.0, 1.0)


def _fit(values: np.ndarray, where: np.ndarray, degree: int) -> np.ndarray:
    """The least-squares polynomial of `degree` in x and y of `values` at `where`, as a field."""
    height, width = values.shape[:2]
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)
    powers = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    px = np.stack([np.polynomial.legendre.Legendre.basis(i)(x) for i in range(degree + 1)])
    py = np.stack([np.polynomial.legendre.Legendre.basis(j)(y) for j in range(degree + 1)])
    rows, columns = np.nonzero(where)
    step = max(1, len(rows) // 6000)
    rows, columns = rows[::step], columns[::step]
    basis = np.stack([px[i][columns] * py[j][rows] for i, j in powers], axis=1)
    samples = values[rows, columns]
    weights = np.ones(len(rows))
    factors = np.zeros((len(powers), 3))
    for _ in range(4):  # reweighted, so that a corner of the object does not bend the field
        weighted = basis * weights[:, None]
        left = weighted.T @ basis + RIDGE * len(rows) * np.diag([i + j > 0 for i, j in powers])
        factors = np.linalg.solve(left, weighted.T @ samples)
        residual = color_distance(basis @ factors, samples)
        scale = max(2.0 * float(np.median(residual)), 0.004)
        weights = 1.0 / (1.0 + (residual / scale) ** 2)
    field = sum(
        factors[n][None, None] * (py[j][:, None] * px[i][None])[..., None]
        for n, (i, j) in enumerate(powers)
    )
    return np.clip(field, 0.0, 1.0)

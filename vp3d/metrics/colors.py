"""Figures that compare colours. Pure functions; nothing here draws, reads or writes.

Conventions: colours are sRGB in [0, 1]; colour differences are CIEDE2000 (ISO/CIE 11664-6) under
D65. About 2 is just visible, 10 is another shade, above 30 is another colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from skimage.color import deltaE_ciede2000, lab2rgb, rgb2lab


def ciede2000(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Colour differences `[...]` >= 0 of sRGB colours `[..., 3]` in [0, 1], broadcast.

    Example:
        >>> float(ciede2000(np.zeros(3), np.ones(3)).round())
        100.0
    """
    return np.asarray(
        deltaE_ciede2000(rgb2lab(np.asarray(a, np.float64)), rgb2lab(np.asarray(b, np.float64)))
    )


@dataclass(frozen=True)
class Palette:
    """The main colours of a picture.

    Attributes:
        colors: `[K, 3]` sRGB in [0, 1], the most frequent first.
        weights: `[K]`, their shares, sum 1.
    """

    colors: np.ndarray
    weights: np.ndarray


def farthest_points(points: np.ndarray, k: int) -> np.ndarray:
    """Up to `k` starting centres of `points [N, 3]` (any range).

    The first is the point nearest to the mean, each following one the farthest from those before.
    """
    centres = [points[np.argmin(((points - points.mean(0)) ** 2).sum(1))]]
    nearest = ((points - centres[0]) ** 2).sum(1)
    while len(centres) < k and nearest.max() > 0:
        centres.append(points[np.argmax(nearest)])
        nearest = np.minimum(nearest, ((points - centres[-1]) ** 2).sum(1))
    return np.stack(centres)


def cluster(points: np.ndarray, k: int, rounds: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's k-means without randomness.

    Args:
        points: `[N, 3]`, any range.
        k: the largest number of centres.
        rounds: the largest number of iterations.

    Returns:
        Centres `[<= k, 3]` and the label `[N]` of each point.
    """
    centres = farthest_points(points, k)
    labels = np.zeros(len(points), np.int64)
    for _ in range(rounds):
        labels = ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        members = [points[labels == i] for i in range(len(centres))]
        moved = np.stack(
            [own.mean(0) if len(own) else c for own, c in zip(members, centres, strict=True)]
        )
        if np.allclose(moved, centres, atol=1e-6):
            break
        centres = moved
    return centres, labels


def dominant_colors(
    rgb: np.ndarray, mask: np.ndarray, k: int = 4, merge_below: float = 8.0
) -> Palette:
    """The main colours of a picture.

    k-means in CIELAB from farthest points, so a rare strong colour has its own centre and nothing
    is random. Centres that are closer than `merge_below` are shades of one colour and are merged.

    Args:
        rgb: `[H, W, 3]` sRGB in [0, 1].
        mask: `[H, W]`; only pixels where it is true count.
        k: the largest number of colours.
        merge_below: CIEDE2000 between two shades of one colour.

    Returns:
        At most `k` colours with their shares.

    Raises:
        ValueError: the shapes do not match, or the mask is empty.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or mask.shape != rgb.shape[:2]:
        raise ValueError(
            f"need a picture [H, W, 3] and a mask [H, W], got {rgb.shape} and {mask.shape}"
        )
    points = rgb2lab(np.asarray(rgb, np.float64))[mask.astype(bool)]
    if len(points) == 0:
        raise ValueError("the mask is empty: there are no pixels to take colours from")
    centres, labels = cluster(points, k)
    counts = np.bincount(labels, minlength=len(centres)).astype(np.float64)
    centres, counts = merge_shades(centres[counts > 0], counts[counts > 0], merge_below)
    order = np.argsort(-counts, kind="stable")
    colors = np.clip(lab2rgb(centres[order][None])[0], 0.0, 1.0)
    return Palette(colors, counts[order] / counts.sum())


def merge_shades(
    lab: np.ndarray, counts: np.ndarray, below: float
) -> tuple[np.ndarray, np.ndarray]:
    """Merges the closest pair of colours until no pair is closer than `below`.

    Args:
        lab: `[K, 3]` CIELAB; changed in place.
        counts: `[K]`, how often each colour occurs; changed in place.
        below: CIEDE2000.

    Returns:
        The colours and counts that remain; a merged colour is the mean weighted by the counts.
    """
    while len(lab) > 1:
        apart = deltaE_ciede2000(lab[:, None], lab[None]) + np.diag(np.full(len(lab), np.inf))
        i, j = np.unravel_index(np.argmin(apart), apart.shape)
        if apart[i, j] >= below:
            break
        lab[i] = (lab[i] * counts[i] + lab[j] * counts[j]) / (counts[i] + counts[j])
        counts[i] += counts[j]
        lab, counts = np.delete(lab, j, 0), np.delete(counts, j)
    return lab, counts


def dominant_color_distance(a: Palette, b: Palette) -> float:
    """The earth mover's distance (Rubner et al. 2000) of two palettes.

    The shares of `a` are moved onto those of `b` at the smallest total colour difference, so each
    colour counts by the share of the object that it covers.

    Returns:
        Mean CIEDE2000: >= 0, symmetric, 0 for equal palettes.

    Raises:
        RuntimeError: the linear program has no solution.
    """
    cost = ciede2000(a.colors[:, None], b.colors[None])
    rows, columns = cost.shape
    leaves = np.kron(np.eye(rows), np.ones((1, columns)))
    arrives = np.kron(np.ones((1, rows)), np.eye(columns))
    # One row follows from the others, because both sides sum to 1.
    solved = linprog(
        cost.ravel(),
        A_eq=np.concatenate([leaves, arrives])[:-1],
        b_eq=np.concatenate([a.weights, b.weights])[:-1],
        bounds=(0.0, None),
        method="highs",
    )
    if not solved.success:
        raise RuntimeError(f"palettes could not be matched: {solved.message}")
    return max(float(solved.fun), 0.0)

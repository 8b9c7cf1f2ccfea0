"""Figures that compare pictures and colours. Pure functions; nothing here draws, reads or writes.

Conventions: colours are sRGB in [0, 1]; images are `[B, 3, H, W]`, silhouettes `[B, 1, H, W]` in [0, 1]; colour
differences are CIEDE2000 (ISO/CIE 11664-6) under D65: about 2 is just visible, 10 is another shade, above 30 another colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from skimage.color import deltaE_ciede2000, lab2rgb, rgb2lab


def ciede2000(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Colour difference of sRGB colours `[..., 3]` in [0, 1] (broadcast against each other); returns `[...]` >= 0."""
    return np.asarray(
        deltaE_ciede2000(rgb2lab(np.asarray(a, np.float64)), rgb2lab(np.asarray(b, np.float64)))
    )


@dataclass(frozen=True)
class Palette:
    """A picture's main colours: `colors [K, 3]` sRGB in [0, 1], most frequent first, and their shares `weights [K]`, sum 1."""

    colors: np.ndarray
    weights: np.ndarray


def farthest_points(points: np.ndarray, k: int) -> np.ndarray:
    """Up to `k` starting centres of `points [N, 3]` (any range): the one nearest the mean, then always the farthest."""
    centres = [points[np.argmin(((points - points.mean(0)) ** 2).sum(1))]]
    nearest = ((points - centres[0]) ** 2).sum(1)
    while len(centres) < k and nearest.max() > 0:
        centres.append(points[np.argmax(nearest)])
        nearest = np.minimum(nearest, ((points - centres[-1]) ** 2).sum(1))
    return np.stack(centres)


def cluster(points: np.ndarray, k: int, rounds: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's k-means of `points [N, 3]` (any range) without randomness; returns centres `[<=k, 3]` and labels `[N]`."""
    centres = farthest_points(points, k)
    labels = np.zeros(len(points), np.int64)
    for _ in range(rounds):
        labels = ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        moved = np.stack(
            [
                points[labels == i].mean(0) if (labels == i).any() else c
                for i, c in enumerate(centres)
            ]
        )
        if np.allclose(moved, centres, atol=1e-6):
            break
        centres = moved
    return centres, labels


def dominant_colors(
    rgb: np.ndarray, mask: np.ndarray, k: int = 4, merge_below: float = 8.0
) -> Palette:
    """The main colours of a picture `[H, W, 3]` sRGB in [0, 1] where `mask [H, W]` is true.

    k-means in CIELAB from farthest points (a rare strong colour gets its own centre; no randomness). Centres closer than
    `merge_below` CIEDE2000 are shades of one colour and become one, so at most `k` colours come back.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or mask.shape != rgb.shape[:2]:
        raise ValueError(
            f"need a picture [H, W, 3] and a mask [H, W], got {rgb.shape} and {mask.shape}"
        )
    points = rgb2lab(np.asarray(rgb, np.float64))[mask.astype(bool)]
    if len(points) == 0:
        raise ValueError("the mask is empty: there is nothing to take colours from")
    centres, labels = cluster(points, k)
    counts = np.bincount(labels, minlength=len(centres)).astype(np.float64)
    centres, counts = merge_shades(centres[counts > 0], counts[counts > 0], merge_below)
    order = np.argsort(-counts, kind="stable")
    colors = np.clip(lab2rgb(centres[order][None])[0], 0.0, 1.0)
    return Palette(colors, counts[order] / counts.sum())


def merge_shades(
    lab: np.ndarray, counts: np.ndarray, below: float
) -> tuple[np.ndarray, np.ndarray]:
    """Join the closest pair of Lab colours `[K, 3]` (by their `counts [K]`) until no pair is nearer than `below` CIEDE2000."""
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
    """Mean CIEDE2000 between two palettes under the best matching of their shares: >= 0, symmetric, 0 for equal palettes.

    The earth mover's distance (Rubner et al. 2000): the shares of `a` are moved onto those of `b` at the least total colour
    difference, so a main colour counts by how much of the object it covers.
    """
    cost = ciede2000(a.colors[:, None], b.colors[None])
    rows, columns = cost.shape
    leaves = np.kron(np.eye(rows), np.ones((1, columns)))
    arrives = np.kron(np.ones((1, rows)), np.eye(columns))
    solved = linprog(
        cost.ravel(),
        A_eq=np.concatenate([leaves, arrives])[
            :-1
        ],  # one row follows from the others, as both sides sum to 1
        b_eq=np.concatenate([a.weights, b.weights])[:-1],
        bounds=(0.0, None),
        method="highs",
    )
    if not solved.success:
        raise RuntimeError(f"palettes could not be matched: {solved.message}")
    return max(float(solved.fun), 0.0)

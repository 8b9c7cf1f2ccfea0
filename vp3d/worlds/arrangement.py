"""Two meshes of a library in one scene: which pairs make sense, how large they are, where they are.

Sizes are typical ones of everyday things. In a picture of 128 pixels a mug on a table of its true
size is a dot, so the ratio of two sizes is drawn as its square root, within limits.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from vp3d.worlds.mesh_library import LibraryMesh
from vp3d.worlds.toybox.scenes import BALL_RADIUS

# Largest extent, metres
EXTENT_M: dict[str, float] = {
    "sofa": 2.0, "armchair": 0.9, "car": 4.3, "mug": 0.12, "teddy bear": 0.4, "barrel": 0.9,
    "hamburger": 0.13, "vase": 0.35, "dog": 0.8, "washing machine": 0.85, "soccer ball": 0.22,
    "piano": 1.5, "chair": 0.9, "table": 1.4, "bench": 1.6, "desk": 1.4, "bed": 2.0,
    "wardrobe": 2.0, "lamp": 0.6, "bookcase": 1.9, "potted plant": 0.8, "bicycle": 1.8,
    "scooter": 1.1, "truck": 7.0, "van": 5.0, "bus": 11.0, "cat": 0.5, "rabbit": 0.4,
    "bottle": 0.3, "bowl": 0.25, "cup": 0.1, "teapot": 0.25, "hot dog": 0.18, "toaster": 0.3,
    "microwave": 0.5, "fridge": 1.8, "trash can": 0.7, "box": 0.5, "crate": 0.6, "sink": 0.8,
    "bathtub": 1.7, "toilet": 0.75, "tv": 1.0, "laptop": 0.35, "phone": 0.2, "camera": 0.15,
    "radio": 0.3, "guitar": 1.0, "hat": 0.3, "umbrella": 0.9, "basketball": 0.24,
    "fire hydrant": 0.8, "wheelbarrow": 1.4, "horse": 2.2,
}  # fmt: skip
_TABLEWARE = (
    "mug", "cup", "bowl", "bottle", "vase", "teapot", "hamburger", "hot dog", "toaster",
    "microwave", "radio", "camera", "phone", "laptop", "lamp", "potted plant", "box", "hat",
    "teddy bear", "cat", "basketball", "soccer ball",
)  # fmt: skip
_LYING = (
    "cat", "dog", "rabbit", "teddy bear", "hat", "guitar", "laptop", "box", "soccer ball",
    "basketball", "umbrella",
)  # fmt: skip
# What other things stand on, and what stands on it
SUPPORTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("table", "desk", "crate", "barrel", "washing machine"), _TABLEWARE),
    **dict.fromkeys(("sofa", "armchair", "bench", "bed", "chair"), _LYING),
}
# Things that are met in one place: each stands next to each other of its group
PLACES: tuple[tuple[str, ...], ...] = (
    ("sofa", "armchair", "lamp", "potted plant", "bookcase", "piano", "dog", "cat", "tv", "guitar"),
    ("table", "chair", "desk", "trash can", "lamp", "bench", "potted plant"),
    ("bed", "wardrobe", "lamp", "teddy bear"),
    ("car", "bicycle", "scooter", "truck", "van", "bus", "fire hydrant", "trash can", "dog"),
    ("mug", "cup", "bowl", "bottle", "teapot", "vase", "hamburger", "hot dog", "toaster"),
    ("bathtub", "toilet", "sink", "washing machine"),
    ("barrel", "crate", "box", "wheelbarrow"),
    ("soccer ball", "basketball", "teddy bear", "dog"),
)
ON_RATIO, NEXT_RATIO = (0.28, 0.75), (0.4, 2.5)  # limits of the drawn ratio of two sizes
GAP = 0.06  # between two things next to each other, in units of the second one's ball
POINTS = 6000  # on a mesh that other things stand on
_FORWARD = (0.0, 0.12, 0.24)  # of a support's depth: where things on it may stand


def sensible_pairs(nouns: Collection[str]) -> list[tuple[str, str, str]]:
    """Every (noun, relation, second noun) of `nouns` that makes sense, in a fixed order.

    Example:
        >>> sensible_pairs(["mug", "table", "sofa"])
        [('mug', 'on', 'table')]
    """
    found = {(a, "on", b) for b, things in SUPPORTS.items() for a in things}
    found |= {(a, "next to", b) for group in PLACES for a in group for b in group if a != b}
    return sorted(p for p in found if p[0] in nouns and p[2] in nouns)


def drawn_ratio(noun: str, relation: str, noun_b: str) -> float:
    """The size of the first object's ball in units of the second's."""
    low, high = ON_RATIO if relation == "on" else NEXT_RATIO
    ratio = EXTENT_M[noun] / EXTENT_M[noun_b]
    return float(np.clip(np.sqrt(ratio), low, high))


def arrange(
    first: LibraryMesh, second: LibraryMesh, relation: str, ratio: float
) -> tuple[tuple[float, float], tuple[np.ndarray, np.ndarray]]:
    """Factors and positions of two meshes, so that both together fill the ball.

    Args:
        first: The first object.
        second: The second object.
        relation: "on": the first stands on the second, as far in front as its surface is lower
            there (the seat of a sofa). "next to": both stand on one floor, the first at -y.
        ratio: The first one's size in units of the second's (`drawn_ratio`).

    Returns:
        The factors of both, and where their origins are moved to, [3] each.
    """
    a, b = first.position.astype(np.float64) * ratio, second.position.astype(np.float64)
    if relation == "on":
        move = _resting(a, b, surface_points(second))
    else:
        low = b.min(0)[2] - a.min(0)[2]
        move = np.array([0.0, b.min(0)[1] - GAP - a.max(0)[1], low])
    both = np.concatenate([a + move, b])
    centre = (both.min(0) + both.max(0)) / 2
    scale = BALL_RADIUS / np.linalg.norm(both - centre, axis=1).max()
    return (ratio * scale, scale), ((move - centre) * scale, -centre * scale)


def _resting(a: np.ndarray, b: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """The move [3] of points `a` onto the surface points of `b`."""
    depth, height = np.ptp(b, axis=0)[[0, 2]]
    floor = b[:, 2].min() + 0.2 * height
    radius = 0.35 * float(np.ptp(a, axis=0)[:2].max())
    best: tuple[float, float] | None = None
    for forward in _FORWARD:
        x = forward * depth
        near = np.hypot(surface[:, 0] - x, surface[:, 1]) < max(radius, 0.05)
        if not near.any():
            continue
        top = float(surface[near, 2].max())
        # the floor below an edge is no place, and a small step down is none either
        if best is None or floor < top < best[1] - 0.1 * height:
            best = (x, top)
    x, top = best or (0.0, float(b[:, 2].max()))
    middle = (a.min(0) + a.max(0)) / 2
    return np.array([x - middle[0], -middle[1], top - a[:, 2].min()])


def surface_points(mesh: LibraryMesh) -> np.ndarray:
    """`POINTS` points [P, 3] spread evenly over the surface, the same ones each time."""
    rng = np.random.default_rng(3)
    corners = mesh.position[mesh.triangles].astype(np.float64)
    edges = corners[:, 1:] - corners[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    chosen = rng.choice(len(area), POINTS, p=area / area.sum())
    u, v = np.sqrt(rng.random(POINTS))[:, None], rng.random(POINTS)[:, None]
    a, b, c = (corners[chosen, i] for i in range(3))
    return np.asarray((1 - u) * a + u * (1 - v) * b + u * v * c)

"""Planted hallucinations in scenes of the toybox; see `vp3d.worlds.planted`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from vp3d.worlds.planted import (
    BALL_DISTANCE,
    BALL_RADII,
    BENIGN,
    ELEVATION_DEG,
    GROUND,
    LEVELS,
    PERIODS,
    Pair,
    benign_pair,
    every_change,
    harmful_pair,
    textured,
    towards_the_farthest,
)
from vp3d.worlds.toybox.data import DISTANCE, FOV_DEG
from vp3d.worlds.toybox.images import render_scenes, view_vectors
from vp3d.worlds.toybox.scenes import (
    COLORS,
    NOUNS,
    PRIM_COLUMNS,
    Scene,
    Spec,
    build_scene,
    caption,
    sample_spec,
)

PARTS_DROPPED = (1, 2, 4)


def planted_pairs(
    count: int, size: int, seed: int = 0, held_out: bool = False, first: int = 0
) -> list[Pair]:
    """Every kind and level of change in `count` random scenes, seen from random sides.

    Args:
        count: number of scenes.
        size: side of a picture, pixels.
        seed: of the scenes, views and changes.
        held_out: scenes with pairs of colour and object that no training used.
        first: number of the first scene; a scene depends on its number and the seed alone.

    Returns:
        The pairs, scene by scene; harmful changes that cannot be seen are left out.
    """
    pairs: list[Pair] = []
    for index in range(first, first + count):
        rng = np.random.default_rng([27, seed, index])
        spec, view = sample_spec(rng, held_out), random_view(rng)
        pairs += every_change(partial(plant, spec, view, size, rng))
    return pairs


def plant(
    spec: Spec, view: np.ndarray, size: int, rng: np.random.Generator, kind: str, level: int
) -> Pair | None:
    """One change of one scene; None if it cannot be seen.

    Args:
        spec: the caption of the scene.
        view: the camera, [1, 13] (`images.view_vectors`).
        size: side of the pictures, pixels.
        rng: draws what the kind leaves open.
        kind: one of `HARMFUL` or `BENIGN`.
        level: 1 to 3.
    """
    scene, text = build_scene(spec), caption(spec)
    reference = _render(scene, view, size)
    if kind in BENIGN:
        return benign_pair(kind, level, text, reference, rng)
    if kind == "texture":
        picture = textured(reference, _object_mask(scene, view, size), level, rng)
    else:
        changed_scene = _SCENES[kind](spec, scene, level, rng)
        if changed_scene is None:
            return None
        picture = _render(changed_scene, view, size)
    return harmful_pair(kind, level, text, reference, picture)


def random_view(rng: np.random.Generator) -> np.ndarray:
    """A camera around the object, `[1, 13]` (`images.view_vectors`)."""
    azimuth, elevation = rng.uniform(-180.0, 180.0), rng.uniform(*ELEVATION_DEG)
    return view_vectors(
        np.array([azimuth]), np.array([elevation]), np.array([DISTANCE]), np.array([FOV_DEG])
    )


def _render(scene: Scene, view: np.ndarray, size: int, ground: float = GROUND) -> np.ndarray:
    picture: np.ndarray = render_scenes([scene], np.zeros(1), view, np.full(1, ground), size)[0][0]
    return picture


def _recolored(spec: Spec, scene: Scene, level: int, rng: np.random.Generator) -> Scene | None:
    """One of the scene's materials, moved towards the colour that is farthest from it."""
    materials = scene.materials.copy()
    chosen = materials[int(rng.integers(len(materials)))]
    for first in (0, 3):
        rgb = chosen[first : first + 3]
        rgb[:] = towards_the_farthest(rgb, COLORS, level)
    return replace(scene, materials=materials)


def _without_parts(spec: Spec, scene: Scene, level: int, rng: np.random.Generator) -> Scene | None:
    """The scene without its smallest primitives; None if nothing would be left."""
    count = PARTS_DROPPED[level - 1]
    if len(scene.prims) <= count:
        return None
    order = np.argsort(np.abs(scene.prims[:, 4:7]).prod(axis=1), kind="stable")
    return replace(scene, prims=np.delete(scene.prims, order[:count], axis=0))


def _with_ball(spec: Spec, scene: Scene, level: int, rng: np.random.Generator) -> Scene | None:
    """The scene with a ball of another colour beside it."""
    radius = BALL_RADII[level - 1]
    direction = rng.normal(size=3)
    center = direction / np.linalg.norm(direction) * rng.uniform(*BALL_DISTANCE)
    used = [spec.color, spec.accent, spec.color_b]
    color = COLORS[str(rng.choice([name for name in COLORS if name not in used]))]
    material = [*color, *color, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    row = np.zeros(PRIM_COLUMNS)
    row[1:4], row[4:7], row[7], row[8] = center, radius, 2, len(scene.materials)
    return Scene(np.vstack([scene.prims, row]), np.vstack([scene.materials, material]))


def _swapped(spec: Spec, scene: Scene, level: int, rng: np.random.Generator) -> Scene | None:
    """Another object in the same colours."""
    others = [noun for noun in NOUNS if noun not in (spec.noun, spec.noun_b)]
    return build_scene(replace(spec, noun=str(rng.choice(others))))


def _repatterned(spec: Spec, scene: Scene, level: int, rng: np.random.Generator) -> Scene | None:
    """A pattern of another period or, at the last level, the other pattern; None without one."""
    if spec.pattern == "plain":
        return None
    if level == LEVELS:
        other = "checks" if spec.pattern == "stripes" else "stripes"
        return build_scene(replace(spec, pattern=other))
    materials = scene.materials.copy()
    materials[materials[:, 6] > 0, 10] *= PERIODS[level - 1]
    return replace(scene, materials=materials)


def _object_mask(scene: Scene, view: np.ndarray, size: int) -> np.ndarray:
    """Where the object is, bool `[S, S]`: the background is what changes with its grey."""
    dark, bright = (_render(scene, view, size, ground) for ground in (0.2, 0.8))
    mask: np.ndarray = (dark == bright).all(axis=-1)
    return mask


_SCENES: dict[str, Callable[[Spec, Scene, int, np.random.Generator], Scene | None]] = {
    "colour": _recolored,
    "part": _without_parts,
    "added": _with_ball,
    "swapped": _swapped,
    "pattern": _repatterned,
}

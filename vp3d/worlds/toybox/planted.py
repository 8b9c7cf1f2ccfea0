"""Planted hallucinations: pairs of pictures whose difference is known exactly.

A pair has a reference picture of an exact scene and the same picture after one change. Harmful
changes invent something: a colour, a part that is missing, an added ball, another object, another
pattern, a texture. Benign changes invent nothing: blur, noise, a shift, a tone, JPEG. Each has
three levels. The truth about a pair is known, so no human grade is needed; HalluGen
(arXiv 2512.03345) plants hallucinations for the same reason.

The severity of a harmful pair is the share of the picture whose colour moved by more than `MOVED`
after a blur that hides less than a detail; for a texture, without that blur.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

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

LEVELS = 3
MOVED = 0.06  # change of colour, as a share of the range, that counts
LEAST_SEVERITY = 0.002  # share of the picture; a smaller change cannot be seen and is left out
BLUR_SD = 1.0 / 85.0  # of the blur before a change is measured, as a share of the side
GROUND = 0.7  # grey of the background

COLOR_SHARES = (0.35, 0.65, 1.0)  # towards the farthest colour
PARTS_DROPPED = (1, 2, 4)
BALL_RADII = (0.08, 0.14, 0.22)  # world units
PERIODS = (1.5, 0.5)  # factors of a pattern's period; the third level is the other pattern
TEXTURE_SD = (0.03, 0.06, 0.12)
BLURS = (0.8, 1.4, 2.2)  # pixels at a side of 128
NOISES = (0.01, 0.02, 0.04)
SHIFTS = (1, 2, 3)  # pixels
TONES = (1.03, 1.06, 1.12)
JPEG_QUALITIES = (85, 65, 45)


@dataclass(frozen=True)
class Pair:
    """A picture and its reference.

    Attributes:
        kind: the change, one of `HARMFUL` or `BENIGN`.
        level: 1 to 3.
        caption: of the scene.
        picture: uint8 `[S, S, 3]` sRGB, with the change.
        reference: the same without it.
        severity: share of the picture that a harmful change moved; 0 for a benign one.
        mask: bool `[S, S]`, where it moved; empty for a benign one.
    """

    kind: str
    level: int
    caption: str
    picture: np.ndarray
    reference: np.ndarray
    severity: float
    mask: np.ndarray

    @property
    def harmful(self) -> bool:
        """Whether something was invented."""
        return self.kind in HARMFUL


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
    pairs = []
    for index in range(first, first + count):
        rng = np.random.default_rng([27, seed, index])
        spec, view = sample_spec(rng, held_out), _view(rng)
        for kind in (*HARMFUL, *BENIGN):
            for level in range(1, LEVELS + 1):
                pair = plant(spec, view, kind, level, size, rng)
                if pair is not None:
                    pairs.append(pair)
    return pairs


def plant(
    spec: Spec, view: np.ndarray, kind: str, level: int, size: int, rng: np.random.Generator
) -> Pair | None:
    """One change of one scene; None if it cannot be seen.

    Args:
        spec: the caption of the scene.
        view: the camera, [1, 13] (`images.view_vectors`).
        kind: one of `HARMFUL` or `BENIGN`.
        level: 1 to 3.
        size: side of the pictures, pixels.
        rng: draws what the kind leaves open.
    """
    scene = build_scene(spec)
    reference = _render(scene, view, size)
    if kind in _BENIGN:
        changed = _BENIGN[kind](reference / 255.0, level, rng)
        picture = np.rint(255.0 * changed.clip(0.0, 1.0)).astype(np.uint8)
        blank = np.zeros((size, size), bool)
        return Pair(kind, level, caption(spec), picture, reference, 0.0, blank)
    if kind == "texture":
        picture = _textured(scene, view, reference, level, rng)
    else:
        changed_scene = _SCENES[kind](spec, scene, level, rng)
        if changed_scene is None:
            return None
        picture = _render(changed_scene, view, size)
    mask = moved(picture, reference, blur=kind != "texture")
    severity = float(mask.mean())
    if severity < LEAST_SEVERITY:
        return None
    return Pair(kind, level, caption(spec), picture, reference, severity, mask)


def moved(picture: np.ndarray, reference: np.ndarray, blur: bool = True) -> np.ndarray:
    """Where the colour changed by more than `MOVED`, bool `[S, S]`.

    Args:
        picture: uint8 `[S, S, 3]`.
        reference: uint8 `[S, S, 3]`.
        blur: compare blurred pictures, so that a mere displacement of an edge counts less.
    """
    difference = (picture.astype(np.float64) - reference) / 255.0
    if blur:
        sd = BLUR_SD * len(picture)
        difference = gaussian_filter(difference, (sd, sd, 0.0))
    return np.abs(difference).max(axis=-1) > MOVED


def _view(rng: np.random.Generator) -> np.ndarray:
    azimuth, elevation = rng.uniform(-180.0, 180.0), rng.uniform(0.0, 30.0)
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
        farthest = max(COLORS.values(), key=lambda other: float(np.linalg.norm(rgb - other)))
        rgb += COLOR_SHARES[level - 1] * (np.array(farthest) - rgb)
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
    center = direction / np.linalg.norm(direction) * rng.uniform(0.55, 0.75)
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


def _textured(
    scene: Scene,
    view: np.ndarray,
    reference: np.ndarray,
    level: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The picture with band-limited noise on the object."""
    size = len(reference)
    object_mask = _object_mask(scene, view, size)
    noise = rng.normal(size=(size, size))
    band = gaussian_filter(noise, size / 128.0) - gaussian_filter(noise, size / 40.0)
    band *= TEXTURE_SD[level - 1] / band.std()
    changed = reference / 255.0 + (band * object_mask)[..., None]
    rounded: np.ndarray = np.rint(255.0 * changed.clip(0.0, 1.0)).astype(np.uint8)
    return rounded


def _object_mask(scene: Scene, view: np.ndarray, size: int) -> np.ndarray:
    """Where the object is, bool `[S, S]`: the background is what changes with its grey."""
    dark, bright = (_render(scene, view, size, ground) for ground in (0.2, 0.8))
    mask: np.ndarray = (dark == bright).all(axis=-1)
    return mask


def _blurred(rgb: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    sd = BLURS[level - 1] * len(rgb) / 128.0
    blurred: np.ndarray = gaussian_filter(rgb, (sd, sd, 0.0))
    return blurred


def _noisy(rgb: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    return rgb + rng.normal(scale=NOISES[level - 1], size=rgb.shape)


def _shifted(rgb: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    axis, sign = int(rng.integers(2)), 1 if rng.random() < 0.5 else -1
    return np.roll(rgb, sign * SHIFTS[level - 1], axis=axis)


def _toned(rgb: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    return rgb * (TONES[level - 1] if rng.random() < 0.5 else 1.0 / TONES[level - 1])


def _compressed(rgb: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    stream = io.BytesIO()
    picture = Image.fromarray(np.rint(255.0 * rgb).astype(np.uint8))
    picture.save(stream, "JPEG", quality=JPEG_QUALITIES[level - 1])
    return np.asarray(Image.open(stream)) / 255.0


_SCENES: dict[str, Callable[[Spec, Scene, int, np.random.Generator], Scene | None]] = {
    "colour": _recolored,
    "part": _without_parts,
    "added": _with_ball,
    "swapped": _swapped,
    "pattern": _repatterned,
}
_BENIGN: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "blur": _blurred,
    "noise": _noisy,
    "shift": _shifted,
    "tone": _toned,
    "jpeg": _compressed,
}
HARMFUL = (*_SCENES, "texture")
BENIGN = tuple(_BENIGN)

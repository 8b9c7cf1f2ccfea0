"""Planted hallucinations: pairs of pictures whose difference is known exactly.

A pair has a reference picture of an exact scene and the same picture after one change. Harmful
changes invent something: a colour, a part that is missing, an added ball, another object, another
pattern, a texture. Benign changes invent nothing: blur, noise, a shift, a tone, JPEG. Each has
three levels. The truth about a pair is known, so no human grade is needed; HalluGen
(arXiv 2512.03345) plants hallucinations for the same reason.

The severity of a harmful pair is the share of the picture whose colour moved by more than `MOVED`
after a blur that hides less than a detail; for a texture, without that blur.

This module has what does not depend on a world: `vp3d.worlds.toybox.planted` changes scenes of the
toybox, `vp3d.worlds.planted_meshes` those of named meshes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

HARMFUL = ("colour", "part", "added", "swapped", "pattern", "texture")
LEVELS = 3
MOVED = 0.06  # change of colour, as a share of the range, that counts
LEAST_SEVERITY = 0.002  # share of the picture; a smaller change cannot be seen and is left out
BLUR_SD = 1.0 / 85.0  # of the blur before a change is measured, as a share of the side
GROUND = 0.7  # grey of the background
ELEVATION_DEG = (0.0, 30.0)  # of the camera

COLOR_SHARES = (0.35, 0.65, 1.0)  # towards the farthest colour
BALL_RADII = (0.08, 0.14, 0.22)  # world units
BALL_DISTANCE = (0.55, 0.75)  # of its centre, world units
PERIODS = (1.5, 0.5)  # factors of a pattern's period; the third level is another pattern
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


def every_change(plant: Callable[[str, int], Pair | None]) -> list[Pair]:
    """The pairs of every kind and level; `plant` gives one, or None if it cannot be seen."""
    found = [plant(kind, level) for kind in (*HARMFUL, *BENIGN) for level in range(1, LEVELS + 1)]
    return [pair for pair in found if pair is not None]


def benign_pair(
    kind: str, level: int, caption: str, reference: np.ndarray, rng: np.random.Generator
) -> Pair:
    """A benign change of a picture; kind is one of `BENIGN`, level is 1 to 3."""
    changed = _BENIGN[kind](reference / 255.0, level, rng)
    picture = np.rint(255.0 * changed.clip(0.0, 1.0)).astype(np.uint8)
    blank = np.zeros(reference.shape[:2], bool)
    return Pair(kind, level, caption, picture, reference, 0.0, blank)


def harmful_pair(
    kind: str, level: int, caption: str, reference: np.ndarray, picture: np.ndarray
) -> Pair | None:
    """The pair of a picture after a harmful change; None if the change cannot be seen."""
    mask = moved(picture, reference, blur=kind != "texture")
    severity = float(mask.mean())
    if severity < LEAST_SEVERITY:
        return None
    return Pair(kind, level, caption, picture, reference, severity, mask)


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


def towards_the_farthest(
    rgb: np.ndarray, colors: dict[str, tuple[float, float, float]], level: int
) -> np.ndarray:
    """A colour [3] moved by `COLOR_SHARES` towards the one of `colors` that is farthest from it."""
    farthest = max(colors.values(), key=lambda other: float(np.linalg.norm(rgb - other)))
    return np.asarray(rgb + COLOR_SHARES[level - 1] * (np.array(farthest) - rgb))


def textured(
    reference: np.ndarray, mask: np.ndarray, level: int, rng: np.random.Generator
) -> np.ndarray:
    """The picture with band-limited noise on the object, uint8 `[S, S, 3]`.

    Args:
        reference: uint8 `[S, S, 3]`.
        mask: where the object is, bool `[S, S]`.
        level: 1 to 3.
        rng: draws the noise.
    """
    size = len(reference)
    noise = rng.normal(size=(size, size))
    band = gaussian_filter(noise, size / 128.0) - gaussian_filter(noise, size / 40.0)
    band *= TEXTURE_SD[level - 1] / band.std()
    changed = reference / 255.0 + (band * mask)[..., None]
    return np.asarray(np.rint(255.0 * changed.clip(0.0, 1.0)).astype(np.uint8))


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


_BENIGN: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "blur": _blurred,
    "noise": _noisy,
    "shift": _shifted,
    "tone": _toned,
    "jpeg": _compressed,
}
BENIGN = tuple(_BENIGN)

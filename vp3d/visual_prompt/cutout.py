"""Cut the object out of a drawn picture, and put it into a square one.

Conventions: one picture is `[3, H, W]` in [0, 1] sRGB. A mask is `[1, H, W]` in [0, 1], 1 on the
object, soft over one pixel. Colour distance is the root mean square over the channels, so it is in
[0, 1] too.

The background is every region that has the colour of the border and is connected to it. A region
enclosed by the object, such as the inside of a ring or a handle, is background too, but only if its
mean colour is almost exactly the background's: a white stem is not a hole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

OBJECT_SHARE = 0.8  # share of the side of the square picture that the object takes up


@dataclass(frozen=True)
class CutoutLimits:
    """Limits of the flood fill that separates an object from its background.

    The flood runs twice: with the wide tolerance of the settings, and with a tight one that is
    derived from the noise of the border. The wide result is used unless it leaks into the object.

    Attributes:
        noise_factor: The tight tolerance is this factor times the 95 % quantile of the colour
            distance within the border, ...
        min_tolerance: ... but at least this colour distance, and at most the wide tolerance.
        fringe_side: A region into which no square of this many pixels fits is a fringe, the halo
            that a decoder leaves around an object. Losing a fringe is not a leak.
        max_leak: The wide flood leaks if it takes more than this share of the tight mask, fringes
            not counted.
        stability_factor: `steadiness` compares the masks at both tolerances divided by and
            multiplied by this factor.
        min_piece: Pieces of the mask smaller than this share of the largest piece are noise.
        min_hole: An enclosed region of background covers at least this share of the picture, ...
        hole_distance: ... and its mean colour is closer than this to the background's.
        min_cover: A usable mask covers at least this share of the picture ...
        max_cover: ... and at most this one.
    """

    noise_factor: float = 1.25
    min_tolerance: float = 0.03
    fringe_side: int = 2
    max_leak: float = 0.1
    stability_factor: float = 1.25
    min_piece: float = 0.03
    min_hole: float = 0.01
    hole_distance: float = 0.02
    min_cover: float = 0.002
    max_cover: float = 0.95


LIMITS = CutoutLimits()


def border_flood(rgb: Tensor, tolerance: float, limits: CutoutLimits = LIMITS) -> Tensor:
    """The mask of the object in a picture, by a flood fill from the border.

    The background's colour is the median of a ring along the border.

    Args:
        rgb: `[3, H, W]` in [0, 1].
        tolerance: Largest colour distance in [0, 1] that counts as background. If the flood would
            leak into the object, as with white on light grey, a tolerance derived from the noise of
            the border is used instead.
        limits: The limits of the flood fill.

    Returns:
        `[1, H, W]` in [0, 1], 1 on the object.
    """
    mask, distance = _flood(rgb, tolerance, 1.0, limits)
    return torch.from_numpy(soften(mask, distance))[None].to(rgb.dtype)


def steadiness(rgb: Tensor, tolerance: float, limits: CutoutLimits = LIMITS) -> float:
    """How little the mask of `border_flood` depends on its tolerances.

    It is the intersection over union of two hard masks, for smaller and for larger tolerances, as
    in the stability score of Segment Anything (Kirillov et al., arXiv 2304.02643). It is low if an
    object has nearly the colour of its background, because its edge is then ragged.

    Args:
        rgb: `[3, H, W]` in [0, 1].
        tolerance: As for `border_flood`.
        limits: The limits of the flood fill; `stability_factor` scales the tolerances.

    Returns:
        A number in [0, 1]; 0 if there is no object.
    """
    factor = limits.stability_factor
    tight, wide = (_flood(rgb, tolerance, scale, limits)[0] for scale in (1.0 / factor, factor))
    return float((tight & wide).sum() / max((tight | wide).sum(), 1))


def is_usable(mask: Tensor, limits: CutoutLimits = LIMITS) -> bool:
    """Whether a mask `[1, H, W]` in [0, 1] covers neither almost nothing nor almost everything."""
    return limits.min_cover <= float((mask > 0.5).float().mean()) <= limits.max_cover


def over_grey(rgb: Tensor, mask: Tensor, level: float) -> Tensor:
    """Pictures `[N, 3, H, W]` over a grey of `level`, by masks `[N, 1, H, W]`; all in [0, 1]."""
    return rgb * mask + level * (1.0 - mask)


def square_up(rgb: Tensor, mask: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Centre the object in a square picture, of which it fills about 80 %.

    Args:
        rgb: `[3, H, W]` in [0, 1].
        mask: `[1, H, W]` in [0, 1], with at least one pixel above 0.5.
        side: Side of the result in pixels.

    Returns:
        rgb `[3, side, side]` and mask `[1, side, side]`, both in [0, 1]. Colour is resized
        premultiplied by the mask, so that no old background bleeds in.
    """
    rows, columns = (torch.nonzero((mask[0] > 0.5).any(dim=axis)).flatten() for axis in (1, 0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    layers = torch.cat([rgb * mask, mask])[:, top:bottom, left:right]
    height, width = bottom - top, right - left
    square = max(round(max(height, width) / OBJECT_SHARE), max(height, width))
    above, before = (square - height) // 2, (square - width) // 2
    layers = F.pad(layers, (before, square - width - before, above, square - height - above))
    layers = F.interpolate(
        layers[None], (side, side), mode="bilinear", align_corners=False, antialias=True
    )[0]
    mask = layers[3:].clamp(0.0, 1.0)
    return (layers[:3] / mask.clamp_min(1e-3)).clamp(0.0, 1.0), mask


def _flood(
    rgb: Tensor, tolerance: float, scale: float, limits: CutoutLimits
) -> tuple[np.ndarray, np.ndarray]:
    """The hard mask `[H, W]` with both tolerances times `scale`, and the colour distance `[H, W]`.

    The distance is to the background's colour, in [0, 1].
    """
    values = rgb.permute(1, 2, 0).double().numpy()
    ring = _ring(values.shape[:2])
    distance = color_distance(values, np.median(values[ring], axis=0))
    noise = limits.noise_factor * float(np.quantile(distance[ring], 0.95))
    tight_tolerance = min(max(noise, limits.min_tolerance), tolerance)
    wide, tight = (
        ~_background(values, distance <= scale * limit, ring, limits)
        for limit in (tolerance, tight_tolerance)
    )
    # What the wide flood takes from the tight mask, without fringes.
    fringe = np.ones((limits.fringe_side, limits.fringe_side))
    leak = ndimage.binary_opening(tight & ~wide, fringe)
    mask = wide if leak.sum() <= limits.max_leak * tight.sum() else tight
    return without_small_pieces(mask, limits.min_piece), distance


def color_distance(values: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Colour distance `[...]` in [0, 1] of `values [..., 3]` in [0, 1] to one colour `[3]`."""
    return np.sqrt(((values - color) ** 2).mean(axis=-1))


def _background(
    values: np.ndarray, similar: np.ndarray, ring: np.ndarray, limits: CutoutLimits
) -> np.ndarray:
    """The background as a boolean mask `[H, W]`.

    It has the pieces of `similar [H, W]`, the pixels of the background's colour, that touch the
    border `ring [H, W]`, and the enclosed pieces that pass the limits for holes.
    """
    pieces, count = ndimage.label(similar)
    background = np.isin(pieces, np.setdiff1d(pieces[ring], 0))
    if not background.any():
        return background
    color = values[background].mean(axis=0)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    for piece in 1 + np.flatnonzero(sizes[1:] >= limits.min_hole * pieces.size):
        inside = pieces == piece
        if color_distance(values[inside].mean(axis=0), color) < limits.hole_distance:
            background |= inside
    return background


def _ring(shape: tuple[int, ...]) -> np.ndarray:
    """The border of a picture as a boolean mask, one pixel wide for each 32 of the shorter side."""
    width = max(1, min(shape) // 32)
    ring = np.ones(shape, dtype=bool)
    ring[width:-width, width:-width] = False
    return ring


def without_small_pieces(mask: np.ndarray, min_share: float) -> np.ndarray:
    """The boolean mask without pieces smaller than `min_share` of its largest piece."""
    pieces, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count == 0:
        return mask
    sizes = np.bincount(pieces.ravel())[1:]
    return np.isin(pieces, 1 + np.flatnonzero(sizes >= min_share * sizes.max()))


def soften(mask: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The boolean mask `[H, W]` as values in [0, 1], with partial cover in its outermost pixels.

    The object's share of a border pixel is estimated by its `distance [H, W]` to the background's
    colour, relative to the largest distance among its neighbours.
    """
    edge = mask & ~ndimage.binary_erosion(mask, border_value=1)
    share = distance / np.maximum(ndimage.maximum_filter(distance, size=3), 1e-6)
    return np.where(edge, share, mask)

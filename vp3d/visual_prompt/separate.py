"""Separate the object of a user's picture from its backdrop, and say how sure the result is.

Conventions: as in `backdrop`. A mask is `[H, W]` bool, True on the object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from vp3d.visual_prompt.backdrop import Backdrop, Border, read_border, smooth_field, trim_frame
from vp3d.visual_prompt.checkerboard import without_checkerboard
from vp3d.visual_prompt.cutout import color_distance, soften, without_small_pieces


@dataclass(frozen=True)
class SeparationLimits:
    """Limits of the separation; distances are colour distances in [0, 1].

    Attributes:
        least_tolerance: No difference smaller than this counts, ...
        noise_factor: ... nor one smaller than this factor times the noise of the backdrop.
        grainy: A picture with more noise than this is smoothed first.
        levels: Number of tolerances that are tried, from the smallest to the setting's.
        steady_iou: The smallest tolerance is used whose mask has at least this intersection over
            union with the mask of the next one.
        textured: A backdrop with more texture than this is described by its colours instead.
        min_piece: Pieces of the mask smaller than this share of the largest piece are noise.
        min_hole: A hole covers at least this share of the picture, ...
        hole_distance: ... and its mean colour is closer than this to the backdrop's.
        halo: A pixel at the edge is backdrop if its distance is below this share of the largest
            one near it, ...
        most_halo: ... and below this distance.
        block_halo: The same, in a wider fringe, after lossy compression, ...
        most_block_halo: ... and below this distance.
        shadow_hue: A shadow is a darker shade of the backdrop: its colour differs by at most this
            from a multiple of the backdrop's.
        hue_slope: Its hue changes by at most this from pixel to pixel.
        shadow_slope: Its edge is soft: the colour changes by at most this from pixel to pixel, ...
        softness: ... or by at most this share of the contrast nearby.
        soft_rim: Share of its outline that is soft, at least; more than `doubtful_rim` of a part
            that covers `doubtful_shadow` of the mask is worth a warning.
        doubtful_hue: More than this difference of the hue, on more than `doubtful_tinted` of the
            mask, is worth a warning.
        open_rim: Share of its outline that borders on the backdrop, at least.
        darkest_shadow: It keeps at least this share of the backdrop's light.
        least_shadow: Its darkest part differs by at least this from the backdrop.
        max_shadow: It takes at most this share of the mask.
        edge_factors: Edges of a textured backdrop are this much steeper than its border, for three
            masks of which the second is used.
        doubtful_outline: An outline of which more than this share is soft is worth a warning.
        min_border: The backdrop covers at least this share of the border.
        min_margin: Readings of the border closer than this are a guess, ...
        clear_border: ... and so is one that covers less of the border.
    """

    least_tolerance: float = 0.009
    noise_factor: float = 1.3
    grainy: float = 0.012
    levels: int = 9
    steady_iou: float = 0.97
    textured: float = 0.03
    min_piece: float = 0.03
    min_hole: float = 0.002
    hole_distance: float = 0.02
    halo: float = 0.4
    most_halo: float = 0.15
    block_halo: float = 0.25
    most_block_halo: float = 0.06
    shadow_hue: float = 0.03
    hue_slope: float = 0.0027
    shadow_slope: float = 0.004
    softness: float = 0.22
    soft_rim: float = 0.5
    doubtful_rim: float = 0.3
    doubtful_shadow: float = 0.08
    doubtful_hue: float = 0.014
    doubtful_tinted: float = 0.03
    open_rim: float = 0.3
    darkest_shadow: float = 0.2
    least_shadow: float = 0.05
    max_shadow: float = 0.7
    edge_factors: tuple[float, float, float] = (1.2, 1.5, 1.9)
    doubtful_outline: float = 0.25
    min_border: float = 0.2
    min_margin: float = 0.25
    clear_border: float = 0.5


LIMITS = SeparationLimits()


@dataclass(frozen=True)
class Separation:
    """A mask and how sure it is.

    Attributes:
        mask: `[H, W]` in [0, 1], soft over one pixel, 1 on the object.
        steadiness: Intersection over union of the masks at neighbouring tolerances, in [0, 1].
        doubts: Why the mask may be wrong, one clause each; empty if nothing speaks against it.
        border: Share of the border that is backdrop, inside frames.
    """

    mask: np.ndarray
    steadiness: float
    doubts: tuple[str, ...]
    border: float


def separate(
    values: np.ndarray,
    tolerance: float,
    lossy: bool = False,
    limits: SeparationLimits = LIMITS,
) -> Separation:
    """Separate the object from its backdrop.

    Args:
        values: `[H, W, 3]` in [0, 1] sRGB.
        tolerance: Largest colour distance that counts as backdrop, in [0, 1].
        lossy: The file was compressed with loss, which leaves blocks around the object.
        limits: The limits of the separation.

    Returns:
        The mask of the complete picture, 0 on frames, and how sure it is.
    """
    rows, columns = trim_frame(values)
    inside, doubts = np.ascontiguousarray(values[rows, columns]), []
    plain = without_checkerboard(inside)
    if plain is not None:
        inside = plain
        doubts.append("its background is a checkerboard, which is taken as transparency")
    border = read_border(inside)
    backdrop = smooth_field(inside, border)
    field, noise = backdrop.field, backdrop.noise
    if border.share < limits.min_border:
        doubts.append("the object fills most of the border")
    elif border.margin < limits.min_margin or border.share < limits.clear_border:
        doubts.append("what is object and what is background at the border is a guess")
    if backdrop.texture > limits.textured:
        found, steady = _by_colours(inside, limits)
        distance = found.astype(np.float64)
    else:
        if noise > limits.grainy:
            inside = ndimage.median_filter(inside, (3, 3, 1))
        distance = color_distance(inside, field)
        found, steady = _steady_mask(inside, field, border, noise, tolerance, limits)
        found = _without_halo(found, distance, limits, lossy)
        found, shadowed = _without_shadow(found, inside, backdrop, limits)
        if shadowed:
            doubts.append("a part of it may be a shadow")
        found = without_small_pieces(found, limits.min_piece)
        if _soft_outline(found, inside, backdrop.noise, limits) > limits.doubtful_outline:
            doubts.append("its outline is not sharp")
    mask = np.zeros(values.shape[:2])
    mask[rows, columns] = soften(found, distance)
    return Separation(mask, steady, tuple(doubts), border.share)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks; 0 if both are empty."""
    return float((first & second).sum() / max((first | second).sum(), 1))


def _steady_mask(
    values: np.ndarray,
    field: np.ndarray,
    border: Border,
    noise: float,
    tolerance: float,
    limits: SeparationLimits,
) -> tuple[np.ndarray, float]:
    """The mask at the smallest tolerance at which it is steady, and its steadiness."""
    least = max(limits.least_tolerance, limits.noise_factor * noise)
    ladder = np.geomspace(least, max(tolerance, 2.0 * least), limits.levels)
    distance = color_distance(values, field)
    masks = [_mask_at(values, field, distance, step, border, limits) for step in ladder]
    best, best_steady = masks[0], -1.0
    for mask, following in zip(masks, masks[1:], strict=False):
        steady = overlap(mask, following) if 0.002 < mask.mean() < 0.97 else 0.0
        if steady > best_steady:
            best, best_steady = mask, steady
        if steady >= limits.steady_iou:
            break
    return best, max(best_steady, 0.0)


def _mask_at(
    values: np.ndarray,
    field: np.ndarray,
    distance: np.ndarray,
    tolerance: float,
    border: Border,
    limits: SeparationLimits,
) -> np.ndarray:
    """All that is not connected to the border's background by colours within `tolerance`."""
    pieces, count = ndimage.label(distance <= tolerance)
    background = np.isin(pieces, np.setdiff1d(pieces[border.seeds], 0))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    offset = values - field
    for piece in 1 + np.flatnonzero(sizes[1:] >= limits.min_hole * pieces.size):
        hole = pieces == piece
        if np.sqrt((offset[hole].mean(axis=0) ** 2).mean()) < limits.hole_distance:
            background |= hole
    return without_small_pieces(~background, limits.min_piece)


def _without_halo(
    mask: np.ndarray, distance: np.ndarray, limits: SeparationLimits, lossy: bool
) -> np.ndarray:
    """The mask without the fringe that resampling and lossy compression leave around an object."""
    bounds = [(3, 7, limits.halo, limits.most_halo)]
    if lossy:  # the side of a block is 8 pixels, and of a block of colour 16
        bounds.insert(0, (8, 17, limits.block_halo, limits.most_block_halo))
    for rounds, window, share, most in bounds:
        for _ in range(rounds):
            edge = mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), border_value=1)
            largest = ndimage.maximum_filter(np.where(mask, distance, 0.0), window)
            faint = edge & (distance < share * largest) & (distance < most)
            if not faint.any():
                break
            mask = mask & ~faint
    return mask


def _without_shadow(
    mask: np.ndarray, values: np.ndarray, backdrop: Backdrop, limits: SeparationLimits
) -> tuple[np.ndarray, bool]:
    """The mask without soft shadows: darker shades of the backdrop that fade into it.

    Returns:
        The mask, and whether a part of it may still be a shadow.
    """
    field = backdrop.field
    power = np.maximum((field**2).sum(-1), 1e-4)
    share = (values * field).sum(-1) / power
    tint = values - share[..., None] * field
    shade = np.sqrt((tint**2).mean(-1)) < limits.shadow_hue
    shade &= (share > limits.darkest_shadow) & (share < 1.02)
    flat = limits.shadow_slope + 0.15 * backdrop.noise
    soft = shade & _is_soft(values, shade | ~mask, flat, limits)
    # Where a shadow is as dark as the object, a step of the hue alone keeps them apart.
    hue_slope = slope_of(ndimage.gaussian_filter(tint, (1.0, 1.0, 0.0)))
    soft &= hue_slope < limits.hue_slope + 0.15 * backdrop.noise
    # Eroded, so that a gap of a pixel in the outline of a pale part connects nothing.
    wide = ndimage.binary_erosion(soft | ~mask, np.ones((3, 3)), border_value=1)
    pieces, _ = ndimage.label(wide)
    fading = np.isin(pieces, np.setdiff1d(np.unique(pieces[wide & ~mask]), 0)) & mask
    labels, count = ndimage.label(ndimage.binary_dilation(fading, iterations=3) & mask & shade)
    edge = mask & ~ndimage.binary_erosion(mask, border_value=1)
    rising = soft & _is_rising(values, shade)
    row = np.arange(len(mask))[:, None] * np.ones_like(mask)
    depth = color_distance(values, field)
    dropped, doubtful = np.zeros_like(mask), np.zeros_like(mask)
    for piece in range(1, count + 1):
        part = labels == piece
        rim = part & edge
        if not rim.any() or depth[part & fading].max(initial=0.0) <= limits.least_shadow:
            continue
        outline = part & ~ndimage.binary_erosion(part, border_value=1)
        open_ = rim.sum() > limits.open_rim * outline.sum()
        low = row[part].mean() > row[mask].mean()
        if rising[rim].mean() > limits.soft_rim and open_ and low:
            dropped |= part
        elif soft[rim].mean() > limits.doubtful_rim:
            doubtful |= part
    # A shadow has the hue of the backdrop; a pale part of the object has another one.
    tinted = dropped & (np.sqrt((tint**2).mean(-1)) > limits.doubtful_hue)
    tinted = ndimage.binary_opening(tinted, iterations=2)
    if dropped.sum() > limits.max_shadow * mask.sum():
        dropped, doubtful = np.zeros_like(mask), dropped
    rest = mask & ~dropped
    slivers = ~ndimage.binary_opening(rest, np.ones((3, 3)))
    slivers |= shade & ~ndimage.binary_opening(rest, np.ones((7, 7)))
    rest &= ~(slivers & ndimage.binary_dilation(dropped, iterations=4))
    unsure = doubtful.sum() > limits.doubtful_shadow * mask.sum()
    return rest, bool(unsure or tinted.sum() > limits.doubtful_tinted * mask.sum())


def _is_soft(
    values: np.ndarray, where: np.ndarray, flat: float, limits: SeparationLimits
) -> np.ndarray:
    """`[H, W]` bool: where the colour changes slowly, compared with how much it changes nearby.

    Only pixels at `where` count as near.
    """
    smooth = ndimage.gaussian_filter(values, (1.0, 1.0, 0.0))
    grey = smooth.mean(-1)
    lightest = ndimage.maximum_filter(np.where(where, grey, -np.inf), 9)
    darkest = ndimage.minimum_filter(np.where(where, grey, np.inf), 9)
    contrast = np.maximum(lightest - darkest, 0.0)
    return slope_of(smooth) < np.maximum(flat, limits.softness * contrast)


def _is_rising(values: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """`[H, W]` bool: where it becomes steeper a few pixels further, as where a shadow sets in.

    At the outline of an object it becomes flatter. Only the inner part of `shade` is compared.
    """
    slope = slope_of(ndimage.gaussian_filter(values, (1.0, 1.0, 0.0)))
    inner = ndimage.binary_erosion(shade, iterations=2)
    return slope < 0.85 * ndimage.maximum_filter(np.where(inner, slope, 0.0), 21)


def _soft_outline(
    mask: np.ndarray, values: np.ndarray, noise: float, limits: SeparationLimits
) -> float:
    """The share of the mask's outline, inside the picture, where the colour changes slowly."""
    outline = mask & ~ndimage.binary_erosion(mask, border_value=1)
    everywhere = np.ones_like(mask)
    soft = _is_soft(values, everywhere, limits.shadow_slope + 0.15 * noise, limits)
    return float(soft[outline].mean()) if outline.any() else 0.0


def slope_of(smooth: np.ndarray) -> np.ndarray:
    """Colour distance per pixel `[H, W]` of the steepest change, for blurred `[H, W, 3]`."""
    down, across = (ndimage.correlate1d(smooth, [-0.5, 0.0, 0.5], axis) for axis in (0, 1))
    return np.sqrt((down**2 + across**2).mean(-1))


def _by_colours(
    values: np.ndarray, limits: SeparationLimits, rounds: int = 3
) -> tuple[np.ndarray, float]:
    """The mask on a backdrop of several colours: what sharp edges enclose.

    A backdrop out of focus has no edge as sharp as the object's outline. The colours of both sides
    then correct the outline in a band, as in GrabCut (Rother et al. 2004): they are described by
    clusters and assigned in turns; a blur of the likelihoods replaces the cut.
    """
    smooth = ndimage.gaussian_filter(values, (1.0, 1.0, 0.0))
    masks = [_enclosed(smooth, factor, limits) for factor in limits.edge_factors]
    mask = masks[1]
    steady = min(overlap(masks[0], mask), overlap(mask, masks[2]))
    if not 0.005 < mask.mean() < 0.9:
        return mask, 0.0
    outer = ndimage.binary_dilation(mask, iterations=6)
    inner = ndimage.binary_erosion(mask, iterations=6)
    found = mask
    for _ in range(rounds):
        far = ~ndimage.binary_dilation(found, iterations=3)
        core = ndimage.binary_erosion(found, iterations=2)
        if core.sum() < 50 or far.sum() < 50:
            return mask, 0.0
        gain = _cluster_distance(smooth, far) - _cluster_distance(smooth, core)
        gain = ndimage.gaussian_filter(gain.clip(-8, 8), 0.7)
        found = _solid((gain > 0) & outer | inner, limits)
    return _sharpened(found, values), min(steady, overlap(found, mask) + 0.05)


def _sharpened(mask: np.ndarray, values: np.ndarray, reach: int = 3) -> np.ndarray:
    """The mask with its outline where the colour is halfway between object and background.

    Both colours are those of the nearest pixels away from the outline.
    """
    core = ndimage.binary_erosion(mask, iterations=2, border_value=1)
    far = ~ndimage.binary_dilation(mask, iterations=reach)
    if not core.any() or not far.any():
        return mask
    distance, inner = ndimage.distance_transform_edt(~core, return_indices=True)
    outer = ndimage.distance_transform_edt(~far, return_distances=False, return_indices=True)
    front, back = values[inner[0], inner[1]], values[outer[0], outer[1]]
    span = front - back
    share = ((values - back) * span).sum(-1) / np.maximum((span**2).sum(-1), 1e-3)
    band = ~core & ~far & (distance <= 2 * reach)
    return np.where(band, (share > 0.5) & ndimage.binary_dilation(mask), mask)


def _enclosed(smooth: np.ndarray, factor: float, limits: SeparationLimits) -> np.ndarray:
    """What cannot be reached from the border without crossing an edge.

    An edge is steeper than `factor` times the steepest 5 % of the border ring.
    """
    height, width = smooth.shape[:2]
    ring = max(2, min(height, width) // 16)
    border = np.ones((height, width), dtype=bool)
    border[ring:-ring, ring:-ring] = False
    slope = slope_of(smooth)
    edges = slope > factor * float(np.quantile(slope[border], 0.95))
    edges = ndimage.binary_closing(edges, np.ones((3, 3)), iterations=1)
    pieces, _ = ndimage.label(~edges)
    sizes = np.bincount(pieces[border])
    sizes[0] = 0
    open_pieces = np.flatnonzero(sizes > 0.02 * border.sum())
    inside = ~ndimage.binary_dilation(np.isin(pieces, open_pieces), iterations=1)
    return _solid(inside, limits)


def _cluster_distance(values: np.ndarray, where: np.ndarray, clusters: int = 8) -> np.ndarray:
    """Negative log-likelihood `[H, W]` of every colour under clusters of the colours at `where`."""
    samples = values[where]
    samples = samples[:: max(1, len(samples) // 4000)]
    centres, labels = kmeans2(samples, clusters, minit="++", rng=np.random.default_rng(0))
    best = np.full(values.shape[:2], np.inf)
    for n in range(len(centres)):
        own = samples[labels == n]
        if len(own) < 5:
            continue
        covariance = np.cov(own.T) + np.eye(3) * 0.015**2
        offset = values - own.mean(0)
        square = np.einsum("hwi,ij,hwj->hw", offset, np.linalg.inv(covariance), offset)
        weight = -np.log(len(own) / len(samples)) + 0.5 * np.linalg.slogdet(covariance)[1]
        best = np.minimum(best, 0.5 * square + weight)
    return best


def _solid(mask: np.ndarray, limits: SeparationLimits) -> np.ndarray:
    """The mask without specks, and without holes too small to be seen through."""
    mask = ndimage.binary_opening(mask, iterations=1)
    mask = without_small_pieces(mask, 0.1)
    holes, count = ndimage.label(~mask)
    sizes = np.bincount(holes.ravel(), minlength=count + 1)
    small = sizes < 2 * limits.min_hole * mask.size
    small[0] = False
    return mask | small[holes]

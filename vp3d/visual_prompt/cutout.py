"""Reading a user's picture safely, and cutting its object out.

Conventions: one picture `[3, H, W]` in [0, 1] sRGB; a mask `[1, H, W]` in [0, 1], 1 on the object, soft over one pixel.
Colour distance is the root mean square over the channels, so it is in [0, 1] too.

The ground is what is connected to the border and looks like the border. Where a ring or a handle encloses some of it,
that part is ground as well, but only if its mean colour is the ground's almost exactly: a white stem is not a hole.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor

from vp3d.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_BYTES = 50_000_000
MAX_PIXELS = 64_000_000
MIN_SIDE = 16
WORK_SIDE = 512  # a user's picture is shrunk to this before anything is measured on it
FILL = 0.8  # share of the side that the object takes up in a user's squared picture
COVER_MIN, COVER_MAX = 0.002, 0.95  # share of the picture a mask must cover to be believed
TIGHT, NOISE = (
    0.03,
    1.25,
)  # the smallest tolerance, and how far beyond the border's own noise it stays
LEAK = 0.1  # the wide tolerance is believed when what it takes, beyond a fringe, is at most this share of the tight mask
FRINGE = np.ones(
    (2, 2)
)  # what holds no square of this size is fringe: the halo that a decoder leaves around an object
SLACK = 1.25  # of the limits, by which a steady cut-out hardly changes
SPECK = 0.03  # pieces smaller than this share of the largest piece are noise
HOLE = 0.01  # an enclosed piece of ground must cover this share of the picture
HOLE_DISTANCE = 0.02  # and its mean colour may differ this much from the ground's


def read_picture(path: Path) -> tuple[Tensor, Tensor | None]:
    """A user's file as `rgb [3, H, W]` in [0, 1], at most WORK_SIDE on a side, and its alpha `[1, H, W]` or None.

    Alpha is None when the file has none or it is opaque everywhere. EXIF orientation is applied. UserError, one line,
    for a file that is missing, empty, huge, too small, damaged or not a picture.
    """
    _check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow's own size warning: the limit here is lower and is an error
            with Image.open(path, formats=FORMATS) as picture:
                _check_size(path, picture.size)
                picture.load()
                return _decode(picture)
    except Image.UnidentifiedImageError as error:
        raise UserError(
            f"--image {path} is not a picture this program reads ({', '.join(FORMATS)})"
        ) from error
    except Image.DecompressionBombError as error:
        raise UserError(_huge(path)) from error
    except PermissionError as error:
        raise UserError(f"--image {path} may not be read: check its permissions") from error
    except UserError:
        raise
    except Exception as error:  # Pillow raises whatever its readers stumble over
        raise UserError(
            f"--image {path} is damaged ({type(error).__name__}): save it anew, as PNG or JPEG"
        ) from error


def border_flood(rgb: Tensor, tolerance: float) -> Tensor:
    """Mask `[1, H, W]` in [0, 1] of what does not belong to the ground in `rgb [3, H, W]` in [0, 1].

    The ground's colour is the median of the border ring. `tolerance` in [0, 1] is the largest colour distance that counts
    as ground; where it would let the ground run into the object (white on light grey), the border's own noise is used.
    """
    mask, distance = _flood(rgb, tolerance, 1.0)
    return torch.from_numpy(_soften(mask, distance))[None].to(rgb.dtype)


def steadiness(rgb: Tensor, tolerance: float) -> float:
    """How little the cut-out of `border_flood` hangs on its limits: intersection over union in [0, 1] of two hard masks.

    They are cut with limits SLACK times smaller and larger (compare the stability score of Segment Anything: Kirillov et al.,
    arXiv 2304.02643). Where an object has nearly the colour of its ground, the edge is ragged and this is low.
    """
    tight, wide = (_flood(rgb, tolerance, slack)[0] for slack in (1.0 / SLACK, SLACK))
    return float((tight & wide).sum() / max((tight | wide).sum(), 1))


def is_usable(mask: Tensor) -> bool:
    """Whether a mask `[1, H, W]` in [0, 1] shows an object: neither next to nothing nor next to everything."""
    return COVER_MIN <= float((mask > 0.5).float().mean()) <= COVER_MAX


def on_ground(rgb: Tensor, mask: Tensor, ground: float) -> Tensor:
    """`rgb [N, 3, H, W]` over a grey of level `ground` in [0, 1], by `mask [N, 1, H, W]` in [0, 1]."""
    return rgb * mask + ground * (1.0 - mask)


def square_up(rgb: Tensor, mask: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The object of `rgb [3, H, W]` in [0, 1] centred in a square of `side` pixels, filling about 80 % of it, and its mask.

    Resized with premultiplied colour, so that nothing of the old ground bleeds in.
    """
    rows, columns = (torch.nonzero((mask[0] > 0.5).any(dim=axis)).flatten() for axis in (1, 0))
    top, bottom, left, right = (
        int(rows[0]),
        int(rows[-1]) + 1,
        int(columns[0]),
        int(columns[-1]) + 1,
    )
    layers = torch.cat([rgb * mask, mask])[:, top:bottom, left:right]
    height, width = bottom - top, right - left
    square = max(round(max(height, width) / FILL), max(height, width))
    above, before = (square - height) // 2, (square - width) // 2
    layers = F.pad(layers, (before, square - width - before, above, square - height - above))
    layers = F.interpolate(
        layers[None], (side, side), mode="bilinear", align_corners=False, antialias=True
    )[0]
    mask = layers[3:].clamp(0.0, 1.0)
    return (layers[:3] / mask.clamp_min(1e-3)).clamp(0.0, 1.0), mask


def _flood(rgb: Tensor, tolerance: float, slack: float) -> tuple[np.ndarray, np.ndarray]:
    """Hard mask `[H, W]` with both limits of `border_flood` times `slack`, and the colour distance `[H, W]` to the ground."""
    values = rgb.permute(1, 2, 0).double().numpy()
    ring = _ring(values.shape[:2])
    distance = _distance(values, np.median(values[ring], axis=0))
    noise = min(max(NOISE * float(np.quantile(distance[ring], 0.95)), TIGHT), tolerance)
    wide, tight = (
        ~_outside(values, distance <= slack * limit, ring) for limit in (tolerance, noise)
    )
    taken = ndimage.binary_opening(tight & ~wide, FRINGE)
    return _without_specks(wide if taken.sum() <= LEAK * tight.sum() else tight), distance


def _check_file(path: Path) -> None:
    if not path.exists():
        raise UserError(f"--image {path} does not exist: check the path")
    if not path.is_file():
        raise UserError(f"--image {path} is not a file: give the path of a picture")
    if path.stat().st_size == 0:
        raise UserError(f"--image {path} is an empty file: give a picture")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(_huge(path))


def _check_size(path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(_huge(path))
    if min(size) < MIN_SIDE:
        raise UserError(
            f"--image {path} is only {size[0]} x {size[1]} pixels: give one of at least {MIN_SIDE} on a side"
        )


def _huge(path: Path) -> str:
    return f"--image {path} is huge: at most {MAX_BYTES // 10**6} MB and {MAX_PIXELS // 10**6} million pixels; shrink it"


def _decode(picture: Image.Image) -> tuple[Tensor, Tensor | None]:
    """rgb `[3, H, W]` in [0, 1] and alpha `[1, H, W]` in [0, 1] or None, upright and at most WORK_SIDE on a side."""
    upright = ImageOps.exif_transpose(picture)
    if (
        upright.mode.startswith("I") or upright.mode == "F"
    ):  # 16 bits or more: stretch to 8, conversion would clip
        wide = np.nan_to_num(np.asarray(upright, dtype=np.float64), posinf=0.0, neginf=0.0)
        upright = Image.fromarray(
            (wide * (255.0 / max(wide.max(), 1.0))).clip(0, 255).astype(np.uint8)
        )
    layers = upright.convert("RGBA")
    layers.thumbnail((WORK_SIDE, WORK_SIDE), Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.array(layers)).permute(2, 0, 1).float() / 255.0
    alpha = values[3:]
    return values[:3], None if bool((alpha > 0.99).all()) else alpha


def _distance(values: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Colour distance `[...]` in [0, 1] of `values [..., 3]` in [0, 1] to one colour `[3]`."""
    return np.sqrt(((values - color) ** 2).mean(axis=-1))


def _outside(values: np.ndarray, similar: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """The ground: pieces of `similar [H, W]` that touch the border, and enclosed ones of exactly the same mean colour."""
    pieces, count = ndimage.label(similar)
    outside = np.isin(pieces, np.setdiff1d(pieces[ring], 0))
    if not outside.any():
        return outside
    ground = values[outside].mean(axis=0)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    for piece in 1 + np.flatnonzero(sizes[1:] >= HOLE * pieces.size):
        inside = pieces == piece
        if _distance(values[inside].mean(axis=0), ground) < HOLE_DISTANCE:
            outside |= inside
    return outside


def _ring(shape: tuple[int, ...]) -> np.ndarray:
    """The border of a picture as a boolean mask, one pixel wide for each 32 of the shorter side."""
    width = max(1, min(shape) // 32)
    ring = np.ones(shape, dtype=bool)
    ring[width:-width, width:-width] = False
    return ring


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """The boolean mask without pieces that are small beside the largest one."""
    pieces, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count == 0:
        return mask
    sizes = np.bincount(pieces.ravel())[1:]
    return np.isin(pieces, 1 + np.flatnonzero(sizes >= SPECK * sizes.max()))


def _soften(mask: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The boolean mask `[H, W]` in [0, 1]: its outermost pixels count by how far they are from the ground's colour.

    `distance [H, W]` to the ground's colour, as a share of the largest around, estimates how much of a pixel is object.
    """
    edge = mask & ~ndimage.binary_erosion(mask, border_value=1)
    share = distance / np.maximum(ndimage.maximum_filter(distance, size=3), 1e-6)
    return np.where(edge, share, mask)

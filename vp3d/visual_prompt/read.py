"""Read a picture that the user gives: any common format, in the colours that the file means.

Conventions: one picture is `[3, H, W]` in [0, 1] sRGB, its alpha `[1, H, W]` in [0, 1].

Colour is managed as a viewer does it: an embedded ICC profile is converted to sRGB, a PNG's code
points, gamma and primaries and the Adobe RGB mark of a camera are applied, and 16-bit and float
values keep the range of their type, so that a dark picture stays dark.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vp3d.errors import UserError
from vp3d.visual_prompt.color import apply_marks, apply_profile, coded_marks, color_marks
from vp3d.visual_prompt.deep import DEEP_MODES, to_8_bits

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
LOSSY_FORMATS = ("JPEG", "MPO", "WEBP")
MAX_BYTES = 100_000_000
MAX_PIXELS = 175_000_000  # Pillow refuses a picture of 179 million pixels
MIN_SIDE = 16  # pixels
WORK_SIDE = 512  # a larger picture is shrunk to this many pixels on its longer side
MAX_FRAMES = 100  # of an animation, in which the first one that shows something is searched
LEAST_CONTRAST = 8  # of 255: a frame whose values differ by less shows nothing
CLEAR_CONTRAST = 64  # of 255: a frame whose values differ by this is taken without a search

ORIENTATION = 0x0112  # tag of the EXIF orientation
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """A picture as it was read.

    Attributes:
        rgb: `[3, H, W]` in [0, 1] sRGB; a large picture is shrunk (see `read_picture`).
        alpha: `[1, H, W]` in [0, 1]; None if the file has none or is opaque everywhere.
        notes: What a user may want to know of the reading, one sentence each.
        lossy: The format may lose detail, as JPEG does.
    """

    rgb: Tensor
    alpha: Tensor | None
    notes: tuple[str, ...] = ()
    lossy: bool = False


def read_picture(path: Path, option: str = "--image", side: int = WORK_SIDE) -> Picture:
    """Read a user's picture. EXIF orientation and colour profile are applied.

    Of an animation, the first frame that shows something is taken.

    Args:
        path: The file, in one of `FORMATS`.
        option: The option that named the file, for error messages.
        side: Pixels to which the longer side of a larger picture is shrunk.

    Returns:
        The picture and notes about it.

    Raises:
        UserError: The file is missing, empty, too large, too small, damaged or not a picture.
    """
    name = f"{option} {path}"
    _check_file(path, name)
    with _decoder_errors(name), Image.open(path, formats=FORMATS) as picture:
        _check_size(name, picture.size, side)
        notes = _find_frame(picture)
        picture.draft("RGB", (2 * side, 2 * side))  # JPEG: decodes at a lower resolution
        picture.load()
        return _decode(path, picture, notes, side)


@contextmanager
def _decoder_errors(name: str) -> Iterator[None]:
    """Raise the errors of Pillow's decoders as UserErrors about the file `name`."""
    try:
        with warnings.catch_warnings():
            # Pillow warns about large pictures. They are shrunk, and the limit here is an error.
            warnings.simplefilter("ignore")
            yield
    except Image.UnidentifiedImageError as error:
        raise UserError(
            f"{name} is not a picture in a supported format ({', '.join(FORMATS)})"
        ) from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise UserError(_too_large(name)) from error
    except PermissionError as error:
        raise UserError(f"{name} cannot be read: check its permissions") from error
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        raise UserError(
            f"{name} is damaged ({type(error).__name__}): save it again as PNG or JPEG"
        ) from error


def _check_file(path: Path, name: str) -> None:
    if not path.exists():
        raise UserError(f"{name} does not exist: check the path")
    if not path.is_file():
        raise UserError(f"{name} is not a file: give the path of a picture")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{name} is an empty file: give a picture")
    if size > MAX_BYTES:
        raise UserError(_too_large(name))


def _check_size(name: str, size: tuple[int, int], side: int) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(_too_large(name))
    if min(size) < MIN_SIDE:
        raise UserError(
            f"{name} has only {size[0]} x {size[1]} pixels: "
            f"give a picture with at least {MIN_SIDE} pixels on each side"
        )
    shorter = min(size) * side / max(size)
    if max(size) > side and round(shorter) < MIN_SIDE:
        raise UserError(
            f"{name} has {size[0]} x {size[1]} pixels, of which {max(1, round(shorter))} are left "
            f"on the shorter side when the longer one has {side}: crop it to the object"
        )


def _too_large(name: str) -> str:
    megabytes, megapixels = MAX_BYTES // 10**6, MAX_PIXELS // 10**6
    return (
        f"{name} is too large: shrink it to at most {megabytes} MB and {megapixels} million pixels"
    )


def _find_frame(picture: Image.Image) -> list[str]:
    """Go to the first frame that shows something clearly; the first frame if none does.

    Returns:
        A note about the frame, if the picture has several.
    """
    count = getattr(picture, "n_frames", 1)
    if count <= 1 or picture.format in ("JPEG", "MPO"):  # a phone's JPEG may hold a depth map
        return []
    contrasts = []
    for frame in range(min(count, MAX_FRAMES)):
        picture.seek(frame)
        contrasts.append(_contrast(picture))
        if contrasts[-1] >= CLEAR_CONTRAST:
            break
    # An object that fades in is not taken while it is faint.
    chosen = next(n for n, value in enumerate(contrasts) if value >= max(contrasts) / 2)
    is_blank = max(contrasts) < LEAST_CONTRAST
    picture.seek(0 if is_blank else chosen)
    if is_blank:
        return [f"the picture has {count} frames, and none of those read shows anything"]
    return [f"the picture has {count} frames; frame {chosen + 1} is used"]


def _contrast(picture: Image.Image) -> float:
    """The largest difference of the values of a frame, 0 to 255."""
    if picture.mode in DEEP_MODES:
        picture = to_8_bits(picture, [])
    layers = np.asarray(picture.convert("RGBA"), dtype=np.int64)
    shown = layers[..., :3] * layers[..., 3:] // 255
    return float(max(np.ptp(shown, axis=(0, 1)).max(), np.ptp(layers[..., 3])))


def _decode(path: Path, picture: Image.Image, notes: list[str], side: int) -> Picture:
    """rgb and alpha of the opened picture of a file, upright, in sRGB and shrunk."""
    turn = TRANSPOSES.get(picture.getexif().get(ORIENTATION, 1))
    lossy, profile = picture.format in LOSSY_FORMATS, picture.info.get("icc_profile")
    marks = coded_marks(path, notes)
    if marks is None and not profile:
        marks = color_marks(picture)
    picture = to_8_bits(picture, notes) if picture.mode in DEEP_MODES else picture
    factor = max(1, max(picture.size) // (4 * side))
    if factor > 1 and picture.mode not in ("P", "1"):
        picture = picture.reduce(factor)
    alpha = None
    if picture.mode in ("LA", "La", "PA", "RGBa", "RGBA", "P") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
    if profile and marks is None:
        picture = apply_profile(picture, profile, notes)
    layers = picture.convert("RGBA")
    if alpha is not None:
        layers.putalpha(alpha)
    layers.thumbnail((side, side), Image.Resampling.LANCZOS)
    if turn is not None:
        layers = layers.transpose(turn)
    values = np.asarray(layers, dtype=np.float32) / np.float32(255.0)
    if marks is not None:
        values = apply_marks(values, marks)
    channels = torch.from_numpy(values.copy()).permute(2, 0, 1).contiguous()
    opaque = bool((channels[3] > 0.99).all())
    return Picture(channels[:3], None if opaque else channels[3:], tuple(notes), lossy)

"""Grey pictures of more than 8 bits as 8 bits, by the range of their type.

Pillow's own conversion clips instead of scaling. The type is that of the file: a TIFF may have 12
bits, signed values, or white as its smallest value.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

# Modes of Pillow with more than 8 bits in a channel.
DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
FLOAT_RANGES = (1.0, 255.0, 65535.0)  # a float picture has the first of these that holds its values
MOST_HIGHLIGHT = 8.0  # of a float picture with range 1, three stops; more of it is another range
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
MIN_IS_WHITE = 0  # PHOTOMETRIC
UNSIGNED, SIGNED = 1, 2  # SAMPLE_FORMAT


def to_8_bits(picture: Image.Image, notes: list[str]) -> Image.Image:
    """A picture of `DEEP_MODES` as 8-bit grey, with alpha if it has a transparent value.

    Args:
        picture: The picture, loaded.
        notes: Gets a sentence if the range is a guess.
    """
    tags = getattr(picture, "tag_v2", {})
    bits, form = _first(tags.get(BITS, 16)), _first(tags.get(SAMPLE_FORMAT, UNSIGNED))
    values = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=np.inf, neginf=0.0)
    if picture.mode == "I" and (bits, form) == (32, UNSIGNED):  # Pillow reads them as signed
        values %= 2.0**32
    low, high = _range(values, picture.mode == "F", bits, form, notes)
    share = ((values - low) / (high - low)).clip(0.0, 1.0)
    share = 1.0 - share if tags.get(PHOTOMETRIC) == MIN_IS_WHITE else share
    grey = Image.fromarray((share * 255.0).round().astype(np.uint8))
    key = picture.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _first(tag: int | tuple[int, ...]) -> int:
    return tag[0] if isinstance(tag, tuple) else tag


def _range(
    values: np.ndarray, is_float: bool, bits: int, form: int, notes: list[str]
) -> tuple[float, float]:
    """The values of black and white.

    Args:
        values: `[H, W]` of any range; inf counts as white.
        is_float: The picture has float values.
        bits: Bits of a whole number.
        form: `UNSIGNED` or `SIGNED`.
        notes: Gets a sentence if the range is a guess.
    """
    finite = values[np.isfinite(values)]
    least, largest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if is_float:
        if 1.0 < largest <= MOST_HIGHLIGHT:
            notes.append(f"its values reach {largest:g}; those above 1 are white")
            return 0.0, 1.0
        highs: tuple[float, ...] = FLOAT_RANGES
    elif form == SIGNED and bits <= 16:
        return (-(2.0 ** (bits - 1)) if least < 0 else 0.0), 2.0 ** (bits - 1) - 1.0
    else:  # 32 bits often hold 16, and the largest of all only if they are used
        highs = (2.0 ** min(bits, 16) - 1.0,)
        highs += (2.0**32 - 1.0,) if largest >= 2.0**31 else ()
    high = next((limit for limit in highs if largest <= limit), 0.0)
    if high == 0.0:
        high = largest
        notes.append(f"values up to {largest:g} are scaled by the largest of them")
    return 0.0, high

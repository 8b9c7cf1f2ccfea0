"""What every upscaler has in common, tiles for large pictures, and pictures with alpha.

Conventions: pictures are rgb `[B, 3, H, W]` in [0, 1] sRGB, alpha `[1, H, W]` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

FACTOR = 4  # of every network here; smaller factors are shrunk from it
FACTORS = (2, 3, 4)
TILE = 192  # pixels of a side of a tile, its context not counted

OnTile = Callable[[int, int], None]  # (tiles done, all tiles)


class Upscaler(Protocol):
    """A network that enlarges pictures `FACTOR` times.

    `context` is how many pixels around a place its result depends on, or should depend on.
    """

    context: int

    def __call__(self, rgb: Tensor) -> Tensor:
        """`[B, 3, 4 H, 4 W]`, any range, of rgb `[B, 3, H, W]` in [0, 1]; differentiable."""
        ...


@dataclass(frozen=True)
class Tile:
    """A part of a picture: rows and columns that are read, and those that are kept of it."""

    read: tuple[slice, slice]
    keep: tuple[slice, slice]


def no_tile(done: int, total: int) -> None:
    """Nobody watches."""


def enlarge(
    rgb: Tensor,
    alpha: Tensor | None,
    upscaler: Upscaler,
    factor: int = FACTOR,
    on_tile: OnTile = no_tile,
    tile: int = TILE,
) -> tuple[Tensor, Tensor | None]:
    """A picture `factor` times as large, tile by tile, on the CPU and without gradients.

    Transparent pixels get the colour of the nearest visible one before the network reads them,
    because their own colour is arbitrary and would bleed into the edge. Alpha is enlarged by
    bicubic interpolation.

    Args:
        rgb: `[3, H, W]` in [0, 1].
        alpha: `[1, H, W]` in [0, 1]; None for an opaque picture.
        upscaler: the network.
        factor: one of `FACTORS`.
        on_tile: called after each tile.
        tile: pixels of a side of a tile.

    Returns:
        rgb `[3, factor H, factor W]` and alpha `[1, factor H, factor W]` or None, in [0, 1].
    """
    height, width = rgb.shape[-2:]
    if alpha is not None:
        rgb = filled(rgb, alpha)
    large = torch.empty(1, 3, FACTOR * height, FACTOR * width)
    tiles = list(tiles_of(height, width, tile, upscaler.context))
    for done, part in enumerate(tiles, start=1):
        with torch.no_grad():
            found = upscaler(rgb[None, :, part.read[0], part.read[1]]).float().cpu()
        inside = [
            slice(FACTOR * (keep.start - read.start), FACTOR * (keep.stop - read.start))
            for keep, read in zip(part.keep, part.read, strict=True)
        ]
        rows, columns = (slice(FACTOR * k.start, FACTOR * k.stop) for k in part.keep)
        large[..., rows, columns] = found[..., inside[0], inside[1]]
        on_tile(done, len(tiles))
    size = (factor * height, factor * width)
    if factor != FACTOR:
        large = F.interpolate(large, size, mode="bicubic", antialias=True, align_corners=False)
    if alpha is not None:
        alpha = F.interpolate(alpha[None], size, mode="bicubic", align_corners=False)
        alpha = alpha[0].clamp(0.0, 1.0)
    return large[0].clamp(0.0, 1.0), alpha


def tiles_of(height: int, width: int, tile: int, context: int) -> Iterator[Tile]:
    """The tiles of a picture, row by row; what they keep covers every pixel once."""
    for rows in _spans(height, tile):
        for columns in _spans(width, tile):
            read = tuple(
                slice(max(span.start - context, 0), min(span.stop + context, end))
                for span, end in ((rows, height), (columns, width))
            )
            yield Tile((read[0], read[1]), (rows, columns))


def _spans(length: int, tile: int) -> Iterator[slice]:
    """`length` cut into equal parts of at most `tile`."""
    count = -(-length // tile)
    for n in range(count):
        yield slice(n * length // count, (n + 1) * length // count)


def filled(rgb: Tensor, alpha: Tensor) -> Tensor:
    """rgb `[3, H, W]` with the colour of the nearest visible pixel where alpha `[1, H, W]` is 0."""
    hidden = (alpha[0] <= 0.0).numpy()
    if hidden.all():
        return rgb
    rows, columns = ndimage.distance_transform_edt(
        hidden, return_distances=False, return_indices=True
    )
    return rgb[:, torch.from_numpy(rows), torch.from_numpy(columns)]

"""The contact sheet of the candidates: each as drawn above its cut-out, labelled, the chosen one framed."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vp3d.types import to_uint8

TILE, GAP, LABEL = 192, 8, 28  # pixels
COLUMNS = 8
INK, PAPER, FRAME = (40, 40, 40), (255, 255, 255), (30, 140, 60)


def contact_sheet(
    candidates: Tensor, cutouts: Tensor, labels: list[str], chosen: int
) -> Image.Image:
    """Candidates and cut-outs `[N, 3, H, W]` in [0, 1], eight pairs a row, with one label each; `chosen` -1: none is."""
    columns = min(len(labels), COLUMNS)
    rows = -(-len(labels) // COLUMNS)
    across, down = TILE + GAP, 2 * TILE + LABEL + GAP
    sheet = Image.new("RGB", (columns * across + GAP, rows * down + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for n, label in enumerate(labels):
        left, top = GAP + n % COLUMNS * across, GAP + n // COLUMNS * down
        sheet.paste(_tile(candidates[n]), (left, top))
        sheet.paste(_tile(cutouts[n]), (left, top + TILE))
        best = n == chosen
        draw.text(
            (left + 2, top + 2 * TILE + 4),
            f"{label}  chosen" if best else label,
            FRAME if best else INK,
            font=font,
        )
        if best:
            draw.rectangle(
                (left - 3, top - 3, left + TILE + 2, top + 2 * TILE + 2), outline=FRAME, width=3
            )
    return sheet


def _tile(rgb: Tensor) -> Image.Image:
    """`[3, H, W]` in [0, 1] fitted into a square tile on paper."""
    picture = Image.fromarray(to_uint8(rgb))
    scale = TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    tile = Image.new("RGB", (TILE, TILE), PAPER)
    tile.paste(
        picture.resize(size, Image.Resampling.BICUBIC),
        ((TILE - size[0]) // 2, (TILE - size[1]) // 2),
    )
    return tile

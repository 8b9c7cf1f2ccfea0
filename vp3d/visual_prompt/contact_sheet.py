"""The contact sheet of the candidates: every drawn picture above its cut-out, with a label."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vp3d.types import to_uint8

TILE, GAP, LABEL_HEIGHT = 192, 8, 28  # pixels
COLUMNS = 8
TEXT_COLOR, PAPER_COLOR, FRAME_COLOR = (40, 40, 40), (255, 255, 255), (30, 140, 60)


def contact_sheet(
    candidates: Tensor, cutouts: Tensor, labels: list[str], chosen: int
) -> Image.Image:
    """Draw all candidates, up to eight in a row, with a frame around the chosen one.

    Args:
        candidates: `[N, 3, H, W]` in [0, 1], as drawn.
        cutouts: `[N, 3, H, W]` in [0, 1], over the neutral background.
        labels: One line of text for each candidate.
        chosen: Index of the chosen candidate; -1 for none.

    Returns:
        The sheet as an RGB picture.
    """
    columns = min(len(labels), COLUMNS)
    rows = -(-len(labels) // COLUMNS)  # rounded up
    step_x, step_y = TILE + GAP, 2 * TILE + LABEL_HEIGHT + GAP
    size = (columns * step_x + GAP, rows * step_y + GAP)
    sheet = Image.new("RGB", size, PAPER_COLOR)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for n, label in enumerate(labels):
        left, top = GAP + n % COLUMNS * step_x, GAP + n // COLUMNS * step_y
        bottom = top + 2 * TILE
        sheet.paste(_tile(candidates[n]), (left, top))
        sheet.paste(_tile(cutouts[n]), (left, top + TILE))
        if n == chosen:
            draw.text((left + 2, bottom + 4), f"{label}  chosen", FRAME_COLOR, font=font)
            frame = (left - 3, top - 3, left + TILE + 2, bottom + 2)
            draw.rectangle(frame, outline=FRAME_COLOR, width=3)
        else:
            draw.text((left + 2, bottom + 4), label, TEXT_COLOR, font=font)
    return sheet


def _tile(rgb: Tensor) -> Image.Image:
    """A picture `[3, H, W]` in [0, 1], fitted into a square tile with its aspect ratio kept."""
    picture = Image.fromarray(to_uint8(rgb))
    scale = TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    tile = Image.new("RGB", (TILE, TILE), PAPER_COLOR)
    tile.paste(
        picture.resize(size, Image.Resampling.BICUBIC),
        ((TILE - size[0]) // 2, (TILE - size[1]) // 2),
    )
    return tile

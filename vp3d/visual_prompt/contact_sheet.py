"""The contact sheet of the candidates: every drawn picture above its cut-out, with a label."""

from __future__ import annotations

from collections.abc import Sequence

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


def steering_sheet(
    pictures: Sequence[Tensor],
    values: Sequence[Sequence[float]],
    chosen: Sequence[int],
    steps: Sequence[int],
) -> Image.Image:
    """Draw the proposals of some denoising steps, a row each, with a frame around the chosen one.

    Args:
        pictures: For each shown step the pictures expected of the first `COLUMNS` or more proposals
            `[M, 3, H, W]` in [0, 1]; only the first `COLUMNS` and the chosen one are drawn.
        values: For each step the values of its M proposals.
        chosen: For each step the index of the chosen proposal.
        steps: The denoising steps, from 0.

    Returns:
        The sheet as an RGB picture.
    """
    rows = []
    for step, kept in enumerate(chosen):
        first = list(range(min(len(values[step]), COLUMNS)))
        rows.append(first if kept in first else [*first[:-1], kept])
    step_x, step_y = TILE // 2 + GAP, TILE // 2 + LABEL_HEIGHT + GAP
    size = (max(map(len, rows)) * step_x + GAP, len(rows) * step_y + GAP)
    sheet = Image.new("RGB", size, PAPER_COLOR)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for y, row in enumerate(rows):
        for x, n in enumerate(row):
            left, top = GAP + x * step_x, GAP + y * step_y
            bottom = top + TILE // 2
            sheet.paste(_tile(pictures[y][n]).resize((TILE // 2, TILE // 2)), (left, top))
            label = f"{steps[y] + 1}: {values[y][n]:.2f}"
            draw.text((left, bottom + 4), label, TEXT_COLOR, font=font)
            if n == chosen[y]:
                frame = (left - 3, top - 3, left + TILE // 2 + 2, bottom + 2)
                draw.rectangle(frame, outline=FRAME_COLOR, width=3)
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

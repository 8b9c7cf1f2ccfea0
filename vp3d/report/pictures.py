"""Pictures of a finished mesh: frames of a turntable, and contact sheets of labelled views.

Conventions: pictures leave this module as uint8 sRGB arrays `[N, H, W, 3]` or as Pillow images. The
N frames of a turn are at azimuths 360 i / N, so the frame after the last is the first and a video
loops without a jump. Nothing is random: the same mesh gives the same files on one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vp3d.config.schema import CameraConfig
from vp3d.prompts import view_words
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.system.files import atomic_write
from vp3d.types import Mesh, to_uint8

VIEWS = 8
AZIMUTHS = tuple(360.0 * i / VIEWS for i in range(VIEWS))  # degrees
ELEVATION_DEG = 15.0
BACKGROUND = 0.93  # grey behind previews and turntables, [0, 1]
FRAMES_AT_ONCE = 8  # frames rendered in one call
# sRGB colours of a sheet: the page, titles, and labels.
PAPER, INK, FAINT = (250, 250, 249), (38, 40, 44), (112, 116, 122)
GAP = 14  # pixels between the tiles of a sheet


def ring_frames(
    mesh: Mesh,
    count: int,
    size: int,
    camera: CameraConfig,
    shading: str = "flat",
    background: float = BACKGROUND,
) -> np.ndarray:
    """Views of a mesh at equal steps of azimuth, the first from the front.

    Args:
        mesh: The mesh.
        count: Number of views.
        size: Pixels of a side.
        camera: Distance and field of view.
        shading: As in `render_mesh`: "flat" for colours that include the light, "lambert" for
            albedo.
        background: Grey behind the mesh, in [0, 1].

    Returns:
        Pictures `[count, size, size, 3]` uint8.
    """
    cameras = ring(count, ELEVATION_DEG, camera.distance, camera.fov_deg)
    parts = []
    for i in range(0, count, FRAMES_AT_ONCE):
        views = cameras[i : i + FRAMES_AT_ONCE]
        parts.append(to_uint8(render_mesh(mesh, views, size, size, background, shading)[0]))
    return np.concatenate(parts)


def write_preview(
    mesh: Mesh, path: Path, title: str, camera: CameraConfig, size: int = 320, shading: str = "flat"
) -> None:
    """Write the contact sheet of eight labelled views as PNG, four in a row.

    Args:
        mesh: The mesh.
        path: The PNG file.
        title: Title of the sheet, such as the prompt.
        camera: Distance and field of view.
        size: Pixels of a side of each view.
        shading: As in `render_mesh`.
    """
    views = ring_frames(mesh, VIEWS, size, camera, shading)
    labels = [view_words(azimuth, ELEVATION_DEG) for azimuth in AZIMUTHS]
    tiles = [labelled(view, label) for view, label in zip(views, labels, strict=True)]
    save_image(sheet([tiles[:4], tiles[4:]], title), path)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in typeface at `size` pixels."""
    return ImageFont.load_default(size)


def shorten(text: str, width: int, size: int) -> str:
    """`text`, cut with an ellipsis to at most `width` pixels at font size `size`."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def rounded(picture: np.ndarray, radius: int = 10) -> Image.Image:
    """A picture `[H, W, 3]` uint8 with round corners of `radius` pixels on the page's colour."""
    tile = Image.fromarray(picture)
    # Drawn at four times the size and scaled down, so that the corners are smooth.
    mask = Image.new("L", (4 * tile.width, 4 * tile.height), 0)
    box = (0, 0, mask.width - 1, mask.height - 1)
    ImageDraw.Draw(mask).rounded_rectangle(box, 4 * radius, fill=255)
    page = Image.new("RGB", tile.size, PAPER)
    page.paste(tile, mask=mask.resize(tile.size, Image.Resampling.BOX))
    return page


def labelled(picture: np.ndarray, label: str, color: tuple[int, int, int] = FAINT) -> Image.Image:
    """A tile: the picture `[H, W, 3]` uint8 with a centred label below it."""
    side = picture.shape[1]
    text_size = max(11, side // 18)
    tile = Image.new("RGB", (side, picture.shape[0] + 2 * text_size), PAPER)
    tile.paste(rounded(picture, max(4, side // 28)))
    at = (side / 2, picture.shape[0] + 0.95 * text_size)
    text = shorten(label, side, text_size)
    ImageDraw.Draw(tile).text(at, text, fill=color, font=font(text_size), anchor="mm")
    return tile


def sheet(rows: Sequence[Sequence[Image.Image]], title: str = "") -> Image.Image:
    """Tiles in rows on one page; each row is as high as its highest tile."""
    widths = [sum(tile.width for tile in row) + GAP * (len(row) - 1) for row in rows]
    width = max(widths) + 4 * GAP
    text_size = max(18, min(30, width // 46))
    top = 2 * GAP + (2 * text_size if title else 0)
    heights = [max(tile.height for tile in row) for row in rows]
    page = Image.new("RGB", (width, top + sum(heights) + GAP * (len(rows) + 1)), PAPER)
    if title:
        text, at = shorten(title, max(widths), text_size), (2 * GAP, 2 * GAP)
        ImageDraw.Draw(page).text(at, text, fill=INK, font=font(text_size), anchor="la")
    y = top
    for row, height in zip(rows, heights, strict=True):
        x = 2 * GAP
        for tile in row:
            page.paste(tile, (x, y))
            x += tile.width + GAP
        y += height + GAP
    return page


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG atomically."""
    with atomic_write(path) as temporary:
        image.save(temporary, optimize=True)


def resized(picture: np.ndarray, size: int) -> np.ndarray:
    """A square picture `[H, W, 3]` uint8 at `size` pixels a side."""
    image = Image.fromarray(picture).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))

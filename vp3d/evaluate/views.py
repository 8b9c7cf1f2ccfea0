"""Pictures of a finished mesh: the eight-view contact sheet, the frames of a turntable, and its video.

Conventions: pictures leave this module as uint8 sRGB arrays `[N, H, W, 3]`. A turn has N frames at azimuth 360 i / N, so
the frame after the last is the first and the video loops without a jump. Nothing is random: equal meshes give equal files
on one machine.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vp3d.config import CameraConfig
from vp3d.errors import UserError
from vp3d.prompts import view_words
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.run_folder import atomic_write
from vp3d.types import Mesh

VIEWS = 8
AZIMUTHS = tuple(360.0 * i / VIEWS for i in range(VIEWS))
ELEVATION_DEG = 15.0
GROUND = 0.93  # grey behind previews and turntables, [0, 1]
PAPER, INK, FAINT = (
    (250, 250, 249),
    (38, 40, 44),
    (112, 116, 122),
)  # sRGB of a sheet's page, titles and labels
GAP = 14  # pixels between the tiles of a sheet
FRAMES_AT_ONCE = 8
Warn = Callable[[str], None]


def to_uint8(rgb: Tensor) -> np.ndarray:
    """Images `[B, 3, H, W]` in [0, 1] as uint8 `[B, H, W, 3]`."""
    return np.ascontiguousarray(
        (rgb.clamp(0.0, 1.0) * 255.0).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    )


def ring_frames(
    mesh: Mesh,
    count: int,
    size: int,
    camera: CameraConfig,
    shading: str = "flat",
    ground: float = GROUND,
) -> np.ndarray:
    """`count` views of `mesh` at equal steps of azimuth from the front on: uint8 `[count, size, size, 3]`.

    `shading` as in `render_mesh`: "flat" for colours that hold their light already, "lambert" for bare albedo.
    """
    cameras = ring(count, ELEVATION_DEG, camera.distance, camera.fov_deg)
    parts = [
        to_uint8(render_mesh(mesh, cameras[i : i + FRAMES_AT_ONCE], size, size, ground, shading)[0])
        for i in range(0, count, FRAMES_AT_ONCE)
    ]
    return np.concatenate(parts)


def write_preview(
    mesh: Mesh, path: Path, title: str, camera: CameraConfig, size: int = 320, shading: str = "flat"
) -> None:
    """The contact sheet of eight labelled views (`preview.png`), four in a row, with the prompt as its title."""
    views = ring_frames(mesh, VIEWS, size, camera, shading)
    labels = [view_words(azimuth, ELEVATION_DEG) for azimuth in AZIMUTHS]
    tiles = [labelled(view, label) for view, label in zip(views, labels, strict=True)]
    save_image(sheet([tiles[:4], tiles[4:]], title), path)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own typeface at `size` pixels."""
    return ImageFont.load_default(size)


def shorten(text: str, width: int, size: int) -> str:
    """`text`, cut with an ellipsis to at most `width` pixels at font size `size`."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def rounded(picture: np.ndarray, radius: int = 10) -> Image.Image:
    """A picture `[H, W, 3]` uint8 with round corners on the page's colour."""
    tile = Image.fromarray(picture)
    mask = Image.new("L", (4 * tile.width, 4 * tile.height), 0)
    ImageDraw.Draw(mask).rounded_rectangle(
        (0, 0, mask.width - 1, mask.height - 1), 4 * radius, fill=255
    )
    page = Image.new("RGB", tile.size, PAPER)
    page.paste(tile, mask=mask.resize(tile.size, Image.Resampling.BOX))
    return page


def labelled(picture: np.ndarray, label: str, color: tuple[int, int, int] = FAINT) -> Image.Image:
    """A tile: the picture `[H, W, 3]` uint8 with a label in the middle below it."""
    side = picture.shape[1]
    text_size = max(11, side // 18)
    tile = Image.new("RGB", (side, picture.shape[0] + 2 * text_size), PAPER)
    tile.paste(rounded(picture, max(4, side // 28)))
    at = (side / 2, picture.shape[0] + 0.95 * text_size)
    ImageDraw.Draw(tile).text(
        at, shorten(label, side, text_size), fill=color, font=font(text_size), anchor="mm"
    )
    return tile


def sheet(rows: Sequence[Sequence[Image.Image]], title: str = "") -> Image.Image:
    """Tiles in rows on one page, each row as high as its highest tile, with an optional title."""
    widths = [sum(tile.width for tile in row) + GAP * (len(row) - 1) for row in rows]
    width = max(widths) + 4 * GAP
    text_size = max(18, min(30, width // 46))
    top = 2 * GAP + (2 * text_size if title else 0)
    heights = [max(tile.height for tile in row) for row in rows]
    page = Image.new("RGB", (width, top + sum(heights) + GAP * (len(rows) + 1)), PAPER)
    if title:
        text = shorten(title, max(widths), text_size)
        ImageDraw.Draw(page).text(
            (2 * GAP, 2 * GAP), text, fill=INK, font=font(text_size), anchor="la"
        )
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


def write_turntable(
    frames: np.ndarray, path: Path, fps: int = 16, warn: Warn | None = None, replaces: bool = True
) -> Path:
    """The frames `[N, H, W, 3]` uint8 of a turn as `path` (.mp4 or .gif); returns the file that was written.

    If ffmpeg fails at this late hour, the turn becomes a GIF beside `path`, and `warn` is told why in one line. Where it
    `replaces` what was there, a turn of the other kind goes too: an older video of another asset would only mislead.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"a turntable needs frames [N, H, W, 3] uint8, got {frames.shape} {frames.dtype}"
        )
    if path.suffix == ".gif":
        write_gif(frames, path, fps)
        _remove(path.with_suffix(".mp4"), replaces)
        return path
    try:
        write_mp4(frames, path, fps, find_ffmpeg())
        _remove(path.with_suffix(".gif"), replaces)
        return path
    except FfmpegError as error:
        if warn is not None:
            instead = path.with_suffix(".gif").name
            warn(
                f"no video: {error}; wrote {instead} instead (pip install imageio-ffmpeg brings an ffmpeg)"
            )
    write_gif(frames, path.with_suffix(".gif"), fps)
    _remove(path, replaces)
    return path.with_suffix(".gif")


def _remove(path: Path, wanted: bool) -> None:
    if wanted:
        path.unlink(missing_ok=True)


class FfmpegError(RuntimeError):
    """There is no ffmpeg, or it did not do its work."""


def require_ffmpeg() -> None:
    """Refuse to start what would end without its video; UserError says what to do."""
    try:
        subprocess.run([find_ffmpeg(), "-version"], capture_output=True, check=True, timeout=60)
    except (FfmpegError, OSError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"no working ffmpeg for turntable.mp4 ({reason}): pip install imageio-ffmpeg, or export.turntable=gif"
        ) from error


def find_ffmpeg() -> str:
    """The ffmpeg that imageio-ffmpeg brings (or the one in IMAGEIO_FFMPEG_EXE, or on the PATH)."""
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise FfmpegError("ffmpeg was not found") from error


def write_mp4(frames: np.ndarray, path: Path, fps: int, ffmpeg: str) -> None:
    """H.264 as every browser plays it: yuv420p, BT.709 matrix, even sides, index at the front; one thread, so equal bytes."""
    frames = np.pad(
        frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge"
    )
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-video_size",
        size,
        "-framerate",
        str(fps),
        "-i",
        "pipe:0",
    ]
    tags = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=iec61966-2-1"  # the last one says that it is sRGB
    color = ["-vf", f"scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,{tags}"]
    codec = ["-c:v", "libx264", "-crf", "16", "-preset", "medium", "-threads", "1", "-bf", "0"]
    exact = [
        "-fflags",
        "+bitexact",
        "-flags:v",
        "+bitexact",
        "-map_metadata",
        "-1",
        "-movflags",
        "+faststart",
    ]
    with atomic_write(path) as temporary:
        command = [
            ffmpeg,
            "-y",
            "-loglevel",
            "error",
            *source,
            *color,
            *codec,
            *exact,
            "-f",
            "mp4",
            str(temporary.absolute()),
        ]
        try:
            subprocess.run(
                command, input=frames.tobytes(), capture_output=True, check=True, timeout=600
            )
        except FileNotFoundError as error:
            raise FfmpegError(f"{ffmpeg} is not there") from error
        except (OSError, subprocess.SubprocessError) as error:
            told = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(
                error
            )
            raise FfmpegError(f"ffmpeg failed ({told.splitlines()[-1]})") from error
        if not temporary.is_file():
            raise FfmpegError(f"{ffmpeg} wrote nothing")


def write_gif(frames: np.ndarray, path: Path, fps: int) -> None:
    """The frames `[N, H, W, 3]` uint8 as an endless GIF with one palette for all of them (so that nothing flickers)."""
    step = max(1, len(frames) // 8)
    palette = Image.fromarray(np.concatenate(list(frames[::step]))).quantize(
        256, method=Image.Quantize.MEDIANCUT
    )
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    duration = max(20, 10 * round(100 / fps))  # milliseconds; GIF counts in hundredths of a second
    with atomic_write(path) as temporary:
        pictures[0].save(
            temporary,
            save_all=True,
            append_images=pictures[1:],
            duration=duration,
            loop=0,
            disposal=1,
        )

"""Turntable videos: MP4 by ffmpeg, or GIF by Pillow.

Conventions: frames are `[N, H, W, 3]` uint8 sRGB. Files are written atomically, and equal frames
give equal bytes on one machine. ffmpeg is the one that imageio-ffmpeg installs, unless
IMAGEIO_FFMPEG_EXE names another.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vp3d.errors import UserError, in_one_line
from vp3d.system.files import atomic_write

Warn = Callable[[str], None]

CHECK_TIMEOUT_S, ENCODE_TIMEOUT_S = 60, 600
# All browsers play H.264 with yuv420p, BT.709 colours in the limited range, and without B-frames.
# The transfer function is tagged as sRGB.
COLOR_TAGS = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=iec61966-2-1"
COLOR = ["-vf", f"scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,{COLOR_TAGS}"]
CODEC = "-c:v libx264 -crf 16 -preset medium -threads 1 -bf 0".split()
# No time or version in the file, so that equal frames give equal bytes; the index comes first.
EXACT = "-fflags +bitexact -flags:v +bitexact -map_metadata -1 -movflags +faststart".split()
GIF_COLORS = 256


class FfmpegError(RuntimeError):
    """ffmpeg is missing or failed."""


def write_turntable(
    frames: np.ndarray, path: Path, fps: int = 16, warn: Warn | None = None, replaces: bool = True
) -> Path:
    """Write a turntable as `path`, .mp4 or .gif.

    If ffmpeg fails, a GIF with the same stem is written instead of the MP4.

    Args:
        frames: Frames of one turn `[N, H, W, 3]` uint8.
        path: The file.
        fps: Frames a second.
        warn: Called with one line if ffmpeg failed.
        replaces: Whether to delete a turntable of the other suffix, which would show an older mesh.

    Returns:
        The file that was written.

    Raises:
        ValueError: The frames have another shape or type.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"a turntable needs frames [N, H, W, 3] uint8, got {frames.shape} {frames.dtype}"
        )
    mp4, gif = path.with_suffix(".mp4"), path.with_suffix(".gif")
    written, other = (gif, mp4) if path.suffix == ".gif" else (path, gif)
    if path.suffix != ".gif":
        try:
            write_mp4(frames, path, fps, find_ffmpeg())
        except FfmpegError as error:
            written, other = gif, path
            if warn is not None:
                warn(
                    f"no MP4: {error}; wrote {gif.name} instead. For an MP4, install ffmpeg with "
                    "`pip install imageio-ffmpeg`"
                )
    if written == gif:
        write_gif(frames, gif, fps)
    if replaces:
        other.unlink(missing_ok=True)
    return written


def require_ffmpeg() -> None:
    """Check that ffmpeg runs, before a run starts that would end without its video.

    Raises:
        UserError: ffmpeg is missing or does not run.
    """
    try:
        command = [find_ffmpeg(), "-version"]
        subprocess.run(command, capture_output=True, check=True, timeout=CHECK_TIMEOUT_S)
    except (FfmpegError, OSError, subprocess.SubprocessError) as error:
        reason = in_one_line(error)
        raise UserError(
            f"no working ffmpeg for turntable.mp4 ({reason}): `pip install imageio-ffmpeg`, or set "
            "export.turntable=gif"
        ) from error


def find_ffmpeg() -> str:
    """The ffmpeg program: IMAGEIO_FFMPEG_EXE, that of imageio-ffmpeg, or one on the PATH.

    Raises:
        FfmpegError: There is none.
    """
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise FfmpegError("ffmpeg was not found") from error


def write_mp4(frames: np.ndarray, path: Path, fps: int, ffmpeg: str) -> None:
    """Write frames as an MP4 that every browser plays.

    H.264 needs even sides, so the last row and column are repeated if necessary. The encoder uses
    one thread, so that equal frames give equal bytes.

    Args:
        frames: Frames `[N, H, W, 3]` uint8.
        path: The file.
        fps: Frames a second.
        ffmpeg: The ffmpeg program.

    Raises:
        FfmpegError: ffmpeg is missing, failed, or wrote no file.
    """
    odd_rows, odd_columns = frames.shape[1] % 2, frames.shape[2] % 2
    frames = np.pad(frames, ((0, 0), (0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = f"-f rawvideo -pix_fmt rgb24 -video_size {size} -framerate {fps} -i pipe:0".split()
    with atomic_write(path) as temporary:
        # An absolute path: ffmpeg would take "runs:1/turntable.mp4" for a protocol.
        target = ["-f", "mp4", str(temporary.absolute())]
        command = [ffmpeg, "-y", "-loglevel", "error", *source, *COLOR, *CODEC, *EXACT, *target]
        try:
            subprocess.run(
                command,
                input=frames.tobytes(),
                capture_output=True,
                check=True,
                timeout=ENCODE_TIMEOUT_S,
            )
        except FileNotFoundError as error:
            raise FfmpegError(f"{ffmpeg} does not exist") from error
        except (OSError, subprocess.SubprocessError) as error:
            output = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
            reason = (output or str(error)).splitlines()[-1]
            raise FfmpegError(f"ffmpeg failed ({reason})") from error
        if not temporary.is_file():
            raise FfmpegError(f"{ffmpeg} wrote no file")


def write_gif(frames: np.ndarray, path: Path, fps: int) -> None:
    """Write frames as a GIF that loops without end.

    All frames share one palette, so that colours do not flicker.

    Args:
        frames: Frames `[N, H, W, 3]` uint8.
        path: The file.
        fps: Frames a second, at most 50.
    """
    step = max(1, len(frames) // 8)
    palette = Image.fromarray(np.concatenate(list(frames[::step]))).quantize(
        GIF_COLORS, method=Image.Quantize.MEDIANCUT
    )
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    duration = max(20, 10 * round(100 / fps))  # milliseconds; a GIF stores hundredths of a second
    with atomic_write(path) as temporary:
        pictures[0].save(
            temporary,
            save_all=True,
            append_images=pictures[1:],
            duration=duration,
            loop=0,
            disposal=1,
        )

"""Turntables as video: MP4 by ffmpeg, or GIF without it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vp3d.errors import UserError
from vp3d.system.files import atomic_write

Warn = Callable[[str], None]


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

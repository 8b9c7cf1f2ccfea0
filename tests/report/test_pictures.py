"""Pictures and videos of a mesh: frames, contact sheets, MP4, GIF, and a missing ffmpeg."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vp3d.config.schema import CameraConfig
from vp3d.errors import UserError
from vp3d.report import pictures, video
from vp3d.types import Mesh, to_uint8


def half_and_half() -> Mesh:
    """An octahedron, red at the front (+x), blue behind."""
    vertices = 0.7 * np.array(
        [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], np.float32
    )
    faces = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    split = vertices[np.array(faces)].reshape(-1, 3)
    front = split.reshape(-1, 3, 3).mean(1)[:, :1] > 0
    colors = np.where(front, [[0.9, 0.1, 0.1]], [[0.1, 0.1, 0.9]]).repeat(3, 0).astype(np.float32)
    return Mesh(split, np.arange(24).reshape(8, 3), vertex_colors=colors)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return pictures.ring_frames(half_and_half(), 12, 49, CameraConfig())


def test_a_ring_starts_at_the_front_and_closes(frames: np.ndarray) -> None:
    assert frames.shape == (12, 49, 49, 3) and frames.dtype == np.uint8
    front, back = frames[0, 24, 24], frames[6, 24, 24]
    assert front[0] > 200 > 60 > front[2] and back[2] > 200 > 60 > back[0]
    change = [np.abs(frames[i].astype(int) - frames[i - 1]).mean() for i in range(12)]
    # The step from the last to the first frame is like any other.
    assert change[0] <= max(change[1:]) and change[0] > 0


def test_to_uint8_rounds_and_clamps() -> None:
    rgb = torch.tensor([-1.0, 0.5, 2.0]).reshape(1, 3, 1, 1)
    assert to_uint8(rgb).tolist() == [[[[0, 128, 255]]]]
    assert to_uint8(rgb[0]).tolist() == [[[0, 128, 255]]]


def test_preview_has_eight_views(tmp_path: Path) -> None:
    pictures.write_preview(
        half_and_half(), tmp_path / "preview.png", "an octahedron", CameraConfig(), size=96
    )
    picture = np.asarray(Image.open(tmp_path / "preview.png")).astype(int)
    assert picture.shape[1] == 4 * 96 + 3 * pictures.GAP + 4 * pictures.GAP
    background = (np.abs(picture - round(pictures.BACKGROUND * 255)) <= 1).all(2)
    rows = np.flatnonzero(background.mean(1) > 0.4)
    assert len(rows) > 100
    red, blue = picture[..., 0] - picture[..., 2] > 150, picture[..., 2] - picture[..., 0] > 150
    assert red.sum() > 4000 and 0.8 < red.sum() / blue.sum() < 1.25  # as much front as back


def test_text_is_shortened_to_its_width() -> None:
    short = pictures.shorten("a very long prompt that cannot fit", 100, 14)
    assert short.endswith("…") and pictures.font(14).getlength(short) <= 100
    assert pictures.shorten("short", 100, 14) == "short"


def test_video_is_whole_exact_and_plays_anywhere(frames: np.ndarray, tmp_path: Path) -> None:
    warnings: list[str] = []
    path = video.write_turntable(frames, tmp_path / "turntable.mp4", fps=8, warn=warnings.append)
    assert path == tmp_path / "turntable.mp4" and not warnings
    data = path.read_bytes()
    # The index comes first, so a browser can start at once.
    assert 0 < data.find(b"moov") < data.find(b"mdat")
    probe = subprocess.run(
        [video.find_ffmpeg(), "-i", str(path)], capture_output=True, text=True
    ).stderr
    assert (
        "h264" in probe and "yuv420p(tv, bt709" in probe and "50x50" in probe and "8 fps" in probe
    )
    options = ["-loglevel", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run([video.find_ffmpeg(), *options], capture_output=True, check=True)
    decoded = np.frombuffer(done.stdout, np.uint8).reshape(-1, 50, 50, 3)
    assert len(decoded) == len(frames)
    assert np.abs(decoded[:, :49, :49].astype(int) - frames).mean() < 6
    video.write_turntable(frames, tmp_path / "again.mp4", fps=8)
    assert (tmp_path / "again.mp4").read_bytes() == data


@pytest.mark.parametrize("broken", ["missing", "failing"])
def test_without_ffmpeg_there_is_a_gif_and_one_warning(
    frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    program = tmp_path / "no-ffmpeg"
    if broken == "failing":
        program.write_text("#!/bin/sh\necho 'no encoder' >&2\nexit 3\n")
        program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    warnings: list[str] = []
    path = video.write_turntable(frames, tmp_path / "turntable.mp4", fps=10, warn=warnings.append)
    assert (
        path == tmp_path / "turntable.gif" and len(warnings) == 1 and "turntable.gif" in warnings[0]
    )
    assert sorted(p.name for p in tmp_path.iterdir() if p != program) == ["turntable.gif"]
    with Image.open(path) as gif:
        assert gif.n_frames == len(frames) and gif.info["loop"] == 0 and gif.info["duration"] == 100
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frames[0]).mean() < 6


def test_a_place_with_a_colon_is_no_protocol(
    frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs:1").mkdir()
    assert video.write_turntable(frames, Path("runs:1", "turntable.mp4")) == Path(
        "runs:1", "turntable.mp4"
    )


def test_a_neighbour_of_the_other_kind_is_left_alone_where_asked(
    frames: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "mine_turntable.mp4").touch()
    video.write_turntable(frames, tmp_path / "mine_turntable.gif", replaces=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "mine_turntable.gif",
        "mine_turntable.mp4",
    ]


def test_an_ffmpeg_that_writes_nothing_is_no_crash(
    frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/true")  # takes nothing and writes nothing
    assert (
        video.write_turntable(
            np.repeat(frames, 5, 0), tmp_path / "t.mp4", warn=lambda _: None
        ).suffix
        == ".gif"
    )


def test_a_gif_that_is_asked_for_needs_no_ffmpeg(
    frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    (tmp_path / "turntable.mp4").touch()
    warnings: list[str] = []
    path = video.write_turntable(frames, tmp_path / "turntable.gif", warn=warnings.append)
    assert not warnings and [p.name for p in tmp_path.iterdir()] == [path.name] == ["turntable.gif"]
    with pytest.raises(UserError, match=r"/nowhere/ffmpeg.*export\.turntable=gif"):
        video.require_ffmpeg()


def test_the_installed_ffmpeg_is_accepted() -> None:
    video.require_ffmpeg()

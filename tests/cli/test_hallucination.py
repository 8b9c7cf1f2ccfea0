"""The verb `hallucination` on real files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_rewards import write_dino
from vp3d import hallucination_score
from vp3d.cli.main import main
from vp3d.evaluate import planted
from vp3d.worlds.toybox.images import render_spec
from vp3d.worlds.toybox.scenes import parse_caption


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    mushroom, other = (
        render_spec(parse_caption(text), [30.0], size=128)[0]
        for text in ("a red mushroom with a white stem", "a blue mushroom with a white stem")
    )
    paths = folder / "a.png", folder / "b.png", folder / "clear.png"
    Image.fromarray(other).save(paths[0])
    Image.fromarray(mushroom).save(paths[1])
    alpha = np.where((mushroom == mushroom[0, 0]).all(-1), 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([mushroom, alpha])).save(paths[2])
    return paths


def grade_of(out: str) -> float:
    return float(out.split("grade ")[1].split()[0])


def test_another_colour_is_graded_and_shown(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, _ = files
    heat = tmp_path / "where.png"
    assert main(["hallucination", f"--image={a}", f"--reference={b}", f"--heat-map={heat}"]) == 0
    out = capsys.readouterr().out
    assert grade_of(out) > 2.5 and str(heat) in out
    shown = np.asarray(Image.open(heat)).astype(float)
    assert shown.shape == (128, 128, 3)
    changed = (np.asarray(Image.open(a)) != np.asarray(Image.open(b))).any(-1)
    assert shown[changed].mean() > shown[~changed].mean()


def test_the_same_picture_has_grade_1(
    files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, b, _ = files
    assert main(["hallucination", f"--image={b}", f"--reference={b}"]) == 0
    assert grade_of(capsys.readouterr().out) == 1.0
    found = hallucination_score(b, np.asarray(Image.open(b)))
    assert found.grade == 1.0 and found.where.shape == (128, 128) and found.where.max() == 0.0


def test_transparent_parts_are_grey(files: tuple[Path, Path, Path]) -> None:
    _, b, clear = files
    assert hallucination_score(clear, clear).grade == 1.0
    assert hallucination_score(clear, b).grade < 4.0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--image", "none.png", "--reference", "{b}"], "none.png"),
        (["--image", "{b}", "--reference", "{text}"], "text.png"),
        (["--image", "{b}"], "--reference"),
        (["--image", "https://x.org/a.png", "--reference", "{b}"], "is an address"),
        (["--image", "{b}", "--reference", "{b}", "--endpoint", "http://127.0.0.1:9"], "model"),
        (["--image", "{b}", "--reference", "{b}", "--heat-map", "{b}/x/y.png"], "--heat-map"),
        (["--image", "{b}", "--reference", "{b}", "--judge", "no-folder"], "is not a folder"),
        (["--image", "{b}", "--reference", "{b}", "--judge", "http://x.org/m"], "is an address"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    line: str,
    files: tuple[Path, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    filled = [word.format(b=files[1], text=text) for word in words]
    try:
        code = main(["hallucination", *filled])
    except SystemExit as ended:
        code = int(ended.code or 0)
    err = capsys.readouterr().err
    assert code == 2 and line in err and "Traceback" not in err


def test_a_server_that_is_not_there_is_a_reason_and_no_grade(
    files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--image={files[0]}", f"--reference={files[1]}"]
    server = ["--endpoint=http://127.0.0.1:9/v1", "--endpoint-model=some-model"]
    assert main(["hallucination", *words, *server]) == 0
    out = capsys.readouterr().out
    assert "no grade by some-model: the endpoint" in out and grade_of(out) > 2.5


def test_a_tower_of_a_folder_grades_too_and_its_table_is_kept(
    files: tuple[Path, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planted, "TABLE_SCENES", 2)
    tower, kept = write_dino(tmp_path / "dino"), tmp_path / "kept"
    words = [f"--image={files[1]}", f"--judge={tower}", f"--cache={kept}"]
    assert main(["hallucination", f"--reference={files[1]}", *words]) == 0
    assert "grade 1.0 of 5 by the features of dino" in capsys.readouterr().out
    table = next(kept.glob("grades-dino-*.json"))
    written = table.read_bytes()
    monkeypatch.setattr(planted, "planted_pairs", None)  # the table is not fitted again
    assert main(["hallucination", f"--reference={files[0]}", *words]) == 0
    assert "of 5 by the features of dino" in capsys.readouterr().out
    assert table.read_bytes() == written and len(list(kept.iterdir())) == 1

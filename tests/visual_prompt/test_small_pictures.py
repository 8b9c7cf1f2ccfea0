"""Small pictures of the user are enlarged before the cut-out, if the extra is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_upscaler import PACKAGE, write_tiny_package
from vp3d.config.schema import VisualPromptConfig
from vp3d.upscale import realesrgan
from vp3d.visual_prompt.make import read_reference
from vp3d.visual_prompt.reference import SMALL_SIDE, cut_out


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(realesrgan, "PACKAGE", PACKAGE)
    write_tiny_package(tmp_path / "site")


def disc(path: Path, side: int) -> Path:
    y, x = np.mgrid[:side, :side] + 0.5
    inside = (x - side / 2) ** 2 + (y - side / 2) ** 2 < (0.3 * side) ** 2
    picture = np.where(inside[..., None], (200, 40, 30), 255).astype(np.uint8)
    Image.fromarray(picture).save(path)
    return path


def test_a_small_picture_is_enlarged_and_one_line_says_so(tmp_path: Path, installed: None) -> None:
    found = cut_out(disc(tmp_path / "small.png", 40), 0.12)
    assert found.rgb.shape == (3, 160, 160) and found.mask.shape == (1, 160, 160)
    assert abs(float(found.mask.mean()) - np.pi * 0.3**2) < 0.02
    (note,) = found.notes
    assert "only 40 x 40 pixels" in note and "4 times larger" in note
    small = read_reference(str(tmp_path / "small.png"), "", VisualPromptConfig(), 64)
    assert small.notes == found.notes and small.rgb.shape == (3, 64, 64)


def test_its_mask_file_still_fits(tmp_path: Path, installed: None) -> None:
    path = disc(tmp_path / "small.png", 40)
    y, x = np.mgrid[:40, :40]
    Image.fromarray(((x < 20) * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    found = cut_out(path, 0.12, tmp_path / "mask.png")
    assert found.mask.shape == (1, 160, 160) and abs(float(found.mask.mean()) - 0.5) < 0.01


def test_a_picture_that_is_large_enough_stays_as_it_is(tmp_path: Path, installed: None) -> None:
    found = cut_out(disc(tmp_path / "large.png", SMALL_SIDE), 0.12)
    assert found.rgb.shape == (3, SMALL_SIDE, SMALL_SIDE) and found.notes == ()


def test_without_the_extra_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realesrgan, "PACKAGE", "no_such_package_at_all")
    found = cut_out(disc(tmp_path / "small.png", 40), 0.12)
    assert found.rgb.shape == (3, 40, 40) and found.notes == ()

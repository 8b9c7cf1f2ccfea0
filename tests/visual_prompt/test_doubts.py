"""Cut-outs that are right, or that the user is warned of: shapes an object rarely has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.mushroom import CAP, SIDE, STEM, X, Y, found, iou, mushroom, truth
from vp3d.errors import UserError
from vp3d.visual_prompt.checkerboard import without_checkerboard
from vp3d.visual_prompt.doubts import alpha_doubts, shape_doubts
from vp3d.visual_prompt.reference import cut_out

TRUTH = truth() > 0.5


def checks(cell: int, dark: float, light: float = 1.0) -> np.ndarray:
    squares = (np.indices((SIDE, SIDE)) // cell).sum(0) % 2
    return np.where(squares, dark, light)[..., None]


@pytest.mark.parametrize("cell", [4, 8, 16])
@pytest.mark.parametrize("dark", [204 / 255, 238 / 255, 0.5])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_drawn_checkerboard_is_transparency(
    cell: int, dark: float, suffix: str, tmp_path: Path
) -> None:
    options = {"quality": 92} if suffix == "jpg" else {}
    cutout = found(tmp_path / f"a.{suffix}", mushroom(checks(cell, dark)), **options)
    assert "checkerboard" in cutout.doubts[0]
    assert iou(cutout, TRUTH) > (0.93 if suffix == "jpg" else 0.95)


def test_other_backgrounds_and_objects_have_no_checkerboard() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, (SIDE, SIDE, 3))
    stripes = np.where((X * 20).astype(int) % 2, 0.8, 1.0)[..., None]
    checked_object = np.where(TRUTH[..., None], checks(8, 0.0), 1.0)
    coloured = np.where((np.indices((SIDE, SIDE)) // 8).sum(0)[..., None] % 2, CAP, STEM)
    for values in (mushroom(), mushroom(0.5 + noise), mushroom(stripes), checked_object, coloured):
        assert without_checkerboard(values + np.zeros((SIDE, SIDE, 3))) is None


@pytest.mark.parametrize("size", [(16, 12000), (12000, 16), (16, 4000), (40, 2000)])
def test_a_picture_that_is_too_narrow_once_shrunk_is_refused(
    size: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", size, "white").save(path)
    with pytest.raises(UserError, match=r"^[^\n]+left on the shorter side[^\n]+crop it[^\n]+$"):
        cut_out(path, 0.05)


def test_what_is_left_inside_of_bars_may_be_one_pixel_wide() -> None:
    for shape in ((64, 1), (1, 64), (1, 1), (15, 64)):
        assert without_checkerboard(np.zeros((*shape, 3))) is None


def test_a_floor_or_a_wall_is_doubted(tmp_path: Path) -> None:
    sky, lawn = np.array([150, 200, 240]) / 255, np.array([90, 150, 70]) / 255
    ground = np.where((Y > 0.62)[..., None], lawn, sky)
    for turns in range(4):
        cutout = found(tmp_path / "a.png", np.rot90(mushroom(ground), turns).copy())
        right = iou(cutout, np.rot90(TRUTH, turns)) > 0.95
        assert right or any("floor or a wall" in doubt for doubt in cutout.doubts)


def test_a_picture_inside_the_picture_is_doubted(tmp_path: Path) -> None:
    inside = (X > 0.08) & (X < 0.92) & (Y > 0.06) & (Y < 0.9)
    rgb = mushroom(np.where(inside[..., None], [0.5, 0.7, 0.5], 1.0))
    cutout = found(tmp_path / "a.png", rgb)
    assert iou(cutout, TRUTH) > 0.95 or any("rectangle" in doubt for doubt in cutout.doubts)


@pytest.mark.parametrize("kind", ["alpha", "mask"])
def test_an_inverted_alpha_or_mask_is_doubted(kind: str, tmp_path: Path) -> None:
    if kind == "alpha":
        cutout = found(tmp_path / "a.png", mushroom(), 1.0 - TRUTH)
    else:
        Image.fromarray((255 * ~TRUTH).astype(np.uint8)).save(tmp_path / "m.png")
        Image.fromarray((mushroom() * 255).astype(np.uint8)).save(tmp_path / "a.png")
        cutout = cut_out(tmp_path / "a.png", 0.12, tmp_path / "m.png")
    assert any("object and background swapped" in doubt for doubt in cutout.doubts)


def test_a_picture_cropped_round_is_doubted_and_a_ball_is_not(tmp_path: Path) -> None:
    disc = ((X - 0.5) ** 2 + (Y - 0.5) ** 2 < 0.49**2).astype(float)
    cutout = found(tmp_path / "a.png", mushroom(), disc)
    assert any("outlines a disc" in doubt for doubt in cutout.doubts)
    shading = (0.4 + 0.6 * (1 - Y))[..., None] * CAP
    ball = found(tmp_path / "b.png", shading, disc)
    assert ball.doubts == () and iou(ball, disc > 0.5) == 1.0


def test_a_line_drawing_is_doubted(tmp_path: Path) -> None:
    radius = np.hypot(X - 0.5, Y - 0.5)
    outline = np.where((np.abs(radius - 0.35) < 0.008)[..., None], [0.0, 0.0, 0.0], 1.0)
    cutout = found(tmp_path / "a.png", outline)
    assert any("thin lines" in doubt for doubt in cutout.doubts)


def test_several_pieces_are_noted(tmp_path: Path) -> None:
    rgb = mushroom()
    rgb[10:30, 120:150] = [0.2, 0.3, 0.8]
    cutout = found(tmp_path / "a.png", rgb)
    assert cutout.notes == ("the object has 2 separate pieces, all of which are kept",)
    assert found(tmp_path / "a.png", mushroom()).notes == ()


def test_doubts_by_hand() -> None:
    mask = np.zeros((20, 20))
    assert shape_doubts(mask) == [] and shape_doubts(1 - mask) == []
    mask[12:, :] = 1  # the lower part, from side to side
    assert shape_doubts(mask) == ["it covers one side of the picture, as a floor or a wall does"]
    mask[:, :] = 0
    mask[12:, 2:18] = 1  # a bust does not reach the sides
    assert shape_doubts(mask) == []
    mask[:, :] = 1
    mask[8:11, 8:11] = 0  # an enclosed hole of 2 %
    assert "swapped" in shape_doubts(mask)[0]
    mask[8:11, :] = 0  # cut in two: nothing is enclosed
    assert not any("swapped" in doubt for doubt in shape_doubts(mask))


def test_a_half_transparent_part_is_doubted_by_its_share() -> None:
    alpha = np.zeros((10, 10))
    alpha[:9] = 1.0
    alpha[9, :] = 0.6  # a tenth
    assert alpha_doubts(alpha) == []
    alpha[7:, :] = 0.6
    assert "half-transparent" in alpha_doubts(alpha)[0]
    assert alpha_doubts(np.zeros((4, 4))) == []

"""The cut-out of users' pictures: one mushroom in every situation that users report.

The mushroom has a strong cap and a pale stem, which a careless cut-out loses first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.helpers.mushroom import CAP, SIDE, STEM, X, Y, cap, found, iou, mushroom, stem, truth
from vp3d.errors import UserError
from vp3d.visual_prompt.reference import cut_out


def framed(rgb: np.ndarray, width: int, color: float, sides: str = "tblr") -> np.ndarray:
    rgb = rgb.copy()
    for side, index in {
        "t": np.s_[:width],
        "b": np.s_[-width:],
        "l": np.s_[:, :width],
        "r": np.s_[:, -width:],
    }.items():
        if side in sides:
            rgb[index] = color
    return rgb


BACKGROUNDS: dict[str, Callable[[], np.ndarray]] = {
    "white": lambda: mushroom(),
    "dark": lambda: mushroom(0.1),
    "coloured": lambda: mushroom(np.array([0.3, 0.5, 0.8])),
    "black frame": lambda: framed(mushroom(), 1, 0.0),
    "thick frame": lambda: framed(mushroom(), 5, 0.3),
    "light frame": lambda: framed(mushroom(), 1, 225 / 255),
    "fainter frame": lambda: framed(mushroom(), 2, 248 / 255),
    "frame in a margin": lambda: np.pad(
        framed(mushroom(), 2, 0.2), ((6, 6), (6, 6), (0, 0)), constant_values=1.0
    )[6:-6, 6:-6],
    "line at the left": lambda: framed(mushroom(), 2, 0.5, "l"),
    "lines at the right and below": lambda: framed(mushroom(), 1, 0.0, "rb"),
    "gradient downwards": lambda: mushroom((250 - 30 * Y[..., None]) / 255),
    "gradient across": lambda: mushroom((235 - 60 * X[..., None]) / 255),
    "gradient of hue": lambda: mushroom(np.stack([0.7 + 0.1 * X, 0.7 + 0 * X, 0.8 - 0.1 * Y], -1)),
    "vignette": lambda: mushroom(1 - 0.45 * ((X - 0.5) ** 2 + (Y - 0.5) ** 2)[..., None] * 2),
    "spotlight": lambda: mushroom(0.7 + 0.3 * np.exp(-8 * ((X - 0.5) ** 2 + Y**2))[..., None]),
}


@pytest.mark.parametrize("name", BACKGROUNDS)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_whole_object_is_cut_out(name: str, suffix: str, tmp_path: Path) -> None:
    options = {"quality": 95} if suffix == "jpg" else {}
    cutout = found(tmp_path / f"a.{suffix}", BACKGROUNDS[name](), **options)
    assert (iou(cutout, truth()) > 0.95 and cutout.doubts == ()) or name == "spotlight"
    assert iou(cutout, truth()) > 0.95 or cutout.doubts


@pytest.mark.parametrize("color", [0.0, 0.06, 0.5])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("width", [10, 40])
def test_bars_are_not_the_object(width: int, axis: int, color: float, tmp_path: Path) -> None:
    pad = [(0, 0)] * 3
    pad[axis] = (width, width)
    cutout = found(tmp_path / "a.png", np.pad(mushroom(), pad, constant_values=color))
    assert iou(cutout, np.pad(truth(), pad[:2])) > 0.95 and cutout.doubts == ()


def test_a_straight_edge_of_the_object_is_no_frame(tmp_path: Path) -> None:
    rgb, mask = np.ones((SIDE, SIDE, 3)), np.zeros((SIDE, SIDE))
    mask[60:100, 4:-4] = 1  # a plank nearly as wide as the picture
    rgb[mask > 0] = [0.5, 0.3, 0.1]
    assert iou(found(tmp_path / "a.png", rgb), mask) > 0.99


@pytest.mark.parametrize("level", [(248, 244), (236, 222), (251, 249)])
def test_white_on_white(level: tuple[int, int], tmp_path: Path) -> None:
    rgb = np.ones((SIDE, SIDE, 3))
    rgb[cap()], rgb[stem()] = level[0] / 255, level[1] / 255
    assert iou(found(tmp_path / "a.png", rgb), truth()) > 0.95


def test_what_differs_by_less_than_noise_is_refused(tmp_path: Path) -> None:
    rgb = np.ones((SIDE, SIDE, 3)) * 0.8
    rgb[truth() > 0] = 0.81
    rgb += 0.03 * np.random.default_rng(0).normal(size=rgb.shape)
    with pytest.raises(UserError, match="--mask FILE"):
        found(tmp_path / "a.png", rgb)


@pytest.mark.parametrize("depth", [0.2, 0.5])
@pytest.mark.parametrize("blur", [3.0, 6.0])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_soft_shadow_is_background(
    suffix: str, blur: float, depth: float, tmp_path: Path
) -> None:
    plate = ((X - 0.55) / 0.3) ** 2 + ((Y - 0.84) / 0.06) ** 2 < 1
    shade = 1 - depth * ndimage.gaussian_filter(plate.astype(float), blur)[..., None]
    options = {"quality": 95} if suffix == "jpg" else {}
    cutout = found(tmp_path / f"a.{suffix}", mushroom(0.97 * shade), **options)
    assert iou(cutout, truth()) > 0.94 or cutout.doubts


def test_a_pale_ball_on_white_keeps_its_shaded_side(tmp_path: Path) -> None:
    radius2 = ((X - 0.5) ** 2 + (Y - 0.5) ** 2) / 0.3**2
    light = (0.93 - 0.4 * np.clip(Y - 0.3, 0, 1))[..., None]
    rgb = np.where(radius2[..., None] < 1, light, 1.0) * np.ones(3)
    assert iou(found(tmp_path / "a.png", rgb), (radius2 < 1).astype(float)) > 0.95


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.05])
def test_noise_does_not_eat_the_pale_stem(noise: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cutout = found(tmp_path / "a.png", mushroom(0.75) + noise * rng.normal(size=(SIDE, SIDE, 3)))
    assert iou(cutout, truth()) > 0.95


def test_a_small_hole_is_seen_through_and_a_white_spot_is_not(tmp_path: Path) -> None:
    radius2 = (X - 0.5) ** 2 + (Y - 0.5) ** 2
    ring = (radius2 < 0.3**2) & (radius2 > 0.04**2)  # the hole has 0.5 % of the picture
    rgb = np.where(ring[..., None], [0.0, 0.66, 0.75], 1.0)
    assert iou(found(tmp_path / "a.png", rgb), ring.astype(float)) > 0.98
    spot = np.where((radius2 < 0.04**2)[..., None], 0.95, rgb)
    disc = (radius2 < 0.3**2).astype(float)
    assert iou(found(tmp_path / "b.png", spot), disc) > 0.98


# Objects at the border: right, refused or with a warning, but never inverted without a word.


@pytest.mark.parametrize("box", ["24:136,32:128", "24:120,32:160", "0:100,60:160", "24:,:80"])
def test_a_crop_through_the_object(box: str, tmp_path: Path) -> None:
    rows, columns = (slice(*(int(n) if n else None for n in s.split(":"))) for s in box.split(","))
    cutout = found(tmp_path / "a.png", mushroom()[rows, columns])
    assert iou(cutout, truth()[rows, columns]) > 0.95 or cutout.doubts


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("top", [0.25, 0.4, 0.6])
def test_a_bust_is_never_inverted(top: float, turns: int, tmp_path: Path) -> None:
    head = ((X - 0.5) / 0.22) ** 2 + ((Y - top + 0.02) / 0.22) ** 2 < 1
    rgb = np.where((top < Y)[..., None], [0.12, 0.24, 0.63], 1.0)
    rgb[head] = [0.86, 0.67, 0.55]
    try:
        cutout = found(tmp_path / "a.png", np.rot90(rgb, turns))
    except UserError:
        return
    assert iou(cutout, np.rot90(head | (top < Y), turns)) > 0.95 or cutout.doubts


@pytest.mark.parametrize("radius", [0.45, 0.52, 0.58, 0.65])
def test_a_disc_over_all_borders_is_never_inverted(radius: float, tmp_path: Path) -> None:
    disc = radius**2 > (X - 0.5) ** 2 + (Y - 0.5) ** 2
    try:
        cutout = found(tmp_path / "a.png", np.where(disc[..., None], CAP, 1.0))
    except UserError as error:
        assert "fills the whole picture" in str(error) or "safely" in str(error)
        return
    assert iou(cutout, disc.astype(float)) > 0.95


# Alpha.


@pytest.mark.parametrize("level", [254, 252, 230, 128])
def test_the_same_alpha_everywhere_says_nothing(level: int, tmp_path: Path) -> None:
    cutout = found(tmp_path / "a.png", mushroom(), np.full((SIDE, SIDE), level / 255))
    assert iou(cutout, truth()) > 0.97


@pytest.mark.parametrize("opacity", [0.15, 0.4, 0.7])
@pytest.mark.parametrize("residue", [0.0, 0.05])
def test_a_half_transparent_object_is_whole(residue: float, opacity: float, tmp_path: Path) -> None:
    cutout = found(tmp_path / "a.png", mushroom(), np.maximum(opacity * truth(), residue))
    assert iou(cutout, truth()) > 0.99 and float(cutout.mask.max()) == 1.0


@pytest.mark.parametrize("corner", [0.04, 0.15])
@pytest.mark.parametrize("margin", [0.0, 0.06])
def test_a_card_with_rounded_corners_is_not_the_object(
    margin: float, corner: float, tmp_path: Path
) -> None:
    reach = 0.5 - margin - corner
    out = np.stack([np.abs(X - 0.5) - reach, np.abs(Y - 0.5) - reach]).clip(0)
    alpha = ((out**2).sum(0) < corner**2).astype(float)
    cutout = found(tmp_path / "a.png", mushroom(), ndimage.gaussian_filter(alpha, 1.0))
    assert iou(cutout, truth()) > 0.97 and "card" in cutout.doubts[0]


def test_a_rectangular_object_with_alpha_is_kept(tmp_path: Path) -> None:
    mask = np.zeros((SIDE, SIDE))
    mask[20:140, 30:130] = 1
    checks = ((X * 8).astype(int) + (Y * 8).astype(int)) % 2
    rgb = np.where(checks[..., None] > 0, CAP, STEM)
    cutout = found(tmp_path / "a.png", rgb, mask)
    assert iou(cutout, mask) == 1.0 and cutout.doubts == ()


@pytest.mark.parametrize("matte", [0.0, 1.0])
@pytest.mark.parametrize("blur", [2.0, 4.0])
def test_a_matte_does_not_stay_as_a_fringe(blur: float, matte: float, tmp_path: Path) -> None:
    alpha = ndimage.gaussian_filter(truth(), blur)
    rgb = mushroom(0.5) * alpha[..., None] + matte * (1 - alpha[..., None])
    cutout = found(tmp_path / "a.png", rgb, alpha)
    assert iou(cutout, truth()) > 0.93
    shown = cutout.rgb.permute(1, 2, 0).numpy()[(cutout.mask[0].numpy() > 0.5) & cap()]
    assert np.quantile(np.abs(shown - CAP).max(-1), 0.99) < 0.15


# A mask of the user's.


def save_mask(path: Path, mask: np.ndarray) -> Path:
    Image.fromarray((mask * 255).astype(np.uint8)).save(path)
    return path


def test_a_mask_file_replaces_the_search(tmp_path: Path) -> None:
    Image.fromarray((mushroom(CAP) * 255).astype(np.uint8)).save(tmp_path / "a.png")
    mask = save_mask(tmp_path / "mask.png", truth())
    assert iou(cut_out(tmp_path / "a.png", 0.12, mask), truth()) == 1.0
    twice = np.kron(truth(), np.ones((2, 2)))  # in another resolution
    mask = save_mask(tmp_path / "mask.png", twice)
    assert iou(cut_out(tmp_path / "a.png", 0.12, mask), truth()) > 0.99
    layers = np.dstack([np.full((SIDE, SIDE, 3), 90), truth() * 255]).astype(np.uint8)
    Image.fromarray(layers).save(tmp_path / "mask.png")  # by its alpha
    assert iou(cut_out(tmp_path / "a.png", 0.12, tmp_path / "mask.png"), truth()) == 1.0


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((SIDE, SIDE)), "marks nothing"),
        (np.ones((SIDE, SIDE)), "marks nearly everything"),
        (np.ones((SIDE, 2 * SIDE)), "proportions"),
    ],
)
def test_a_wrong_mask_is_refused(mask: np.ndarray, reason: str, tmp_path: Path) -> None:
    Image.fromarray((mushroom() * 255).astype(np.uint8)).save(tmp_path / "a.png")
    path = save_mask(tmp_path / "mask.png", mask)
    with pytest.raises(UserError, match=f"^--mask {path} .*{reason}"):
        cut_out(tmp_path / "a.png", 0.12, path)
    with pytest.raises(UserError, match="^--mask .* does not exist"):
        cut_out(tmp_path / "a.png", 0.12, tmp_path / "none.png")


def test_the_same_picture_gives_the_same_mask(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    coarse = ndimage.zoom(rng.random((8, 8, 3)), (SIDE / 8, SIDE / 8, 1), order=3)
    first, again = (found(tmp_path / "a.png", mushroom(0.3 + 0.4 * coarse)) for _ in range(2))
    assert np.array_equal(first.mask.numpy(), again.mask.numpy())

"""Cut-outs of synthetic discs with known masks, and every way a user's file can be wrong."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vp3d.errors import UserError
from vp3d.visual_prompt import cutout
from vp3d.visual_prompt.cutout import (
    border_flood,
    is_usable,
    over_grey,
    read_picture,
    square_up,
    steadiness,
)

GROUNDS = [(1.0, 1.0, 1.0), (0.7, 0.7, 0.7), (0.05, 0.05, 0.05), (0.2, 0.6, 0.9), (0.9, 0.85, 0.7)]


def disc(side: int, radius: float, center: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """Coverage [1, side, side] in [0, 1] of a disc, by 4 x 4 samples per pixel.

    The radius and the centre are shares of the side.
    """
    fine = (torch.arange(4 * side) + 0.5) / (4 * side)
    inside = ((fine[:, None] - center[1]) ** 2 + (fine[None] - center[0]) ** 2 <= radius**2).float()
    return torch.nn.functional.avg_pool2d(inside[None], 4)


def paint(
    mask: Tensor,
    ground: tuple[float, ...],
    color: tuple[float, ...],
    noise: float = 0.0,
    seed: int = 0,
) -> Tensor:
    rgb = torch.tensor(color)[:, None, None] * mask + torch.tensor(ground)[:, None, None] * (
        1 - mask
    )
    generator = torch.Generator().manual_seed(seed)
    return (rgb + noise * torch.randn(rgb.shape, generator=generator)).clamp(0, 1)


def iou(mask: Tensor, truth: Tensor) -> float:
    a, b = mask > 0.5, truth > 0.5
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.04])
@pytest.mark.parametrize("side", [64, 200])
def test_discs_on_grounds_of_several_colours(
    ground: tuple[float, ...], noise: float, side: int
) -> None:
    truth = disc(side, 0.3, (0.45, 0.55))
    mask = border_flood(paint(truth, ground, (0.8, 0.1, 0.15), noise), 0.12)
    assert mask.shape == truth.shape and float(mask.min()) >= 0 and float(mask.max()) <= 1
    assert iou(mask, truth) > 0.95


def test_an_object_that_touches_the_border() -> None:
    truth = disc(64, 0.3, (0.75, 0.5))
    assert (
        iou(border_flood(paint(truth, (0.9, 0.9, 0.9), (0.1, 0.2, 0.8), 0.02), 0.12), truth) > 0.95
    )


def test_white_on_light_grey_does_not_run_out() -> None:
    truth = disc(64, 0.3)
    assert (
        iou(border_flood(paint(truth, (0.9, 0.9, 0.9), (0.97, 0.97, 0.96), 0.004), 0.12), truth)
        > 0.95
    )


def test_a_cut_out_that_hangs_on_its_limits_is_not_steady() -> None:
    truth, fade = disc(64, 0.3), torch.linspace(0.0, 1.0, 64)[None, None]
    clear = paint(truth, (0.9, 0.9, 0.9), (0.8, 0.1, 0.1), 0.01)
    # The left half of the object has the background's colour, the right half almost.
    faint = 0.9 * (1 - truth) + (0.9 - 0.12 * fade) * truth
    assert steadiness(clear, 0.12) > 0.98
    assert steadiness(faint.expand(3, -1, -1), 0.12) < 0.9
    assert steadiness(torch.full((3, 64, 64), 0.5), 0.12) == 0.0, "no object at all"


def test_the_halo_of_a_decoder_is_ground() -> None:
    truth = disc(64, 0.25)
    around = disc(64, 0.272) - truth  # a ring about a pixel wide, a little brighter than the ground
    rgb = paint(truth, (0.9, 0.9, 0.9), (0.9, 0.4, 0.6)) + 0.09 * around
    assert iou(border_flood(rgb.clamp(0, 1), 0.12), truth) > 0.95


def test_inner_parts_of_the_grounds_colour_stay_unless_they_are_the_ground() -> None:
    outer, inner = disc(64, 0.35), disc(64, 0.2)
    # Nearly the background's colour, but not the same.
    spot = paint(outer - inner, (0.9, 0.9, 0.9), (0.8, 0.1, 0.1)) + inner * 0.05
    assert iou(border_flood(spot, 0.12), outer) > 0.95
    ring = paint(outer - inner, (0.9, 0.9, 0.9), (0.8, 0.1, 0.1), 0.02)
    assert iou(border_flood(ring, 0.12), outer - inner) > 0.93
    pinhole = paint(outer - disc(64, 0.04), (0.9, 0.9, 0.9), (0.8, 0.1, 0.1))
    assert iou(border_flood(pinhole, 0.12), outer) > 0.95


def test_two_objects_stay_and_specks_go() -> None:
    pair = disc(128, 0.2, (0.28, 0.5)) + disc(128, 0.12, (0.75, 0.5))
    rgb = paint(pair, (1.0, 1.0, 1.0), (0.1, 0.5, 0.2))
    rgb[:, 5:7, 60:62] = 0.0
    mask = border_flood(rgb, 0.12)
    assert iou(mask, pair) > 0.95 and float(mask[0, 5:7, 60:62].max()) == 0.0


def test_edge_is_soft_where_the_pictures_is() -> None:
    truth = disc(64, 0.3)
    mask = border_flood(paint(truth, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), 0.12)
    inner = truth > 0.13
    torch.testing.assert_close(mask[inner], truth[inner], atol=0.2, rtol=0)
    assert float((mask - truth).abs().mean()) < 0.002
    hard = (truth > 0.5).float()
    assert torch.equal(border_flood(paint(hard, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), 0.12), hard)


def test_flat_picture_has_no_object() -> None:
    assert not is_usable(border_flood(torch.full((3, 64, 64), 0.6), 0.12))
    assert (
        not is_usable(torch.ones(1, 8, 8))
        and not is_usable(torch.zeros(1, 8, 8))
        and is_usable(disc(64, 0.3))
    )


def test_on_ground_is_the_naive_blend() -> None:
    rgb, mask = torch.rand(2, 3, 4, 5), torch.rand(2, 1, 4, 5)
    found = over_grey(rgb, mask, 0.7)
    for n, c, y, x in [(0, 0, 0, 0), (1, 2, 3, 4), (1, 1, 2, 2)]:
        m = float(mask[n, 0, y, x])
        assert float(found[n, c, y, x]) == pytest.approx(
            float(rgb[n, c, y, x]) * m + 0.7 * (1 - m), abs=1e-6
        )


@pytest.mark.parametrize("center", [(0.5, 0.5), (0.15, 0.8)])
def test_square_up_centres_and_fills_four_fifths(center: tuple[float, float]) -> None:
    truth = disc(200, 0.12, center)[:, :, :160]
    rgb, mask = square_up(paint(truth, (0.0, 1.0, 0.0), (0.8, 0.1, 0.1)), truth, 64)
    assert rgb.shape == (3, 64, 64) and mask.shape == (1, 64, 64)
    rows, columns = (torch.nonzero((mask[0] > 0.5).any(dim=axis)).flatten() for axis in (1, 0))
    for span in (rows, columns):
        assert abs(int(span[-1]) - int(span[0]) + 1 - 0.8 * 64) <= 2
        assert abs(int(span[0]) - (63 - int(span[-1]))) <= 2


def test_square_up_lets_none_of_the_old_ground_in() -> None:
    truth = (disc(300, 0.3) > 0.5).float()
    rgb, mask = square_up(paint(truth, (0.0, 1.0, 0.0), (0.8, 0.1, 0.1)), truth, 64)
    inside = rgb[:, mask[0] > 0.02]
    torch.testing.assert_close(
        inside, torch.tensor([0.8, 0.1, 0.1])[:, None].expand_as(inside), atol=1e-4, rtol=0
    )


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    Image.fromarray(values).save(path, **options)
    return path


def test_opaque_picture_and_alpha(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    rgb, alpha = read_picture(save(tmp_path / "a.png", values))
    np.testing.assert_array_equal((rgb * 255).round().permute(1, 2, 0).numpy(), values[..., :3])
    assert alpha is not None
    np.testing.assert_array_equal((alpha * 255).round()[0].numpy(), values[..., 3])
    values[..., 3] = 255
    assert read_picture(save(tmp_path / "b.png", values))[1] is None
    assert read_picture(save(tmp_path / "c.jpg", values[..., :3]))[1] is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16"])
def test_other_modes_are_read(mode: str, tmp_path: Path) -> None:
    gray = np.full((32, 32), 255, dtype=np.uint8)
    gray[8:24, 8:24] = 0
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture = (
        Image.fromarray(gray.astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(gray).convert(mode)
    )
    picture.save(path)
    rgb, _ = read_picture(path)
    assert rgb.shape == (3, 32, 32)
    assert float(rgb[:, 2, 2].min()) > 0.95 and float(rgb[:, 16, 16].max()) < 0.05


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    values = np.zeros((20, 40, 3), dtype=np.uint8)
    values[:, :10] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise: left becomes top
    rgb, _ = read_picture(save(tmp_path / "a.png", values, exif=exif))
    assert rgb.shape == (3, 40, 20)
    assert float(rgb[:, :10].min()) == 1.0 and float(rgb[:, 10:].max()) == 0.0


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    rgb, _ = read_picture(save(tmp_path / "a.png", np.zeros((900, 1800, 3), dtype=np.uint8)))
    assert rgb.shape == (3, 256, 512)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_picture(path)
    message = str(caught.value)
    assert message.startswith(f"--image {path}") and "\n" not in message
    return message


def test_missing_folder_and_empty(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.png")
    assert "not a file" in refusal(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "empty file" in refusal(tmp_path / "empty.png")


@pytest.mark.parametrize(
    "data",
    [b"hello, I am not a picture", b"%PDF-1.4 ...", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x00" * 100],
)
def test_not_a_picture(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data)
    assert "not a picture" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_short(format_: str, share: float, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(values).save(whole, format=format_)
    path = tmp_path / "a.img"
    path.write_bytes(whole.getvalue()[: int(share * len(whole.getvalue()))])
    message = refusal(path)
    assert "damaged" in message or "not a picture" in message


def test_flipped_bytes_never_escape_as_other_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    for format_ in ("PNG", "GIF", "TIFF", "WEBP"):
        whole = io.BytesIO()
        Image.fromarray(values).save(whole, format=format_)
        for _ in range(40):
            data = bytearray(whole.getvalue())
            for place in rng.integers(0, len(data), 5):
                data[place] = rng.integers(0, 256)
            (tmp_path / "a").write_bytes(data)
            try:
                rgb, _ = read_picture(tmp_path / "a")
            except UserError:
                continue
            assert rgb.shape[0] == 3


def claim_size(path: Path, side: int) -> Path:
    """A small PNG whose header says it has side x side pixels."""
    whole = io.BytesIO()
    Image.new("1", (32, 32)).save(whole, format="PNG")
    data = bytearray(whole.getvalue())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("side", [8001, 12000, 100_000])
def test_huge_in_pixels(side: int, tmp_path: Path) -> None:
    assert "too large" in refusal(claim_size(tmp_path / "a.png", side))


def test_huge_in_bytes(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as stream:
        stream.truncate(cutout.MAX_BYTES + 1)
    assert "too large" in refusal(tmp_path / "a.png")


def test_tiny(tmp_path: Path) -> None:
    assert "only 8 x 40 pixels" in refusal(
        save(tmp_path / "a.png", np.zeros((40, 8, 3), dtype=np.uint8))
    )

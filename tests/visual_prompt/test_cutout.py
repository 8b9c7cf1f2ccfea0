"""Cut-outs of synthetic discs with known masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vp3d.visual_prompt.cutout import (
    border_flood,
    is_usable,
    over_grey,
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

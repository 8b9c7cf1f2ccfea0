"""Tiles, factors and alpha, with a network whose result is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vp3d.upscale.network import FACTORS, enlarge, filled, tiles_of


class Blurred:
    """Enlarges the mean of 3 x 3 pixels, zeros around the picture: it needs a context of 1."""

    context = 1

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, rgb: Tensor) -> Tensor:
        self.sizes.append((rgb.shape[-2], rgb.shape[-1]))
        mean = F.avg_pool2d(rgb, 3, stride=1, padding=1)
        return F.interpolate(mean, scale_factor=4, mode="nearest")


def picture(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def test_tiles_give_the_same_picture_and_report_their_progress() -> None:
    rgb, heard = picture(20, 33), []
    whole, _ = enlarge(rgb, None, Blurred())
    net = Blurred()
    parts, _ = enlarge(rgb, None, net, on_tile=lambda done, n: heard.append((done, n)), tile=8)
    assert torch.equal(whole, parts)
    assert heard == [(n, 15) for n in range(1, 16)]
    assert max(max(size) for size in net.sizes) <= 8 + 2


@pytest.mark.parametrize(("height", "width", "tile"), [(1, 1, 4), (16, 16, 16), (17, 31, 8)])
def test_tiles_keep_every_pixel_once(height: int, width: int, tile: int) -> None:
    count = torch.zeros(height, width)
    for part in tiles_of(height, width, tile, 3):
        count[part.keep] += 1
        for keep, read, end in zip(part.keep, part.read, (height, width), strict=True):
            assert keep.stop - keep.start <= tile
            assert read.start == max(keep.start - 3, 0) and read.stop == min(keep.stop + 3, end)
    assert (count == 1).all()


@pytest.mark.parametrize("factor", FACTORS)
def test_the_factor_is_that_of_the_result(factor: int) -> None:
    rgb, alpha = picture(9, 12), torch.ones(1, 9, 12)
    large, layer = enlarge(rgb, alpha, Blurred(), factor)
    assert large.shape == (3, 9 * factor, 12 * factor)
    assert layer is not None and layer.shape == (1, 9 * factor, 12 * factor)
    assert abs(float(large.mean() - Blurred()(rgb[None]).mean())) < 0.01


def test_hidden_colours_do_not_bleed_into_the_edge() -> None:
    rgb, alpha = torch.zeros(3, 12, 12), torch.zeros(1, 12, 12)
    rgb[:, :, :6] = 0.8
    alpha[:, :, :6] = 1.0  # the right half is hidden and black
    large, layer = enlarge(rgb, alpha, Blurred())
    assert torch.allclose(large[:, 4:-4, 20:28], torch.tensor(0.8))
    assert layer is not None and layer[0, 24, 4] == 1.0 and layer[0, 24, 40] == 0.0
    assert layer.min() >= 0.0 and layer.max() <= 1.0


def test_a_picture_that_is_all_hidden_stays_as_it_is() -> None:
    rgb = picture(4, 4)
    assert torch.equal(filled(rgb, torch.zeros(1, 4, 4)), rgb)
    assert torch.equal(filled(rgb, torch.ones(1, 4, 4)), rgb)

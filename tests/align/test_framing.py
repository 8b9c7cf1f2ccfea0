"""Framing and JPEG size of drawn discs, by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from vp3d.align.compress import jpeg_size
from vp3d.align.framing import centred, filled, plain, steady, whole

SIDE = 64


def disc(x: float = 0.0, y: float = 0.0, radius: float = 0.7, noise: float = 0.0) -> Tensor:
    """A red disc on grey [1, 3, 64, 64]; position and radius in half sides."""
    line = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    inside = ((line[None] - x) ** 2 + (line[:, None] - y) ** 2 < radius**2).float()
    generator = torch.Generator().manual_seed(0)
    grey = 0.7 + noise * torch.randn(3, SIDE, SIDE, generator=generator)
    red = torch.tensor([0.8, 0.1, 0.1])[:, None, None]
    return (inside * red + (1 - inside) * grey).clamp(0, 1)[None]


def test_a_whole_centred_disc_has_every_reward():
    for reward in (whole, centred, filled, steady):
        assert float(reward(disc())) > 0.97, reward.__name__
    assert float(plain(disc())) > 0.99


def test_a_disc_that_is_cut_off_is_less_whole_and_less_centred():
    cut = disc(x=0.6)
    assert float(whole(cut)) < 0.97
    # columns -0.1 to 1 of [-1, 1]: the middle is at 0.45
    assert abs(float(centred(cut)) - 0.55) < 0.03


def test_a_small_or_a_large_disc_does_not_fill_the_picture():
    assert float(filled(disc(radius=0.3))) == 0.0  # 0.3 too little
    assert abs(float(filled(disc(radius=0.95))) - 0.25) < 0.1  # 0.15 too much, of 0.2


def test_noise_behind_the_object_is_not_plain():
    # the deviation 0.02, times 10
    assert abs(float(plain(disc(noise=0.02))) - 0.8) < 0.05


def test_a_picture_without_an_object_is_not_framed():
    flat = torch.full((1, 3, SIDE, SIDE), 0.5)
    for reward in (whole, centred, filled, steady):
        assert reward(flat).tolist() == [0.0]


def test_noise_takes_more_bytes_than_a_disc_and_grey_takes_none():
    grey = torch.full((1, 3, SIDE, SIDE), 0.5)
    sizes = jpeg_size(torch.cat([grey, disc(), disc(noise=0.1)]))
    assert sizes[0] == 0 and 0.2 < sizes[1] < sizes[2]

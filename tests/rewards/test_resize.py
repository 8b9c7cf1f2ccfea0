"""Resizing as torchvision does it: antialiased, differentiable, unclamped."""

from __future__ import annotations

import vp3d.system.torch_compat  # noqa: F401  (before torchvision)

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from vp3d.rewards.resize import channels, resize_normalize

MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
ZERO, ONE = channels((0, 0, 0), "cpu").float(), channels((1, 1, 1), "cpu").float()


def noise(side: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("side", "size"), [(64, 16), (50, 16), (16, 40), (33, 32)])
def test_noise_is_resized_as_torchvision_does(mode: str, side: int, size: int) -> None:
    found = resize_normalize(noise(side), size, ZERO, ONE, mode)
    expected = resize(noise(side), [size, size], MODES[mode], antialias=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_every_pixel_counts_when_a_picture_is_made_smaller() -> None:
    """Without antialiasing most pixels between the samples have no weight."""
    rgb = noise(64).requires_grad_()
    resize_normalize(rgb, 8, ZERO, ONE, "bilinear").sum().backward()
    assert rgb.grad is not None and bool((rgb.grad > 0.0).all())
    assert float(rgb.grad.sum()) == pytest.approx(2 * 3 * 8 * 8, rel=1e-4)


def test_bicubic_overshoot_is_kept() -> None:
    step = torch.zeros(1, 3, 16, 16)
    step[..., 8:] = 1.0
    found = resize_normalize(step, 40, ZERO, ONE)
    assert found.min() < -0.01 and found.max() > 1.01
    assert torch.equal(resize_normalize(step, 40, ZERO, ONE, "anything"), found)


def test_the_mean_is_subtracted_before_the_division_by_channel() -> None:
    mean, std = channels((0.1, 0.2, 0.3), "cpu"), channels((0.5, 0.25, 2.0), "cpu")
    found = resize_normalize(torch.full((1, 3, 4, 4), 0.6), 4, mean, std)
    assert found[0, :, 0, 0].tolist() == pytest.approx([1.0, 1.6, 0.15])


def test_the_same_size_is_the_same_picture() -> None:
    assert torch.equal(resize_normalize(noise(16), 16, ZERO, ONE), noise(16))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 3, 8, 9), (1, 1, 8, 8)])
def test_only_square_colour_pictures_are_taken(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="square pictures"):
        resize_normalize(torch.zeros(shape), 8, ZERO, ONE)

"""The image-image reward against a naive cosine and a naive distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.tiny_clip import write_tiny_clip
from vp3d.rewards.encoders import ClipEncoder, load_clip
from vp3d.rewards.image_image import image_image, image_target


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipEncoder:
    return load_clip(str(write_tiny_clip(tmp_path_factory.mktemp("clip"))))


def random_rgb(count: int, side: int) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(count + side))


def test_is_the_cosine_and_a_shifted_squared_distance(clip: ClipEncoder) -> None:
    rgb, prompt = random_rgb(3, 40), random_rgb(1, 64)
    features, target = clip.image(rgb).numpy(), image_target(prompt, clip)
    naive = [sum(x * y for x, y in zip(row, target[0].numpy(), strict=True)) for row in features]
    found = image_image(rgb, target, clip)
    np.testing.assert_allclose(found.numpy(), naive, rtol=1e-4)
    distance = -((features - target.numpy()) ** 2).sum(axis=1)
    np.testing.assert_allclose(distance, 2 * found.numpy() - 2, atol=1e-5)


def test_is_highest_for_the_picture_itself(clip: ClipEncoder) -> None:
    rgb = random_rgb(4, 32)
    found = image_image(rgb, image_target(rgb[:1], clip), clip)
    assert float(found[0]) == pytest.approx(1.0, abs=1e-5)
    assert bool((found[1:] < found[0]).all())


def test_gradient_reaches_the_render_and_not_the_target(clip: ClipEncoder) -> None:
    prompt = random_rgb(1, 32).requires_grad_()
    target = image_target(prompt, clip)
    assert not target.requires_grad
    rgb = random_rgb(2, 48).requires_grad_()
    before = image_image(rgb, target, clip)
    (gradient,) = torch.autograd.grad(before.sum(), rgb)
    assert bool(torch.isfinite(gradient).all())
    step = 0.05 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    assert bool((image_image(rgb + step, target, clip) > before).all())

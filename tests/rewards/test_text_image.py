"""The text-image reward against a naive cosine, and what its gradient does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.tiny_clip import write_tiny_clip
from vp3d.rewards.encoders import ClipEncoder, load_clip
from vp3d.rewards.text_image import text_image, text_target

PROMPTS = ["a red sphere, front view", "a blue cube, back view"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipEncoder:
    return load_clip(str(write_tiny_clip(tmp_path_factory.mktemp("clip"))))


def random_rgb(count: int, side: int) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(count + side))


def test_is_the_cosine(clip: ClipEncoder) -> None:
    rgb = random_rgb(2, 40)
    with torch.no_grad():
        image = clip.model.encode_image(clip.preprocess(rgb)).numpy()
        text = clip.model.encode_text(clip.tokenizer(PROMPTS)).numpy()
    naive = [
        float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))
        for a, b in zip(image, text, strict=True)
    ]
    found = text_image(rgb, text_target(PROMPTS, clip), clip)
    assert found.shape == (2,)
    np.testing.assert_allclose(found.numpy(), naive, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        text_image(rgb, text_target(PROMPTS, clip), clip, scale=5.0), 5 * found, rtol=1e-6
    )


def test_one_text_for_all_views(clip: ClipEncoder) -> None:
    rgb, text = random_rgb(3, 32), text_target(PROMPTS[:1], clip)
    torch.testing.assert_close(
        text_image(rgb, text, clip), text_image(rgb, text.expand(3, -1), clip)
    )


def test_following_the_gradient_raises_the_reward(clip: ClipEncoder) -> None:
    rgb, text = random_rgb(2, 48).requires_grad_(), text_target(PROMPTS, clip)
    before = text_image(rgb, text, clip)
    (gradient,) = torch.autograd.grad(before.sum(), rgb)
    assert (
        bool(torch.isfinite(gradient).all()) and float(gradient.abs().amax(dim=(1, 2, 3)).min()) > 0
    )
    step = 0.05 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    assert bool((text_image(rgb + step, text, clip) > before).all())


def test_gradients_are_finite_on_flat_pictures(clip: ClipEncoder) -> None:
    for level in (0.0, 0.5, 1.0):
        rgb = torch.full((1, 3, 64, 64), level, requires_grad=True)
        (gradient,) = torch.autograd.grad(
            text_image(rgb, text_target(PROMPTS[:1], clip), clip).sum(), rgb
        )
        assert bool(torch.isfinite(gradient).all())

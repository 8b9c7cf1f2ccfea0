"""The image-image reward: how similar a rendered view is to the visual prompt.

    r = cos(f(x), f(v))        in [-1, 1], higher is better; f are frozen image features

The visual consistency reward of VP3D (arXiv 2403.17001) is, as far as we recall, a negative squared
distance of frozen features. For features of unit length, -|a - b|^2 = 2 cos(a, b) - 2, so the two
differ only in scale. The features are those of CLIP, or DINOv2's class token.

View and visual prompt must have the same background. Otherwise the reward acts on the background.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class ImageFeatures(Protocol):
    """A frozen image tower."""

    def image(self, rgb: Tensor) -> Tensor:
        """Unit features `[B, D]` of pictures `rgb [B, 3, H, H]` in [0, 1]; differentiable."""


def image_image(rgb: Tensor, target: Tensor, encoder: ImageFeatures) -> Tensor:
    """The reward of pictures for image features.

    Args:
        rgb: `[B, 3, H, H]` in [0, 1]; the gradient flows back into it.
        target: Unit features, `[1, D]` or `[B, D]` (`image_target`).
        encoder: The image tower.

    Returns:
        `[B]` in [-1, 1].
    """
    return (encoder.image(rgb) * target).sum(dim=-1)


def image_target(visual_prompt: Tensor, encoder: ImageFeatures) -> Tensor:
    """The target of `image_image`: unit features `[1, D]`, without gradient.

    `visual_prompt` is `[1, 3, H, H]` in [0, 1].
    """
    return encoder.image(visual_prompt).detach()

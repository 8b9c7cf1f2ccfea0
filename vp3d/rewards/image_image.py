"""How much a rendered view looks like the visual prompt: cosine similarity of frozen image features, in [-1, 1].

The paper's visual consistency reward is (from memory of it) a negative squared distance of frozen features; for features
of unit length `-|a - b|^2 = 2 cos(a, b) - 2`, so the cosine differs only by that scale. The features are CLIP's or
DINOv2's class token. Render and visual prompt must stand on the same ground, or the reward is spent on the background.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class ImageFeatures(Protocol):
    """A frozen image tower."""

    def image(self, rgb: Tensor) -> Tensor:
        """Unit features `[B, D]` of `rgb [B, 3, H, H]` in [0, 1]; differentiable."""


def image_image(rgb: Tensor, target: Tensor, encoder: ImageFeatures) -> Tensor:
    """Reward `[B]` of `rgb [B, 3, H, H]` in [0, 1] for unit image features `target [1, D]` or `[B, D]`; differentiable."""
    return (encoder.image(rgb) * target).sum(dim=-1)


def image_target(visual_prompt: Tensor, encoder: ImageFeatures) -> Tensor:
    """The target of `image_image` for the visual prompt `[1, 3, H, H]` in [0, 1]: unit features `[1, D]`, no gradient."""
    return encoder.image(visual_prompt).detach()

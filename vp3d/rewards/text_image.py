"""The text-image reward: how well a picture matches its text. Higher is better.

VP3D uses a human-feedback reward here, ImageReward. Four models implement one contract:
`target(prompts) -> [B, D]`, then `score(rgb [B, 3, H, H] in [0, 1], target) -> [B]`,
differentiable in rgb.

    clip          cos(CLIP(x), CLIP(y)), in [-1, 1]
    hpsv2         the same with a CLIP ViT-H-14 fine-tuned on human choices (Wu et al.,
                  arXiv 2306.09341), about 0.2 to 0.35
    pickscore     exp(logit scale) * cos(...) with another one (Kirstain et al.,
                  arXiv 2305.01569), about 15 to 25
    imagereward   see imagereward.py, about -2 to 2

Their values differ in scale, so the weights of their terms must differ too.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class TextImage(Protocol):
    """A model that scores pictures by a text."""

    device: torch.device

    def target(self, prompts: list[str]) -> Tensor:
        """The encoded prompts (with their view words) for `score`, `[B, D]`; without gradient."""

    def fit(self, prompt: str) -> tuple[str, str]:
        """The part of a prompt that the model reads, with its view words, and the rest."""

    def score(self, rgb: Tensor, target: Tensor) -> Tensor:
        """Rewards `[B]` of pictures for targets.

        Args:
            rgb: `[B, 3, H, H]` in [0, 1]; the gradient flows back into it.
            target: `[B, D]`, or `[1, D]` for all pictures.

        Returns:
            `[B]`, higher is better.
        """


class Encoder(Protocol):
    """A CLIP model: text and pictures in one feature space."""

    device: torch.device

    def image(self, rgb: Tensor) -> Tensor:
        """Unit features `[B, D]` of pictures `rgb [B, 3, H, H]` in [0, 1]."""

    def text(self, prompts: list[str]) -> Tensor:
        """Unit features `[B, D]` of prompts."""

    def fit(self, prompt: str) -> tuple[str, str]:
        """The part of a prompt that the model reads, with its view words, and the rest."""


class ClipText:
    """A `TextImage`: cosine similarity in the feature space of a CLIP model, times `scale`."""

    def __init__(self, encoder: Encoder, scale: float = 1.0) -> None:
        self.encoder, self.scale, self.device = encoder, scale, encoder.device

    def target(self, prompts: list[str]) -> Tensor:
        """Unit features `[B, D]` of prompts."""
        return text_target(prompts, self.encoder)

    def fit(self, prompt: str) -> tuple[str, str]:
        """The part of a prompt that the model reads, with its view words, and the rest."""
        return self.encoder.fit(prompt)

    def score(self, rgb: Tensor, target: Tensor) -> Tensor:
        """Rewards `[B]` in [-scale, scale] of pictures `rgb [B, 3, H, H]` in [0, 1]."""
        return text_image(rgb, target, self.encoder, self.scale)


def text_image(rgb: Tensor, text: Tensor, encoder: Encoder, scale: float = 1.0) -> Tensor:
    """The reward of pictures for text features: scaled cosine similarity.

    Args:
        rgb: `[B, 3, H, H]` in [0, 1]; the gradient flows back into it.
        text: Unit features, `[B, D]`, or `[1, D]` for all pictures (`text_target`).
        encoder: The CLIP model.
        scale: Factor on the cosine.

    Returns:
        `[B]` in [-scale, scale].
    """
    return scale * (encoder.image(rgb) * text).sum(dim=-1)


def text_target(prompts: list[str], encoder: Encoder) -> Tensor:
    """The target of `text_image` for prompts (with their view words): unit features `[B, D]`."""
    return encoder.text(prompts)

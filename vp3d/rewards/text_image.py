"""How well a picture matches its text. Higher is better.

The paper has a human-feedback reward here (VP3D, section on rewards: ImageReward). Four models answer the question, behind
one contract: `target(prompts) -> [B, D]`, then `score(rgb [B, 3, H, H] in [0, 1], target) -> [B]`, differentiable in rgb.

    clip          cos(CLIP(x), CLIP(y)), in [-1, 1]
    hpsv2         the same of a CLIP ViT-H-14 fine-tuned on people's choices (Wu et al., arXiv 2306.09341), about 0.2 to 0.35
    pickscore     exp(logit scale) cos(...) of another (Kirstain et al., arXiv 2305.01569), about 15 to 25
    imagereward   see imagereward.py, about -2 to 2

Their values differ in size, and so must the weights of their terms.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class TextImage(Protocol):
    """A model that judges pictures by a text."""

    device: torch.device

    def target(self, prompts: list[str]) -> Tensor:
        """What `score` needs of prompts (with their view words), `[B, D]`; without gradient."""

    def score(self, rgb: Tensor, target: Tensor) -> Tensor:
        """Rewards `[B]` of pictures `rgb [B, 3, H, H]` in [0, 1] for targets `[B, D]` (or `[1, D]` for all)."""


class Encoder(Protocol):
    """A CLIP: text and pictures in one space."""

    device: torch.device

    def image(self, rgb: Tensor) -> Tensor:
        """Unit features `[B, D]` of `rgb [B, 3, H, H]` in [0, 1]."""

    def text(self, prompts: list[str]) -> Tensor:
        """Unit features `[B, D]` of prompts."""


class ClipText:
    """Cosine similarity in a CLIP's space, times `scale`, as a `TextImage`."""

    def __init__(self, encoder: Encoder, scale: float = 1.0) -> None:
        self.encoder, self.scale, self.device = encoder, scale, encoder.device

    def target(self, prompts: list[str]) -> Tensor:
        """Unit features `[B, D]` of prompts."""
        return text_target(prompts, self.encoder)

    def score(self, rgb: Tensor, target: Tensor) -> Tensor:
        """Rewards `[B]`, in [-scale, scale]."""
        return text_image(rgb, target, self.encoder, self.scale)


def text_image(rgb: Tensor, text: Tensor, encoder: Encoder, scale: float = 1.0) -> Tensor:
    """Reward `[B]` of pictures `rgb [B, 3, H, H]` in [0, 1] for unit text features `text [B, D]` (or `[1, D]` for all)."""
    return scale * (encoder.image(rgb) * text).sum(dim=-1)


def text_target(prompts: list[str], encoder: Encoder) -> Tensor:
    """The target of `text_image` for prompts (with their view words): unit features `[B, D]`."""
    return encoder.text(prompts)

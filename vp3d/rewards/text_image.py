"""How well a picture matches its text: cosine similarity in CLIP's space. Higher is better, in [-scale, scale].

It stands where the paper has its human-feedback reward (VP3D, section on rewards; there ImageReward): the same contract
`(rgb [B, 3, H, H] in [0, 1], target) -> [B]`, differentiable with respect to rgb.
"""

from __future__ import annotations

from torch import Tensor

from vp3d.rewards.encoders import ClipEncoder


def text_image(rgb: Tensor, text: Tensor, encoder: ClipEncoder, scale: float = 1.0) -> Tensor:
    """Reward `[B]` of pictures `rgb [B, 3, H, H]` in [0, 1] for unit text features `text [B, D]` (or `[1, D]` for all)."""
    return scale * (encoder.image(rgb) * text).sum(dim=-1)


def text_target(prompts: list[str], encoder: ClipEncoder) -> Tensor:
    """The target of `text_image` for prompts (with their view words): unit features `[B, D]`."""
    return encoder.text(prompts)

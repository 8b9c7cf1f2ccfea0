"""The encoded conditions of a run: the prompt for every view, the negative and visual prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vp3d.diffusion.prior import Prior
from vp3d.diffusion.text import TextEmbedding
from vp3d.prompts import all_views, negative_prompts, view_words, with_view


@dataclass(frozen=True)
class Condition:
    """What the denoiser is conditioned on, encoded once per run.

    Attributes:
        text: One embedded prompt for each of the view words ("back view from above", ...).
        null: The embedded negative prompt (one).
        image: Tokens of the visual prompt, `[1, T, C]`; None for text alone.
    """

    text: dict[str, TextEmbedding]
    null: TextEmbedding
    image: Tensor | None = None

    def text_for(self, azimuth_deg: Tensor, elevation_deg: Tensor) -> TextEmbedding:
        """The embedded prompts, with view words, of B views at angles `[B]` in degrees."""
        views = zip(azimuth_deg.tolist(), elevation_deg.tolist(), strict=True)
        return TextEmbedding.cat(
            [self.text[view_words(azimuth, elevation)] for azimuth, elevation in views]
        )


def build_condition(
    prior: Prior,
    prompt: str,
    negative: str,
    visual_prompt: Tensor | None,
    debiased: Mapping[str, str] | None = None,
) -> Condition:
    """Encode the prompt for every view, the negative prompt, and the visual prompt if there is one.

    Args:
        prior: Encodes the texts and the picture.
        prompt: The prompt; its own view words are replaced.
        negative: The negative prompt; its view words are removed.
        visual_prompt: rgb `[1, 3, H, W]` in [0, 1], or None for text alone.
        debiased: Another prompt for some of the view words (diffusion/debias.py).

    Returns:
        The embeddings, without gradient.
    """
    views = all_views()
    texts = [with_view((debiased or {}).get(view, prompt), view) for view in views]
    text = dict(zip(views, prior.encode_text(texts).singles(), strict=True))
    image = None if visual_prompt is None else prior.embed_visual_prompt(visual_prompt)
    return Condition(text, prior.encode_null(negative_prompts(negative, 1)[0]), image)

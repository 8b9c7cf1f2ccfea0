"""What a run is guided by: the prompt for every view, the negative prompt, the visual prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vp3d.diffusion.prior import Prior
from vp3d.diffusion.text import TextEmbedding
from vp3d.prompts import all_views, negative_prompts, view_words, with_view


@dataclass(frozen=True)
class Condition:
    """What a run is guided by, encoded once.

    text  the embedded prompt (one) for each of the view words ("back view from above", ...)
    null  the embedded negative prompt (one)
    image tokens [1, T, C] of the visual prompt, or None for text alone
    """

    text: dict[str, TextEmbedding]
    null: TextEmbedding
    image: Tensor | None = None

    def text_for(self, azimuth_deg: Tensor, elevation_deg: Tensor) -> TextEmbedding:
        """The view-worded prompts for B views at these angles [B] in degrees."""
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
    """Encode the prompt for every view word, the negative prompt, and the visual prompt (rgb [1, 3, H, W] in [0, 1]) if any.

    debiased: another prompt for some of the view words (diffusion/debias.py).
    """
    words = all_views()
    embeddings = prior.encode_text(
        [with_view((debiased or {}).get(view, prompt), view) for view in words]
    )
    text = dict(zip(words, embeddings.singles(), strict=True))
    image = None if visual_prompt is None else prior.embed_visual_prompt(visual_prompt)
    return Condition(text, prior.encode_null(negative_prompts(negative, 1)[0]), image)

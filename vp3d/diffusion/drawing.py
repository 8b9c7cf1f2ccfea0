"""The guided denoiser of a batch of prompts: what a sampler calls at each step.

`Prior.drawing` creates it. `sampling.sample` draws with it, and `vp3d.align` steers with it: it
accepts any number of rows, each of which belongs to one of the prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vp3d.diffusion.cfg import Branch, combine
from vp3d.diffusion.text import TextEmbedding

if TYPE_CHECKING:
    from vp3d.diffusion.prior import Prior


@dataclass(frozen=True)
class Drawing:
    """A draw of B prompts: their conditions, the guidance, and the S steps.

    Attributes:
        prior: Predicts the noise.
        texts: Embeddings of each branch of the guidance, 1 or B prompts.
        weights: Weight of each branch (cfg.py).
        timesteps: Those of the steps [S] int64, falling.
        levels: alpha_bar of the steps, then 1 [S + 1].
        gates: Strength of the image branch [B] in [0, 1].
        image: Image tokens [1 or B, T, C], or None.
    """

    prior: Prior
    texts: Mapping[Branch, TextEmbedding]
    weights: dict[Branch, float]
    timesteps: Tensor
    levels: Tensor
    gates: Tensor
    image: Tensor | None = None

    def __call__(self, x: Tensor, step: int, owner: Tensor | None = None) -> Tensor:
        """The guided noise of noisy latents.

        Args:
            x: Noisy latents [R, C, h, w] at the level `levels[step]`.
            step: 0 to S - 1.
            owner: Which of the B prompts each row belongs to [R] int64; None for R = B rows in the
                order of the prompts.

        Returns:
            Predicted noise [R, C, h, w].
        """
        texts, image, gates = self.texts, self.image, self.gates
        if owner is not None:
            texts = {branch: _pick(text, owner) for branch, text in texts.items()}
            image = image if image is None or len(image) == 1 else image[owner]
            gates = gates[owner]
        t = self.timesteps[step].expand(len(x))
        return combine(self.prior.predict_branches(texts, x, t, image, gates), self.weights)


def _pick(text: TextEmbedding, owner: Tensor) -> TextEmbedding:
    """The embedding of each row's prompt; one embedding of all prompts stays one."""
    if len(text) == 1:
        return text
    return TextEmbedding(text.tokens[owner], None if text.pooled is None else text.pooled[owner])

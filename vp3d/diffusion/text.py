"""The text condition: embeddings of prompts by one or two text encoders.

    one (Stable Diffusion 1.x, 2.x): tokens = the last hidden states [B, L, C]
    two (SDXL, arXiv 2307.01952):    tokens = the penultimate hidden states [B, L, C1 + C2],
                                     pooled = the projected embedding of the second [B, P]

The caller passes the encoders; this module does not import diffusers. Embeddings are float32,
whatever precision the encoders have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vp3d.prompt_length import fit_prompt


@dataclass(frozen=True)
class TextEmbedding:
    """B encoded prompts.

    Attributes:
        tokens: For the cross-attention [B, L, C].
        pooled: For SDXL's time embedding [B, P], else None.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def singles(self) -> list[TextEmbedding]:
        """The B embeddings one by one."""
        pooled: Sequence[Tensor | None] = (
            [None] * len(self) if self.pooled is None else self.pooled.split(1)
        )
        return [
            TextEmbedding(tokens, vector)
            for tokens, vector in zip(self.tokens.split(1), pooled, strict=True)
        ]

    def expand(self, batch: int) -> TextEmbedding:
        """One embedding, or `batch` of them, as `batch`."""
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        return TextEmbedding(self.tokens.expand(batch, -1, -1), pooled)

    def rows(self, start: int, stop: int) -> TextEmbedding:
        """Embeddings `start` to `stop` (excluded)."""
        return TextEmbedding(
            self.tokens[start:stop], None if self.pooled is None else self.pooled[start:stop]
        )

    @staticmethod
    def cat(parts: Sequence[TextEmbedding]) -> TextEmbedding:
        """The embeddings of all `parts`, in order."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return TextEmbedding(
            torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None
        )


@dataclass(frozen=True)
class TextEncoders:
    """The text encoders of a pipeline.

    Attributes:
        towers: One or two pairs (tokenizer, CLIP text model).
        zero_null: Whether an empty negative prompt is embedded as zeros, as in the training of SDXL
            (`force_zeros_for_empty_prompt` of its pipeline).
    """

    towers: tuple[tuple[Any, Any], ...]
    zero_null: bool = False

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """The embeddings of prompts, padded to the encoders' length.

        A prompt that is too long is cut (`fit`).
        """
        prompts = [self.fit(prompt)[0] for prompt in prompts]
        outputs = [self._run(tokenizer, model, prompts) for tokenizer, model in self.towers]
        if len(outputs) == 1:
            return TextEmbedding(outputs[0][0].float())
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return TextEmbedding(tokens.float(), outputs[-1].text_embeds.float())

    def encode_null(self, negative: str) -> TextEmbedding:
        """The embedding of the negative prompt, tokens [1, L, C]; it may be empty."""
        encoded = self.encode([negative])
        if negative or not self.zero_null:
            return encoded
        pooled = None if encoded.pooled is None else torch.zeros_like(encoded.pooled)
        return TextEmbedding(torch.zeros_like(encoded.tokens), pooled)

    def fit(self, prompt: str) -> tuple[str, str]:
        """The part of a prompt that every encoder reads, with its view words, and the rest."""
        lost = []
        for tokenizer, model in self.towers:
            count = partial(_count, tokenizer)
            prompt, cut = fit_prompt(prompt, _limit(tokenizer, model), count)
            lost.append(cut)
        return prompt, " ".join(filter(None, reversed(lost)))

    def _run(self, tokenizer: Any, model: Any, prompts: list[str]) -> Any:
        length = _limit(tokenizer, model)
        device = next(model.parameters()).device
        tokens = tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        uses_mask = getattr(model.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(device) if uses_mask else None
        return model(
            tokens.input_ids.to(device),
            attention_mask=mask,
            output_hidden_states=len(self.towers) > 1,
        )


def _limit(tokenizer: Any, model: Any) -> int:
    """Tokens that a text encoder reads."""
    return int(min(tokenizer.model_max_length, model.config.max_position_embeddings))


def _count(tokenizer: Any, text: str) -> int:
    """Tokens of a text, with those of its start and end."""
    return len(tokenizer(text).input_ids)

"""The image condition: IP-Adapter's decoupled cross-attention (Ye et al., arXiv 2308.06721, equation 5) with a gate per sample.

    Attn(Q, K_y, V_y) + gate * Attn(Q, K_v, V_v)

The keys and values of the image tokens come from the adapter's own matrices `to_k_ip`, `to_v_ip`, next to the text's.
`gate` [B] is the paper's lambda, one number per sample: 0 is exactly the network without adapter, 1 is scale 1. diffusers'
own processor knows one scale for a whole call and keeps it as state; here the gate travels with the call, beside the
tokens, so that branches with and without image, and views with different gates, share one batch.

The tokens come from a CLIP vision tower through the adapter's projection (`ImageEncoder`): 4 of the pooled embedding for the
base adapters, 16 of the penultimate hidden states for "plus".

The networks are handed in, nothing of diffusers is imported: `encoder_hidden_states` of the denoiser's forward is either the
text embedding [B, L, C] alone (no image branch) or the triple `(text [B, L, C], image tokens [B, T, C], gate [B])`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

CLIP_MEAN = (
    0.48145466,
    0.4578275,
    0.40821073,
)  # of the pictures that OpenAI's CLIP was trained on; BLIP's too
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
POOLED = "pooled.weight"
ImageCondition = tuple[Tensor, Tensor, Tensor]  # text [B, L, C], image tokens [B, T, C], gate [B]


@dataclass(frozen=True)
class ImageEncoder:
    """From an image to the image tokens of the IP-Adapter: CLIP vision tower and the adapter's projection.

    pooled: the projection reads the pooled embedding (base), not the penultimate hidden states (plus, full).
    """

    tower: Any  # transformers CLIPVisionModelWithProjection
    projection: nn.Module
    pooled: bool
    mean: tuple[float, ...]  # per channel, of images in [0, 1]
    std: tuple[float, ...]

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers in a vector that the tower gives, and in one that the projection was trained on."""
        config = self.tower.config
        expected = next(
            m for m in self.projection.modules() if isinstance(m, nn.Linear)
        ).in_features
        return (config.projection_dim if self.pooled else config.hidden_size), expected

    def normalize(self, rgb: Tensor) -> Tensor:
        """rgb [B, 3, H, W] in [0, 1] as CLIP sees it, [B, 3, S, S]: shortest edge to S bicubic, centre crop, mean and std."""
        side, (height, width) = self.tower.config.image_size, rgb.shape[-2:]
        scale = side / min(height, width)
        size = (max(side, int(height * scale)), max(side, int(width * scale)))
        resized = F.interpolate(
            rgb, size=size, mode="bicubic", antialias=True, align_corners=False
        ).clamp(0.0, 1.0)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        mean, std = (rgb.new_tensor(value)[:, None, None] for value in (self.mean, self.std))
        return (resized[..., top : top + side, left : left + side] - mean) / std

    def tokens(self, rgb: Tensor) -> Tensor:
        """Image tokens [B, T, C] float32 of rgb [B, 3, H, W] in [0, 1]."""
        return self._project(self.normalize(rgb.float()), null=False)

    def null_tokens(self) -> Tensor:
        """The trained "no image" [1, T, C]: the projection of a zero embedding (base), the encoding of a zero image (plus)."""
        side, weight = self.tower.config.image_size, next(self.tower.parameters())
        return self._project(torch.zeros(1, 3, side, side, device=weight.device), null=True)

    def _project(self, pixels: Tensor, null: bool) -> Tensor:
        pixels = pixels.to(next(self.tower.parameters()).dtype)
        if self.pooled:
            embedding = self.tower(pixels).image_embeds
            return self.projection(torch.zeros_like(embedding) if null else embedding).float()
        return self.projection(
            self.tower(pixels, output_hidden_states=True).hidden_states[-2]
        ).float()


class HasAttentionProcessors(Protocol):
    """What is needed of a denoiser: named attention processors that can be replaced."""

    @property
    def attn_processors(self) -> dict[str, Any]:
        """Processor of each attention layer by its path."""
        ...

    def set_attn_processor(self, processor: dict[str, Any]) -> None:
        """Replace them, all of them, by path."""
        ...


class GatedImageAttention(nn.Module):
    """Cross-attention to text plus gated cross-attention to image tokens, for one attention layer of width D."""

    def __init__(self, to_k_ip: nn.Linear, to_v_ip: nn.Linear) -> None:
        super().__init__()
        self.to_k_ip = to_k_ip
        self.to_v_ip = to_v_ip

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | ImageCondition,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, N, D] to [B, N, D] (any range). `attn` is the layer, with its to_q, to_k, to_v, to_out and heads."""
        if hidden_states.ndim != 3 or attention_mask is not None:
            raise ValueError("image-prompted attention takes tokens [B, N, D] without a mask")
        if isinstance(encoder_hidden_states, Tensor):
            text, image_prompt = encoder_hidden_states, None
        else:
            text, image_prompt = encoder_hidden_states[0], encoder_hidden_states[1:]
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        mixed = attend(query, attn.to_k(text), attn.to_v(text), attn.heads)
        if image_prompt is not None:
            tokens, gate = image_prompt
            image = attend(query, self.to_k_ip(tokens), self.to_v_ip(tokens), attn.heads)
            mixed = mixed + gate[:, None, None].to(image.dtype) * image
        dropout = attn.to_out[1]
        return dropout(attn.to_out[0](mixed)) / attn.rescale_output_factor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Tokens [B, N, D] as [B, heads, N, D / heads] (any range)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V with Q [B, heads, N, d], K and V [B, M, D] (any range); returns [B, N, D]."""
    mixed = F.scaled_dot_product_attention(
        query, split_heads(key, heads), split_heads(value, heads)
    )
    return mixed.transpose(1, 2).flatten(2)


def install_gates(unet: HasAttentionProcessors) -> int:
    """Put `GatedImageAttention` in the place of each loaded IP-Adapter processor, around the same weights; returns how many.

    Self-attention keeps its processors. One adapter is supported; several loaded at once are an error.
    """
    processors = unet.attn_processors
    adapted = {name: p for name, p in processors.items() if hasattr(p, "to_k_ip")}
    for name, processor in adapted.items():
        if len(processor.to_k_ip) != 1:
            raise ValueError(
                f"{name} carries {len(processor.to_k_ip)} IP-Adapters, one is supported"
            )
        processors[name] = GatedImageAttention(processor.to_k_ip[0], processor.to_v_ip[0])
    unet.set_attn_processor(processors)
    return len(adapted)


class PooledPrompt(nn.Module):
    """What joins the time embedding where the denoiser pools its prompt (diffusers' `addition_embed_type="text"`).

        pool(y) + gate * W v

    `text` is diffusers' own pooling, which knows only the text; `image` [D, T * C], of the image tokens v, belongs to the
    adapter. None adds nothing, and gate 0 is exactly the network without adapter.
    """

    def __init__(self, text: nn.Module, image: nn.Linear | None) -> None:
        super().__init__()
        self.text = text
        self.image = image

    def forward(self, encoder_hidden_states: Tensor | ImageCondition) -> Tensor:
        """Prompt as the denoiser takes it to [B, D] (any range)."""
        if isinstance(encoder_hidden_states, Tensor):
            return self.text(encoder_hidden_states)
        text, tokens, gate = encoder_hidden_states
        pooled = self.text(text)
        return (
            pooled
            if self.image is None
            else pooled + gate[:, None].to(pooled.dtype) * self.image(tokens.flatten(1))
        )


def pool_image(unet: Any, weight: Tensor | None = None) -> None:
    """Let the image tokens join the pooled text by `weight` [D, T * C] (None: not at all), in a denoiser that pools it."""
    if unet.config.addition_embed_type != "text":
        return
    pool = unet.add_embedding
    text = pool.text if isinstance(pool, PooledPrompt) else pool
    image = None
    if weight is not None:
        image = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(
            weight.device, unet.dtype
        )
        image.load_state_dict({"weight": weight})
    unet.add_embedding = PooledPrompt(text, image)


def pooled_weight(path: Path) -> Tensor | None:
    """`pool_image`'s weight of the adapter in the file `path` (key `pooled.weight`), None where it has none."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(POOLED) if POOLED in set(file.keys()) else None

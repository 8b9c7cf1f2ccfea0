"""The image condition: IP-Adapter's decoupled cross-attention with a gate for each sample.

    Attn(Q, K_y, V_y) + gate * Attn(Q, K_v, V_v)

(Ye et al., arXiv 2308.06721, equation 5.) The keys and values of the image tokens come from the
adapter's own matrices `to_k_ip` and `to_v_ip`. `gate` [B] is the paper's lambda, one number for
each sample: 0 is exactly the network without adapter, 1 is scale 1. diffusers' processor has one
scale for a complete call and keeps it as state. Here the gate is an argument of the call, together
with the tokens, so that branches with and without image, and views with different gates, share one
batch.

The tokens come from a CLIP vision tower and the adapter's projection (`ImageEncoder`): 4 tokens
from the pooled embedding for the base adapters, 16 from the penultimate hidden states for "plus".

The caller passes the networks; this module does not import diffusers. `encoder_hidden_states` of
the denoiser's forward pass is either the text embedding [B, L, C] alone (no image branch) or the
triple `(text [B, L, C], image tokens [B, T, C], gate [B])`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

# Mean and deviation of the training pictures of OpenAI's CLIP; BLIP uses them, too
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
POOLED = "pooled.weight"  # key of `pool_image`'s weight in an adapter file
ImageCondition = tuple[Tensor, Tensor, Tensor]  # text [B, L, C], image tokens [B, T, C], gate [B]


@dataclass(frozen=True)
class ImageEncoder:
    """Encodes an image to the image tokens of the IP-Adapter.

    Attributes:
        tower: A transformers CLIPVisionModelWithProjection.
        projection: The adapter's projection.
        pooled: Whether the projection reads the pooled embedding ("base") or the penultimate hidden
            states ("plus", "full").
        mean: Of each channel, of images in [0, 1].
        std: Of each channel.
    """

    tower: Any
    projection: nn.Module
    pooled: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def widths(self) -> tuple[int, int]:
        """Width of the tower's output, and the width that the projection was trained on."""
        config = self.tower.config
        expected = next(
            m for m in self.projection.modules() if isinstance(m, nn.Linear)
        ).in_features
        return (config.projection_dim if self.pooled else config.hidden_size), expected

    def normalize(self, rgb: Tensor) -> Tensor:
        """CLIP's input [B, 3, S, S] of rgb [B, 3, H, W] in [0, 1].

        The shortest edge is resized to S (bicubic), then centre crop, mean and std.
        """
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
        """The tokens of "no image" [1, T, C] that the adapter was trained with.

        They are the projection of a zero embedding (base), or the encoding of a zero image (plus).
        """
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
    """A denoiser with named attention processors that can be replaced."""

    @property
    def attn_processors(self) -> dict[str, Any]:
        """Processor of each attention layer by its path."""
        ...

    def set_attn_processor(self, processor: dict[str, Any]) -> None:
        """Replace all processors, by path."""
        ...


class GatedImageAttention(nn.Module):
    """Cross-attention to text plus gated cross-attention to image tokens, for one layer."""

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
        """The output of the attention layer.

        Args:
            attn: The layer, with to_q, to_k, to_v, to_out and heads.
            hidden_states: [B, N, D].
            encoder_hidden_states: The text [B, L, C], or text, image tokens and gates.
            attention_mask: Must be None.

        Returns:
            [B, N, D].
        """
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
    """Tokens [B, N, D] as [B, heads, N, D / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V [B, N, D] with Q [B, heads, N, d], K and V [B, M, D]."""
    mixed = F.scaled_dot_product_attention(
        query, split_heads(key, heads), split_heads(value, heads)
    )
    return mixed.transpose(1, 2).flatten(2)


def install_gates(unet: HasAttentionProcessors) -> int:
    """Replace each loaded IP-Adapter processor by `GatedImageAttention` with the same weights.

    Self-attention keeps its processors. ValueError if several adapters are loaded.

    Returns:
        The number of replaced processors.
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
    """The pooled prompt, for denoisers that add it to the time embedding.

        pool(y) + gate * W v

    (diffusers' `addition_embed_type="text"`.) `text` is diffusers' pooling of the text y. `image`
    is W [D, T * C], which belongs to the adapter and reads the image tokens v; None adds nothing.
    Gate 0 is exactly the network without adapter.
    """

    def __init__(self, text: nn.Module, image: nn.Linear | None) -> None:
        super().__init__()
        self.text = text
        self.image = image

    def forward(self, encoder_hidden_states: Tensor | ImageCondition) -> Tensor:
        """The pooled prompt [B, D]; the argument is the denoiser's."""
        if isinstance(encoder_hidden_states, Tensor):
            return self.text(encoder_hidden_states)
        text, tokens, gate = encoder_hidden_states
        pooled = self.text(text)
        if self.image is None:
            return pooled
        return pooled + gate[:, None].to(pooled.dtype) * self.image(tokens.flatten(1))


def pool_image(unet: Any, weight: Tensor | None = None) -> None:
    """Add the image tokens to the pooled text, by `weight` [D, T * C], in place.

    None adds nothing. A denoiser that does not pool its prompt stays as it is.
    """
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
    """The weight of `pool_image` in the adapter file `path`, or None if the file has none."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(POOLED) if POOLED in set(file.keys()) else None

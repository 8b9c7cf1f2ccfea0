"""The image condition: IP-Adapter's decoupled cross-attention (Ye et al., arXiv 2308.06721, equation 5) with a gate per sample.

    Attn(Q, K_y, V_y) + gate * Attn(Q, K_v, V_v)

The keys and values of the image tokens come from the adapter's own matrices `to_k_ip`, `to_v_ip`, next to the text's.
`gate` [B] is the paper's lambda, one number per sample: 0 is exactly the network without adapter, 1 is scale 1. diffusers'
own processor knows one scale for a whole call and keeps it as state; here the gate travels with the call, beside the
tokens, so that branches with and without image, and views with different gates, share one batch.

The network is handed in, nothing of diffusers is imported: `encoder_hidden_states` of its forward is either the text
embedding [B, L, C] alone (no image branch) or the triple `(text [B, L, C], image tokens [B, T, C], gate [B])`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

ImageCondition = tuple[Tensor, Tensor, Tensor]  # text [B, L, C], image tokens [B, T, C], gate [B]


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
    mixed = F.scaled_dot_product_attention(query, split_heads(key, heads), split_heads(value, heads))
    return mixed.transpose(1, 2).flatten(2)


def install_gates(unet: HasAttentionProcessors) -> int:
    """Put `GatedImageAttention` in the place of each loaded IP-Adapter processor, around the same weights; returns how many.

    Self-attention keeps its processors. One adapter is supported; several loaded at once are an error.
    """
    processors = unet.attn_processors
    adapted = {name: p for name, p in processors.items() if hasattr(p, "to_k_ip")}
    for name, processor in adapted.items():
        if len(processor.to_k_ip) != 1:
            raise ValueError(f"{name} carries {len(processor.to_k_ip)} IP-Adapters, one is supported")
        processors[name] = GatedImageAttention(processor.to_k_ip[0], processor.to_v_ip[0])
    unet.set_attn_processor(processors)
    hide_image_from_pooled_text(unet)
    return len(adapted)


def hide_image_from_pooled_text(unet: HasAttentionProcessors) -> None:
    """Hand a denoiser that adds the pooled text to its time embedding (`addition_embed_type="text"`) the text alone.

    diffusers gives that layer the whole `encoder_hidden_states`, of which it knows only the text.
    """
    pool = getattr(unet, "add_embedding", None)
    if isinstance(pool, nn.Module):
        pool.register_forward_pre_hook(lambda _, args: args if isinstance(args[0], Tensor) else (args[0][0],))

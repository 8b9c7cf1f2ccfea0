"""BLIP with text cross-attention (Li et al., arXiv 2201.12086), as used by ImageReward.

Input: a picture and a text. Output: one feature vector per text. A vision transformer encodes the
picture; a BERT encodes the text, and its layers also attend to the patches of the picture.

Parameter names are those of the published checkpoints. Sizes are derived from the shapes of the
tensors; attention heads are always 64 wide. The network is for evaluation only: it has no dropout
and no stochastic depth.

Conventions: B pictures, N = 1 + (S / P)^2 patches, L text tokens, widths V and T.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64
VISION_EPS, TEXT_EPS = 1.0e-6, 1.0e-12  # of the layer norms


@dataclass(frozen=True)
class BlipSizes:
    """The sizes of the network; the defaults are ImageReward's.

    Attributes:
        image_size: Side S of the input in pixels.
        patch_size: Side P of a patch in pixels.
        vision_width: Features V of a patch.
        vision_layers: Blocks of the vision transformer.
        text_width: Features T of a token.
        text_layers: Layers of the text encoder.
        text_hidden: Features inside the feed-forward of a text layer.
        vocabulary: Number of token ids.
        positions: The longest text in tokens.
    """

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    text_width: int = 768
    text_layers: int = 12
    text_hidden: int = 3072
    vocabulary: int = 30524
    positions: int = 512

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, ...]]) -> BlipSizes:
        """The sizes of a state dict `visual_encoder.*`, `text_encoder.*`, from its shapes.

        Raises:
            KeyError: The state dict is of another model.
        """
        width, _, patch, _ = shapes["visual_encoder.patch_embed.proj.weight"]
        patches = shapes["visual_encoder.pos_embed"][1] - 1
        vocabulary, text_width = shapes["text_encoder.embeddings.word_embeddings.weight"]

        def count(prefix: str) -> int:
            return len(
                {key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)}
            )

        return BlipSizes(
            image_size=round(patches**0.5) * patch,
            patch_size=patch,
            vision_width=width,
            vision_layers=count("visual_encoder.blocks."),
            text_width=text_width,
            text_layers=count("text_encoder.encoder.layer."),
            text_hidden=shapes["text_encoder.encoder.layer.0.intermediate.dense.weight"][0],
            vocabulary=vocabulary,
            positions=shapes["text_encoder.embeddings.position_embeddings.weight"][0],
        )


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of queries `[B, Q, C]` over keys and values `[B, K, C]`: `[B, Q, C]`.

    `mask` is `[B, 1, 1, K]`, True for the keys that are used.
    """
    q, k, v = (x.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class VisionAttention(nn.Module):
    """Self-attention of the patches, with one projection for query, key and value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, V]` -> the same."""
        return self.proj(attend(*self.qkv(x).chunk(3, dim=-1)))


class VisionMlp(nn.Module):
    """Feed-forward of the vision transformer: two linear layers with a GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, V]` -> the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class VisionBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=VISION_EPS)
        self.attn = VisionAttention(width)
        self.norm2 = nn.LayerNorm(width, eps=VISION_EPS)
        self.mlp = VisionMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, V]` -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """The vision transformer: pictures -> patch features, the class token first."""

    def __init__(self, sizes: BlipSizes) -> None:
        super().__init__()
        width, patches = sizes.vision_width, (sizes.image_size // sizes.patch_size) ** 2
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, width, sizes.patch_size, stride=sizes.patch_size)}
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, width))
        self.blocks = nn.ModuleList([VisionBlock(width) for _ in range(sizes.vision_layers)])
        self.norm = nn.LayerNorm(width, eps=VISION_EPS)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pictures `[B, 3, S, S]` -> `[B, N, V]`."""
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class TextProjections(nn.Module):
    """Projections of attention: query from the text, key and value from text or patches."""

    def __init__(self, width: int, source_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)

    def forward(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Text `[B, L, T]`, source `[B, K, C]` -> query `[B, L, T]`, key and value `[B, K, T]`."""
        return self.query(x), self.key(source), self.value(source)


class TextOutput(nn.Module):
    """Output of a text layer: projection, residual, then the norm (BERT is post-norm)."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=TEXT_EPS)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """`[B, L, width_in]` and the residual `[B, L, T]` -> `[B, L, T]`."""
        return self.LayerNorm(self.dense(x) + residual)


class TextAttention(nn.Module):
    """Attention of the text to `source`, the text itself or the patches, with its output layer."""

    def __init__(self, width: int, source_width: int) -> None:
        super().__init__()
        # "self" is the published name, which no attribute access can use.
        self.add_module("self", TextProjections(width, source_width))
        self.output = TextOutput(width, width)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """Text `[B, L, T]`, source `[B, K, C]`, mask `[B, 1, 1, K]` -> `[B, L, T]`."""
        query, key, value = self.get_submodule("self")(x, source)
        return self.output(attend(query, key, value, mask), x)


class TextLayer(nn.Module):
    """A layer of the text encoder: self-attention, attention to the picture, feed-forward."""

    def __init__(self, sizes: BlipSizes) -> None:
        super().__init__()
        width = sizes.text_width
        self.attention = TextAttention(width, width)
        self.crossattention = TextAttention(width, sizes.vision_width)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, sizes.text_hidden)})
        self.output = TextOutput(sizes.text_hidden, width)

    def forward(self, x: Tensor, mask: Tensor, patches: Tensor) -> Tensor:
        """Text `[B, L, T]`, mask `[B, 1, 1, L]`, patches `[B, N, V]` -> `[B, L, T]`."""
        x = self.crossattention(self.attention(x, x, mask), patches, None)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class TextEmbeddings(nn.Module):
    """Word and position embeddings of the text; no token types."""

    def __init__(self, sizes: BlipSizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocabulary, sizes.text_width)
        self.position_embeddings = nn.Embedding(sizes.positions, sizes.text_width)
        self.LayerNorm = nn.LayerNorm(sizes.text_width, eps=TEXT_EPS)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids `[B, L]` -> `[B, L, T]`."""
        return self.LayerNorm(
            self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]]
        )


class TextEncoder(nn.Module):
    """A BERT whose layers also attend to the picture."""

    def __init__(self, sizes: BlipSizes) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(sizes)
        layers = nn.ModuleList([TextLayer(sizes) for _ in range(sizes.text_layers)])
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, ids: Tensor, mask: Tensor, patches: Tensor) -> Tensor:
        """Token ids `[B, L]`, mask `[B, L]` and patches `[B, N, V]` -> `[B, L, T]`.

        The mask is True for tokens and False for padding.
        """
        x = self.embeddings(ids)
        for layer in self.encoder["layer"].children():
            x = layer(x, mask[:, None, None, :], patches)
        return x


class Blip(nn.Module):
    """BLIP: picture and text -> the class-token feature of the text."""

    def __init__(self, sizes: BlipSizes) -> None:
        super().__init__()
        self.visual_encoder = VisionTransformer(sizes)
        self.text_encoder = TextEncoder(sizes)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Normalised pictures `[B, 3, S, S]`, token ids and mask `[B, L]` -> `[B, T]`."""
        return self.text_encoder(ids, mask, self.visual_encoder(pixels))[:, 0]

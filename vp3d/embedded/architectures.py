"""The architectures of the embedded models.

All are of classes that diffusers, transformers and open_clip load without code of ours. The sizes
are chosen for two CPU cores: most of the arithmetic is done on 8 x 8 and 4 x 4 maps, and the
tokenizer has one token for every word of the toybox.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import vp3d.system.torch_compat  # noqa: F401  (before anything that imports torchvision)

import open_clip
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,  # noqa: F401  (save.py uses it; only this module imports diffusers)
    UNet2DConditionModel,
)
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from vp3d.diffusion.image_prompt import CLIP_MEAN, CLIP_STD, GatedImageAttention, pool_image
from vp3d.worlds.base import LATENT_CHANNELS, Sizes

TOKENS = 20  # length of a tokenized prompt
TEXT_WIDTH = 128
IMAGE_EMBED = 128
IMAGE_WIDTH = 128  # of the vision tower's patches, of which there are 8 x 8
IMAGE_TOKENS = TOKENS  # as many as the caption has: they are first trained to equal its tokens
TOYBOX_SIZES = Sizes()
UPSCALER_NOISE = 100  # the highest level of the noise on the upscaler's small picture


def new_autoencoder() -> AutoencoderTiny:
    """An untrained autoencoder from S x S x 3 to S/4 x S/4 x 4.

    `scaling_factor` is set after training, so that latents have unit variance.
    """
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(0, 1, 4),
        num_decoder_blocks=(4, 1, 0),
        latent_channels=4,
        act_fn="relu",
    )


def new_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """A CLIPTokenizer with one token for each of `words`, the comma and the full stop.

    Other text is spelt out in smaller tokens. The vocabulary comes from byte-pair merges of the
    words, each counted once; equal counts are ordered alphabetically. (The library's trainer orders
    them at random, but the weights depend on the numbers of the tokens.)
    """
    alphabet = [chr(c) for c in range(33, 127)]
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in sorted(words)]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for piece in pieces for pair in pairwise(piece)):
        merges.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        pieces = [_merge(piece, merges[-1]) for piece in pieces]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocab, merges=merges, model_max_length=TOKENS, unk_token="<|endoftext|>"
    )


def load_tokenizer(folder: Path, words: Iterable[str]) -> CLIPTokenizer:
    """The tokenizer in `folder`, which the weights in it were trained with, else a new one."""
    if (folder / "tokenizer.json").exists():
        return CLIPTokenizer.from_pretrained(folder, trust_remote_code=False)
    return new_tokenizer(words)


def _merge(piece: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in piece:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder from tokens [B, 20] to embeddings [B, 20, 128]."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet(sizes: Sizes = TOYBOX_SIZES) -> UNet2DConditionModel:
    """An untrained denoiser with v-prediction on latents [B, 4, S, S].

    It has cross-attention to the prompt at 8 x 8 and 4 x 4. The pooled text is also added to the
    time embedding, which scales and shifts every block: nouns are learnt sooner that way.
    """
    outer = len(sizes.widths) - 2
    return UNet2DConditionModel(
        sample_size=sizes.latent,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=sizes.widths,
        layers_per_block=sizes.layers,
        down_block_types=("DownBlock2D",) * outer + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",) * outer,
        time_embedding_dim=sizes.time_width,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def new_upscaler() -> UNet2DConditionModel:
    """An untrained denoiser of the upscaler, 32 to 128 pixels, with v-prediction.

    It reads latents [B, 4, 32, 32] and the small picture [B, 3, 32, 32]; the level of the noise on
    that picture is its class label. Its prompt is empty, so attention to it is only a bias.
    """
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=7,
        out_channels=4,
        block_out_channels=(48, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=UPSCALER_NOISE + 1,
    )


def new_low_res_scheduler() -> DDPMScheduler:
    """Cosine noise schedule of the noise on the upscaler's small picture."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")


def new_scheduler() -> DDIMScheduler:
    """Cosine noise schedule of 1000 steps, v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def new_image_encoder(sizes: Sizes = TOYBOX_SIZES) -> CLIPVisionModelWithProjection:
    """The IP-Adapter's vision tower, untrained.

    It turns pictures into an embedding [B, 128] and patches [B, 1 + 64, 128].
    """
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=IMAGE_WIDTH,
            intermediate_size=384,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=sizes.resolution,
            patch_size=sizes.patch,
            projection_dim=IMAGE_EMBED,
        )
    )


def new_image_projection() -> IPAdapterPlusImageProjection:
    """An untrained resampler ("plus") from patches [B, 65, 128] to image tokens [B, 20, 128].

    One embedding of the complete picture ("base") does not contain which of two objects has which
    colour. Depth and number of heads are those that diffusers assumes of a file.
    """
    return IPAdapterPlusImageProjection(
        embed_dims=IMAGE_WIDTH,
        output_dims=TEXT_WIDTH,
        hidden_dims=128,
        heads=2,
        num_queries=IMAGE_TOKENS,
    )


def add_image_branch(unet: UNet2DConditionModel) -> nn.ModuleDict:
    """Add an image branch to every cross-attention of `unet`, in place.

    Keys and values start as copies of the text's, as in the paper's code; the image's part in the
    time embedding starts at zero.

    Returns:
        The branches under the numbers of the published files: "1", "3", "5", ...
    """
    branches = nn.ModuleDict()
    processors = unet.attn_processors
    for number, name in enumerate(processors):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        if not name.endswith("attn2.processor"):
            continue
        keys, values = (
            nn.Linear(TEXT_WIDTH, layer.out_features, bias=False)
            for layer in (attention.to_k, attention.to_v)
        )
        keys.load_state_dict(attention.to_k.state_dict())
        values.load_state_dict(attention.to_v.state_dict())
        processors[name] = GatedImageAttention(keys, values)
        branches[str(number)] = processors[name]
    unet.set_attn_processor(processors)
    width = unet.time_embedding.linear_2.out_features
    pool_image(unet, torch.zeros(width, IMAGE_TOKENS * TEXT_WIDTH))
    return branches


def clip_config(
    tokenizer: CLIPTokenizer, sizes: Sizes = TOYBOX_SIZES, name: str = "toybox"
) -> dict[str, object]:
    """The `model_cfg` of the reward model: a small ResNet and a text transformer."""
    text = {"context_length": TOKENS, "vocab_size": len(tokenizer), "hf_tokenizer_name": name}
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": sizes.resolution, "layers": [1, 1, 1, 1], "width": 24},
        "text_cfg": text | {"width": 128, "heads": 4, "layers": 3},
    }


def new_clip(tokenizer: CLIPTokenizer, sizes: Sizes = TOYBOX_SIZES) -> open_clip.CLIP:
    """The open_clip model of the rewards, untrained."""
    return open_clip.CLIP(**clip_config(tokenizer, sizes))


def new_noun_head(width: int, nouns: int) -> nn.Conv2d:
    """An auxiliary head: classifies, from `width` features a cell, which noun the cell shows."""
    head = nn.Conv2d(width, nouns, 1)
    nn.init.zeros_(head.weight)
    return head


class AttributeHeads(nn.Module):
    """Auxiliary heads: linear classifiers of scene attributes on an embedding [B, D].

    They serve training only and are not saved with the models.
    """

    def __init__(self, width: int, heads: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.values = {name: list(values) for name, values in heads.items()}
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(values)) for name, values in self.values.items()}
        )
        # random weights would disturb an embedding that already predicts the attributes
        for weight in (p for p in self.heads.parameters() if p.ndim > 1):
            nn.init.zeros_(weight)

    def forward(self, embedding: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy, a scalar; 0 if no picture of the batch has a target.

        targets: [B, heads] int64, -100 for an attribute that the picture does not show.
        """
        losses = [
            nn.functional.cross_entropy(
                head(embedding), targets[:, i], ignore_index=-100, reduction="sum"
            )
            for i, head in enumerate(self.heads.values())
        ]
        return (torch.stack(losses) / (targets >= 0).sum(0).clamp(min=1)).mean()


class TextHeads(nn.Module):
    """Auxiliary heads on a text embedding [B, D]: the attributes, and the picture's thumbnail."""

    def __init__(self, width: int, heads: Mapping[str, Sequence[str]], thumbnail: int) -> None:
        super().__init__()
        self.attributes = AttributeHeads(width, heads)
        self.thumbnail = nn.Linear(width, thumbnail)
        nn.init.zeros_(self.thumbnail.weight)

    def forward(
        self, embedding: torch.Tensor, targets: torch.Tensor, thumbnails: torch.Tensor
    ) -> torch.Tensor:
        """Loss of `AttributeHeads` plus the unexplained share of the variance of the thumbnails.

        thumbnails: [B, T], `data.thumbnails` of the pictures. A scalar.
        """
        error = nn.functional.mse_loss(self.thumbnail(embedding), thumbnails)
        return self.attributes(embedding, targets) + error / thumbnails.var(0).mean()


def vision_outputs(tower: nn.Module, rgb: torch.Tensor) -> Any:
    """`image_embeds` [B, 128] and hidden states of rgb [B, 3, S, S] in [0, 1]."""
    mean, std = (rgb.new_tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return tower((rgb - mean) / std, output_hidden_states=True)


def patches(outputs: Any) -> torch.Tensor:
    """The penultimate hidden states [B, 1 + 64, 128] of `vision_outputs`, the class token first.

    The adapter reads these.
    """
    return outputs.hidden_states[-2]


def tokenize(tokenizer: object, texts: list[str]) -> torch.Tensor:
    """Token ids [B, 20] int64."""
    batch = tokenizer(  # type: ignore[operator]
        texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    )
    return batch.input_ids

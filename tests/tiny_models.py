"""Tiny random models of the classes that real runs load, saved in the published folder layouts. For tests only.

`save_pipeline(folder)` and `save_ip_adapter(folder)` write what `load_prior(tiny_prior_config(root))` reads. Images are
32 x 32, latents 4 x 8 x 8 (AutoencoderTiny) or 4 x 16 x 16 (AutoencoderKL), text width 32, vision embedding 24.
Weights depend on `seed` alone; the default IP-Adapter is strong enough to matter.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from vp3d import torch_compat  # noqa: F401  (before transformers, which imports torchvision)
from vp3d.config import PriorConfig

import diffusers  # isort: skip
import transformers  # isort: skip
from safetensors.torch import save_file  # isort: skip

RESOLUTION = 32
TEXT_WIDTH = 32
IMAGE_WIDTH = 24
BLOCKS = (32, 64)
WORD_END = "</w>"


def tokenizer() -> transformers.CLIPTokenizer:
    """A CLIP tokenizer of single printable characters, 77 positions."""
    letters = [chr(code) for code in range(33, 127)]
    entries = letters + [letter + WORD_END for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={entry: i for i, entry in enumerate(entries)}, merges=[], model_max_length=77
    )


def text_encoder() -> transformers.CLIPTextModel:
    """A CLIP text model of width 32 for `tokenizer`."""
    config = transformers.CLIPTextConfig(
        vocab_size=190,
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=188,
        eos_token_id=189,
        pad_token_id=189,
    )
    return transformers.CLIPTextModel(config)


def autoencoder(kind: str) -> diffusers.ModelMixin:
    """AutoencoderTiny with factor 4 for "tiny", AutoencoderKL with factor 2 for "kl"."""
    if kind == "tiny":
        return diffusers.AutoencoderTiny(
            encoder_block_out_channels=(16, 16, 16),
            decoder_block_out_channels=(16, 16, 16),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
            scaling_factor=0.8,
            shift_factor=0.1,
        )
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=RESOLUTION,
    )


def unet() -> diffusers.UNet2DConditionModel:
    """A conditional UNet with cross-attention in its inner down and up block and in the middle."""
    return diffusers.UNet2DConditionModel(
        block_out_channels=BLOCKS,
        layers_per_block=1,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def scheduler(prediction_type: str = "epsilon") -> diffusers.DDIMScheduler:
    """Stable Diffusion's noise schedule with 1000 steps."""
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="trailing",
        prediction_type=prediction_type,
    )


def save_pipeline(folder: Path, vae: str = "tiny", prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a StableDiffusionPipeline with random weights; vae "tiny" or "kl", prediction_type "epsilon" or "v_prediction"."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = diffusers.StableDiffusionPipeline(
            vae=autoencoder(vae),
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
            unet=unet(),
            scheduler=scheduler(prediction_type),
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(folder)
    return folder


def adapter_weights(image_width: int = IMAGE_WIDTH) -> dict[str, torch.Tensor]:
    """A base IP-Adapter for `unet` under the published keys, 4 tokens; key order is that of `unet.attn_processors`."""
    weights = {
        "image_proj.proj.weight": torch.randn(4 * TEXT_WIDTH, image_width),
        "image_proj.proj.bias": torch.randn(4 * TEXT_WIDTH),
        "image_proj.norm.weight": torch.ones(TEXT_WIDTH),
        "image_proj.norm.bias": torch.zeros(TEXT_WIDTH),
    }
    crossing = [name for name in unet().attn_processors if not name.endswith("attn1.processor")]
    for i in range(len(crossing)):
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"ip_adapter.{2 * i + 1}.{part}.weight"] = 0.3 * torch.randn(BLOCKS[-1], TEXT_WIDTH)
    return weights


def save_ip_adapter(folder: Path, image_width: int = IMAGE_WIDTH, seed: int = 1) -> Path:
    """Write `models/ip-adapter_toybox.safetensors` and `models/image_encoder`; image_width is what the adapter expects."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=RESOLUTION,
            patch_size=8,
            projection_dim=IMAGE_WIDTH,
        )
        transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder / "models" / "image_encoder")
        save_file(adapter_weights(image_width), folder / "models" / "ip-adapter_toybox.safetensors")
    return folder


def save_manifest(root: Path) -> Path:
    """Write `MANIFEST.json` with the size and sha256 of every weight file under `root`."""
    files = {
        path.relative_to(root).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(root.rglob("*.safetensors"))
    }
    (root / "MANIFEST.json").write_text(json.dumps({"files": files}), encoding="utf-8")
    return root / "MANIFEST.json"


def tiny_prior_config(
    root: Path, vae: str = "tiny", prediction_type: str = "epsilon", ip_adapter: bool = True
) -> PriorConfig:
    """Write pipeline, IP-Adapter (unless told not to) and manifest under `root`; the config that loads them."""
    save_pipeline(root / "pipeline", vae, prediction_type)
    if ip_adapter:
        save_ip_adapter(root / "ip_adapter")
    return PriorConfig(
        path=str(root / "pipeline"),
        ip_adapter=str(root / "ip_adapter") if ip_adapter else "",
        manifest=str(save_manifest(root)),
        vocabulary="",
        resolution=RESOLUTION,
    )

"""Tiny random models of the classes that real runs load, saved in the published folder layouts. For
tests only.

`save_pipeline(folder)` and `save_ip_adapter(folder)` write what
`load_prior(tiny_prior_config(root))` reads, in the likeness of Stable Diffusion 1.5 ("sd") or
SDXL ("sdxl"). Images are 32 x 32, latents 4 x 8 x 8 (AutoencoderTiny) or 4 x 16 x 16
(AutoencoderKL), text width 32 (sdxl: 32 + 48, pooled 40), vision embedding 24 (hidden states 32).
Weights depend on `seed` alone; the default IP-Adapter is strong enough to matter.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from vp3d.config.schema import PriorConfig
from vp3d.system import torch_compat  # noqa: F401  (before transformers, which imports torchvision)

import diffusers  # isort: skip
import transformers  # isort: skip
from safetensors.torch import save_file  # isort: skip

RESOLUTION = 32
TEXT_WIDTH = 32
IMAGE_WIDTH = 24
BLOCKS = (32, 64)
LARGE_WIDTH, POOLED_WIDTH = (
    48,
    40,
)  # hidden states and projection of the second text encoder of the SDXL-like pipeline
CONTEXT = {
    "sd": TEXT_WIDTH,
    "sdxl": TEXT_WIDTH + LARGE_WIDTH,
}  # width of the text in cross-attention
WORD_END = "</w>"


def tokenizer() -> transformers.CLIPTokenizer:
    """A CLIP tokenizer of single printable characters, 77 positions."""
    letters = [chr(code) for code in range(33, 127)]
    entries = (
        letters + [letter + WORD_END for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    )
    return transformers.CLIPTokenizer(
        vocab={entry: i for i, entry in enumerate(entries)}, merges=[], model_max_length=77
    )


def text_encoder(layers: int = 1) -> transformers.CLIPTextModel:
    """A CLIP text model of width 32 for `tokenizer`."""
    return transformers.CLIPTextModel(text_config(TEXT_WIDTH, layers))


def text_config(width: int, layers: int) -> transformers.CLIPTextConfig:
    """Hidden states of `width`, projection of `POOLED_WIDTH`."""
    return transformers.CLIPTextConfig(
        vocab_size=190,
        hidden_size=width,
        intermediate_size=64,
        projection_dim=POOLED_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=188,
        eos_token_id=189,
        pad_token_id=189,
    )


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


def unet(kind: str = "sd") -> diffusers.UNet2DConditionModel:
    """A conditional UNet with cross-attention in its inner down and up block and in the middle.

    "sdxl": two layers in each.
    """
    large = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": POOLED_WIDTH + 6 * 8,
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
    }
    return diffusers.UNet2DConditionModel(
        block_out_channels=BLOCKS,
        layers_per_block=1,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=CONTEXT[kind],
        attention_head_dim=4,
        norm_num_groups=8,
        **(large if kind == "sdxl" else {}),
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


def save_pipeline(
    folder: Path,
    vae: str = "tiny",
    prediction_type: str = "epsilon",
    seed: int = 0,
    kind: str = "sd",
    variant: str | None = None,
) -> Path:
    """Write a pipeline with random weights: vae "tiny" or "kl", prediction_type epsilon or
    v_prediction, kind "sd" or "sdxl".
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline(vae, prediction_type, kind).save_pretrained(folder, variant=variant)
    return folder


def pipeline(vae: str, prediction_type: str, kind: str) -> diffusers.DiffusionPipeline:
    """A StableDiffusionPipeline or StableDiffusionXLPipeline."""
    parts = {
        "vae": autoencoder(vae),
        "tokenizer": tokenizer(),
        "feature_extractor": None,
        "image_encoder": None,
    }
    if kind == "sdxl":
        return diffusers.StableDiffusionXLPipeline(
            **parts,
            text_encoder=text_encoder(2),
            tokenizer_2=tokenizer(),
            text_encoder_2=transformers.CLIPTextModelWithProjection(text_config(LARGE_WIDTH, 2)),
            unet=unet(kind),
            scheduler=scheduler(prediction_type),
            add_watermarker=False,
        )
    return diffusers.StableDiffusionPipeline(
        **parts,
        text_encoder=text_encoder(),
        unet=unet(),
        scheduler=scheduler(prediction_type),
        safety_checker=None,
        requires_safety_checker=False,
    )


def adapter_weights(
    image_width: int = IMAGE_WIDTH, kind: str = "sd", plus: bool = False
) -> dict[str, torch.Tensor]:
    """An IP-Adapter for `unet(kind)` under the published keys; key order is that of
    `unet.attn_processors`.

    base: 4 tokens of an embedding of `image_width`; plus: 6 tokens of hidden states of that width.
    """
    width = CONTEXT[kind]
    weights = (
        resampler_weights(image_width, width) if plus else projection_weights(image_width, width)
    )
    weights = {f"image_proj.{key}": value for key, value in weights.items()}
    crossing = [name for name in unet(kind).attn_processors if not name.endswith("attn1.processor")]
    for i in range(len(crossing)):
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"ip_adapter.{2 * i + 1}.{part}.weight"] = 0.3 * torch.randn(BLOCKS[-1], width)
    return weights


def projection_weights(image_width: int, width: int) -> dict[str, torch.Tensor]:
    """The base projection: 4 tokens of `width`."""
    return {
        "proj.weight": torch.randn(4 * width, image_width),
        "proj.bias": torch.randn(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }


def resampler_weights(
    image_width: int, width: int, inner: int = 32, heads: int = 1
) -> dict[str, torch.Tensor]:
    """The projection of "plus", a perceiver resampler of four blocks with heads of 64: 6 tokens of
    `width`.
    """
    weights = {
        "latents": torch.randn(1, 6, inner),
        "proj_in.weight": torch.randn(inner, image_width),
        "proj_in.bias": torch.randn(inner),
        "proj_out.weight": torch.randn(width, inner),
        "proj_out.bias": torch.randn(width),
        "norm_out.weight": torch.ones(width),
        "norm_out.bias": torch.zeros(width),
    }
    for n in range(4):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            weights |= {
                f"layers.{n}.{norm}.weight": torch.ones(inner),
                f"layers.{n}.{norm}.bias": torch.zeros(inner),
            }
        shapes = {
            "0.to_q": (64 * heads, inner),
            "0.to_kv": (128 * heads, inner),
            "0.to_out": (inner, 64 * heads),
        }
        shapes |= {"1.1": (4 * inner, inner), "1.3": (inner, 4 * inner)}
        weights |= {
            f"layers.{n}.{name}.weight": 0.3 * torch.randn(shape) for name, shape in shapes.items()
        }
    return weights


def save_ip_adapter(
    folder: Path,
    image_width: int | None = None,
    seed: int = 1,
    kind: str = "sd",
    plus: bool = False,
    projection: int = IMAGE_WIDTH,
) -> Path:
    """Write `models/ip-adapter_toybox.safetensors` and `models/image_encoder`; image_width is what
    the adapter expects.

    projection: width of the encoder's pooled embedding; its hidden states are 32 wide.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=RESOLUTION,
            patch_size=8,
            projection_dim=projection,
        )
        transformers.CLIPVisionModelWithProjection(config).save_pretrained(
            folder / "models" / "image_encoder"
        )
        weights = adapter_weights(image_width or (32 if plus else IMAGE_WIDTH), kind, plus)
        save_file(weights, folder / "models" / "ip-adapter_toybox.safetensors")
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
    root: Path,
    vae: str = "tiny",
    prediction_type: str = "epsilon",
    ip_adapter: bool = True,
    kind: str = "sd",
    plus: bool = False,
) -> PriorConfig:
    """Write a pipeline, an IP-Adapter and a manifest below `root`; returns the config for them."""
    save_pipeline(root / "pipeline", vae, prediction_type, kind=kind)
    if ip_adapter:
        save_ip_adapter(root / "ip_adapter", kind=kind, plus=plus)
    return PriorConfig(
        path=str(root / "pipeline"),
        ip_adapter=str(root / "ip_adapter") if ip_adapter else "",
        manifest=str(save_manifest(root)),
        vocabulary="",
        dtype="float32",
        resolution=RESOLUTION,
    )

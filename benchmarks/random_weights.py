"""Writes model folders in the published layouts with random weights; nothing is downloaded.

The sizes are the published ones (`FULL`) or small (`TINY`). `write_folders` writes a pipeline of
Stable Diffusion 1.5 or SDXL, the base IP-Adapter with its ViT-H/14, ImageReward, DINOv2-base and
TAESD in float16.
"""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import sds_step
from vp3d.config.paths import locate
from vp3d.config.schema import PriorConfig
from vp3d.diffusion.image_prompt import CLIP_MEAN, CLIP_STD
from vp3d.rewards.blip import BlipSizes
from vp3d.rewards.imagereward import VOCABULARY_FILE, WEIGHTS_FILE, ImageRewardNet
from vp3d.system import torch_compat  # noqa: F401  (before transformers)
from vp3d.system.files import write_json

import diffusers  # isort: skip
import transformers  # isort: skip
from safetensors.torch import save_file  # isort: skip

CLIP_L = {  # text_encoder/config.json of both
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "vocab_size": 49408,
}
BIG_G = {  # text_encoder_2/config.json of SDXL
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
    "vocab_size": 49408,
}
SDXL_UNET = {  # unet/config.json of SDXL base
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "layers_per_block": 2,
    "sample_size": 128,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# What differs from the autoencoder of 1.5; force_upcast is the default.
SDXL_VAE = {"scaling_factor": 0.13025, "sample_size": 1024}
VIT_H = {  # models/image_encoder/config.json of h94/IP-Adapter
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": sds_step.IMAGE_WIDTH,
    "hidden_act": "gelu",
}
DINO = {  # config.json of facebook/dinov2-base
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 518,
    "patch_size": 14,
}
TAESD: dict[str, Any] = {}  # config.json of madebyollin/taesd is diffusers' default
NARROW = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TINY_TEXT = CLIP_L | NARROW | {"projection_dim": 64, "vocab_size": 512}
TINY_LAYERS = {
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 4, 4),
    "cross_attention_dim": 128,
}
TINY_ADDED = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64 + 6 * 8}
# The file of the base adapter for the ViT-H in h94/IP-Adapter.
ADAPTERS = {
    "sd15": "models/ip-adapter_sd15.safetensors",
    "sdxl": "sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
}
ENCODER_FOLDER = "models/image_encoder"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL_VAES = ("taesd", "taesdxl")  # both have the same sizes
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class PriorSizes:
    """Keyword arguments of the classes of a pipeline.

    Attributes:
        unet: of the denoiser.
        vae: of the autoencoder.
        texts: of the CLIP text encoder, or SDXL's two.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    texts: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Sizes:
    """Keyword arguments of all classes that are written.

    Attributes:
        priors: name -> sizes of the pipeline.
        vision: of the IP-Adapter's image encoder.
        dino: of DINOv2.
        taesd: of the small autoencoder.
        blip: of ImageReward.
    """

    priors: dict[str, PriorSizes]
    vision: dict[str, Any]
    dino: dict[str, Any]
    taesd: dict[str, Any]
    blip: BlipSizes


FULL = Sizes(
    {
        "sd15": PriorSizes(sds_step.UNET, sds_step.VAE, (CLIP_L,)),
        "sdxl": PriorSizes(SDXL_UNET, sds_step.VAE | SDXL_VAE, (CLIP_L, BIG_G)),
    },
    VIT_H,
    DINO,
    TAESD,
    BlipSizes(),
)
TINY = Sizes(
    {
        "sd15": PriorSizes(sds_step.TINY_UNET, sds_step.TINY_VAE, (TINY_TEXT,)),
        "sdxl": PriorSizes(
            SDXL_UNET | {"block_out_channels": (32, 64, 64)} | TINY_LAYERS | TINY_ADDED,
            sds_step.TINY_VAE | SDXL_VAE,
            (TINY_TEXT, TINY_TEXT),
        ),
    },
    VIT_H | NARROW | {"patch_size": 32},
    DINO | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    TAESD | {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4},
    BlipSizes(224, 32, 128, 2, 64, 2, 128, 512, 64),
)


def new_unet(sizes: PriorSizes) -> Any:
    """The denoiser, on the default device."""
    return diffusers.UNet2DConditionModel(**sizes.unet)


def new_tower(sizes: Sizes) -> Any:
    """The IP-Adapter's image encoder, on the default device."""
    return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**sizes.vision))


def new_texts(sizes: PriorSizes, tokenizer: Any) -> list[Any]:
    """The text encoders, on the default device; `tokenizer` has the ids of the special tokens."""
    ends = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    configs = [
        transformers.CLIPTextConfig(**text, **ends, max_position_embeddings=sds_step.TOKENS)
        for text in sizes.texts
    ]
    kinds = (transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)
    return [kind(config) for kind, config in zip(kinds, configs, strict=False)]


def write_prior(sizes: PriorSizes, folder: Path, adapter: Path, device: torch.device) -> None:
    """Writes a diffusers pipeline and the IP-Adapter for its denoiser.

    Args:
        sizes: the sizes of the pipeline.
        folder: where the pipeline is written.
        adapter: the file of the adapter.
        device: where the networks are initialised.
    """
    source = locate(PriorConfig().path) / "tokenizer"
    tokenizer = transformers.CLIPTokenizer.from_pretrained(source, model_max_length=sds_step.TOKENS)
    with torch.device(device):
        unet = new_unet(sizes).half()
        vae = diffusers.AutoencoderKL(**sizes.vae).half()
        texts = [text.half() for text in new_texts(sizes, tokenizer)]
    parts = {
        "unet": unet,
        "vae": vae,
        "text_encoder": texts[0],
        "tokenizer": tokenizer,
        "scheduler": diffusers.DDIMScheduler(**sds_step.SCHEDULE),
        "feature_extractor": None,
        "image_encoder": None,
    }
    if len(texts) == 1:
        pipe = diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, requires_safety_checker=False
        )
    else:
        second = {"text_encoder_2": texts[1], "tokenizer_2": tokenizer, "add_watermarker": False}
        pipe = diffusers.StableDiffusionXLPipeline(**parts, **second)
    pipe.save_pretrained(folder)
    tensors = {}
    for half, found in sds_step.adapter_weights(unet).items():
        tensors |= {f"{half}.{key}": value for key, value in found.items()}
    save_tensors(tensors, adapter)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes tensors (any shape and range) as a safetensors file in float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {key: value.detach().half().cpu().contiguous() for key, value in tensors.items()}
    save_file(halves, path)


def write_imagereward(sizes: BlipSizes, folder: Path, device: torch.device) -> None:
    """Writes ImageReward as `models fetch imagereward` does.

    Its vocabulary has no words, so each word of a prompt is one [UNK].
    """
    with torch.device(device):
        net = ImageRewardNet(sizes)
    save_tensors(net.state_dict(), folder / WEIGHTS_FILE)
    words = [
        *SPECIAL_TOKENS,
        *(f"[unused{i}]" for i in range(sizes.vocabulary - 2 - len(SPECIAL_TOKENS))),
    ]
    (folder / VOCABULARY_FILE).write_text("\n".join(words) + "\n", encoding="utf-8")


def write_tower(model: Any, folder: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Writes a vision transformer and its preprocessor for 224 pixels.

    Args:
        model: the model, of the library transformers.
        folder: where it is written.
        mean: means of the channels, in [0, 1].
        std: standard deviations of the channels, in [0, 1].
    """
    model.half().save_pretrained(folder)
    settings = {"crop_size": {"height": 224, "width": 224}, "image_mean": mean, "image_std": std}
    write_json(folder / "preprocessor_config.json", settings)


def write_folders(work: Path, model: str, sizes: Sizes, device: torch.device) -> None:
    """Writes all folders that `model` needs; folders that exist are kept.

    A folder gets its name after it is complete.

    Args:
        work: the folder of all folders.
        model: a name of `sizes.priors`.
        sizes: the sizes of all networks.
        device: where the networks are initialised.
    """
    adapter = work / "ip_adapter"

    def prior(folder: Path) -> None:
        write_prior(sizes.priors[model], folder, adapter / ADAPTERS[model], device)

    def vision(folder: Path) -> None:
        with torch.device(device):
            write_tower(new_tower(sizes), folder, CLIP_MEAN, CLIP_STD)

    def dino(folder: Path) -> None:
        with torch.device(device):
            tower = transformers.Dinov2Model(transformers.Dinov2Config(**sizes.dino))
        write_tower(tower, folder, IMAGENET_MEAN, IMAGENET_STD)

    def taesd(folder: Path) -> None:
        with torch.device(device):
            diffusers.AutoencoderTiny(**sizes.taesd).half().save_pretrained(folder)

    writers: dict[Path, Callable[[Path], None]] = {
        work / model: prior,
        adapter / ENCODER_FOLDER: vision,
        work / "imagereward": lambda folder: write_imagereward(sizes.blip, folder, device),
        work / "dinov2-base": dino,
        work / "taesd": taesd,
    }
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    for folder, write in writers.items():
        if folder.is_dir():
            continue
        sys.stderr.write(f"writing {folder}\n")
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write(part)
        part.rename(folder)
        gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the processes that follow

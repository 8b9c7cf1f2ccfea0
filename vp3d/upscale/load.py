"""Load a StableDiffusionUpscalePipeline from a local folder, or the embedded upscaler.

Weights are read from safetensors only. The classes that the folder names are compared with a list,
as those of a prior are (`vp3d.diffusion.load`); none is imported by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vp3d.config.paths import ASSETS, MANIFEST
from vp3d.diffusion import autoencoder
from vp3d.diffusion.load import (
    AUTOENCODERS,
    LIBRARIES,
    PART_CLASSES,
    SCHEDULERS,
    TEXT_ENCODERS,
    check_classes,
    check_complete,
    hide_messages,
)
from vp3d.diffusion.schedule import alpha_bar_from_config
from vp3d.diffusion.text import TextEncoders
from vp3d.errors import MissingWeightsError
from vp3d.system import torch_compat  # noqa: F401  (before what imports torchvision)
from vp3d.system.files import read_json_object
from vp3d.upscale.diffusion import DiffusionUpscaler, DrawSettings, Parts
from vp3d.upscale.network import FACTOR
from vp3d.weights.locate import read_whole
from vp3d.weights.manifest import verify_files
from vp3d.weights.model_settings import check_model_settings, offline
from vp3d.weights.readable import readable

import diffusers  # isort: skip
import transformers  # isort: skip

KIND = "StableDiffusionUpscalePipeline"
MOST_NOISE = 350  # of a pipeline that does not say it, as in diffusers
EMBEDDED = ASSETS / "upscaler"  # from 32 to 128 pixels, trained on the toybox
SHARED = "pipeline"  # beside an upscaler: the parts that it does not have itself
UPSCALE_PARTS = PART_CLASSES | {"low_res_scheduler": SCHEDULERS}
UPSCALE_LIBRARIES = LIBRARIES | {"low_res_scheduler": "diffusers"}


def load_embedded_upscaler(
    drawing: DrawSettings, device: torch.device | str = "cpu"
) -> DiffusionUpscaler:
    """The upscaler of the toybox, after its and the shared files were compared with the manifest.

    Raises:
        UserError: as `load_diffusion_upscaler`; DamagedFileError if a file was changed.
    """
    for folder in (EMBEDDED, EMBEDDED.parent / SHARED):
        verify_files(MANIFEST, folder)
    return load_diffusion_upscaler(EMBEDDED, drawing, device)


def load_diffusion_upscaler(
    folder: Path, drawing: DrawSettings, device: torch.device | str = "cpu"
) -> DiffusionUpscaler:
    """Load, check and freeze the pipeline in a folder.

    Autoencoder, text encoder and tokenizer may be in a folder `pipeline` beside it instead: an
    upscaler that is trained by `vp3d.embedded.train` shares them.

    Args:
        folder: a StableDiffusionUpscalePipeline, as diffusers saves it.
        drawing: how to draw with it.
        device: where the networks run; the denoiser is float16 on a GPU.

    Raises:
        UserError: a file is missing, damaged or unsuitable, or a value is out of range.
    """
    if not (folder / "model_index.json").is_file():
        raise MissingWeightsError(
            f"--model {folder} is no folder of a {KIND}; give small, large, drawings, toybox "
            "or such a folder"
        )
    hide_messages()
    with readable(f"the upscaler {folder}", "--model"), offline():
        index = read_json_object(folder / "model_index.json")
        check_classes(index, str(folder), (KIND,), "--model", UPSCALE_PARTS, UPSCALE_LIBRARIES)
        half = torch.device(device).type == "cuda"
        parts = _load_parts(folder, index, torch.float16 if half else torch.float32)
        _check_fit(parts)
    return DiffusionUpscaler(_placed(parts, device), drawing)


def _load_parts(folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> Parts:
    vae_folder = _folder_of("vae", folder)
    for path in (folder / "unet", vae_folder):
        check_model_settings(read_json_object(path / "config.json"))
    files = {"local_files_only": True, "use_safetensors": True}
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype, **files)
    vae = AUTOENCODERS[index["vae"][1]].from_pretrained(vae_folder, **files)
    check_complete(unet)
    check_complete(vae)
    text = read_whole(
        TEXT_ENCODERS[index["text_encoder"][1]],
        _folder_of("text_encoder", folder).parent,
        subfolder="text_encoder",
        local_files_only=True,
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(
        _folder_of("tokenizer", folder), local_files_only=True, trust_remote_code=False
    )
    encoders = TextEncoders(((tokenizer, text.eval().requires_grad_(False)),))
    names = ("scheduler", "low_res_scheduler")
    schedules = [read_json_object(folder / name / "scheduler_config.json") for name in names]
    for schedule in schedules:
        check_model_settings(schedule)

    def embed(prompts: list[str]) -> Tensor:
        return encoders.encode(prompts).tokens

    return Parts(
        unet.eval().requires_grad_(False),
        vae.eval().requires_grad_(False),
        embed,
        alpha_bar_from_config(schedules[0]),
        alpha_bar_from_config(schedules[1]),
        str(schedules[0].get("prediction_type", "epsilon")),
        int(index.get("max_noise_level") or MOST_NOISE),
    )


def _folder_of(part: str, folder: Path) -> Path:
    """Where a part of the pipeline in `folder` is: in it, or in the pipeline beside it."""
    own, shared = folder / part, folder.parent / SHARED / part
    return shared if shared.is_dir() and not own.is_dir() else own


def _check_fit(parts: Parts) -> None:
    """Refuse networks that are not those of an upscaler of factor 4."""
    unet, vae = parts.unet.config, parts.vae.config
    if unet.in_channels != unet.out_channels + 3 or unet.out_channels != vae.latent_channels:
        raise ValueError(
            f"its denoiser takes {unet.in_channels} channels and gives {unet.out_channels}, its "
            f"latents have {vae.latent_channels}"
        )
    if autoencoder.downscale(parts.vae) != FACTOR:
        raise ValueError(f"its autoencoder does not enlarge {FACTOR} times")
    if not isinstance(parts.unet.class_embedding, nn.Module):
        raise ValueError("its denoiser takes no noise level")


def _placed(parts: Parts, device: torch.device | str) -> Parts:
    """The parts on a device; the text encoder stays on the CPU."""
    parts.unet.to(device)
    parts.vae.to(device)

    def embed(prompts: list[str]) -> Tensor:
        return parts.embed(prompts).to(device)

    return replace(
        parts,
        embed=embed,
        alpha_bar=parts.alpha_bar.to(device),
        low_alpha_bar=parts.low_alpha_bar.to(device),
    )

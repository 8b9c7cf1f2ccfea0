"""Load a `Prior` from disk: the pipeline, its IP-Adapter, and the checks of both.

Weights are read from safetensors only, after they are checked against the manifest. The
modules that import diffusers are listed in pyproject.toml.

The files of a pipeline name classes. Such a name is only compared with the lists below: the class
that is called is the one of the list, and code in the folder is neither run nor asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vp3d.config.paths import locate
from vp3d.config.schema import PriorConfig
from vp3d.diffusion import autoencoder
from vp3d.diffusion.image_prompt import (
    CLIP_MEAN,
    CLIP_STD,
    ImageEncoder,
    install_gates,
    pool_image,
    pooled_weight,
)
from vp3d.errors import UserError
from vp3d.system import torch_compat  # before transformers, which imports torchvision
from vp3d.weights.locate import find_weights, read_whole
from vp3d.weights.lora_files import parse_loras
from vp3d.weights.manifest import verify_files
from vp3d.weights.model_settings import check_model_settings, offline

import diffusers  # isort: skip
import transformers  # isort: skip
from diffusers.models.embeddings import ImageProjection  # isort: skip

from vp3d.diffusion.lora import load_loras
from vp3d.diffusion.prior import Prior
from vp3d.weights.readable import readable

# The supported pipelines and what their denoiser may add to the time embedding
# (diffusers' addition_embed_type)
ADDITION_EMBED_TYPES = {
    "StableDiffusionPipeline": (None, "text"),
    "StableDiffusionXLPipeline": ("text_time",),
}
# The classes that a part of a pipeline may name in model_index.json
SCHEDULERS = (
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"),
    *("DEISMultistepScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
    *("LCMScheduler", "TCDScheduler", "EDMEulerScheduler"),
)
TEXT_ENCODERS = {
    "CLIPTextModel": transformers.CLIPTextModel,
    "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection,
}
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
AUTOENCODERS = {
    "AutoencoderKL": diffusers.AutoencoderKL,
    "AutoencoderTiny": diffusers.AutoencoderTiny,
}
PIPELINES = {
    "StableDiffusionPipeline": diffusers.StableDiffusionPipeline,
    "StableDiffusionXLPipeline": diffusers.StableDiffusionXLPipeline,
}
IMAGE_PROCESSORS = (
    *("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor"),
    "CLIPImageProcessorPil",
)
PART_CLASSES: dict[str, tuple[str, ...]] = {
    "scheduler": SCHEDULERS,
    "unet": ("UNet2DConditionModel",),
    "vae": tuple(AUTOENCODERS),
    "text_encoder": tuple(TEXT_ENCODERS),
    "text_encoder_2": tuple(TEXT_ENCODERS),
    "tokenizer": TOKENIZERS,
    "tokenizer_2": TOKENIZERS,
    "feature_extractor": IMAGE_PROCESSORS,
    "image_encoder": ("CLIPVisionModelWithProjection",),
    "safety_checker": ("StableDiffusionSafetyChecker",),  # named by SD 1.5, never loaded
}
LIBRARIES = {"safety_checker": "stable_diffusion"} | {
    part: "diffusers" if part in ("scheduler", "unet", "vae") else "transformers"
    for part in PART_CLASSES
    if part != "safety_checker"
}
PUBLISHED_ENCODERS = {  # (pooled embedding, its width): folder of h94/IP-Adapter
    (True, 1024): "models/image_encoder",
    (True, 1280): "sdxl_models/image_encoder",
    (False, 1280): "models/image_encoder",
}


def hide_messages() -> None:
    """Let diffusers and transformers print nothing: real problems are raised as errors.

    diffusers warns of every AutoencoderTiny.
    """
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def load_prior(
    config: PriorConfig,
    device: torch.device | str = "cpu",
    on_oom: Callable[[int, str], None] | None = None,
) -> Prior:
    """Load, check and freeze the pipeline and the IP-Adapter that `config` names.

    Args:
        config: Which files, in which precision.
        device: Where the networks run.
        on_oom: `on_oom(images, network)` is called after memory ran out in the denoiser or the
            autoencoder, with the new number of images in one call of that network.

    Returns:
        The prior, frozen, on the device.

    Raises:
        UserError: if a file is missing, damaged or unsuitable.

    Example:
        >>> prior = load_prior(PriorConfig())
        >>> prior.resolution
        64
    """
    if config.manifest:
        for folder in filter(None, (config.path, config.vae, config.ip_adapter)):
            verify_files(locate(config.manifest), locate(folder))
    hide_messages()
    pipe = _load_pipeline(config)
    _check_pipeline(pipe, config)
    encoder = _load_adapter(pipe, config) if config.ip_adapter else None
    if config.channels_last:
        for module in (pipe.unet, pipe.vae):
            module.to(memory_format=torch.channels_last)
    device = torch.device(device)
    if config.dtype == "auto" and device.type == "cpu" and torch_compat.multiplies_bfloat16(device):
        pipe.unet.to(torch.bfloat16)
    prior = Prior(pipe, encoder, config, device, on_oom)
    if config.loras:
        files = [(locate(path), scale) for path, scale in parse_loras(config.loras)]
        load_loras(prior.networks, files)
    if config.compile:
        prior.compile()
    return prior


def _load_pipeline(config: PriorConfig) -> Any:
    source, local = find_weights(config.path, "prior.path")
    with readable(f"the pipeline {config.path}", "prior.path"), offline(local):
        index = diffusers.DiffusionPipeline.load_config(source, local_files_only=local)
        if not isinstance(index, Mapping):
            raise ValueError("its model_index.json is not an object")
    kind = check_classes(index, config.path)
    parts: dict[str, Any] = {"add_watermarker": False}
    if kind == "StableDiffusionPipeline":
        parts = {"safety_checker": None, "requires_safety_checker": False}
    if config.vae:
        parts["vae"] = _load_autoencoder(config)
    dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
    remote = {"local_files_only": local, "trust_remote_code": False}
    options = {**remote, "dtype": dtype, "variant": config.variant or None}
    with readable(f"the pipeline {config.path}", "prior.path and prior.variant"), offline(local):
        for part in ("unet", "vae", "scheduler"):
            if part in parts or not _named(index, part):
                continue
            kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
            check_model_settings(
                kinds.get(part, diffusers.DDIMScheduler).load_config(
                    source, subfolder=part, local_files_only=local
                )
            )
        for part in ("text_encoder", "text_encoder_2"):
            name = _named(index, part)
            if name:
                encoder = TEXT_ENCODERS[name]
                parts[part] = read_whole(encoder, source, subfolder=part, **options)
        for part in ("tokenizer", "tokenizer_2"):
            if _named(index, part):
                parts[part] = transformers.CLIPTokenizer.from_pretrained(
                    source, subfolder=part, **remote
                )
        pipe = PIPELINES[kind].from_pretrained(source, use_safetensors=True, **options, **parts)
        check_complete(pipe.unet)
        check_complete(pipe.vae)
        return pipe


def check_classes(
    index: Any,
    name: str,
    kinds: Collection[str] = tuple(ADDITION_EMBED_TYPES),
    key: str = "prior.path",
    parts: Mapping[str, tuple[str, ...]] = PART_CLASSES,
    libraries: Mapping[str, str] = LIBRARIES,
) -> str:
    """The class of a pipeline, after every class that its `model_index.json` names is checked.

    Args:
        index: The content of the file.
        name: The location of the pipeline, for messages.
        kinds: The classes that the pipeline may have.
        key: The config key or option that names it, for messages.
        parts: The classes that each of its parts may have.
        libraries: The library of each part.

    Raises:
        UserError: The pipeline or a part of it is of a class that is not in the lists above, so
            that loading it could run code that VP3D does not know.
    """
    kind = index.get("_class_name") if isinstance(index, Mapping) else None
    if not isinstance(kind, str) or kind not in kinds:
        supported = " or a ".join(kinds)
        raise UserError(f"{key} {name} contains a {kind}: use a {supported}")
    for part, value in index.items():
        if part.startswith("_") or not isinstance(value, list | tuple):
            continue
        library, chosen = value if len(value) == 2 else (None, "?")
        if chosen is None and library is None:
            continue
        allowed = parts.get(part, ())
        if not isinstance(chosen, str) or chosen not in allowed or library != libraries[part]:
            use = f"use one of {', '.join(allowed)}" if allowed else "remove it"
            raise UserError(
                f"{key} {name}: {part} in its model_index.json is {library}.{chosen}, which "
                f"VP3D does not load: {use}"
            )
    return kind


def _named(index: Any, part: str) -> str | None:
    """The class that a checked `model_index.json` names for a part; None without the part."""
    name: str | None = (index.get(part) or [None, None])[1]
    return name


def _load_autoencoder(config: PriorConfig) -> Any:
    """The autoencoder of `prior.vae`: an AutoencoderTiny or an AutoencoderKL."""
    source, local = find_weights(config.vae, "prior.vae")
    with readable(f"the autoencoder {config.vae}", "prior.vae"), offline(local):
        settings = diffusers.AutoencoderTiny.load_config(source, local_files_only=local)
        check_model_settings(settings)
        kind = settings.get("_class_name")
        if not isinstance(kind, str) or kind not in AUTOENCODERS:
            raise ValueError(f"it contains a {kind}, not an AutoencoderTiny or AutoencoderKL")
        vae = AUTOENCODERS[kind].from_pretrained(
            source, local_files_only=local, use_safetensors=True
        )
        check_complete(vae)
        return vae


def check_complete(module: nn.Module) -> None:
    """Raise ValueError for a tensor that the file lacks.

    diffusers leaves such a tensor on the meta device, without values.
    """
    missing = next((name for name, value in module.state_dict().items() if value.is_meta), "")
    if missing:
        raise ValueError(f"the weights of its {type(module).__name__} lack {missing}")


def _check_pipeline(pipe: Any, config: PriorConfig) -> None:
    """Refuse anything but a plain text-to-image pipeline whose parts fit together.

    Also sets the autoencoder's precision.
    """
    unet, vae, large = pipe.unet.config, pipe.vae.config, hasattr(pipe, "text_encoder_2")
    towers = [pipe.text_encoder, pipe.text_encoder_2] if large else [pipe.text_encoder]
    allowed = ADDITION_EMBED_TYPES[type(pipe).__name__]
    plain = None not in towers and unet.addition_embed_type in allowed
    plain = plain and unet.cross_attention_dim == sum(tower.config.hidden_size for tower in towers)
    # SDXL base adds the pooled text and six numbers on sizes; the refiner has five
    if plain and large:
        added = towers[1].config.projection_dim + 6 * unet.addition_time_embed_dim
        plain = unet.projection_class_embeddings_input_dim == added
    if not plain or (unet.in_channels != vae.latent_channels and not config.vae):
        raise UserError(
            f"prior.path {config.path} is not a plain text-to-image pipeline: use SD 1.x, SD 2.x or"
            " SDXL base"
        )
    if unet.in_channels != vae.latent_channels:
        raise UserError(
            f"prior.vae {config.vae} gives latents of {vae.latent_channels} channels, the denoiser"
            f" takes {unet.in_channels}: set prior.vae to an autoencoder made for {config.path}"
        )
    scale = autoencoder.downscale(pipe.vae)
    if config.resolution % scale:
        raise UserError(
            f"prior.resolution {config.resolution} is not a multiple of {scale}, the downscaling of"
            " the autoencoder: set a multiple"
        )
    # only an AutoencoderKL states that it overflows in float16; those of SD 1.x and 2.x do not
    overflows = large and bool(getattr(vae, "force_upcast", False))
    pipe.vae.to(autoencoder.safe_dtype(config.vae_dtype, pipe.unet.dtype, overflows))


def _load_adapter(pipe: Any, config: PriorConfig) -> ImageEncoder:
    """Load the IP-Adapter into `pipe.unet`, with our gated attention; returns its image encoder."""
    if not config.ip_adapter_weight.endswith(".safetensors"):
        raise UserError(
            f"prior.ip_adapter_weight {config.ip_adapter_weight} is not a .safetensors file: name a"
            " .safetensors file"
        )
    source, local = find_weights(config.ip_adapter, "prior.ip_adapter")
    folder = config.image_encoder_folder
    folder = folder if "/" in folder else f"{config.ip_adapter_subfolder}/{folder}"
    with readable(
        f"the IP-Adapter's image encoder {config.ip_adapter}/{folder}", "prior.image_encoder_folder"
    ):
        kind = transformers.CLIPVisionModelWithProjection
        tower = read_whole(
            kind, source, subfolder=folder, local_files_only=local, dtype=pipe.unet.dtype
        )
    pipe.register_modules(image_encoder=tower)
    with (
        readable(
            f"the IP-Adapter {config.ip_adapter}",
            "prior.ip_adapter_weight, and that it was made for this pipeline",
        ),
        offline(local),
    ):
        pipe.load_ip_adapter(
            source,
            subfolder=config.ip_adapter_subfolder,
            weight_name=config.ip_adapter_weight,
            local_files_only=local,
        )
    projection = take_adapter(pipe.unet)
    weights = Path(source) / config.ip_adapter_subfolder / config.ip_adapter_weight
    # an adapter on this disk may also have a weight for the pooled prompt; published ones do not
    if weights.is_file():
        pool_image(pipe.unet, pooled_weight(weights))
    mean, std = (
        getattr(pipe.feature_extractor, name, None) for name in ("image_mean", "image_std")
    )
    pooled = isinstance(projection, ImageProjection)
    encoder = ImageEncoder(
        tower, projection, pooled, tuple(mean or CLIP_MEAN), tuple(std or CLIP_STD)
    )
    _check_encoder(encoder, f"{config.ip_adapter}/{folder}", config.ip_adapter_weight)
    return encoder


def take_adapter(unet: Any) -> nn.Module:
    """Replace the attention of the IP-Adapter loaded in `unet` by ours; returns its projection.

    The projection is removed from the denoiser.
    """
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    unet.encoder_hid_proj = None  # tokens are projected once for each visual prompt
    unet.config.encoder_hid_dim_type = None
    install_gates(unet)
    return projection


def _check_encoder(encoder: ImageEncoder, folder: str, weight_name: str) -> None:
    """Refuse a vision tower of another width than the adapter was trained with.

    (1024 and 1280 are easily mixed up.)
    """
    found, expected = encoder.widths
    if found != expected:
        published = PUBLISHED_ENCODERS.get((encoder.pooled, expected))
        right = "the folder of its own image encoder"
        if published:
            right = f"{published} if the folder is a copy of h94/IP-Adapter"
        raise UserError(
            f"the image encoder in {folder} gives vectors of {found} numbers but {weight_name} was"
            f" trained on {expected}: set prior.image_encoder_folder to {right}"
        )

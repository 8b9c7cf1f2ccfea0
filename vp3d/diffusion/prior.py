"""The frozen 2D diffusion model: text and image encoders, autoencoder and denoiser of a Stable Diffusion pipeline.

The only file that imports diffusers. The small embedded model, Stable Diffusion 1.x, 2.x and SDXL come through the same calls.
Conventions: images are rgb [B, 3, H, W] in [0, 1] sRGB; latents [B, 4, h, w] are scaled to about unit variance, as the denoiser
sees them (autoencoder.py). Whatever the network predicts, `predict_noise` returns epsilon.
All weights are frozen; results are float32 whatever `PriorConfig.dtype` the networks run in; attention is torch's SDPA.
Nothing of a run is kept here: conditions and gates travel with each call. Only the number of images in one call of the denoiser
or the autoencoder may change, by halves when memory runs out. Weights are safetensors only, checked against the manifest before
they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vp3d import torch_compat  # before transformers, which imports torchvision
from vp3d.config import PriorConfig, locate
from vp3d.diffusion import autoencoder
from vp3d.diffusion.cfg import Branch, branch_weights, combine
from vp3d.diffusion.image_prompt import ImageEncoder, install_gates, pool_image, pooled_weight
from vp3d.diffusion.schedule import (
    alpha_bar_from_config,
    ddim_step,
    ddim_timesteps,
    epsilon_from_output,
)
from vp3d.diffusion.text import TextEmbedding, TextEncoders
from vp3d.manifest import verify_files
from vp3d.out_of_memory import attempt
from vp3d.types import UserError
from vp3d.weights import find_weights, read_whole

import diffusers  # isort: skip
import transformers  # isort: skip
from diffusers.models.embeddings import ImageProjection  # isort: skip

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
LOAD_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    SafetensorError,
)
ADDED = {
    "StableDiffusionPipeline": (None, "text"),
    "StableDiffusionXLPipeline": ("text_time",),
}  # addition_embed_type
PUBLISHED_ENCODERS = {  # (pooled embedding, its width): folder of h94/IP-Adapter
    (True, 1024): "models/image_encoder",
    (True, 1280): "sdxl_models/image_encoder",
    (False, 1280): "models/image_encoder",
}


class Prior:
    """A frozen Stable Diffusion pipeline, with or without IP-Adapter. Made by `load_prior`."""

    def __init__(
        self,
        pipe: Any,
        image_encoder: ImageEncoder | None,
        config: PriorConfig,
        device: torch.device | str,
        on_oom: Callable[[int, str], None] | None = None,
    ) -> None:
        self.device, self.dtype, self.on_oom = torch.device(device), pipe.unet.dtype, on_oom
        self.unet, self.vae, self.image_encoder = pipe.unet, pipe.vae, image_encoder
        self.max_batch, self.vae_batch = config.max_batch, config.vae_batch
        pairs = [(pipe.tokenizer, pipe.text_encoder)]
        if hasattr(pipe, "text_encoder_2"):
            pairs.append((pipe.tokenizer_2, pipe.text_encoder_2))
        self.text_encoders = TextEncoders(
            tuple(pairs), bool(pipe.config.get("force_zeros_for_empty_prompt"))
        )
        self.resolution, self.latent_side = (
            config.resolution,
            config.resolution // autoencoder.downscale(pipe.vae),
        )
        self.prediction_type = str(pipe.scheduler.config.get("prediction_type", "epsilon"))
        self.alpha_bar = alpha_bar_from_config(pipe.scheduler.config).to(device)  # [T]
        # SDXL's size conditioning, [1, 6]: original size, corner of the crop, target size
        side = float(config.resolution)
        self.time_ids = torch.tensor([[side, side, 0.0, 0.0, side, side]], device=device)
        self._text_towers = [model for _, model in pairs]
        self._image_towers = (
            [] if image_encoder is None else [image_encoder.tower, image_encoder.projection]
        )
        for module in (self.unet, self.vae, *self._text_towers, *self._image_towers):
            torch_compat.freeze(module)
        for module in (self.unet, self.vae):
            module.to(device)
        for module in (*self._text_towers, *self._image_towers):
            module.to("cpu" if config.offload_encoders else device)
        with torch.no_grad(), self._here(self._image_towers):
            self.null_image = (
                None if image_encoder is None else image_encoder.null_tokens()
            )  # [1, T, C]

    def compile(self) -> None:
        """Have torch.compile make its own code of the denoiser and of what views are encoded by, at their first call."""
        _check_compiler(self.device)
        self.unet.compile()
        self.vae.encoder.compile()

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> TextEmbedding:
        """The encoded prompts (B of them); UserError for one that does not fit."""
        with self._here(self._text_towers):
            return self.text_encoders.encode(prompts)

    @torch.no_grad()
    def encode_null(self, negative: str) -> TextEmbedding:
        """The encoded negative prompt (one), which may be empty."""
        with self._here(self._text_towers):
            return self.text_encoders.encode_null(negative)

    def encode_images(self, rgb: Tensor) -> Tensor:
        """Latents [B, 4, h, w] of rgb [B, 3, H, W] in [0, 1], resized to the prior's resolution inside the graph.

        Beyond `vae_batch` images, which take more memory than all else here, a part at a time: nothing of it is kept for the
        backward pass, where it is encoded once more.
        """
        if rgb.ndim != 4 or rgb.shape[1] != 3:
            raise ValueError(f"encode_images takes rgb [B, 3, H, W], got {tuple(rgb.shape)}")
        size = (self.resolution, self.resolution)
        if rgb.shape[-2:] != size:
            shrinks = max(rgb.shape[-2:]) > self.resolution
            rgb = F.interpolate(
                rgb, size=size, mode="bilinear", antialias=shrinks, align_corners=False
            )
        if len(rgb) <= self.vae_batch:
            return autoencoder.encode(self.vae, rgb)

        def encode(part: Tensor) -> Tensor:
            found: Tensor = checkpoint(
                autoencoder.encode, self.vae, part, use_reentrant=False, preserve_rng_state=False
            )
            return found

        return torch.cat([encode(part) for part in rgb.split(self.vae_batch)])

    def encode_less(self, tried: int) -> int:
        """After memory ran out around `tried` images: half as many in a call of the autoencoder from here on; 0 if it was one."""
        fewer = min(self.vae_batch, tried) // 2
        self.vae_batch = fewer or self.vae_batch
        return fewer

    def decode(self, latents: Tensor) -> Tensor:
        """rgb [B, 3, H, W] in [0, 1] of latents [B, 4, h, w]; differentiable, clipped at the ends of the range."""
        pictures: list[Tensor] = []
        start = 0
        while start < len(latents):
            part = latents[start : start + self.vae_batch]
            picture = attempt(partial(autoencoder.decode, self.vae, part), len(part) > 1)
            if picture is None:
                self._told(self.encode_less(len(part)), "autoencoder")
                continue
            pictures.append(picture)
            start += len(part)
        return torch.cat(pictures)

    @torch.no_grad()
    def embed_visual_prompt(self, rgb: Tensor) -> Tensor:
        """Image tokens [B, T, C] float32 of visual prompts rgb [B, 3, H, W] in [0, 1]: the `image` of the calls below."""
        if self.image_encoder is None:
            raise UserError(
                "this prior has no IP-Adapter, so it takes no visual prompt: set prior.ip_adapter"
            )
        with self._here(self._image_towers):
            return self.image_encoder.tokens(rgb.to(self.device))

    def predict_noise(
        self,
        latents_t: Tensor,
        t: Tensor,
        text: TextEmbedding,
        image: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> Tensor:
        """The predicted epsilon [B, 4, h, w] float32.

        latents_t [B, 4, h, w] (about unit variance); t [B] int64; text of B prompts; image [B, T, C] or None for no image branch;
        gate [B] in [0, 1], the strength of the image branch per sample, 0 exactly none; None is 1.
        """
        gate = torch.ones(len(t), device=t.device) if gate is None else gate
        outputs: list[Tensor] = []
        start = 0
        while start < len(t):
            rows = slice(start, min(start + self.max_batch, len(t)))
            output = self._denoise(latents_t, t, text, image, gate, rows)
            if output is None:
                self._shrink(rows.stop - rows.start)
                continue
            outputs.append(output)
            start = rows.stop
        return epsilon_from_output(
            torch.cat(outputs), latents_t.float(), self.alpha_bar[t], self.prediction_type
        )

    def predict_branches(
        self,
        texts: Mapping[Branch, TextEmbedding],
        latents_t: Tensor,
        t: Tensor,
        image: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> dict[Branch, Tensor]:
        """Epsilon [B, 4, h, w] of each branch, all in one batched call. Arguments as in `predict_noise`.

        texts: the text of each branch, 1 or B prompts. Only the branch "full" sees `image` [1 or B, T, C]; the others have the
        adapter's trained null image at the same gate. Without `image` there is no image branch at all.
        """
        batch = len(latents_t)
        images, gates = None, None
        if image is not None:
            if self.null_image is None:
                raise ValueError("image tokens were given to a prior without IP-Adapter")
            images = torch.cat(
                [(image if n == "full" else self.null_image).expand(batch, -1, -1) for n in texts]
            )
            gates = None if gate is None else gate.repeat(len(texts))
        text = TextEmbedding.cat([text.expand(batch) for text in texts.values()])
        predicted = self.predict_noise(
            latents_t.repeat(len(texts), 1, 1, 1), t.repeat(len(texts)), text, images, gates
        )
        return dict(zip(texts, predicted.chunk(len(texts)), strict=True))

    @torch.no_grad()
    def sample(
        self,
        prompts: list[str],
        negative: str,
        steps: int,
        guidance_scale: float,
        generator: torch.Generator,
        image: Tensor | None = None,
        gate: float | Tensor = 1.0,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw one image a prompt: rgb [B, 3, H, W] in [0, 1], by deterministic DDIM under joint guidance (see cfg.py).

        image [1 or B, T, C] and gate (number or [B]) as in `predict_noise`; `on_step(done, steps)` is called after each step.
        """
        text, null = self.encode_text(prompts), self.encode_null(negative)
        weights = branch_weights("joint", guidance_scale, 1.0, 1.0, image is not None)
        texts: dict[Branch, TextEmbedding] = {
            branch: null if branch == "null" else text for branch in weights
        }
        gates = torch.as_tensor(gate, dtype=torch.float32, device=self.device).expand(len(prompts))
        timesteps = ddim_timesteps(len(self.alpha_bar), steps).to(self.device)
        levels = torch.cat([self.alpha_bar[timesteps], self.alpha_bar.new_ones(1)])
        latents = self.noise(len(prompts), generator)
        for i, t in enumerate(timesteps):
            batch_t = t.expand(len(prompts))
            epsilon = combine(self.predict_branches(texts, latents, batch_t, image, gates), weights)
            latents = ddim_step(
                latents, epsilon, levels[i].expand(len(prompts)), levels[i + 1].expand(len(prompts))
            )
            if on_step is not None:
                on_step(i + 1, steps)
        return self.decode(latents)

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Standard normal latents [batch, 4, h, w] on the prior's device, drawn where the generator lives."""
        shape = (batch, self.unet.config.in_channels, self.latent_side, self.latent_side)
        return torch.randn(shape, generator=generator, device=generator.device).to(self.device)

    def _denoise(
        self,
        latents_t: Tensor,
        t: Tensor,
        text: TextEmbedding,
        image: Tensor | None,
        gate: Tensor,
        rows: slice,
    ) -> Tensor | None:
        """The network's output [R, 4, h, w] float32 for R `rows` of the arguments of `predict_noise`.

        None when memory ran out and fewer rows can be tried.
        """
        part = text.rows(rows.start, rows.stop)
        condition: Any = part.tokens.to(self.dtype)
        if image is not None:
            condition = (condition, image[rows].to(self.dtype), gate[rows])
        added = None
        if part.pooled is not None:
            added = {
                "text_embeds": part.pooled.to(self.dtype),
                "time_ids": self.time_ids.expand(len(part), -1),
            }
        call = {"encoder_hidden_states": condition, "added_cond_kwargs": added}
        return attempt(
            lambda: self.unet(latents_t[rows].to(self.dtype), t[rows], **call).sample.float(),
            len(part) > 1,
        )

    def _shrink(self, tried: int) -> None:
        """After `tried` images were too many for one call: half of them from here on."""
        self.max_batch = tried // 2
        self._told(self.max_batch, "denoiser")

    def _told(self, count: int, network: str) -> None:
        """Give back what the failed call held, and tell that `network` goes on with `count` images in one call."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.on_oom is not None:
            self.on_oom(count, network)

    @contextmanager
    def _here(self, modules: list[nn.Module]) -> Iterator[None]:
        """Have `modules` on the prior's device for a moment; where they already are, nothing moves."""
        homes = [next(module.parameters()).device for module in modules]
        for module in modules:
            module.to(self.device)
        try:
            yield
        finally:
            for module, home in zip(modules, homes, strict=True):
                module.to(home)


def load_prior(
    config: PriorConfig,
    device: torch.device | str = "cpu",
    on_oom: Callable[[int, str], None] | None = None,
) -> Prior:
    """Read, check and freeze the pipeline and IP-Adapter that `config` names; UserError for anything missing or unfit.

    When memory runs out in the denoiser, or where pictures are decoded, work goes on with half the images in a call; `on_oom` is
    told how many that are, and of which network.
    """
    if config.manifest:
        for place in filter(None, (config.path, config.vae, config.ip_adapter)):
            verify_files(locate(config.manifest), locate(place))
    diffusers.utils.logging.set_verbosity_error()  # it warns of every AutoencoderTiny; what matters is raised below
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
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
    if config.compile:
        prior.compile()
    return prior


def _load_pipeline(config: PriorConfig) -> Any:
    source, local = find_weights(config.path, "prior.path")
    with readable(f"the pipeline {config.path}", "prior.path"):
        index = diffusers.DiffusionPipeline.load_config(source, local_files_only=local)
        kind = index.get("_class_name")
    if kind not in ADDED:
        raise UserError(f"prior.path {config.path} holds a {kind}: use a {' or a '.join(ADDED)}")
    parts: dict[str, Any] = {"add_watermarker": False}
    if kind == "StableDiffusionPipeline":
        parts = {"safety_checker": None, "requires_safety_checker": False}
    if config.vae:
        parts["vae"] = _load_autoencoder(config)
    dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
    options = {"local_files_only": local, "dtype": dtype, "variant": config.variant or None}
    with readable(f"the pipeline {config.path}", "prior.path and prior.variant"):
        for part in ("text_encoder", "text_encoder_2"):
            name = (index.get(part) or [None, None])[1]
            if name:
                parts[part] = read_whole(
                    getattr(transformers, name), source, subfolder=part, **options
                )
        pipe = getattr(diffusers, kind).from_pretrained(
            source, use_safetensors=True, **options, **parts
        )
        _check_whole(pipe.unet)
        _check_whole(pipe.vae)
        return pipe


def _load_autoencoder(config: PriorConfig) -> Any:
    """The autoencoder of `prior.vae`: an AutoencoderTiny or an AutoencoderKL."""
    source, local = find_weights(config.vae, "prior.vae")
    with readable(f"the autoencoder {config.vae}", "prior.vae"):
        kind = diffusers.AutoencoderTiny.load_config(source, local_files_only=local).get(
            "_class_name"
        )
        if kind not in ("AutoencoderTiny", "AutoencoderKL"):
            raise ValueError(f"it holds a {kind}, not an AutoencoderTiny or AutoencoderKL")
        vae = getattr(diffusers, kind).from_pretrained(
            source, local_files_only=local, use_safetensors=True
        )
        _check_whole(vae)
        return vae


def _check_whole(module: nn.Module) -> None:
    """ValueError for a tensor that the file lacked: diffusers leaves it on the meta device, without values."""
    lacking = next((name for name, value in module.state_dict().items() if value.is_meta), "")
    if lacking:
        raise ValueError(f"the weights of its {type(module).__name__} lack {lacking}")


def _check_pipeline(pipe: Any, config: PriorConfig) -> None:
    """Refuse what is no plain text-to-image pipeline or does not belong together; choose the autoencoder's precision."""
    unet, vae, large = pipe.unet.config, pipe.vae.config, hasattr(pipe, "text_encoder_2")
    towers = [pipe.text_encoder, pipe.text_encoder_2] if large else [pipe.text_encoder]
    plain = None not in towers and unet.addition_embed_type in ADDED[type(pipe).__name__]
    plain = plain and unet.cross_attention_dim == sum(tower.config.hidden_size for tower in towers)
    if (
        plain and large
    ):  # the pooled text and six numbers on sizes; the refiner has five and one text encoder
        added = towers[1].config.projection_dim + 6 * unet.addition_time_embed_dim
        plain = unet.projection_class_embeddings_input_dim == added
    if not plain or (unet.in_channels != vae.latent_channels and not config.vae):
        raise UserError(
            f"prior.path {config.path} is not a plain text-to-image pipeline (SD 1.x, SD 2.x or SDXL base)"
        )
    if unet.in_channels != vae.latent_channels:
        found = f"gives latents of {vae.latent_channels} channels, the denoiser takes {unet.in_channels}"
        raise UserError(
            f"prior.vae {config.vae} {found}: set prior.vae to one that was made for {config.path}"
        )
    scale = autoencoder.downscale(pipe.vae)
    if config.resolution % scale:
        raise UserError(
            f"prior.resolution {config.resolution} is no multiple of the autoencoder's {scale}"
        )
    # only AutoencoderKL knows whether it overflows in float16; those of SD 1.x and 2.x do not
    overflows = large and bool(getattr(vae, "force_upcast", False))
    pipe.vae.to(autoencoder.safe_dtype(config.vae_dtype, pipe.unet.dtype, overflows))


def _check_compiler(device: torch.device) -> None:
    """Compile something small now, rather than fail at the first picture."""
    try:
        torch.compile(lambda x: torch.sin(x) + 1.0)(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"torch.compile does not work here ({reason}): set prior.compile=false"
        ) from error


def _load_adapter(pipe: Any, config: PriorConfig) -> ImageEncoder:
    """Load the IP-Adapter into `pipe.unet`, put our gated attention in its place and take its projection out of the UNet."""
    if not config.ip_adapter_weight.endswith(".safetensors"):
        raise UserError(
            f"prior.ip_adapter_weight {config.ip_adapter_weight} is not a .safetensors file: name one that is"
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
    with readable(
        f"the IP-Adapter {config.ip_adapter}",
        "prior.ip_adapter_weight, and that it was made for this pipeline",
    ):
        pipe.load_ip_adapter(
            source,
            subfolder=config.ip_adapter_subfolder,
            weight_name=config.ip_adapter_weight,
            local_files_only=local,
        )
    projection = take_adapter(pipe.unet)
    weights = Path(source) / config.ip_adapter_subfolder / config.ip_adapter_weight
    if weights.is_file():  # an adapter on this disk may know how its image joins the pooled prompt; no published one does
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
    """Put our gated attention over the IP-Adapter loaded in `unet`, take its projection out and return it."""
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    unet.encoder_hid_proj = None  # tokens are projected once per visual prompt, not in every call
    unet.config.encoder_hid_dim_type = None
    install_gates(unet)
    return projection


def _check_encoder(encoder: ImageEncoder, folder: str, weight_name: str) -> None:
    """The width of the vision tower must be the one the adapter was trained with (1024 and 1280 are mixed up easily)."""
    found, expected = encoder.widths
    if found != expected:
        published = PUBLISHED_ENCODERS.get((encoder.pooled, expected))
        right = (
            f"{published} where the folder is a copy of h94/IP-Adapter"
            if published
            else "the one that belongs to it"
        )
        raise UserError(
            f"the image encoder in {folder} gives vectors of {found} numbers but {weight_name} was trained on {expected}: "
            f"set prior.image_encoder_folder to {right}"
        )


@contextmanager
def readable(what: str, key: str) -> Iterator[None]:
    """Turn what the loaders raise for missing, damaged or unfit files into one line."""
    try:
        yield
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot load {what} ({type(error).__name__}: {reason}); check {key}"
        ) from error

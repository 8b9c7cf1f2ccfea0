"""The frozen 2D diffusion model: text and image encoders, autoencoder and denoiser of a Stable Diffusion pipeline.

The only file that imports diffusers. The small embedded model and Stable Diffusion 1.x/2.x come through the same calls.
Conventions: images are rgb [B, 3, H, W] in [0, 1] sRGB; latents [B, 4, h, w] are scaled to about unit variance,
(z - shift_factor) * scaling_factor, as the denoiser sees them; `AutoencoderKL` gives the mode of its posterior, so encoding
draws no noise; `AutoencoderTiny` gives latents directly. Whatever the network predicts, `predict_noise` returns epsilon.
All weights are frozen; results are float32 whatever `PriorConfig.dtype` the networks run in. Nothing of a run is kept here:
conditions and gates travel with each call. Weights are safetensors only, and checked against the manifest before they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from vp3d import torch_compat  # noqa: F401  (before transformers, which imports torchvision)
from vp3d.config import PriorConfig, locate
from vp3d.diffusion.cfg import Branch, branch_weights, combine
from vp3d.diffusion.image_prompt import install_gates
from vp3d.diffusion.schedule import alpha_bar_from_config, ddim_step, ddim_timesteps, epsilon_from_output
from vp3d.manifest import verify_files
from vp3d.types import UserError
from vp3d.weights import find_weights

import diffusers  # isort: skip
import transformers  # isort: skip
from diffusers.models.embeddings import ImageProjection  # isort: skip

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class ImageEncoder:
    """From an image to the image tokens of the IP-Adapter: CLIP vision tower and the adapter's projection."""

    tower: Any  # transformers CLIPVisionModelWithProjection
    projection: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def pooled(self) -> bool:
        """Whether the adapter reads the pooled embedding (base) and not the penultimate hidden states (plus, full)."""
        return isinstance(self.projection, ImageProjection)

    def normalize(self, rgb: Tensor) -> Tensor:
        """rgb [B, 3, H, W] in [0, 1] as CLIP sees it, [B, 3, S, S]: shortest edge to S bicubic, centre crop, mean and std."""
        side, (height, width) = self.tower.config.image_size, rgb.shape[-2:]
        scale = side / min(height, width)
        size = (max(side, int(height * scale)), max(side, int(width * scale)))
        resized = F.interpolate(rgb, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0.0, 1.0)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        mean, std = (rgb.new_tensor(value)[:, None, None] for value in (self.mean, self.std))
        return (resized[..., top : top + side, left : left + side] - mean) / std

    def tokens(self, rgb: Tensor) -> Tensor:
        """Image tokens [B, T, C] float32 of rgb [B, 3, H, W] in [0, 1]."""
        return self._project(self.normalize(rgb.float()), null=False)

    def null_tokens(self) -> Tensor:
        """The trained "no image" [1, T, C]: the projection of a zero embedding (base), the encoding of a zero image (plus)."""
        side, weight = self.tower.config.image_size, next(self.tower.parameters())
        return self._project(torch.zeros(1, 3, side, side, device=weight.device), null=True)

    def _project(self, pixels: Tensor, null: bool) -> Tensor:
        pixels = pixels.to(next(self.tower.parameters()).dtype)
        if self.pooled:
            embedding = self.tower(pixels).image_embeds
            return self.projection(torch.zeros_like(embedding) if null else embedding).float()
        return self.projection(self.tower(pixels, output_hidden_states=True).hidden_states[-2]).float()


class Prior:
    """A frozen Stable Diffusion pipeline, with or without IP-Adapter. Made by `load_prior`."""

    def __init__(
        self, pipe: Any, image_encoder: ImageEncoder | None, resolution: int, device: torch.device | str
    ) -> None:
        pipe.to(device)
        self.tokenizer, self.text_encoder, self.vae, self.unet = pipe.tokenizer, pipe.text_encoder, pipe.vae, pipe.unet
        self.image_encoder = image_encoder
        self.resolution, self.latent_side = resolution, resolution // pipe.vae_scale_factor
        self.device, self.dtype = torch.device(device), pipe.unet.dtype
        self.prediction_type = str(pipe.scheduler.config.get("prediction_type", "epsilon"))
        self.alpha_bar = alpha_bar_from_config(pipe.scheduler.config).to(device)  # [T]
        towers = [] if image_encoder is None else [image_encoder.tower.to(device), image_encoder.projection.to(device)]
        for module in (self.text_encoder, self.vae, self.unet, *towers):
            module.eval().requires_grad_(False)
        with torch.no_grad():
            self.null_image = None if image_encoder is None else image_encoder.null_tokens()  # [1, T, C]

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """Text embeddings [B, L, C] float32, padded to the encoder's length; UserError for a prompt that does not fit."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        for prompt in prompts:
            count = len(self.tokenizer(prompt).input_ids)
            if count > length:
                raise UserError(
                    f'the prompt "{prompt}" has {count} tokens, the text encoder reads {length}: shorten it'
                )
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if masked else None
        return self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0].float()

    def encode_images(self, rgb: Tensor) -> Tensor:
        """Latents [B, 4, h, w] of rgb [B, 3, H, W] in [0, 1], resized to the prior's resolution inside the graph."""
        if rgb.ndim != 4 or rgb.shape[1] != 3:
            raise ValueError(f"encode_images takes rgb [B, 3, H, W], got {tuple(rgb.shape)}")
        size = (self.resolution, self.resolution)
        if rgb.shape[-2:] != size:
            shrinks = max(rgb.shape[-2:]) > self.resolution
            rgb = F.interpolate(rgb, size=size, mode="bilinear", antialias=shrinks, align_corners=False)
        encoded = self.vae.encode((rgb * 2.0 - 1.0).to(self.vae.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (latents.float() - self._shift) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """rgb [B, 3, H, W] in [0, 1] of latents [B, 4, h, w]; differentiable, clipped at the ends of the range."""
        z = latents / self.vae.config.scaling_factor + self._shift
        return (self.vae.decode(z.to(self.vae.dtype)).sample.float() * 0.5 + 0.5).clamp(0.0, 1.0)

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0

    @torch.no_grad()
    def embed_visual_prompt(self, rgb: Tensor) -> Tensor:
        """Image tokens [B, T, C] float32 of visual prompts rgb [B, 3, H, W] in [0, 1]: the `image` of the calls below."""
        if self.image_encoder is None:
            raise UserError("this prior has no IP-Adapter, so it takes no visual prompt: set prior.ip_adapter")
        return self.image_encoder.tokens(rgb.to(self.device))

    def predict_noise(
        self, latents_t: Tensor, t: Tensor, text: Tensor, image: Tensor | None = None, gate: Tensor | None = None
    ) -> Tensor:
        """The predicted epsilon [B, 4, h, w] float32.

        latents_t [B, 4, h, w] (about unit variance); t [B] int64; text [B, L, C]; image [B, T, C] or None for no image branch;
        gate [B] in [0, 1], the strength of the image branch per sample, 0 exactly none; None is 1.
        """
        condition: Any = text.to(self.dtype)
        if image is not None:
            gate = torch.ones(len(t), device=t.device) if gate is None else gate
            condition = (condition, image.to(self.dtype), gate)
        output = self.unet(latents_t.to(self.dtype), t, encoder_hidden_states=condition).sample
        return epsilon_from_output(output.float(), latents_t.float(), self.alpha_bar[t], self.prediction_type)

    def predict_branches(
        self,
        branches: Iterable[Branch],
        latents_t: Tensor,
        t: Tensor,
        text: Tensor,
        null_text: Tensor,
        image: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> dict[Branch, Tensor]:
        """Epsilon [B, 4, h, w] of each branch, all in one batched call. Arguments as in `predict_noise`.

        null is (null_text, no image), text is (text, no image), full is (text, image); null_text [1, L, C], image [1 or B, T, C].
        "No image" is the adapter's trained null image at the same gate; without `image` there is no image branch at all.
        """
        names, batch = list(branches), len(latents_t)
        texts = torch.cat([(null_text if n == "null" else text).expand(batch, -1, -1) for n in names])
        images, gates = None, None
        if image is not None:
            if self.null_image is None:
                raise ValueError("image tokens were given to a prior without IP-Adapter")
            images = torch.cat([(image if n == "full" else self.null_image).expand(batch, -1, -1) for n in names])
            gates = None if gate is None else gate.repeat(len(names))
        repeated = latents_t.repeat(len(names), 1, 1, 1)
        predicted = self.predict_noise(repeated, t.repeat(len(names)), texts, images, gates)
        return dict(zip(names, predicted.chunk(len(names)), strict=True))

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
        text, null_text = self.encode_text(prompts), self.encode_text([negative])
        weights = branch_weights("joint", guidance_scale, 1.0, 1.0, image is not None)
        gates = torch.as_tensor(gate, dtype=torch.float32, device=self.device).expand(len(prompts))
        timesteps = ddim_timesteps(len(self.alpha_bar), steps).to(self.device)
        levels = torch.cat([self.alpha_bar[timesteps], self.alpha_bar.new_ones(1)])
        latents = self.noise(len(prompts), generator)
        for i, t in enumerate(timesteps):
            batch_t = t.expand(len(prompts))
            epsilon = combine(self.predict_branches(weights, latents, batch_t, text, null_text, image, gates), weights)
            latents, _ = ddim_step(latents, epsilon, levels[i].expand(len(prompts)), levels[i + 1].expand(len(prompts)))
            if on_step is not None:
                on_step(i + 1, steps)
        return self.decode(latents)

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Standard normal latents [batch, 4, h, w] on the prior's device, drawn where the generator lives."""
        shape = (batch, self.unet.config.in_channels, self.latent_side, self.latent_side)
        return torch.randn(shape, generator=generator, device=generator.device).to(self.device)


def load_prior(config: PriorConfig, device: torch.device | str = "cpu") -> Prior:
    """Read, check and freeze the pipeline and IP-Adapter that `config` names; UserError for anything missing or unfit."""
    if config.manifest:
        for place in filter(None, (config.path, config.ip_adapter)):
            verify_files(locate(config.manifest), locate(place))
    diffusers.utils.logging.set_verbosity_error()  # it warns of every AutoencoderTiny; what matters is raised below
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipe = _load_pipeline(config)
    if config.resolution % pipe.vae_scale_factor:
        raise UserError(f"prior.resolution {config.resolution} is no multiple of the autoencoder's {pipe.vae_scale_factor}")
    encoder = _load_adapter(pipe, config) if config.ip_adapter else None
    return Prior(pipe, encoder, config.resolution, device)


def _load_pipeline(config: PriorConfig) -> Any:
    source, local = find_weights(config.path, "prior.path")
    with _readable(f"the pipeline {config.path}", "prior.path"):
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(
            source,
            local_files_only=local,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            safety_checker=None,
            requires_safety_checker=False,
        )
    unet, vae = pipe.unet.config, pipe.vae.config
    plain = unet.addition_embed_type in (None, "text") and unet.in_channels == vae.latent_channels
    if not plain or unet.cross_attention_dim != pipe.text_encoder.config.hidden_size:
        raise UserError(
            f"prior.path {config.path} is not a plain text-to-image StableDiffusionPipeline (SD 1.x or 2.x)"
        )
    return pipe


def _load_adapter(pipe: Any, config: PriorConfig) -> ImageEncoder:
    """Load the IP-Adapter into `pipe.unet`, put our gated attention in its place and take its projection out of the UNet."""
    if not config.ip_adapter_weight.endswith(".safetensors"):
        raise UserError(
            f"prior.ip_adapter_weight {config.ip_adapter_weight} is not a .safetensors file: name one that is"
        )
    source, local = find_weights(config.ip_adapter, "prior.ip_adapter")
    folder = config.image_encoder_folder
    folder = folder if "/" in folder else f"{config.ip_adapter_subfolder}/{folder}"
    with _readable(f"the IP-Adapter's image encoder {config.ip_adapter}/{folder}", "prior.image_encoder_folder"):
        tower = transformers.CLIPVisionModelWithProjection.from_pretrained(
            source, subfolder=folder, local_files_only=local, use_safetensors=True, dtype=pipe.unet.dtype
        )
    pipe.register_modules(image_encoder=tower)
    with _readable(
        f"the IP-Adapter {config.ip_adapter}", "prior.ip_adapter_weight, and that it was made for this pipeline"
    ):
        pipe.load_ip_adapter(
            source, subfolder=config.ip_adapter_subfolder, weight_name=config.ip_adapter_weight, local_files_only=local
        )
    projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
    pipe.unet.encoder_hid_proj = None  # tokens are projected once per visual prompt, not in every call
    pipe.unet.config.encoder_hid_dim_type = None
    install_gates(pipe.unet)
    mean, std = (getattr(pipe.feature_extractor, name, None) for name in ("image_mean", "image_std"))
    encoder = ImageEncoder(tower, projection, tuple(mean or CLIP_MEAN), tuple(std or CLIP_STD))
    _check_encoder(encoder, f"{config.ip_adapter}/{folder}", config.ip_adapter_weight)
    return encoder


def _check_encoder(encoder: ImageEncoder, folder: str, weight_name: str) -> None:
    """The width of the vision tower must be the one the adapter was trained with (1024 and 1280 are mixed up easily)."""
    expected = next(m for m in encoder.projection.modules() if isinstance(m, nn.Linear)).in_features
    tower = encoder.tower.config
    found = tower.projection_dim if encoder.pooled else tower.hidden_size
    if found != expected:
        raise UserError(
            f"the image encoder in {folder} gives vectors of {found} numbers but {weight_name} was trained on {expected}: "
            "set prior.image_encoder_folder to the encoder that belongs to this adapter"
        )


@contextmanager
def _readable(what: str, key: str) -> Iterator[None]:
    """Turn what the loaders raise for missing, damaged or unfit files into one line."""
    try:
        yield
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"cannot load {what} ({type(error).__name__}: {reason}); check {key}") from error

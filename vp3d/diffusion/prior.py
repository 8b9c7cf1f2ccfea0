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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vp3d.config.schema import PriorConfig
from vp3d.diffusion import autoencoder
from vp3d.diffusion.cfg import Branch, branch_weights, combine
from vp3d.diffusion.image_prompt import ImageEncoder
from vp3d.diffusion.schedule import (
    alpha_bar_from_config,
    ddim_step,
    ddim_timesteps,
    epsilon_from_output,
)
from vp3d.diffusion.text import TextEmbedding, TextEncoders
from vp3d.errors import UserError
from vp3d.system import torch_compat  # before transformers, which imports torchvision
from vp3d.system.out_of_memory import attempt


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
        """The encoded prompts (B of them); one that is too long is cut."""
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


def _check_compiler(device: torch.device) -> None:
    """Compile something small now, rather than fail at the first picture."""
    try:
        torch.compile(lambda x: torch.sin(x) + 1.0)(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"torch.compile does not work here ({reason}): set prior.compile=false"
        ) from error

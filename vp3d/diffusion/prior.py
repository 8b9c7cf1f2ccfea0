"""The frozen 2D diffusion model: a Stable Diffusion pipeline behind a few calls.

The embedded model, Stable Diffusion 1.x, 2.x and SDXL have the same interface. Images are rgb
[B, 3, H, W] in [0, 1] sRGB; latents [B, 4, h, w] are scaled to about unit variance, as the denoiser
expects them (autoencoder.py). `predict_noise` returns epsilon, whatever the network predicts.

All weights are frozen. Results are float32, whatever `PriorConfig.dtype` the networks have;
attention is torch's SDPA. A `Prior` keeps no state of a run: conditions and gates are arguments of
each call. Only the number of images in one call of the denoiser or the autoencoder may change; it
is halved when memory runs out. `load.py` creates priors from files; this module does not import
diffusers.
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
from vp3d.diffusion.cfg import Branch, branch_weights
from vp3d.diffusion.drawing import Drawing
from vp3d.diffusion.image_prompt import ImageEncoder
from vp3d.diffusion.sampling import ddim_timesteps, noise_levels, sample
from vp3d.diffusion.schedule import alpha_bar_from_config, epsilon_from_output
from vp3d.diffusion.text import TextEmbedding, TextEncoders
from vp3d.errors import UserError, in_one_line
from vp3d.system import torch_compat  # before transformers, which imports torchvision
from vp3d.system.out_of_memory import attempt


class Prior:
    """A frozen Stable Diffusion pipeline, with or without IP-Adapter; created by `load_prior`."""

    def __init__(
        self,
        pipe: Any,
        image_encoder: ImageEncoder | None,
        config: PriorConfig,
        device: torch.device | str,
        on_oom: Callable[[int, str], None] | None = None,
    ) -> None:
        """Freeze the networks and move them to the device.

        Args:
            pipe: A diffusers Stable Diffusion or SDXL pipeline.
            image_encoder: Of the IP-Adapter, or None.
            config: Resolution, batch sizes and where the encoders stay.
            device: Where the denoiser and the autoencoder run.
            on_oom: `on_oom(images, network)` is called after memory ran out, with the new number of
                images in one call of the network.
        """
        self.device, self.dtype, self.on_oom = torch.device(device), pipe.unet.dtype, on_oom
        self.unet, self.vae, self.image_encoder = pipe.unet, pipe.vae, image_encoder
        self.max_batch, self.vae_batch = config.max_batch, config.vae_batch
        towers = [(pipe.tokenizer, pipe.text_encoder)]
        if hasattr(pipe, "text_encoder_2"):
            towers.append((pipe.tokenizer_2, pipe.text_encoder_2))
        self.text_encoders = TextEncoders(
            tuple(towers), bool(pipe.config.get("force_zeros_for_empty_prompt"))
        )
        self.resolution = config.resolution
        self.latent_side = config.resolution // autoencoder.downscale(pipe.vae)
        self.prediction_type = str(pipe.scheduler.config.get("prediction_type", "epsilon"))
        self.alpha_bar = alpha_bar_from_config(pipe.scheduler.config).to(device)  # [T]
        # SDXL's size conditioning, [1, 6]: original size, corner of the crop, target size
        side = float(config.resolution)
        self.time_ids = torch.tensor([[side, side, 0.0, 0.0, side, side]], device=device)
        self._text_towers = [model for _, model in towers]
        self._image_towers = (
            [] if image_encoder is None else [image_encoder.tower, image_encoder.projection]
        )
        for module in (self.unet, self.vae, *self._text_towers, *self._image_towers):
            torch_compat.freeze(module)
        for module in (self.unet, self.vae):
            module.to(device)
        for module in (*self._text_towers, *self._image_towers):
            module.to("cpu" if config.offload_encoders else device)
        with torch.no_grad(), self._on_device(self._image_towers):
            # [1, T, C]
            self.null_image = None if image_encoder is None else image_encoder.null_tokens()

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that a LoRA can change, by their names in its file (lora.py)."""
        names = ("text_encoder", "text_encoder_2")
        return {"unet": self.unet, **dict(zip(names, self._text_towers, strict=False))}

    def compile(self) -> None:
        """Compile the denoiser and the autoencoder's encoder (torch.compile) at their first call.

        UserError if torch.compile does not work on this machine.
        """
        _check_compiler(self.device)
        self.unet.compile()
        self.vae.encoder.compile()

    def encode_text(self, prompts: list[str], gradient: bool = False) -> TextEmbedding:
        """The embeddings of B prompts; one that is too long is cut.

        With `gradient` they have one, where autograd is on.
        """
        with self._encoding(gradient):
            return self.text_encoders.encode(prompts)

    def encode_null(self, negative: str, gradient: bool = False) -> TextEmbedding:
        """The embedding of the negative prompt, which may be empty; `gradient` as above."""
        with self._encoding(gradient):
            return self.text_encoders.encode_null(negative)

    def encode_images(self, rgb: Tensor) -> Tensor:
        """Latents [B, 4, h, w] of rgb [B, 3, H, W] in [0, 1]; differentiable.

        The images are first resized to the prior's resolution. More than `vae_batch` images are
        encoded in parts, because encoding takes more memory than anything else here; each part is
        computed again in the backward pass (torch.utils.checkpoint).
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
            latents: Tensor = checkpoint(
                autoencoder.encode, self.vae, part, use_reentrant=False, preserve_rng_state=False
            )
            return latents

        return torch.cat([encode(part) for part in rgb.split(self.vae_batch)])

    def encode_less(self, tried: int) -> int:
        """Halve the number of images in one call of the autoencoder, after `tried` were too many.

        Returns:
            The new number; 0 if `tried` was 1 and so nothing changed.
        """
        fewer = min(self.vae_batch, tried) // 2
        self.vae_batch = fewer or self.vae_batch
        return fewer

    def decode(self, latents: Tensor) -> Tensor:
        """rgb [B, 3, H, W], clipped to [0, 1], of latents [B, 4, h, w]; differentiable."""
        pictures: list[Tensor] = []
        start = 0
        while start < len(latents):
            part = latents[start : start + self.vae_batch]
            picture = attempt(partial(autoencoder.decode, self.vae, part), len(part) > 1)
            if picture is None:
                self._report_oom(self.encode_less(len(part)), "autoencoder")
                continue
            pictures.append(picture)
            start += len(part)
        return torch.cat(pictures)

    @torch.no_grad()
    def embed_visual_prompt(self, rgb: Tensor) -> Tensor:
        """Image tokens [B, T, C] float32 of visual prompts rgb [B, 3, H, W] in [0, 1].

        They are the argument `image` of the methods below. UserError without an IP-Adapter.
        """
        if self.image_encoder is None:
            raise UserError(
                "this prior has no IP-Adapter and so no visual prompt: set prior.ip_adapter"
            )
        with self._on_device(self._image_towers):
            return self.image_encoder.tokens(rgb.to(self.device))

    def predict_noise(
        self,
        latents_t: Tensor,
        t: Tensor,
        text: TextEmbedding,
        image: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> Tensor:
        """The predicted noise.

        Args:
            latents_t: Noisy latents [B, 4, h, w].
            t: Their timesteps [B] int64.
            text: Embeddings of B prompts.
            image: Image tokens [B, T, C]; None evaluates no image branch.
            gate: Strength of the image branch [B] in [0, 1]; 0 is exactly none, None is 1.

        Returns:
            epsilon [B, 4, h, w] float32.
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
        """The predicted noise of each branch of the guidance, in one batched call.

        Args:
            texts: Embeddings of each branch, 1 or B prompts.
            latents_t: Noisy latents [B, 4, h, w].
            t: Their timesteps [B] int64.
            image: Image tokens [1 or B, T, C] of the branch "full". The other branches have the
                adapter's null image with the same gate. None evaluates no image branch.
            gate: As in `predict_noise`.

        Returns:
            epsilon [B, 4, h, w] of each branch.
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
        """Draw one image for each prompt, by deterministic DDIM under joint guidance (see cfg.py).

        Args:
            prompts: B prompts.
            negative: The negative prompt; may be empty.
            steps: Number of denoising steps.
            guidance_scale: s of joint guidance; 1 is plain conditioning.
            generator: Draws the noise.
            image: Image tokens [1 or B, T, C], or None.
            gate: Strength of the image branch in [0, 1], a number or [B].
            on_step: `on_step(done, steps)` is called after each step.

        Returns:
            rgb [B, 3, H, W] in [0, 1].

        Example:
            prior = load_prior(PriorConfig())
            rgb = prior.sample(["a red cube"], "", 30, 2.0, torch.Generator().manual_seed(0))
        """
        drawing = self.drawing(prompts, negative, steps, guidance_scale, image, gate)
        noise = self.noise(len(prompts), generator)
        return self.decode(sample(drawing, noise, drawing.levels, on_step=on_step))

    def drawing(
        self,
        prompts: list[str],
        negative: str,
        steps: int,
        guidance_scale: float,
        image: Tensor | None = None,
        gate: float | Tensor = 1.0,
        text_gradient: bool = False,
    ) -> Drawing:
        """The guided denoiser of B prompts, with the levels of a draw; arguments as in `sample`.

        With `text_gradient` the gradient, where autograd is on, also flows into the text encoders.
        """
        with self._on_device(self._text_towers):  # once for both
            text = self.encode_text(prompts, text_gradient)
            null = self.encode_null(negative, text_gradient)
        weights = branch_weights("joint", guidance_scale, 1.0, 1.0, image is not None)
        texts: dict[Branch, TextEmbedding] = {
            branch: null if branch == "null" else text for branch in weights
        }
        gates = torch.as_tensor(gate, dtype=torch.float32, device=self.device).expand(len(prompts))
        timesteps = ddim_timesteps(len(self.alpha_bar), steps).to(self.device)
        levels = noise_levels(self.alpha_bar, timesteps)
        return Drawing(self, texts, weights, timesteps, levels, gates, image)

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Standard normal latents [batch, 4, h, w] on the prior's device.

        They are drawn on the generator's device.
        """
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
        """The network's output [R, 4, h, w] float32 for R `rows` of the batch.

        None if memory ran out and fewer rows can be tried.
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
        """Halve the number of images in one call of the denoiser, after `tried` were too many."""
        self.max_batch = tried // 2
        self._report_oom(self.max_batch, "denoiser")

    def _report_oom(self, count: int, network: str) -> None:
        """Free the memory of the failed call, and report the new number of images in one call."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.on_oom is not None:
            self.on_oom(count, network)

    @contextmanager
    def _encoding(self, gradient: bool) -> Iterator[None]:
        """The text encoders on the prior's device; with a graph only if that is asked for."""
        live = gradient and torch.is_grad_enabled()
        with torch.set_grad_enabled(live), self._on_device(self._text_towers):
            yield

    @contextmanager
    def _on_device(self, modules: list[nn.Module]) -> Iterator[None]:
        """Move `modules` to the prior's device for the time of a `with` block."""
        homes = [next(module.parameters()).device for module in modules]
        for module in modules:
            module.to(self.device)
        try:
            yield
        finally:
            for module, home in zip(modules, homes, strict=True):
                module.to(home)


def _check_compiler(device: torch.device) -> None:
    """Compile a small function now, so that a failure does not wait for the first picture."""
    try:
        torch.compile(lambda x: torch.sin(x) + 1.0)(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = in_one_line(error)
        raise UserError(
            f"torch.compile does not work here ({reason}): set prior.compile=false"
        ) from error

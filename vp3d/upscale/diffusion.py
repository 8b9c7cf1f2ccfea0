"""Upscaling by a diffusion model in the layout of diffusers' StableDiffusionUpscalePipeline.

The denoiser works on latents of the side of the small picture, and the autoencoder enlarges them
four times. It reads the small picture next to the latents, as further channels, with a little noise
of a known level, which is its class label (noise conditioning augmentation: Ho et al. 2021,
arXiv 2106.15282; Rombach et al. 2022, arXiv 2112.10752). The embedded upscaler has this layout too.

Conventions: rgb `[B, 3, H, W]` in [0, 1] sRGB; latents `[B, C, H, W]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vp3d.diffusion import autoencoder
from vp3d.diffusion.sampling import ddim_timesteps, noise_levels, sample
from vp3d.diffusion.schedule import add_noise, epsilon_from_output
from vp3d.errors import UserError

DEFAULT_STEPS = 25
DEFAULT_NOISE_LEVEL = 20  # that of diffusers' pipeline
CONTEXT = 16  # pixels around a tile that are drawn and cut off


@dataclass(frozen=True)
class DrawSettings:
    """How a picture is drawn.

    Attributes:
        steps: denoising steps.
        noise_level: timestep of the noise that is added to the small picture; more noise invents
            more.
        guidance_scale: of classifier-free guidance; 1 needs half of the time.
        prompt: what the picture shows; may be empty.
        seed: another seed draws other details.
    """

    steps: int = DEFAULT_STEPS
    noise_level: int = DEFAULT_NOISE_LEVEL
    guidance_scale: float = 1.0
    prompt: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Parts:
    """The parts of a pipeline.

    Attributes:
        unet: the denoiser, with 3 more input channels than the latents have.
        vae: the autoencoder of factor 4.
        embed: `embed(prompts)` gives their tokens `[N, L, D]`.
        alpha_bar: the levels of the denoiser `[T]`.
        low_alpha_bar: the levels of the noise on the small picture `[T']`.
        prediction_type: what the denoiser predicts.
        most_noise: the highest noise level that it was trained with.
    """

    unet: Any
    vae: Any
    embed: Callable[[list[str]], Tensor]
    alpha_bar: Tensor
    low_alpha_bar: Tensor
    prediction_type: str
    most_noise: int


class DiffusionUpscaler:
    """Draws pictures four times as large; an `Upscaler`.

    Args:
        parts: the networks and their noise levels, on one device.
        drawing: how to draw.

    Raises:
        UserError: a value of `drawing` is out of range.
    """

    context = CONTEXT

    def __init__(self, parts: Parts, drawing: DrawSettings) -> None:
        levels = len(parts.low_alpha_bar)
        most = min(parts.most_noise, levels - 1)
        if not 0 <= drawing.noise_level <= most:
            raise UserError(f"--noise-level {drawing.noise_level} is not in 0 to {most}")
        self.parts, self.drawing = parts, drawing
        self.timesteps = ddim_timesteps(len(parts.alpha_bar), drawing.steps)
        self.generator = torch.Generator().manual_seed(drawing.seed)
        self.multiple = 2 ** (len(parts.unet.config.block_out_channels) - 1)
        prompts = [drawing.prompt]
        if drawing.guidance_scale != 1.0:
            prompts.append("")
        with torch.no_grad():
            self.tokens = parts.embed(prompts)

    def __call__(self, rgb: Tensor) -> Tensor:
        """`[B, 3, 4 H, 4 W]` in [0, 1] of rgb `[B, 3, H, W]`."""
        noise, latents = (self.noise(rgb, channels) for channels in (3, self.channels))
        return self.draw(rgb, noise, latents)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.parts.unet.config.out_channels)

    def noise(self, rgb: Tensor, channels: int, generator: torch.Generator | None = None) -> Tensor:
        """Normal noise `[B, channels, H', W']` for rgb `[B, 3, H, W]`, sides rounded up.

        `generator`, on the CPU, draws it; None for that of the seed.
        """
        sides = [side + -side % self.multiple for side in rgb.shape[-2:]]
        return torch.randn(len(rgb), channels, *sides, generator=generator or self.generator)

    def draw(
        self, rgb: Tensor, noise: Tensor, latents: Tensor, grad_steps: int | None = None
    ) -> Tensor:
        """The large pictures of given noise; differentiable in the weights of the denoiser.

        Args:
            rgb: `[B, 3, H, W]` in [0, 1].
            noise: on the small pictures, `[B, 3, H', W']`, from `noise`.
            latents: where the drawing starts, `[B, C, H', W']`.
            grad_steps: last steps that the gradient flows through; None for all of them.

        Returns:
            `[B, 3, 4 H, 4 W]` in [0, 1].
        """
        parts, (height, width) = self.parts, rgb.shape[-2:]
        device, batch = parts.alpha_bar.device, len(rgb)
        padding = (0, noise.shape[-1] - width, 0, noise.shape[-2] - height)
        small = F.pad(rgb.to(device) * 2.0 - 1.0, padding, mode="replicate")
        label = torch.full((batch,), self.drawing.noise_level, device=device)
        small = add_noise(small, noise.to(device), parts.low_alpha_bar[label])
        levels = noise_levels(parts.alpha_bar, self.timesteps.to(device))

        def denoise(x: Tensor, i: int) -> Tensor:
            seen = torch.cat([x, small], dim=1)
            found = [self._predict(seen, i, label, row) for row in self.tokens.split(1)]
            epsilon = [
                epsilon_from_output(output, x, levels[i].expand(batch), parts.prediction_type)
                for output in found
            ]
            if len(epsilon) == 1:
                return epsilon[0]
            return epsilon[1] + self.drawing.guidance_scale * (epsilon[0] - epsilon[1])

        x = sample(denoise, latents.to(device), levels, grad_steps=grad_steps, checkpointed=True)
        large = autoencoder.decode(parts.vae, x)
        return large[..., : 4 * height, : 4 * width]

    def _predict(self, seen: Tensor, i: int, label: Tensor, tokens: Tensor) -> Tensor:
        """The output `[B, C, H, W]` of the denoiser for latents and small picture `seen`."""
        dtype = self.parts.unet.dtype
        output: Tensor = self.parts.unet(
            seen.to(dtype),
            self.timesteps[i].to(seen.device),
            encoder_hidden_states=tokens.expand(len(seen), -1, -1).to(dtype),
            class_labels=label,
        ).sample
        return output.float()

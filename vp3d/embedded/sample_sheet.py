"""Drawings of a denoiser during its training, as one picture file: what the loss does not show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vp3d.diffusion.sampling import ddim_timesteps, noise_levels, sample
from vp3d.diffusion.schedule import alpha_bar_from_config, epsilon_from_v
from vp3d.embedded import architectures
from vp3d.embedded.fit import half_precision
from vp3d.embedded.picture_training import VAE
from vp3d.prompts import SECTORS
from vp3d.report.pictures import save_image
from vp3d.types import to_uint8
from vp3d.worlds.base import LATENT_CHANNELS, TrainingPictures

COLUMNS, ROWS = 8, 4
STEPS, GUIDANCE = 30, 2.0
BATCH = 32


class SampleSheet:
    """Draws captions of the training with the averaged weights.

    Args:
        model: The model in training: "unet" and "text".
        tokenizer: Of the text encoder.
        pictures: The training pictures.
        models: Folder with the autoencoder.
        folder: Where the sheets go, `STEP.png`.
    """

    def __init__(
        self,
        model: nn.ModuleDict,
        tokenizer: object,
        pictures: TrainingPictures,
        models: Path,
        folder: Path,
    ) -> None:
        self.model, self.tokenizer, self.models, self.folder = model, tokenizer, models, folder
        self.side = pictures.world.sizes.latent
        rng = np.random.default_rng(4)
        index = rng.choice(len(pictures), min(COLUMNS * ROWS, len(pictures)), replace=False)
        self.texts = [
            f"{pictures.caption(int(i))}, {SECTORS[n % len(SECTORS)]}" for n, i in enumerate(index)
        ]

    @torch.no_grad()
    def __call__(self, ema: dict[str, Tensor], steps: int) -> None:
        """Write the sheet of the weights `ema` after `steps` steps; the model stays as it is."""
        named = {k: p for k, p in self.model.named_parameters() if k in ema}
        before = {k: p.detach().clone() for k, p in named.items()}
        try:
            for key, parameter in named.items():
                parameter.copy_(ema[key])
            rgb = self.draw(torch.Generator().manual_seed(0))
        finally:
            for key, parameter in named.items():
                parameter.copy_(before[key])
        self.folder.mkdir(parents=True, exist_ok=True)
        save_image(grid(rgb, COLUMNS), self.folder / f"{steps:07d}.png")

    def draw(self, generator: torch.Generator) -> Tensor:
        """Pictures [N, 3, S, S] in [0, 1] of the texts with the weights of the model."""
        latents = draw_latents(self.model, self.tokenizer, self.texts, self.side, generator)
        return decode(latents, self.models)


def grid(rgb: Tensor, columns: int) -> Image.Image:
    """Pictures [N, 3, H, W] in [0, 1] as one, `columns` in a row; black fills up the last row."""
    padded = F.pad(rgb, (0,) * 7 + (-len(rgb) % columns,))
    cells = padded.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4)  # channel, row, y, column, x
    return Image.fromarray(to_uint8(cells.flatten(3).flatten(1, 2)))


@torch.no_grad()
def draw_latents(
    model: nn.ModuleDict,
    tokenizer: object,
    texts: Sequence[str],
    side: int,
    generator: torch.Generator,
) -> Tensor:
    """Scaled latents [N, 4, side, side] drawn for N texts: DDIM, `STEPS` steps, `GUIDANCE`.

    Args:
        model: "unet", "text".
        tokenizer: Of the text encoder.
        texts: The captions.
        side: Of the latents.
        generator: Draws the noise, on the CPU.
    """
    device = next(model.parameters()).device
    alpha_bar = alpha_bar_from_config(architectures.new_scheduler().config).to(device)
    levels = noise_levels(alpha_bar, ddim_timesteps(len(alpha_bar), STEPS).to(device))
    times = ddim_timesteps(len(alpha_bar), STEPS).tolist()
    parts = []
    for first in range(0, len(texts), BATCH):
        batch = list(texts[first : first + BATCH])
        tokens = architectures.tokenize(tokenizer, [*batch, *[""] * len(batch)]).to(device)
        embedded = model["text"](tokens)[0]

        def denoise(x: Tensor, step: int, embedded: Tensor = embedded) -> Tensor:
            both = torch.cat([x, x])
            with half_precision(device):
                v = model["unet"](both, times[step], embedded).sample.float()
            epsilon = epsilon_from_v(both, v, levels[step].expand(len(both)))
            named, empty = epsilon.chunk(2)
            return empty + GUIDANCE * (named - empty)

        shape = (len(batch), LATENT_CHANNELS, side, side)
        parts.append(sample(denoise, torch.randn(shape, generator=generator).to(device), levels))
    return torch.cat(parts)


@torch.no_grad()
def decode(latents: Tensor, models: Path) -> Tensor:
    """Pictures [N, 3, S, S] in [0, 1] of scaled latents by the autoencoder in `models`."""
    vae = architectures.AutoencoderTiny.from_pretrained(models / VAE).to(latents.device).eval()
    parts = [vae.decoder(part / vae.config.scaling_factor) for part in latents.split(BATCH)]
    return (torch.cat(parts) * 0.5 + 0.5).clamp(0.0, 1.0).cpu()

"""Drawings of a denoiser during its training, as one picture file: what the loss does not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vp3d.diffusion.sampling import noise_levels, sample
from vp3d.diffusion.schedule import alpha_bar_from_config, epsilon_from_v
from vp3d.embedded import architectures
from vp3d.embedded.fit import half_precision
from vp3d.embedded.picture_training import VAE
from vp3d.prompts import SECTORS
from vp3d.types import to_uint8
from vp3d.worlds.base import LATENT_CHANNELS, TrainingPictures

COLUMNS, ROWS = 8, 4
STEPS, GUIDANCE = 30, 2.0


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
        rows = [torch.cat(list(rgb[i : i + COLUMNS]), 2) for i in range(0, len(rgb), COLUMNS)]
        array = to_uint8(torch.cat([r for r in rows if r.shape == rows[0].shape], 1))
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(self.folder / f"{steps:07d}.png")

    def draw(self, generator: torch.Generator) -> Tensor:
        """Pictures [N, 3, S, S] in [0, 1] of the texts with the weights of the model."""
        device = next(self.model.parameters()).device
        alpha_bar = alpha_bar_from_config(architectures.new_scheduler().config).to(device)
        length = len(alpha_bar)
        times = [max(round(length * i / STEPS) - 1, 0) for i in range(STEPS, 0, -1)]
        levels = noise_levels(alpha_bar, torch.tensor(times, device=device))
        texts = [*self.texts, *[""] * len(self.texts)]
        tokens = architectures.tokenize(self.tokenizer, texts).to(device)
        embedded = self.model["text"](tokens)[0]

        def denoise(x: Tensor, step: int) -> Tensor:
            with half_precision(device):
                v = self.model["unet"](torch.cat([x, x]), times[step], embedded).sample.float()
            named, empty = epsilon_from_v(
                torch.cat([x, x]), v, levels[step].expand(2 * len(x))
            ).chunk(2)
            return empty + GUIDANCE * (named - empty)

        shape = (len(self.texts), LATENT_CHANNELS, self.side, self.side)
        start = torch.randn(shape, generator=generator).to(device)
        latents = sample(denoise, start, levels)
        vae = architectures.AutoencoderTiny.from_pretrained(self.models / VAE).to(device).eval()
        rgb = vae.decoder(latents / vae.config.scaling_factor)
        return (rgb * 0.5 + 0.5).clamp(0.0, 1.0).cpu()

"""A classifier of views by the denoiser, and the Janus score of a finished mesh.

A denoiser whose prompt names the view is a classifier of views (diffusion classifier: Li et al.,
arXiv 2303.16203, equation 4). Of the prompts "..., front view", "..., back view" and so on, the one
with the smallest error of the predicted noise is the guess. (CLIP hardly reacts to view words.) All
views and prompts share the same noise.

    error[k, s] = mean over DRAWS noises of |e_phi(x_t; t, y + view words s) - e|^2,
                  x_t from the picture of view k

* `view_agreement`: share of the views whose guess is right, or a neighbour 45 degrees away.
* `janus`: share of the three views around the back for which some front view fits better than every
  back view, by more than `CLEAR_MARGIN` of the error.

Everything that the training pictures of a view have in common counts. The embedded prior was
trained with the light in front, so a ball that is equally bright at the back has a "second face".

This module measures with the denoiser, and works for any prompt. `worlds/toybox/janus.py` measures
with the true scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vp3d.diffusion.schedule import add_noise
from vp3d.diffusion.text import TextEmbedding
from vp3d.prompts import SECTORS, with_view

# Timestep as a share of all; at lower noise the picture is nearly clean and words hardly matter
NOISE_LEVEL = 0.7
DRAWS = 2
CLEAR_MARGIN = 0.02
FRONT, BACK = (7, 0, 1), (3, 4, 5)  # numbers of SECTORS around the front and around the back


class Denoiser(Protocol):
    """The part of the prior that this module uses."""

    alpha_bar: Tensor
    device: torch.device

    def encode_text(self, prompts: list[str]) -> TextEmbedding:
        """The embeddings of B prompts."""

    def encode_images(self, rgb: Tensor) -> Tensor:
        """Latents `[B, 4, h, w]` of pictures `[B, 3, H, W]` in [0, 1]."""

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Standard normal latents `[batch, 4, h, w]`."""

    def predict_noise(self, latents_t: Tensor, t: Tensor, text: TextEmbedding) -> Tensor:
        """The predicted noise `[B, 4, h, w]`."""


@dataclass(frozen=True)
class ViewGuess:
    """The guesses for eight views from the azimuths of `SECTORS`.

    Attributes:
        named: The guess for each view, a number of `SECTORS` [8].
        view_agreement: Share of the views in [0, 1], see the top of this module.
        janus: Share of the views in [0, 1], see there.
    """

    named: list[int]
    view_agreement: float
    janus: float


def guess_views(prior: Denoiser, prompt: str, rgb: Tensor, generator: torch.Generator) -> ViewGuess:
    """Guess which view of `prompt` each of eight pictures shows.

    Args:
        prior: The denoiser.
        prompt: Names the object, without view words.
        rgb: The views from the azimuths of `SECTORS` [8, 3, H, W] in [0, 1].
        generator: Draws the noise.
    """
    return judge_errors(view_errors(prior, prompt, rgb, generator))


@torch.no_grad()
def view_errors(
    prior: Denoiser, prompt: str, rgb: Tensor, generator: torch.Generator
) -> np.ndarray:
    """Errors [8, 8] of each picture (row) under each of the view words; arguments as above."""
    count = len(SECTORS)
    latents = prior.encode_images(rgb.to(prior.device)).repeat_interleave(count, 0)
    text = TextEmbedding.cat(
        [prior.encode_text([with_view(prompt, view) for view in SECTORS])] * count
    )
    t = torch.full((count * count,), int(NOISE_LEVEL * len(prior.alpha_bar)), device=prior.device)
    errors = torch.zeros(count * count, device=prior.device)
    for _ in range(DRAWS):
        noise = prior.noise(1, generator).expand_as(latents)
        noisy = add_noise(latents, noise, prior.alpha_bar[t])
        errors += (prior.predict_noise(noisy, t, text) - noise).square().flatten(1).mean(1) / DRAWS
    return errors.view(count, count).cpu().double().numpy()


def judge_errors(errors: np.ndarray) -> ViewGuess:
    """The guesses and shares from errors [8, 8] (`view_errors`)."""
    named = errors.argmin(1)
    near = sector_distance(named, np.arange(len(named))) <= 1
    front, back = (errors[list(BACK)][:, list(sectors)].min(1) for sectors in (FRONT, BACK))
    return ViewGuess(
        named.tolist(), float(near.mean()), float((front < (1.0 - CLEAR_MARGIN) * back).mean())
    )


def sector_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance between numbers of `SECTORS` (broadcast), the shorter way round: 0 to 4."""
    half = len(SECTORS) // 2
    return np.abs((a - b + half) % len(SECTORS) - half)

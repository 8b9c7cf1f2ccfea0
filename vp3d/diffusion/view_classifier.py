"""Which view a denoiser takes a picture for, and the Janus score of a finished mesh.

A denoiser that is told the view is a classifier of views (diffusion classifier: Li et al., arXiv 2303.16203, equation 4): of the
prompts "..., front view", "..., back view" and so on, the one with the least error of the predicted noise is the view it sees.
CLIP hardly hears view words. The same noise is used for every view and prompt, so that only what matters differs.

    error[k, s] = mean over DRAWS noises of |e_phi(x_t; t, y + view words s) - e|^2,  x_t of the mesh seen from view k

* `view_agreement`: share of the views that are taken for what they are or for a neighbour of it, 45 degrees away.
* `janus`: share of the three views around the back in which some front view fits better than any back view does, by more than
  CLEARLY of the error.

Whatever the pictures of a view have in common counts. The embedded prior was taught with a lamp in front, so a ball that is as
bright behind has a "second face"; of things with a front, shape and light speak together.
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

LEVEL = 0.7  # of the noise steps; lower, the picture is nearly there and the words hardly matter
DRAWS = 2
CLEARLY = 0.02
FRONT, BACK = (7, 0, 1), (3, 4, 5)  # numbers of SECTORS around the front and around the back


class Denoiser(Protocol):
    """The part of the prior that is asked."""

    alpha_bar: Tensor
    device: torch.device

    def encode_text(self, prompts: list[str]) -> TextEmbedding:
        """The encoded prompts, B of them."""

    def encode_images(self, rgb: Tensor) -> Tensor:
        """Latents `[B, 4, h, w]` of pictures `[B, 3, H, W]` in [0, 1]."""

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Standard normal latents `[batch, 4, h, w]`."""

    def predict_noise(self, latents_t: Tensor, t: Tensor, text: TextEmbedding) -> Tensor:
        """The predicted noise `[B, 4, h, w]`."""


@dataclass(frozen=True)
class ViewGuess:
    """What views from the azimuths of `SECTORS` were taken for: named [8], a number of SECTORS each, and the two shares."""

    named: list[int]
    view_agreement: float
    janus: float


def guess_views(prior: Denoiser, prompt: str, rgb: Tensor, generator: torch.Generator) -> ViewGuess:
    """What `prior` takes the eight views rgb [8, 3, H, W] in [0, 1] of a thing called `prompt` for."""
    return judge_errors(view_errors(prior, prompt, rgb, generator))


@torch.no_grad()
def view_errors(
    prior: Denoiser, prompt: str, rgb: Tensor, generator: torch.Generator
) -> np.ndarray:
    """Errors [8, 8] of each picture of rgb [8, 3, H, W] in [0, 1] under each of the view words."""
    count = len(SECTORS)
    latents = prior.encode_images(rgb.to(prior.device)).repeat_interleave(count, 0)
    text = TextEmbedding.cat(
        [prior.encode_text([with_view(prompt, view) for view in SECTORS])] * count
    )
    t = torch.full((count * count,), int(LEVEL * len(prior.alpha_bar)), device=prior.device)
    errors = torch.zeros(count * count, device=prior.device)
    for _ in range(DRAWS):
        noise = prior.noise(1, generator).expand_as(latents)
        noisy = add_noise(latents, noise, prior.alpha_bar[t])
        errors += (prior.predict_noise(noisy, t, text) - noise).square().flatten(1).mean(1) / DRAWS
    return errors.view(count, count).cpu().double().numpy()


def judge_errors(errors: np.ndarray) -> ViewGuess:
    """The shares of the top of this module from errors [8, 8]."""
    named = errors.argmin(1)
    near = apart(named, np.arange(len(named))) <= 1
    front, back = (errors[list(BACK)][:, list(sectors)].min(1) for sectors in (FRONT, BACK))
    return ViewGuess(
        named.tolist(), float(near.mean()), float((front < (1.0 - CLEARLY) * back).mean())
    )


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many sectors lie between numbers of SECTORS (broadcast), the shorter way round: 0 to 4."""
    half = len(SECTORS) // 2
    return np.abs((a - b + half) % len(SECTORS) - half)

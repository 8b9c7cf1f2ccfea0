"""Align an upscaler to the hallucination score: what it adds should be what the truth shows.

Ren et al. 2025 (arXiv 2507.14367) tune diffusion upscalers with feature distances as the reward.
Their recipe is not published; this one is ours. The reward needs the true large picture, so it is
for training, with pictures that were made small:

    reward = - log(local + EPSILON) - log(whole + EPSILON)

with the terms of `hallucination.py`, the local one as a mean over the largest `SMOOTH_SHARE`. Alone
it is hacked: a network learns fine patterns that please the towers of the reward and no others. So
`ANCHOR` times the mean squared error is added, which such patterns raise, as perceptual losses of
upscalers have a pixel loss next to them.

A diffusion upscaler is tuned as by AlignProp (Prabhudesai et al., arXiv 2310.03739): the gradient
flows through the last K steps of a complete draw, and K is drawn for each update. A feed-forward
network needs no truncation.

Conventions: pictures are rgb in [0, 1] sRGB, small `[B, 3, H, W]`, large `[B, 3, 4 H, 4 W]`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vp3d.align.hallucination import Features, distance
from vp3d.align.learner import Law
from vp3d.upscale.diffusion import DiffusionUpscaler
from vp3d.upscale.network import Upscaler

ANCHOR = 2000.0  # from 26 dB, 0.1 dB less costs as much as 12 % more local x whole distance

# (small pictures, generator) -> large ones with a graph to the weights
Enlarge = Callable[[Tensor, torch.Generator], Tensor]
# (large pictures, true ones) -> a scalar that is minimised
PictureLoss = Callable[[Tensor, Tensor], Tensor]


def feed_forward(network: Upscaler) -> Enlarge:
    """Enlarges by a network that draws nothing at random."""
    return lambda small, generator: network(small).clamp(0.0, 1.0)


def through_the_draw(upscaler: DiffusionUpscaler, law: Law) -> Enlarge:
    """Enlarges by a complete draw, with a graph through its last K steps.

    Args:
        upscaler: Its denoiser's weights must require gradients.
        law: Draws K.
    """

    def enlarge(small: Tensor, generator: torch.Generator) -> Tensor:
        noise, latents = (upscaler.noise(small, n, generator) for n in (3, upscaler.channels))
        keep = law.draw(len(upscaler.timesteps), generator)
        return upscaler.draw(small, noise, latents, grad_steps=keep)

    return enlarge


def score_loss(features: Features) -> PictureLoss:
    """Minus the mean reward: small where the large picture shows what the true one does."""
    return lambda large, truth: distance(large, truth, features).smooth_proxy.mean()


def squared_error(large: Tensor, truth: Tensor) -> Tensor:
    """The control: the mean squared error, which is smallest for the mean of all true pictures."""
    return F.mse_loss(large, truth)


def absolute_error(large: Tensor, truth: Tensor) -> Tensor:
    """The pixel loss that Real-ESRGAN starts from (Wang et al. 2021, arXiv 2107.10833)."""
    return F.l1_loss(large, truth)


def sharpness(large: Tensor, truth: Tensor) -> Tensor:
    """Energy of the gradient as a share of that of the true pictures `[B]` >= 0; 1 is as sharp."""
    return _gradient_energy(large) / _gradient_energy(truth).clamp_min(1e-12)


def _gradient_energy(rgb: Tensor) -> Tensor:
    rows, columns = rgb.diff(dim=-2), rgb.diff(dim=-1)
    return rows.square().mean((1, 2, 3)) + columns.square().mean((1, 2, 3))

"""The value of a state by Monte-Carlo: a small network fitted to the model's own roll-outs.

A roll-out is a plain draw. Every state x_i on its way is a sample of "what follows from x_i", with
the reward r of its end, so that the least-squares fit V(x_i, i) to r is E[r(x_S) | x_i] (Li et al.,
arXiv 2408.08252, algorithm 3). The soft value alpha log E[exp(r / alpha) | x_i] is a fit to
exp((r - max r) / alpha), by cross-entropy. With a network no denoiser call is spent on the
proposals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.align.steer import Latents, PictureReward, propose_latents
from vp3d.align.svdd import Value
from vp3d.diffusion.drawing import Drawing

LEAST = 1e-6  # of the expected exp((r - max r) / alpha)


class LatentValue(nn.Module):
    """A small convolutional network on noisy latents and their step."""

    def __init__(self, channels: int, steps: int, width: int = 32) -> None:
        """Random weights, from torch's global generator.

        Args:
            channels: C of the latents.
            steps: S.
            width: Channels of the first layer.
        """
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.third = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)
        self.scales = nn.ModuleList(nn.Embedding(steps, c) for c in (width, 2 * width, 2 * width))
        self.head = nn.Sequential(
            nn.Linear(4 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 1)
        )

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """Values [R], in any unit, of latents `x` [R, C, h, w] at steps `step` [R] int64."""
        x = x.float()
        for layer, scale in zip((self.first, self.second, self.third), self.scales, strict=True):
            x = layer(x)
            x = F.silu(x * (1.0 + scale(step)[:, :, None, None]))
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        found: Tensor = self.head(pooled).squeeze(1)
        return found


@dataclass(frozen=True)
class Rollouts:
    """States of plain draws with the reward of their end.

    Attributes:
        x: Latents [N, C, h, w], or strings [N, L] (token_value.py).
        step: Their steps [N] int64.
        reward: Reward of the picture or string that each of them became [N].
    """

    x: Tensor
    step: Tensor
    reward: Tensor


@torch.no_grad()
def roll_out(
    drawing: Drawing, x: Tensor, reward: PictureReward, generator: torch.Generator
) -> Rollouts:
    """Draw one picture from each latent `x` [B, C, h, w], with eta = 1, and keep its states."""
    state, steps = Latents(drawing, x), len(drawing.levels) - 1
    propose, seen = propose_latents(), []
    for i in range(steps - 1):
        state = propose(state, i, 1, generator)
        seen.append(state.x.cpu())
    found = reward(drawing.prior.decode(state.finished()), state.owner).cpu().float()
    step = torch.arange(1, steps).repeat_interleave(len(x))
    return Rollouts(torch.cat(seen), step, found.repeat(steps - 1))


@dataclass(frozen=True)
class Regressor:
    """A fitted value.

    Attributes:
        network: `network(x, step)` gives values [R] in any unit; frozen.
        mean: Mean of the rewards of the roll-outs.
        deviation: Their standard deviation.
        most: Their largest.
        alpha: The temperature of a soft value; 0 for E[r | x].
    """

    network: nn.Module
    mean: float
    deviation: float
    most: float
    alpha: float = 0.0

    @torch.no_grad()
    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        """Values [R], in the units of the reward, of R states at steps [R] int64.

        They are on the device of the network, wherever the states are.
        """
        device = next((p.device for p in self.network.parameters()), x.device)
        raw: Tensor = self.network(x.to(device), step.to(device))
        if self.alpha == 0.0:
            return self.mean + self.deviation * raw
        return self.most + self.alpha * torch.sigmoid(raw).clamp_min(LEAST).log()


def fit_value(
    rollouts: Rollouts,
    updates: int,
    generator: torch.Generator,
    alpha: float = 0.0,
    batch: int = 128,
    lr: float = 2e-3,
    network: nn.Module | None = None,
) -> Regressor:
    """Fit a network to roll-outs, by AdamW with a cosine.

    Args:
        rollouts: The states and their rewards.
        updates: Number of updates.
        generator: Draws the batches.
        alpha: 0 fits E[r | x]; above 0 the soft value of that temperature.
        batch: States an update.
        lr: Peak learning rate.
        network: What is fitted, as `Regressor.network`; None for a new `LatentValue`.

    Returns:
        The value, frozen.

    Raises:
        ValueError: if there is a reward that is not finite.
    """
    if not torch.isfinite(rollouts.reward).all():
        raise ValueError("a value cannot be fitted to rewards that are not finite")
    reward = rollouts.reward
    mean, deviation = float(reward.mean()), max(float(reward.std()), 1e-8)
    most = float(reward.max())
    if network is None:
        network = LatentValue(rollouts.x.shape[1], int(rollouts.step.max()) + 1)
    target = (reward - mean) / deviation
    if alpha > 0.0:
        target = torch.exp((reward - most) / alpha)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: 0.5 * (1.0 + math.cos(math.pi * k / updates))
    )
    for _ in range(updates):
        rows = torch.randint(len(reward), (batch,), generator=generator)
        raw = network(rollouts.x[rows], rollouts.step[rows])
        if alpha > 0.0:  # its least is at the mean too, and small means count, since v is their log
            loss = F.binary_cross_entropy_with_logits(raw, target[rows])
        else:
            loss = (raw - target[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.requires_grad_(False).eval()
    return Regressor(network, mean, deviation, most, alpha)


def monte_carlo(regressor: Regressor) -> Value[Latents]:
    """The value of latents by a fitted regressor."""

    def value(state: Latents, i: int) -> Tensor:
        step = torch.full((len(state),), state.step, device=state.x.device)
        return regressor(state.x, step)

    return value

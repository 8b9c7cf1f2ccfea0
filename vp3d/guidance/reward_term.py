"""From a reward to a loss term: hinge, view gate and time window.

    loss = mean over the B views of gate * relu(hinge - reward)        (hinge as in ReFL and DreamReward)

Outside its window, with weight 0, or where the gate is 0 for all views, the term is exactly zero and the encoder is not
run. The weight is applied where the losses are summed, not here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vp3d.config.schema import RewardConfig
from vp3d.guidance.view_gate import gate_weight
from vp3d.types import Camera

# (rgb [B, 3, H, H] in [0, 1], target [B, D] or [1, D]) -> [B], higher is better
Score = Callable[[Tensor, Tensor], Tensor]
NO_HINGE = 1.0e6  # a hinge beyond this is none: then relu(hinge - r) is -r but for a constant, which is left out


def is_active(config: RewardConfig, progress: float) -> bool:
    """Whether the reward acts at `progress` in [0, 1]."""
    return config.weight > 0.0 and config.begin <= progress <= config.finish


def reward_loss(reward: Tensor, config: RewardConfig, gate: Tensor, progress: float) -> Tensor:
    """Unweighted loss, a scalar, of rewards `[B]` (any range) under view gates `[B]` in [0, 1]; exactly 0 when not active."""
    if not is_active(config, progress):
        return reward.new_zeros(())
    shortfall = -reward if config.hinge >= NO_HINGE else torch.relu(config.hinge - reward)
    return (gate * shortfall).mean()


def reward_term(
    reward: Score,
    rgb: Tensor,
    target: Tensor,
    azimuth_deg: Tensor,
    config: RewardConfig,
    progress: float,
) -> tuple[Tensor, Tensor | None]:
    """The loss (scalar) of `reward` on views `rgb [B, 3, H, H]` in [0, 1] seen from `azimuth_deg [B]`, and its mean value.

    `target` is `[1, D]` or `[B, D]`. Only views with an open gate are encoded; the value is detached, and None when
    none were.
    """
    gate = gate_weight(config.gate, azimuth_deg)
    seen = gate > 0.0
    if not is_active(config, progress) or not bool(seen.any()):
        return rgb.new_zeros(()), None
    values = reward(rgb[seen], target if len(target) == 1 else target[seen])
    loss = reward_loss(values, config, gate[seen], progress) * (len(values) / len(rgb))
    return loss, values.detach().mean()


@dataclass(frozen=True)
class Reward:
    """A differentiable judgement of rendered views, what it compares them with, and how it acts.

    `ground` is the grey in [0, 1] that the views are put on for it, that of the picture they are compared with; None is
    the step's random background.
    """

    score: Score  # (rgb [B, 3, H, W] in [0, 1], target) -> [B], higher is better
    target: Callable[[Camera], Tensor]  # the target of each view, [B, D] or [1, D]
    config: RewardConfig
    ground: float | None = None

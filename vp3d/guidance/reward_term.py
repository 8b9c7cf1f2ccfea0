"""From a reward to a loss term: hinge, view gate and time window.

    loss = mean over the B views of gate * relu(hinge - reward)

The hinge follows ReFL (ImageReward, arXiv 2304.05977) and DreamReward (arXiv 2403.14613). The term
is exactly zero, and the encoder is not run, outside its window, at weight 0, or if the gate is 0
for all views. The weight itself is applied where the losses are summed, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vp3d.config.schema import RewardConfig
from vp3d.guidance.view_gate import gate_weight
from vp3d.types import Camera

# (rgb [B, 3, H, H] in [0, 1], target [B, D] or [1, D]) -> [B], higher is better
Score = Callable[[Tensor, Tensor], Tensor]

# A hinge from here on means "no hinge". relu(hinge - r) is then -r plus a constant, which is left
# out.
NO_HINGE = 1.0e6


def is_active(config: RewardConfig, progress: float) -> bool:
    """Whether the reward acts at `progress` in [0, 1]: its weight is not 0, its window is open."""
    return config.weight > 0.0 and config.begin <= progress <= config.finish


def reward_loss(reward: Tensor, config: RewardConfig, gate: Tensor, progress: float) -> Tensor:
    """The unweighted loss of rewards, a scalar.

    Args:
        reward: `[B]`, any range, higher is better.
        config: Hinge, weight and window.
        gate: `[B]` in [0, 1], the view gate of each view.
        progress: Of the run, in [0, 1].

    Returns:
        A scalar; exactly 0 if the reward is not active.
    """
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
    """The loss and the mean value of a reward on rendered views.

    Only views with a gate above 0 are encoded.

    Args:
        reward: Scores the views.
        rgb: `[B, 3, H, H]` in [0, 1], the views.
        target: `[1, D]`, shared by all views, or `[B, D]`.
        azimuth_deg: `[B]`, degrees, azimuth of each view.
        config: Hinge, gate, weight and window.
        progress: Of the run, in [0, 1].

    Returns:
        The unweighted loss, a scalar (see `reward_loss`), and the mean reward of the encoded views
        without gradient; None if no view was encoded.
    """
    gate = gate_weight(config.gate, azimuth_deg)
    is_open = gate > 0.0
    if not is_active(config, progress) or not bool(is_open.any()):
        return rgb.new_zeros(()), None
    values = reward(rgb[is_open], target if len(target) == 1 else target[is_open])
    # `reward_loss` averages over the encoded views; the factor makes it the mean over all views.
    loss = reward_loss(values, config, gate[is_open], progress) * (len(values) / len(rgb))
    return loss, values.detach().mean()


@dataclass(frozen=True)
class Reward:
    """A differentiable score of rendered views, its targets and its settings.

    Attributes:
        score: (rgb `[B, 3, H, W]` in [0, 1], target) -> `[B]`, higher is better.
        target: The target of each view, `[B, D]` or `[1, D]`.
        config: Weight, hinge, gate and window.
        background: Grey level in [0, 1] that the views are composited over for this reward, so
            that it matches the picture they are compared with. None: the step's random background.
    """

    score: Score
    target: Callable[[Camera], Tensor]
    config: RewardConfig
    background: float | None = None


def reward_terms(
    rewards: Mapping[str, Reward],
    shown: Callable[[float | None], Tensor],
    camera: Camera,
    progress: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Loss and mean value of each reward; outside its window only the value, for the display.

    Args:
        rewards: The rewards by name.
        shown: The B views rgb `[B, 3, H, W]` in [0, 1] over a grey; None is the step's background.
        camera: The B cameras.
        progress: Of the run, in [0, 1].

    Returns:
        The unweighted losses by name, and the values as "reward_<name>".
    """
    terms, values = {}, {}
    for name, reward in rewards.items():
        target, rgb = reward.target(camera), shown(reward.background)
        terms[name], value = reward_term(
            reward.score, rgb, target, camera.azimuth_deg, reward.config, progress
        )
        if not is_active(reward.config, progress):
            with torch.no_grad():
                value = reward.score(rgb, target).mean()
        if value is not None:
            values[f"reward_{name}"] = value
    return terms, values

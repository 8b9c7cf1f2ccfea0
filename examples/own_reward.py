"""Optimise a reward of your own, without a change in VP3D: colourful views.

Run `python examples/own_reward.py`. The reward is the metric of Hasler and Suesstrunk (2003), made
differentiable; docs/tutorials/your_own_reward.md explains it and shows its effect.
"""

from dataclasses import replace

import torch
from torch import Tensor

from vp3d import generate, load_config, load_models
from vp3d.config.schema import RewardConfig
from vp3d.guidance.reward_term import Reward


def colourfulness(rgb: Tensor, target: Tensor) -> Tensor:
    """Rewards `[B]`, 0 or more, of views `rgb [B, 3, H, W]` in [0, 1]; `target` is not used."""
    red, green, blue = rgb.flatten(2).unbind(1)
    red_green, yellow_blue = red - green, 0.5 * (red + green) - blue
    spread = (red_green.var(1) + yellow_blue.var(1) + 1.0e-8).sqrt()
    centre = (red_green.mean(1).square() + yellow_blue.mean(1).square() + 1.0e-8).sqrt()
    return spread + 0.3 * centre


config = load_config("draft", prompt="a red mushroom with a white stem")
reward = Reward(colourfulness, lambda camera: torch.zeros(1, 1), RewardConfig(weight=0.1))
models = replace(load_models(config), extra_rewards={"colourfulness": reward})
asset = generate(config, models=models)
print(asset.path("glb"))

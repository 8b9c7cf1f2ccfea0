"""Rewards by name for `align`: the judges of `rewards/`, compression, framing, and your own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vp3d.align.objectives import Objective, PictureScore, parse_rewards
from vp3d.align.scores import WITH_GRADIENT, WITHOUT_GRADIENT
from vp3d.config.schema import RewardsConfig
from vp3d.errors import UserError
from vp3d.rewards.aesthetic import load_aesthetic
from vp3d.rewards.encoders import load_clip
from vp3d.rewards.imagereward import load_imagereward
from vp3d.rewards.text_image import ClipText, TextImage
from vp3d.rewards.towers import load_clip_tower

TEXT_REWARDS = ("clip", "imagereward", "pickscore", "hpsv2")
NAMES = (*TEXT_REWARDS, "aesthetic", *WITH_GRADIENT, *WITHOUT_GRADIENT)


def build_objectives(
    text: str,
    config: RewardsConfig,
    manifest: str,
    device: torch.device,
    hinge: float | None = None,
) -> list[Objective]:
    """The rewards of `NAME[:WEIGHT],...`, not yet on one scale.

    Args:
        text: The rewards; a name with a colon, `module:function`, is imported.
        config: Which judges are meant by their names.
        manifest: Hashes of the embedded CLIP; "" for none.
        device: Where the judges run.
        hinge: As in `Objective`.

    Raises:
        UserError: a name is unknown, or its weights are missing.
    """
    return [
        build_objective(name, weight, config, manifest, device, hinge)
        for name, weight in parse_rewards(text)
    ]


def build_objective(
    name: str,
    weight: float,
    config: RewardsConfig,
    manifest: str,
    device: torch.device,
    hinge: float | None = None,
) -> Objective:
    """One reward by its name; arguments as for `build_objectives`."""
    if name in TEXT_REWARDS:
        score = text_score(load_text_reward(name, config, manifest, device))
        return Objective(name, score, weight, True, hinge)
    if name == "aesthetic":
        head = load_aesthetic(config.aesthetic_model, device)
        return Objective(name, lambda rgb, _: head.score(rgb, rgb), weight, True, hinge)
    if name in WITH_GRADIENT:
        return Objective(name, WITH_GRADIENT[name], weight, True, hinge)
    if name in WITHOUT_GRADIENT:
        return Objective(name, WITHOUT_GRADIENT[name], weight, False, hinge)
    if ":" in name:
        function = import_score(name)
        return Objective(name, function, weight, has_gradient(function, device), hinge)
    raise UserError(
        f"there is no reward {name!r}: use {', '.join(NAMES)}, or module:function of your own"
    )


def load_text_reward(
    name: str, config: RewardsConfig, manifest: str, device: torch.device
) -> TextImage:
    """The text-image judge of that name."""
    if name == "clip":
        return ClipText(load_clip(config.clip, manifest, device))
    if name == "imagereward":
        return load_imagereward(config.imagereward, device)
    if name == "pickscore":
        tower = load_clip_tower(config.pickscore, "rewards.pickscore", device)
        return ClipText(tower, tower.scale)
    return ClipText(load_clip(config.hpsv2, "", device, "rewards.hpsv2"))


def text_score(judge: TextImage) -> PictureScore:
    """The judge as a score of pictures by their prompts; encoded prompts are kept."""

    @lru_cache(maxsize=4096)
    def target(prompt: str) -> Tensor:
        with torch.no_grad():
            return judge.target([prompt])

    def score(rgb: Tensor, prompts: Sequence[str]) -> Tensor:
        return judge.score(rgb, torch.cat([target(prompt) for prompt in prompts]))

    return score


def import_score(name: str) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """The function of `module:function`, which the user named on the command line."""
    module, _, function = name.rpartition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"--reward {name}: {error}; write module:function of a module on PYTHONPATH"
        ) from error
    if not callable(found):
        raise UserError(f"--reward {name} is a {type(found).__name__}, not a function")
    score: Callable[[Tensor, Sequence[str]], Tensor] = found
    return score


def has_gradient(score: PictureScore, device: torch.device) -> bool:
    """Whether a score of pictures has a gradient, found by calling it on a grey picture."""
    rgb = torch.full((1, 3, 64, 64), 0.5, device=device, requires_grad=True)
    with torch.enable_grad():
        values = score(rgb, ["a picture"])
    return isinstance(values, Tensor) and values.requires_grad

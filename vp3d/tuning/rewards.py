"""Rewards by name for `align`: the judges of `rewards/`, compression, framing, and your own."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from vp3d.align.objectives import (
    Objective,
    PictureScore,
    no_gradient,
    parse_rewards,
    score_all,
)
from vp3d.align.scores import WITH_GRADIENT, WITHOUT_GRADIENT
from vp3d.config.paths import program
from vp3d.config.schema import RewardsConfig
from vp3d.errors import UserError, VP3DError, in_one_line
from vp3d.rewards.aesthetic import load_aesthetic
from vp3d.rewards.encoders import load_clip
from vp3d.rewards.imagereward import load_imagereward
from vp3d.rewards.text_image import ClipText, TextImage
from vp3d.rewards.towers import load_clip_tower
from vp3d.system.out_of_memory import is_out_of_memory, report_out_of_memory

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
    check_name(name)
    function = import_score(name)
    return Objective(name, function, weight, has_gradient(name, function, device), hinge)


def check_rewards(text: str, method: str, device: torch.device) -> None:
    """Refuse rewards that cannot be trained on, before a model is loaded.

    Functions of the caller's own are called once, with a grey picture.

    Args:
        text: The rewards, as for `build_objectives`.
        method: The method of alignment; all but "ddpo" need a gradient.
        device: Where the pictures will be.
    """
    for name, _ in parse_rewards(text):
        check_name(name)
        known = name in NAMES
        live = (
            name not in WITHOUT_GRADIENT
            if known
            else has_gradient(name, import_score(name), device)
        )
        if not live and method != "ddpo":
            raise no_gradient(name, method)


def check_named(stored: str, given: str, run: Path) -> None:
    """Refuse a run folder whose rewards name code, unless the caller names the same.

    Args:
        stored: The rewards in the settings of the run.
        given: The rewards of the command line; "" for none.
        run: The run folder.
    """
    own = [name for name, _ in parse_rewards(stored) if ":" in name]
    if given and parse_rewards(given) != parse_rewards(stored):
        raise UserError(f"--reward {given} is not that of the run: give {stored}, or a new run")
    if own and not given:
        raise UserError(
            f"the reward {own[0]} of this run is code, which a run folder may not choose: if it is "
            f"yours, write `{program()} resume {shlex.quote(str(run))} --reward {stored}`"
        )


def check_name(name: str) -> None:
    """UserError for a name that is neither a reward nor of the form `module:function`."""
    if name not in NAMES and ":" not in name:
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


def import_score(name: str) -> PictureScore:
    """The function of `module:function`, which the user named on the command line.

    What it raises is a UserError with its name; memory that runs out is left to the caller, who may
    try fewer pictures.
    """
    module, _, function = name.rpartition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # a module of the user may raise anything
        raise UserError(
            f"--reward {name}: {_reason(error)}; write module:function of a module on PYTHONPATH"
        ) from error
    if not callable(found):
        raise UserError(f"--reward {name} is of type {type(found).__name__}, not a function")

    def score(rgb: Tensor, prompts: Sequence[str]) -> Tensor:
        try:
            values: Tensor = found(rgb, prompts)
        except VP3DError:
            raise
        except (Exception, SystemExit) as error:  # a function of the user may raise anything
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"the reward {name} failed for rgb {tuple(rgb.shape)} ({_reason(error)}): correct "
                "the function"
            ) from error
        return values

    return score


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words."""
    kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
    return f"{kind}{in_one_line(error, 200)}"


@report_out_of_memory("calling a reward of your own", "free memory, or take a smaller model")
def has_gradient(name: str, score: PictureScore, device: torch.device) -> bool:
    """Whether a score of pictures has a gradient, found by calling it on a grey picture."""
    rgb = torch.full((1, 3, 64, 64), 0.5, device=device, requires_grad=True)
    with torch.enable_grad():
        # not a leaf, as a drawing: a function may then change it in place
        found = score_all([Objective(name, score)], rgb * 1.0, ["a picture"])
    return found[name].requires_grad

"""The score that a training does not optimise, by which the guard judges it.

`auto` takes the first that is here and no reward: CLIP, the aesthetic head, the likeness to the
base model's drawings by DINOv2 and, with the embedded models, that likeness by their feature tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vp3d.align.objectives import PictureScore
from vp3d.config.paths import ASSETS, MANIFEST, locate
from vp3d.config.schema import PriorConfig, RewardsConfig
from vp3d.errors import UserError
from vp3d.metrics.attribute_judge import load_judge
from vp3d.rewards.towers import load_dino
from vp3d.tuning.rewards import TEXT_REWARDS, build_objective
from vp3d.weights.locate import find_weights

LIKENESS = ("dino", "tower")
Features = Callable[[Tensor], Tensor]  # rgb [B, 3, H, W] in [0, 1] -> unit features [B, D]


class Likeness:
    """How like drawings are to the base model's of the same prompts and seeds.

        score = min(cos(f(drawing), f(base's drawing)), level)

    The level of a prompt is the mean cosine between the base's drawings of it by different seeds.
    So a model may change what another seed would change as well; below that the score falls.
    """

    def __init__(self, features: Features) -> None:
        """Keep the features; the first drawings that are scored are the base model's."""
        self.features = features
        self.base: Tensor | None = None
        self.level = torch.empty(0)

    def __call__(self, rgb: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `[B]` of rgb `[B, 3, H, W]` in [0, 1], always of the same prompts."""
        found = self.features(rgb)
        if self.base is None:
            self.base, self.level = found.detach(), _levels(found.detach(), prompts)
        return torch.minimum((found * self.base).sum(1), self.level)


def _levels(features: Tensor, prompts: Sequence[str]) -> Tensor:
    """The mean cosine of each row with the other rows of its prompt `[B]`; 1 without others."""
    same = torch.tensor([[a == b for b in prompts] for a in prompts], device=features.device)
    same.fill_diagonal_(False)
    count = same.sum(1)
    mean = (features @ features.T * same).sum(1) / count.clamp_min(1)
    return torch.where(count > 0, mean, torch.ones_like(mean))


def held_out_score(
    guard: str,
    optimised: Sequence[str],
    rewards: RewardsConfig,
    prior: PriorConfig,
    device: torch.device,
) -> tuple[str, PictureScore | None]:
    """Name and function of the score that is held out; ("none", None) if there is none.

    Args:
        guard: What is asked for, `align.guard`.
        optimised: Names of the rewards.
        rewards: Where the judges are.
        prior: The model that is trained.
        device: Where the judges run.
    """
    name = guard if guard != "auto" else _first(optimised, rewards, prior)
    if name in (*TEXT_REWARDS, "aesthetic"):
        return name, build_objective(name, 1.0, rewards, prior.manifest, device).score
    if name == "dino":
        return name, Likeness(load_dino(rewards.dinov2, device).image)
    if name == "tower":
        return name, Likeness(_tower(device))
    return "none", None


def _first(optimised: Sequence[str], rewards: RewardsConfig, prior: PriorConfig) -> str:
    """What `auto` means."""
    here = {
        "clip": not is_foreign_clip(rewards.clip, prior.path),
        "aesthetic": _is_here(rewards.aesthetic_model, "rewards.aesthetic_model"),
        "dino": _is_here(rewards.dinov2, "rewards.dinov2"),
        "tower": _is_embedded(prior.path, "pipeline"),
    }
    return next((name for name, found in here.items() if found and name not in optimised), "none")


def is_foreign_clip(clip: str, prior: str) -> bool:
    """Whether the CLIP is the embedded one, which knows the toybox only, and the prior is not."""
    return _is_embedded(clip, "clip") and not _is_embedded(prior, "pipeline")


def _is_embedded(location: str, name: str) -> bool:
    return locate(location).absolute() == ASSETS / name


def _is_here(location: str, key: str) -> bool:
    """Whether the weights of a location are on this disk."""
    try:
        return find_weights(location, key)[1]
    except UserError:
        return False


def _tower(device: torch.device) -> Features:
    """The last features of the embedded feature tower, the mean over places."""
    tower = load_judge(ASSETS / "feature_tower", MANIFEST).to(device).eval().requires_grad_(False)
    return lambda rgb: F.normalize(tower.stage_features(rgb)[-1].mean((2, 3)), dim=1)

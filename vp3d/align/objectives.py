"""What a model is aligned to: named rewards on one scale, and their weighted sum.

Rewards differ in scale by orders of magnitude. Each is therefore put on the scale of the base
model's own drawings, (r - mean) / sd, so that weights mean the same for all of them:

    loss = mean over pictures of sum_k weight_k relu(hinge_k - r_k)

A hinge is on that scale too: 2 stops pulling where a picture is two standard deviations above the
base's mean. Without a hinge the loss is -weight * r. A negative weight turns the reward round, so
its hinge is below the mean: |weight_k| relu(hinge_k + r_k).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vp3d.errors import UserError

# (rgb [B, 3, H, W] in [0, 1], B prompts) -> [B], higher is better
PictureScore = Callable[[Tensor, Sequence[str]], Tensor]
LEAST_SD = 1e-6  # a reward that all drawings get alike has no scale


@dataclass(frozen=True)
class Objective:
    """A reward with its weight and scale.

    Attributes:
        name: Its name.
        score: Scores pictures by their prompts.
        weight: Weight in the sum; negative values turn it round.
        differentiable: Whether `score` has a gradient.
        hinge: Standard deviations above the base, or below it with a negative weight, from which on
            it no longer pulls; None for none.
        mean: Mean of the base's drawings.
        sd: Their standard deviation.
    """

    name: str
    score: PictureScore
    weight: float = 1.0
    differentiable: bool = True
    hinge: float | None = None
    mean: float = 0.0
    sd: float = 1.0

    def scaled(self, values: Tensor) -> Tensor:
        """Raw rewards `[B]` on the scale of the base's drawings `[B]`."""
        return (values - self.mean) / self.sd


def parse_rewards(text: str) -> list[tuple[str, float]]:
    """Names and weights of `NAME[:WEIGHT],...`; the default weight is 1.

    A name may itself have a colon, `module:function`; then a weight is the last number.

    Raises:
        UserError: no name, a weight that is no number other than 0, or a name twice.
    """
    found: dict[str, float] = {}
    for item in (part.strip() for part in text.split(",")):
        name, colon, last = item.rpartition(":")
        weight = _number(last) if colon else None
        if weight is None:
            name, weight = item, 1.0
        if not name or weight == 0.0 or weight != weight or abs(weight) == float("inf"):
            raise UserError(f"--reward {item!r}: write NAME or NAME:WEIGHT, as clip:1,compress:0.3")
        if name in found:
            raise UserError(f"--reward names {name} twice: give it once with one weight")
        found[name] = weight
    return list(found.items())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def check_gradient(objectives: Sequence[Objective], method: str) -> None:
    """Refuse rewards without gradient for a method that needs one."""
    dull = next((one.name for one in objectives if not one.differentiable), None)
    if dull is not None:
        raise no_gradient(dull, method)


def no_gradient(name: str, method: str) -> UserError:
    """The error of a reward without gradient for a method that needs one."""
    return UserError(
        f"the reward {name} has no gradient, which --method {method} needs: use --method ddpo, "
        "or steer the drawing instead"
    )


def score_all(
    objectives: Sequence[Objective], rgb: Tensor, prompts: Sequence[str], recompute: bool = False
) -> dict[str, Tensor]:
    """Raw rewards by name; each is checked for its shape.

    Args:
        objectives: The rewards.
        rgb: Pictures `[B, 3, H, W]` in [0, 1].
        prompts: Their prompts.
        recompute: Keep no activations of the rewards; each is computed again in the backward pass
            (torch.utils.checkpoint), so that only one of them takes memory at a time.

    Returns:
        `[B]` for each.
    """
    found = {}
    for one in objectives:
        if recompute and one.differentiable and torch.is_grad_enabled():
            values = checkpoint(one.score, rgb, prompts, use_reentrant=False)
        else:
            values = one.score(rgb, prompts)
        found[one.name] = _checked(one.name, values, rgb)
    return found


def _checked(name: str, values: object, rgb: Tensor) -> Tensor:
    """What a score returned, as numbers `[B]` on the device of its pictures."""
    if isinstance(values, Tensor) and tuple(values.shape) == (len(rgb),):
        if values.is_floating_point() and values.device == rgb.device:
            return values
        if not values.is_complex() and not values.is_meta:
            return values.to(rgb.device, torch.float32)
        got = f"numbers of type {values.dtype} on {values.device}"
    else:
        got = str(tuple(values.shape)) if isinstance(values, Tensor) else type(values).__name__
    raise UserError(
        f"the reward {name} returned {got}: it takes (rgb [B, 3, H, W] in [0, 1], "
        "prompts) and returns a tensor [B]"
    )


def combined(objectives: Sequence[Objective], raw: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum of scaled rewards `[B]`; those beyond their hinge count as the hinge."""
    total = torch.zeros_like(next(iter(raw.values())), dtype=torch.float32)
    for one in objectives:
        values = one.scaled(raw[one.name])
        if one.hinge is not None:
            above = one.weight >= 0.0
            values = values.clamp_max(one.hinge) if above else values.clamp_min(-one.hinge)
        total = total + one.weight * values
    return total


def on_scale(
    objectives: Sequence[Objective], rgb: Tensor, prompts: Sequence[str]
) -> list[Objective]:
    """The objectives on the scale of the base's drawings `rgb [N, 3, H, W]` in [0, 1].

    Raises:
        UserError: a reward is not finite, or the same for all drawings.
    """
    with torch.no_grad():
        raw = score_all(objectives, rgb, prompts)
    scaled = []
    for one in objectives:
        values = raw[one.name].double()
        mean, sd = float(values.mean()), float(values.std())
        if not bool(values.isfinite().all()):
            raise UserError(f"the reward {one.name} is not finite for drawings of the base model")
        if sd < LEAST_SD:
            raise UserError(
                f"the reward {one.name} is {mean:.4g} for every drawing of the base model: "
                "there is nothing to learn from it"
            )
        scaled.append(replace(one, mean=mean, sd=sd))
    return scaled

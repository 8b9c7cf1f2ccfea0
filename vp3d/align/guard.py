"""The guard against over-optimisation: watches what the reward does not, and stops in time.

A reward alone destroys a model in some ten steps: pictures score ever higher and show ever less.
At fixed prompts and seeds the guard compares the aligned model with the base: a held-out score that
is not optimised, the spread among drawings of one prompt, and the drift. It stops when the held-out
score is more than two standard errors below its best in three checks in a row, or when the spread
is under half of the base's, and names the reason and what to change.

Of what was trained it keeps the highest reward whose held-out score is at most one standard error
below the base's (the one-standard-error rule of Breiman, Friedman, Olshen and Stone,
*Classification and Regression Trees*, 1984, section 3.4.3). To keep is judged more strictly than to
stop, for the reward chooses the one that has fallen most among those that may be kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PATIENCE = 3  # checks below the best
STOP_ERRORS = 2.0  # standard errors below the best
KEEP_ERRORS = 1.0  # standard errors below the base
LEAST_SPREAD = 0.5  # share of the base's spread
WARN_AFTER = 20  # steps after which a falling reward is worth a word


@dataclass(frozen=True)
class Check:
    """What one look at the validation drawings found.

    Attributes:
        step: The training step.
        rewards: Mean of each raw reward.
        total: Mean of their weighted sum, on the base's scale.
        held: Mean of the held-out score; None without one.
        error: Standard error of its change from the base, over drawings.
        spread: Mean distance of drawings of one prompt.
        drift: Mean square change of the drawings' latents path, as predicted noise.
        sharpness: Mean gradient of the pictures.
    """

    step: int
    rewards: Mapping[str, float]
    total: float
    held: float | None
    error: float
    spread: float
    drift: float
    sharpness: float


@dataclass
class Guard:
    """The history of the checks, and the decision.

    Attributes:
        held_name: Name of the held-out score.
        rewards: Names of the optimised rewards.
        checks: All checks; the first is of the model before training, the base model or that with
            the LoRA that is continued.
        below: Checks in a row below the best.
    """

    held_name: str
    rewards: Sequence[str]
    checks: list[Check] = field(default_factory=list)
    below: int = 0

    def add(self, check: Check) -> str:
        """Take a check; returns why to stop, or ""."""
        self.checks.append(check)
        base = self.checks[0]
        numbers = {"reward": check.total, self.held_name: check.held, "spread": check.spread}
        broken = [name for name, value in numbers.items() if value is not None and value != value]
        if broken:
            return (
                f"stopped at step {check.step}: {' and '.join(broken)} is not a number; lower "
                "align.lr, or check the reward"
            )
        if check.held is not None:
            best = max((c for c in self.checks if c.held is not None), key=lambda c: c.held or 0.0)
            limit = (best.held or 0.0) - STOP_ERRORS * max(check.error, best.error)
            self.below = self.below + 1 if check.held < limit else 0
            if self.below >= PATIENCE:
                now, then = check.rewards, base.rewards
                rose = " and ".join(name for name in self.rewards if now[name] > then[name])
                while_rose = f" while {rose} rose" if rose else ""
                return (
                    f"stopped at step {check.step}: {self.held_name} fell from {best.held:.3f} to "
                    f"{check.held:.3f}{while_rose}; lower align.lr, add a second reward "
                    f"(such as clip:1) to --reward, or set align.anchor"
                )
        if len(self.checks) > 1 and check.spread < LEAST_SPREAD * base.spread:
            return (
                f"stopped at step {check.step}: drawings of one prompt are becoming one picture "
                f"(spread {check.spread:.3f}, base {base.spread:.3f}); lower align.lr, or set "
                "align.anchor"
            )
        return ""

    def best(self) -> Check:
        """The check with the highest reward among those that keep the held-out score and spread."""
        base = self.checks[0]
        sound = [check for check in self.checks if self._sound(check, base)]
        return max(sound or [base], key=lambda check: (check.total, -check.step))

    def advice(self) -> str:
        """A line where the reward falls from the start; "" otherwise."""
        last = self.checks[-1]
        if last.step < WARN_AFTER or len(self.checks) < 2:
            return ""
        if all(check.total < self.checks[0].total for check in self.checks[1:]):
            return (
                "the reward is below the base's since the start: try --k fixed:1 and a lower "
                "align.lr"
            )
        return ""

    def record(self) -> dict[str, Any]:
        """The state as JSON."""
        return {"below": self.below, "checks": [vars(check) for check in self.checks]}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Inverse of `record`."""
        self.below = int(record["below"])
        self.checks = [Check(**check) for check in record["checks"]]

    def _sound(self, check: Check, base: Check) -> bool:
        kept = check.spread >= LEAST_SPREAD * base.spread
        if check.held is None or base.held is None:
            return kept
        return kept and check.held >= base.held - KEEP_ERRORS * check.error


def spread_of(rgb: Tensor, prompts: Sequence[str]) -> float:
    """Mean root-mean-square distance between drawings `[N, 3, H, W]` of the same prompt.

    NaN-free: 0 where no prompt is drawn twice.
    """
    distances = []
    for prompt in set(prompts):
        rows = [i for i, one in enumerate(prompts) if one == prompt]
        for a, i in enumerate(rows):
            for j in rows[a + 1 :]:
                distances.append((rgb[i] - rgb[j]).square().mean().sqrt())
    return float(torch.stack(distances).mean()) if distances else 0.0


def sharpness_of(rgb: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels of rgb `[N, 3, H, W]` in [0, 1]."""
    across = (rgb[..., 1:] - rgb[..., :-1]).abs().mean()
    down = (rgb[..., 1:, :] - rgb[..., :-1, :]).abs().mean()
    return float(across + down) / 2.0


def paired_error(values: Tensor, base: Tensor) -> float:
    """Standard error of the mean change between two scores of the same drawings, both `[N]`."""
    return float((values - base).double().std() / len(values) ** 0.5) if len(values) > 1 else 0.0

"""What the claims on AlignProp share: captions, a training with measurements, and the judge."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vp3d.align.compress import jpeg_size
from vp3d.align.objectives import combined, score_all
from vp3d.config.schema import AlignConfig, PriorConfig, RewardsConfig
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.sampling import sample
from vp3d.evaluate.gallery import ASSETS, MANIFEST
from vp3d.metrics.attribute_judge import Judge, judge_views, load_judge
from vp3d.metrics.attributes import check_view
from vp3d.prompts import with_view
from vp3d.train.generators import make_generator
from vp3d.tuning.rewards import build_objective, build_objectives
from vp3d.tuning.session import Prompts, Training
from vp3d.worlds.toybox.data import attributes, draw_specs
from vp3d.worlds.toybox.scenes import Spec, caption

VIEW = "front view"
TRAINING, UNSEEN, VALIDATION = 24, 32, 8  # captions
CPU = torch.device("cpu")


@lru_cache(maxsize=1)
def captions() -> dict[str, list[Spec]]:
    """Captions by use: to train on, unseen ones (reserved by hash), and the guard's."""
    rng = np.random.default_rng(26)
    training = draw_specs(rng, TRAINING, reserved=False)
    reserved = draw_specs(rng, UNSEEN + VALIDATION, reserved=True)
    return {
        "training": training,
        "unseen": reserved[:UNSEEN],
        "validation": reserved[UNSEEN:],
    }


def prompts_of(specs: Sequence[Spec]) -> tuple[str, ...]:
    """The captions with the view words of a drawing."""
    return tuple(with_view(caption(spec), VIEW) for spec in specs)


@lru_cache(maxsize=1)
def the_judge() -> Judge:
    """The attribute judge, which measures and is never optimised."""
    return load_judge(ASSETS / "judge", MANIFEST)


def start(config: AlignConfig, seed: int, held_out: bool = True) -> Training:
    """A new training of the embedded model in float32 on the training captions."""
    torch.set_num_threads(1)
    prior = load_prior(PriorConfig(dtype="float32"))
    rewards, manifest = RewardsConfig(), str(MANIFEST)
    objectives = build_objectives(config.reward, rewards, manifest, CPU)
    clip = build_objective("clip", 1.0, rewards, manifest, CPU)
    found = captions()
    prompts = Prompts(prompts_of(found["training"]), prompts_of(found["validation"]))
    held = ("clip", clip.score) if held_out else ("none", None)
    return Training(prior, config, objectives, prompts, held, seed=seed)


@dataclass(frozen=True)
class Drawn:
    """Drawings of captions by a training's present LoRA, at fixed seeds.

    Attributes:
        total: The weighted sum of rewards on the base's scale `[N]`.
        raw: Raw rewards by name `[N]`.
        attributes: Share of the caption's attributes that the judge names `[N]` in [0, 1].
        right: Whether both objects and colours are right `[N]`.
        jpeg: True JPEG size in kB `[N]`.
        rgb: The pictures `[N, 3, H, W]`.
    """

    total: Tensor
    raw: dict[str, Tensor]
    attributes: Tensor
    right: Tensor
    jpeg: Tensor
    rgb: Tensor


def draw(
    training: Training, use: str, seed: int = 99, steps: int | None = None, repeat: int = 1
) -> Drawn:
    """Draw the captions of a use with the averaged LoRA.

    Args:
        training: The training.
        use: "training" or "unseen".
        seed: Of the noise; the same for every method.
        steps: Denoising steps; None as in the training.
        repeat: Drawings a caption.
    """
    specs = [spec for spec in captions()[use] for _ in range(repeat)]
    names = list(prompts_of(specs))
    steps = steps or training.config.steps
    noise = training.prior.noise(len(names), make_generator(seed, use))
    with training.averaged(), torch.no_grad():
        drawing = training.prior.drawing(names, "", steps, training.config.guidance_scale)
        rgb = training.prior.decode(sample(drawing, noise, drawing.levels))
        raw = score_all(training.learner.objectives, rgb, names)
    shares, right = judged(rgb, specs)
    return Drawn(
        combined(training.learner.objectives, raw), raw, shares, right, jpeg_size(rgb), rgb
    )


def judged(rgb: Tensor, specs: Sequence[Spec]) -> tuple[Tensor, Tensor]:
    """Share of the attributes of each caption that the judge names [N], and whether all are."""
    shares, right = [], []
    for named, spec in zip(judge_views(the_judge(), rgb), specs, strict=True):
        truth = attributes(spec)
        verdict = check_view(named, truth)
        shares.append(float(np.mean([named[key] == value for key, value in truth.items()])))
        right.append(float(verdict["right"]))
    return torch.tensor(shares), torch.tensor(right)


def curve(
    config: AlignConfig, seed: int, marks: Sequence[int], guarded: bool = False
) -> list[dict[str, Any]]:
    """A training, measured at the start and after each number of queries in `marks`.

    Args:
        config: How to train.
        seed: Of the training.
        marks: Numbers of reward queries, rising.
        guarded: Whether the guard may end it, with the LoRA that it kept.

    Returns:
        For each mark: queries, CPU seconds of training, and the measurements.
    """
    training = start(config, seed)
    seconds, rows = 0.0, [_row(training, 0, 0.0)]
    if guarded:
        training.check()
    for mark in marks:
        stopped = ""
        while training.queries < mark and not stopped:
            began = time.process_time()
            training.step()
            seconds += time.process_time() - began
            if guarded and training.step_number % config.guard_every == 0:
                stopped = training.check()
        if guarded and (stopped or mark == marks[-1]):
            training.average = training.best
        rows.append(_row(training, training.queries, seconds) | {"stopped": stopped})
        if stopped:
            break
    return rows


def _row(training: Training, queries: int, seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {"queries": queries, "seconds": round(seconds, 1)}
    for use in ("training", "unseen"):
        found = draw(training, use)
        row[use] = {
            "total": found.total,
            "jpeg": found.jpeg,
            "attributes": found.attributes,
            "right": found.right,
            **found.raw,
        }
    return row


def mean(values: Sequence[float]) -> float:
    """The mean of a list."""
    return float(np.mean(values))

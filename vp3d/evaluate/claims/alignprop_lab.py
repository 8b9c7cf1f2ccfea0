"""What the claims on AlignProp share: captions, a training with measurements, and the judges.

The attribute judge and the measuring CLIP are those of toybench. Nothing is optimised by either,
so they may judge what was aligned to the CLIP of the rewards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vp3d.align.compress import jpeg_size
from vp3d.align.objectives import combined, score_all
from vp3d.config.paths import MANIFEST
from vp3d.config.schema import AlignConfig, PriorConfig, RewardsConfig
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.sampling import sample
from vp3d.errors import DivergedError
from vp3d.evaluate.claims.frame import recorded
from vp3d.evaluate.toybench import judges
from vp3d.metrics.attribute_judge import judge_views
from vp3d.metrics.attributes import check_view
from vp3d.prompts import strip_view, with_view
from vp3d.train import checkpoint
from vp3d.train.generators import make_generator
from vp3d.tuning.rewards import build_objectives
from vp3d.tuning.session import Prompts, Training
from vp3d.worlds.toybox.data import attributes, draw_specs
from vp3d.worlds.toybox.scenes import Spec, caption

VIEW = "front view"
TRAINING, UNSEEN, VALIDATION = 24, 32, 8  # captions
CPU = torch.device("cpu")
HELD_OUT = "measuring clip"  # name of the guard's score


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
@torch.no_grad()
def texts() -> dict[str, Tensor]:
    """Unit text features by the measuring CLIP: the captions of toybench and of these claims."""
    known = judges()
    own = [caption(spec) for specs in captions().values() for spec in specs]
    return known.texts | dict(zip(own, known.clip.text(own), strict=True))


@torch.no_grad()
def match(rgb: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """How pictures match their captions, by the CLIP that is never optimised.

    Args:
        rgb: Pictures [N, 3, H, W] in [0, 1].
        prompts: Their captions, with or without view words.

    Returns:
        The cosine with the caption [N], and whether it is the nearest of all `texts` [N], 0 or 1.
    """
    names = list(texts())
    scores = judges().clip.image(rgb) @ torch.stack(list(texts().values())).T
    own = torch.tensor([names.index(strip_view(prompt)) for prompt in prompts])
    return scores[torch.arange(len(own)), own], (scores.argmax(1) == own).float()


def start(config: AlignConfig, seed: int) -> Training:
    """A new training of the embedded model in float32 on the training captions.

    The guard holds the measuring CLIP out, so that it also guards what is aligned to CLIP.
    """
    torch.set_num_threads(1)
    prior = load_prior(PriorConfig(dtype="float32"))
    objectives = build_objectives(config.reward, RewardsConfig(), str(MANIFEST), CPU)
    found = captions()
    prompts = Prompts(prompts_of(found["training"]), prompts_of(found["validation"]))
    held = (HELD_OUT, lambda rgb, names: match(rgb, names)[0])
    return Training(prior, config, objectives, prompts, held, seed=seed)


def train_to(
    config: AlignConfig, seed: int, queries: int, states: Path, training: Training | None = None
) -> Training:
    """A training without guard at a number of queries; its state there is kept.

    Args:
        config: How to train.
        seed: Of the training.
        queries: Reward queries to reach.
        states: Folder of the states of this training. It continues from the newest that does not
            have more queries, so a longer training costs only what is missing.
        training: This training with fewer queries, if it is in memory.
    """
    training, mark = training or start(config, seed), {"config": recorded(config), "seed": seed}
    numbers = [int(path.stem) for path in states.glob("*.safetensors") if path.stem.isdigit()]
    for number in sorted((n for n in numbers if training.queries < n <= queries), reverse=True):
        try:
            found = checkpoint.load(_state_file(states, number))
        except (ValueError, OSError):  # damaged: take an earlier one
            continue
        if found.meta.get("mark") == mark:
            training.restore(found.tensors, found.meta)
            break
    if training.queries < queries:
        while training.queries < queries:
            training.step()
        tensors, record = training.state()
        checkpoint.write(_state_file(states, queries), queries, tensors, record | {"mark": mark})
    return training


def _state_file(states: Path, queries: int) -> Path:
    return states / f"{queries:08d}.safetensors"


def total_at(config: AlignConfig, seed: int, queries: int, states: Path) -> float | None:
    """The mean total of training prompts, on the base's scale, after `queries` of `train_to`.

    None for a training that diverged.
    """
    try:
        found = float(draw(train_to(config, seed, queries, states), "training").total.mean())
    except DivergedError:
        return None
    return found if math.isfinite(found) else None


@dataclass(frozen=True)
class Drawn:
    """Drawings of captions by a training's present LoRA, at fixed seeds.

    Attributes:
        total: The weighted sum of rewards on the base's scale `[N]`.
        raw: Raw rewards by name `[N]`.
        attributes: Share of the caption's attributes that the judge names `[N]` in [0, 1].
        right: Whether both objects and colours are right `[N]`.
        cosine: Cosine of picture and caption by the measuring CLIP `[N]`.
        nearest: Whether their own caption is the nearest (R-precision) `[N]`, 0 or 1.
        jpeg: True JPEG size in kB `[N]`.
        rgb: The pictures `[N, 3, H, W]`.
    """

    total: Tensor
    raw: dict[str, Tensor]
    attributes: Tensor
    right: Tensor
    cosine: Tensor
    nearest: Tensor
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
    total = combined(training.learner.objectives, raw)
    return Drawn(total, raw, *judged(rgb, specs), *match(rgb, names), jpeg_size(rgb), rgb)


def judged(rgb: Tensor, specs: Sequence[Spec]) -> tuple[Tensor, Tensor]:
    """Share of the attributes of each caption that the judge names [N], and whether all are."""
    shares, right = [], []
    for named, spec in zip(judge_views(judges().judge, rgb), specs, strict=True):
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
        kept = ""
        if guarded and (stopped or mark == marks[-1]):
            training.average = training.best
            kept = f"kept the LoRA of step {training.guard.best().step}"
        rows.append(_row(training, training.queries, seconds) | {"stopped": stopped, "kept": kept})
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
            "cosine": found.cosine,
            "nearest": found.nearest,
            **found.raw,
        }
    return row


def mean(values: Sequence[float]) -> float:
    """The mean of a list."""
    return float(np.mean(values))

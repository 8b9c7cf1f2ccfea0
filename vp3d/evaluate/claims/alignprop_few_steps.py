"""Whether a LoRA aligned at four drawing steps draws as well as the base does at eight."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from torch import Tensor

from vp3d.config.schema import AlignConfig
from vp3d.evaluate.claims.alignprop_lab import draw, start
from vp3d.evaluate.claims.frame import (
    Bench,
    Claim,
    Finding,
    Table,
    Verdict,
    by_caption,
    with_interval,
)
from vp3d.evaluate.claims.frame import interval as mean_of
from vp3d.tuning.session import Training

FEW, MANY = 4, 8  # denoising steps
QUERIES = 640
SEEDS = (0, 1)
DRAWINGS = 2  # of each caption
GAIN = 0.05  # of the judge's share of attributes
FIGURES = ("attributes", "nearest", "cosine")
CONFIG = AlignConfig(
    reward="clip:1", lr=3e-3, steps=FEW, guidance_scale=1.0, k=f"uniform:{FEW}", updates=80
)


def train(seed: int) -> dict[str, Any]:
    """Attributes that the judge names on unseen captions, before and after."""
    training = start(CONFIG, seed)
    found: dict[str, Any] = {}
    for steps in (FEW, MANY):
        found[f"base {steps}"] = figures(training, steps)
    training.check()  # of the base, which the guard compares with
    began = time.process_time()
    while training.queries < QUERIES:
        training.step()
        if training.step_number % CONFIG.guard_every == 0 and training.check():
            break
    found["seconds"] = round(time.process_time() - began, 1)
    found["queries"] = training.queries
    training.average = training.best
    for steps in (FEW, MANY):
        found[f"aligned {steps}"] = figures(training, steps)
    return found


def figures(training: Training, steps: int) -> dict[str, Tensor]:
    """Attributes, and the match by the measuring CLIP, of two drawings of each unseen caption."""
    drawn = draw(training, "unseen", steps=steps, repeat=DRAWINGS)
    return {key: getattr(drawn, key) for key in FIGURES}


def measure(bench: Bench) -> Finding:
    """Measure the claim."""
    settings = {"config": CONFIG, "queries": QUERIES, "version": 3}
    runs = bench.every([(f"seed-{seed}", settings, partial(train, seed)) for seed in SEEDS])
    arms = [f"{name} {steps}" for steps in (FEW, MANY) for name in ("base", "aligned")]
    values = {
        (arm, key): by_caption([run[arm][key] for run in runs], DRAWINGS)
        for arm in arms
        for key in FIGURES
    }

    def differences(a: str, b: str, key: str = "attributes") -> Tensor:
        return values[a, key] - values[b, key]

    few = differences(f"aligned {FEW}", f"base {FEW}")
    many = differences(f"aligned {FEW}", f"base {MANY}")
    middle, low, _ = mean_of(few)
    verdicts = [
        Verdict(
            f"{FEW} steps: the judge's attributes on unseen captions rise by >= 5 points",
            with_interval(few),
            middle >= GAIN and low > 0.0,
        ),
        Verdict(
            f"{FEW} aligned steps are as good as {MANY} of the base",
            f"difference {with_interval(many)}",
            mean_of(many)[0] >= 0.0,
        ),
        Verdict(
            f"{FEW} steps: the caption is found more often by the CLIP that is never optimised",
            with_interval(differences(f"aligned {FEW}", f"base {FEW}", "nearest")),
            mean_of(differences(f"aligned {FEW}", f"base {FEW}", "nearest"))[1] > 0.0,
        ),
    ]
    rows = [(arm, *(with_interval(values[arm, key]) for key in FIGURES)) for arm in arms]
    columns = ("arm, steps", "judge: share of attributes", "R-precision", "cosine")
    table = Table("Drawings of unseen captions, 95 % interval", columns, rows)
    cost = ", ".join(f"{run['seconds']:.0f}" for run in runs)
    notes = [
        f"At most {QUERIES} reward queries a seed, in {cost} CPU seconds; the guard, whose "
        "held-out score is the CLIP that only measures, may end a training earlier.",
        "R-precision and cosine are by that CLIP, which is not the one of the reward.",
        "Intervals are over captions; the drawings and seeds of a caption are averaged.",
    ]
    return Finding(verdicts, [table], notes)


CLAIM = Claim(
    "alignprop-few-steps",
    "Four drawing steps instead of eight",
    "The embedded model draws in 4 steps and is aligned to CLIP by AlignProp through all of them. "
    "The judge, which is not optimised, names the attributes of 32 reserved captions, two "
    "drawings each and two seeds of training.",
    measure,
)

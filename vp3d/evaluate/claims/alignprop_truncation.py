"""What the truncation K of AlignProp changes: detail, or what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vp3d.config.schema import AlignConfig
from vp3d.diffusion.lora import adapters_off
from vp3d.diffusion.sampling import sample
from vp3d.evaluate.claims.alignprop_lab import captions, draw, match, mean, prompts_of, train_to
from vp3d.evaluate.claims.frame import (
    Bench,
    Cell,
    Claim,
    Finding,
    Part,
    Table,
    Verdict,
    by_caption,
    interval,
    with_interval,
)
from vp3d.train.generators import make_generator
from vp3d.tuning.session import Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REWARD = "compress:1,clip:1"
STEPS, COUNTS, SEEDS = 10, (1, 3, 10), (0, 1)
MARKS = (64, 128, 192, 256, 320)  # queries at which the reward is measured
BLOCK = 8  # side of the squares that a change is averaged over, pixels
THIRDS = ((0, 3), (3, 7), (7, 10))  # denoising steps, the noisiest first; the end is excluded
NAMES = ("first", "middle", "last")


def config_of(count: int) -> AlignConfig:
    """How the LoRA of K = `count` is trained; only K differs."""
    return AlignConfig(reward=REWARD, lr=3e-3, steps=STEPS, k=f"fixed:{count}")


def coarse_share(change: Tensor, side: int = BLOCK) -> Tensor:
    """The share of the energy of changes [N, C, H, W] that is left after averaging over squares.

    Args:
        change: Differences of pictures; H and W are multiples of `side`.
        side: Side of the squares, pixels.

    Returns:
        [N] in [0, 1]: 1 for a change that is the same all over each square; 0 for no change.
    """
    means = F.avg_pool2d(change, side)
    kept = means.square().flatten(1).sum(1) * side**2
    return kept / change.square().flatten(1).sum(1).clamp_min(1e-12)


def gains(count: int, seed: int, states: Path) -> list[float]:
    """Gain over the base of the training prompts at each of `MARKS`, in sd of the base."""
    config, totals = config_of(count), []
    training: Training | None = None
    for mark in (0, *MARKS):
        training = train_to(config, seed, mark, states, training)
        totals.append(float(draw(training, "training").total.mean()))
    return [total - totals[0] for total in totals[1:]]


def changes(count: int, seed: int, queries: int, states: Path) -> dict[str, Any]:
    """What the LoRA of K = `count` at some queries changes in drawings of unseen captions.

    Returns:
        "share": what averaging leaves of each change; "total": rewards of the base, the aligned
        model, and with the LoRA off in each third of the steps; "nearest": by the measuring CLIP.
    """
    training = train_to(config_of(count), seed, queries, states)
    every = range(STEPS)
    with training.averaged(), torch.no_grad():
        base, aligned = _drawn(training, every), _drawn(training, ())
        off = [_drawn(training, range(*third)) for third in THIRDS]
        names = list(prompts_of(captions()["unseen"]))
        totals = [training.learner.rewards(rgb, names)[0] for rgb in (base, aligned, *off)]
        nearest = [match(rgb, names)[1] for rgb in (base, aligned)]
    return {
        "share": coarse_share(aligned - base),
        "size": (aligned - base).square().mean((1, 2, 3)).sqrt(),
        "total": [float(total.mean()) for total in totals],
        "nearest": [float(one.mean()) for one in nearest],
    }


def _drawn(training: Training, off: Sequence[int]) -> Tensor:
    """Unseen captions [N, 3, H, W], with the LoRA off in the steps `off`."""
    names = list(prompts_of(captions()["unseen"]))
    drawing = training.prior.drawing(names, "", STEPS, training.config.guidance_scale)

    def denoise(x: Tensor, i: int) -> Tensor:
        with adapters_off(training.networks) if i in off else nullcontext():
            return drawing(x, i)

    noise = training.prior.noise(len(names), make_generator(99, "truncation"))
    return training.prior.decode(sample(denoise, noise, drawing.levels))


def equal_marks(curves: dict[Any, Sequence[float]]) -> dict[Any, int] | None:
    """The queries at which each run first has the highest gain that all runs reach.

    None if that gain is not above 0.
    """
    level = min(max(curve) for curve in curves.values())
    if not level > 0.0:
        return None
    return {
        run: next(mark for mark, gain in zip(MARKS, curve, strict=True) if gain >= level)
        for run, curve in curves.items()
    }


def measure(bench: Bench) -> Finding:
    """Measure the claim: first the training curves, then the changes at equal reward."""
    runs = [(count, seed) for count in reversed(COUNTS) for seed in SEEDS]  # the longest first
    states = {run: bench.folder / "states" / f"k-{run[0]}-{run[1]}" for run in runs}
    parts: list[Part] = [
        (
            f"gains-{count}-{seed}",
            {"config": config_of(count), "marks": MARKS},
            partial(gains, count, seed, states[count, seed]),
        )
        for count, seed in runs
    ]
    curves = dict(zip(runs, bench.every(parts), strict=True))
    marks = equal_marks(curves)
    if marks is None:
        return finding(curves, None, {})
    parts = [
        (
            f"change-{count}-{seed}",
            {"config": config_of(count), "queries": marks[count, seed], "thirds": THIRDS},
            partial(changes, count, seed, marks[count, seed], states[count, seed]),
        )
        for count, seed in runs
    ]
    found = dict(zip(runs, bench.every(parts), strict=True))
    return finding(curves, marks, found)


def finding(
    curves: dict[Any, Sequence[float]], marks: dict[Any, int] | None, found: dict[Any, Any]
) -> Finding:
    """The verdicts and tables."""
    columns = ("K", "seed", *(f"{mark} queries" for mark in MARKS))
    rows: list[list[Cell]] = [[*run, *curve] for run, curve in curves.items()]
    table = Table("Gain of the training prompts, sd of the base", columns, rows)
    statement = (
        f"at equal reward more of the change of K = {COUNTS[-1]} is left after averaging over "
        f"{BLOCK} x {BLOCK} pixels than of K = {COUNTS[0]}"
    )
    if marks is None:
        return Finding([Verdict(statement, "no gain that all reach", False)], [table], NOTES)
    share = {k: by_caption([found[k, seed]["share"] for seed in SEEDS]) for k in COUNTS}
    differences = share[COUNTS[-1]] - share[COUNTS[0]]
    middles = [float(share[k].mean()) for k in COUNTS]
    differs = interval(differences)[1] > 0.0
    verdicts = [
        Verdict(statement, with_interval(differences), differs),
        Verdict(
            "the share rises with K, by more than chance",
            ", ".join(f"K = {k}: {with_interval(share[k])}" for k in COUNTS),
            differs and middles == sorted(middles),
        ),
        *(_without_third(found, k) for k in COUNTS),
    ]
    details: list[list[Cell]] = [
        [k, seed, marks[k, seed], mean(one["share"]), mean(one["size"]), *one["total"],
         *one["nearest"]]
        for (k, seed), one in found.items()
    ]  # fmt: skip
    head = ["K", "seed", "queries", "share left", "size of the change", "base", "aligned"]
    head += [f"off in the {name} third" for name in NAMES]
    head += ["R-precision base", "R-precision aligned"]
    tables = [table, Table("Drawings of unseen captions at equal reward", head, details)]
    return Finding(verdicts, tables, NOTES, partial(_plot, share))


def _without_third(found: dict[Any, Any], count: int) -> Verdict:
    """Which share of the gain is lost without the LoRA in a third of the steps; a description."""
    totals = torch.tensor([found[count, seed]["total"] for seed in SEEDS]).double().mean(0)
    base, aligned, *off = totals.tolist()
    text = "no gain on unseen captions"
    if aligned > base:
        lost = [(aligned - one) / (aligned - base) for one in off]
        text = ", ".join(f"{name} third {x:.0%}" for name, x in zip(NAMES, lost, strict=True))
    return Verdict(f"K = {count}: gain that is lost with the LoRA off in a third", text, None)


def _plot(share: dict[int, Tensor], axes: Axes) -> None:
    found = [interval(share[k]) for k in COUNTS]
    low, high = ([abs(one[0] - one[side]) for one in found] for side in (1, 2))
    axes.errorbar(range(len(COUNTS)), [one[0] for one in found], yerr=(low, high), fmt="o")
    axes.set_xticks(range(len(COUNTS)), [f"K = {k}" for k in COUNTS])
    axes.set_ylabel(f"share of the change left, {BLOCK} x {BLOCK} pixels")


NOTES = [
    f"{len(SEEDS)} seeds, {len(MARKS)} marks: the reward is equal up to the distance of the marks. "
    "The gains are in the first table.",
    f"{STEPS} denoising steps, so K = {COUNTS[-1]} is the complete back-propagation.",
    "R-precision is by the CLIP that is never optimised.",
    "Intervals are over captions; the seeds of a caption are averaged.",
]

CLAIM = Claim(
    "alignprop-truncation",
    "Few steps of gradient change detail, many change what is drawn",
    f"LoRAs are trained on `{REWARD}` with the gradient through the last K = 1, 3 and 10 of "
    f"{STEPS} steps, and compared where they first have the same reward. Of the change of each "
    "drawing of 32 reserved captions, the share of the energy is measured that is left after "
    f"averaging over {BLOCK} x {BLOCK} pixels, and the gain without the LoRA in a third of the "
    "steps.",
    measure,
)

"""How well the objects of users' pictures are cut out: true masks, twelve kinds of background.

    python -m vp3d.evaluate.references --report docs/results/references.md

Every picture is written as a file and read as `--image` reads it. A picture is silent if the user
gets neither a refusal nor a warning.
"""

from __future__ import annotations

import argparse
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from vp3d.config.schema import VisualPromptConfig
from vp3d.errors import UserError
from vp3d.evaluate.reference_pictures import KINDS, Sample, make_samples
from vp3d.system.files import write_text
from vp3d.visual_prompt.reference import cut_out

RIGHT, WRONG = 0.95, 0.8  # mask IoU from which a cut-out is right, and below which it is wrong
GOALS = (0.95, 0, 0.10)  # share right, silent wrong ones at most, share refused at most
SEED = 2025
SEEDS = """\
The limits of the cut-out were chosen on seeds 100, 101 and 102, and once more after a first
measurement on seed 2024, which missed two goals: 94.4 % right, 1 silent result below 0.8, 0.7 %
refused. Seed 2025 was not looked at before."""


@dataclass(frozen=True)
class Outcome:
    """What became of one picture. `iou` is that of its mask, None for a refusal."""

    kind: str
    caption: str
    iou: float | None
    warned: bool


def measure(sample: Sample, folder: Path, tolerance: float) -> Outcome:
    """Cut the object out of one picture, through a file in `folder`."""
    path = folder / f"picture{sample.suffix}"
    path.write_bytes(sample.file)
    try:
        found = cut_out(path, tolerance)
    except UserError:
        return Outcome(sample.kind, sample.caption, None, True)
    mask, truth = found.mask[0].numpy() > 0.5, sample.mask > 0.5
    iou = float((mask & truth).sum() / (mask | truth).sum())
    return Outcome(sample.kind, sample.caption, iou, bool(found.doubts))


def row(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    """One line of the table."""
    ious = [o.iou for o in outcomes if o.iou is not None]
    wrong = [o for o in outcomes if o.iou is not None and o.iou < WRONG]
    return [
        name,
        str(len(outcomes)),
        f"{np.mean(ious):.3f}" if ious else "-",
        f"{min(ious):.3f}" if ious else "-",
        f"{np.mean([iou >= RIGHT for iou in ious]):.1%}" if ious else "-",
        str(sum(not o.warned for o in wrong)),
        str(sum(o.warned and o.iou is not None for o in outcomes)),
        str(len(outcomes) - len(ious)),
    ]


def table(outcomes: Sequence[Outcome]) -> str:
    """The Markdown table: one line for each kind of background, then all together."""
    head = ["background", "pictures", "mean IoU", "least IoU", f"IoU >= {RIGHT}"]
    head += [f"silent < {WRONG}", "warned", "refused"]
    rows = [head, ["---"] * len(head)]
    rows += [row(kind, [o for o in outcomes if o.kind == kind]) for kind in KINDS]
    rows.append(row("**all**", outcomes))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def verdict(outcomes: Sequence[Outcome]) -> str:
    """One line with the three figures and their goals."""
    ious = [o.iou for o in outcomes if o.iou is not None]
    right = float(np.mean([iou >= RIGHT for iou in ious])) if ious else 0.0
    silent = sum(o.iou is not None and o.iou < WRONG and not o.warned for o in outcomes)
    refused = 1.0 - len(ious) / len(outcomes)
    return (
        f"Mask IoU of at least {RIGHT} for {right:.1%} of those not refused (goal {GOALS[0]:.0%}); "
        f"{silent} silent results below {WRONG} (goal {GOALS[1]}); {refused:.1%} refused (goal: at "
        f"most {GOALS[2]:.0%})."
    )


def page(outcomes: Sequence[Outcome], count: int, seed: int) -> str:
    """The page of the results, in Markdown."""
    low = [o for o in outcomes if o.iou is not None and o.iou < RIGHT]
    listed = "\n".join(
        f"* {o.kind}: {o.caption}, IoU {o.iou:.3f}{', with a warning' if o.warned else ''}"
        for o in low
    )
    return f"""# Reference pictures: how well objects are cut out

    python -m vp3d.evaluate.references --count {count} --seed {seed} \\
        --report docs/results/references.md

{count} toybox renders of {256} x {256} pixels, with exact masks, on each of {len(KINDS)} kinds of
background. Every picture is read from a PNG or JPEG file as `--image` reads it. IoU is the
intersection over union of the mask with the exact one. "silent": neither a warning nor a refusal.
{SEEDS}

{table(outcomes)}

{textwrap.fill(verdict(outcomes), 100)}

Pictures below {RIGHT}:

{listed or "* none"}

What this does not show: real photographs with a sharp background, hair, glass and hard shadows. For
those, give `--mask FILE`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the page if asked; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description="measure the cut-out of reference pictures")
    parser.add_argument("--count", type=int, default=10, help="pictures of each kind (10)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of scenes and noise ({SEED})")
    parser.add_argument("--report", type=Path, help="write the page to this file")
    arguments = parser.parse_args(argv)
    if arguments.count < 1 or arguments.seed < 0:
        parser.error("--count must be at least 1 and --seed at least 0")
    console = Console(highlight=False, soft_wrap=True)
    tolerance = VisualPromptConfig().cutout_tolerance
    with tempfile.TemporaryDirectory() as name:
        samples = make_samples(arguments.count, arguments.seed)
        outcomes = [measure(sample, Path(name), tolerance) for sample in samples]
    console.print(table(outcomes), markup=False)
    console.print(verdict(outcomes), markup=False)
    if arguments.report is not None:
        write_text(arguments.report, page(outcomes, arguments.count, arguments.seed))
    ious = [o.iou for o in outcomes if o.iou is not None]
    silent = sum(o.iou is not None and o.iou < WRONG and not o.warned for o in outcomes)
    right = float(np.mean([iou >= RIGHT for iou in ious])) if ious else 0.0
    refused = 1.0 - len(ious) / len(outcomes)
    return int(right < GOALS[0] or silent > GOALS[1] or refused > GOALS[2])


if __name__ == "__main__":
    raise SystemExit(main())

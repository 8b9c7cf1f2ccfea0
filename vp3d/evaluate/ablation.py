"""The ablation, `python -m vp3d.evaluate.ablation`; sweeps of settings with `--sweep`, `--tune`.

Every arm generates the same toybench prompts with the same seeds, steps and views. The arms of the
ablation are those of the VP3D paper (arXiv 2403.17001: visual prompt and rewards). Before them come
DreamFusion's plain SDS, SDS with the best settings found by --tune, and several denoising steps on
the text alone. The sweep changes one setting of the default run at a time. --tune gives SDS on the
text alone every combination of guidance scale, denoising steps, space of the error and noise
levels; it has prompts of its own (assets/prompts/tuning.txt), which are not part of toybench.

The table has each figure's mean with its 95 % interval over prompts. A second table has the
difference from the first arm, paired by prompt, with its own interval. A difference with a star is
more than chance: a paired sign-flip test, corrected for the number of arms (Holm 1979), has p below
0.05. An arm without a star neither helps nor harms by this many prompts.

--arms runs only the named arms; the first of them is the one that the others are compared with.
--match runs only some prompts. (Prompts that are right in every arm can only show harm.) Each arm
has a folder in --work. Run the same command again to resume. The ablation at `draft` takes half an
hour to an hour on two cores (--jobs 2). --grid draws the assets: true object, visual prompt, first
arm and last arm, from two sides each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vp3d.config.loader import PRESETS
from vp3d.config.paths import INSTALLED, ROOT
from vp3d.engine.pool import Pool
from vp3d.errors import UserError
from vp3d.evaluate import toybench
from vp3d.evaluate.intervals import holm, sign_flip_p
from vp3d.evaluate.runner import Record, Settings, Task, find_mesh, lock_to_settings, run_tasks
from vp3d.evaluate.statistics import (
    cell,
    circumstances,
    commit_of,
    interval_of,
    legend,
    provenance_of,
    statistics,
)
from vp3d.render.camera import orbit
from vp3d.render.raster import render_mesh
from vp3d.report.pictures import (
    BACKGROUND,
    ELEVATION_DEG,
    labelled,
    resized,
    save_image,
    sheet,
)
from vp3d.system.console import Parser, run_program
from vp3d.system.files import check_output, write_json, write_text
from vp3d.types import to_uint8
from vp3d.worlds.toybox.data import DISTANCE, FOV_DEG
from vp3d.worlds.toybox.prompt_check import true_pictures, true_rgb
from vp3d.worlds.toybox.scenes import parse_caption

NO_REWARDS = ("rewards.text_image.weight=0", "rewards.image_image.weight=0")
IN_LATENTS = ("guidance.space=latents", "guidance.weight=1", "guidance.weighting=sigma2")
ALL_NOISE = ("guidance.t_min=0.02", "guidance.t_max={start: 0.98, end: 0.5}")  # DreamFusion's
# The estimate of DreamFusion, as in configs/sds.yaml.
ONE_STEP = ("guidance.denoise_steps=1", "guidance.estimate_every=1", *IN_LATENTS, *ALL_NOISE)
ARMS: dict[str, tuple[str, ...]] = {
    "SDS": ("guidance.lam=0", "guidance.guidance_scale=10", *ONE_STEP, *NO_REWARDS),
    "SDS, twice the CFG": ("guidance.lam=0", "guidance.guidance_scale=20", *ONE_STEP, *NO_REWARDS),
    "SDS, tuned": (  # one step, error in pixels: the best settings of --tune
        *("guidance.lam=0", "guidance.guidance_scale=4", "guidance.denoise_steps=1"),
        *("guidance.estimate_every=1", *ALL_NOISE, *NO_REWARDS),
    ),
    "text, several steps": ("guidance.lam=0", *NO_REWARDS),
    "VP-SDS": NO_REWARDS,
    "VP-SDS + image": ("rewards.text_image.weight=0",),
    "VP-SDS + text": ("rewards.image_image.weight=0",),
    "VP3D": (),
}
SWEEP: dict[str, tuple[str, ...]] = {
    "default": (),
    "one step": ("guidance.guidance_scale=10", *ONE_STEP),
    "4 steps": ("guidance.denoise_steps=4",),
    "an estimate at every step": ("guidance.estimate_every=1",),
    "an estimate at every third step": ("guidance.estimate_every=3",),
    "guidance_scale 1": ("guidance.guidance_scale=1",),
    "guidance_scale 4": ("guidance.guidance_scale=4",),
    "error in latents": ("guidance.space=latents", "guidance.weight=1"),
    "weight 100": ("guidance.weight=100",),
    "grounds to 0.75": ("render.background_max=0.75",),
    "grounds to 0.9": ("render.background_max=0.9",),
    "weighting sigma2": ("guidance.weighting=sigma2",),
    "lr_density 0.12": ("optim.lr_density=0.12",),
    "lam 0.6 throughout": ("guidance.lam=0.6",),
    "lam 0.6 at the front only": (
        "guidance.lam=0.6",
        "guidance.lam_gate.full_deg=45",
        "guidance.lam_gate.zero_deg=100",
    ),
    "lam from 1": ("guidance.lam.start=1",),
    "t to 0.98 and 0.02": ("guidance.t_max={start: 0.98, end: 0.5}", "guidance.t_min=0.02"),
    "t_min falls to 0.1": ("guidance.t_min.end=0.1",),
    "no rewards": NO_REWARDS,
    "rewards x 5": ("rewards.text_image.weight=0.5", "rewards.image_image.weight=0.15"),
    "image reward 0.1 from 0.1": (
        "rewards.image_image.weight=0.1",
        "rewards.image_image.begin=0.1",
    ),
    "text reward without hinge": ("rewards.text_image.hinge=1e9",),
    "text reward 0.2": ("rewards.text_image.weight=0.2",),
    "rewards from the start": ("rewards.text_image.begin=0", "rewards.image_image.begin=0"),
}
TUNE: dict[str, tuple[str, ...]] = {
    f"CFG {scale}, {steps} {'step' if steps == 1 else 'steps'}, {space}, {noise}": (
        "guidance.lam=0",
        f"guidance.guidance_scale={scale}",
        f"guidance.denoise_steps={steps}",
        "guidance.estimate_every=1",
        *(IN_LATENTS if space == "latents" else ()),
        *(ALL_NOISE if noise == "all noise" else ()),
        *NO_REWARDS,
    )
    for noise in ("all noise", "high noise")  # high noise: the default of VP3D
    for space in ("latents", "pixels")
    for steps in (1, 2)
    for scale in (2, 4, 7, 10)
}
SIGNIFICANT = 0.05  # p-value below which a difference has a star
SIDES = (40.0, 220.0)  # azimuths in degrees of the two views in the picture grid
TILE = 112  # pixels of a side of a view there
FIGURES = (
    "all",
    "objects",
    "colors",
    "parts",
    "relation",
    "r_precision",
    "iou",
    "color_error",
    "two_faced",
)


def select_arms(
    arms: Mapping[str, tuple[str, ...]], names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The arms called `names`, in that order; all of them if there are no names.

    Raises:
        UserError: there is no arm of that name.
    """
    unknown = next((name for name in names if name not in arms), None)
    if unknown is not None:
        raise UserError(
            f"there is no arm '{unknown}'; there are: {'; '.join(arms)} "
            "(key=value words come before --arms)"
        )
    return {name: arms[name] for name in names or arms}


def matching(tasks: Sequence[Task], texts: Sequence[str]) -> Sequence[Task]:
    """The tasks whose prompt contains one of `texts`; all of them if there are no texts.

    Raises:
        UserError: no prompt contains one.
    """
    found = [task for task in tasks if not texts or any(text in task.prompt for text in texts)]
    if not found:
        raise UserError(
            f"no prompt contains {' or '.join(map(repr, texts))}; "
            "give --match a part of a prompt, as 'white house'"
        )
    return found


def run_arm(
    name: str, overrides: Sequence[str], tasks: Sequence[Task], options: argparse.Namespace
) -> list[Record]:
    """Generates and judges the tasks with an arm's settings, in its own folder.

    Args:
        name: the name of the arm, also of its folder.
        overrides: its key=value words.
        tasks: the tasks of every arm.
        options: the command line.

    Returns:
        The records, in the order of `tasks`.
    """
    folder = options.work / "".join(c if c.isalnum() else "-" for c in name)
    words = (*options.overrides, *overrides)
    settings = Settings(folder, options.preset, tuple(options.config), words, "toybox")
    lock_to_settings(settings, {"suite": "ablation"}, toybench.JUDGES)
    sys.stderr.write(f"--- {name}: {' '.join(overrides) or 'defaults'}\n")
    return run_tasks(tasks, settings, toybench.judge_asset, Pool(options.jobs))


def difference(arm: Sequence[Record], base: Sequence[Record], name: str) -> dict[str, Any] | None:
    """Mean over prompts of arm minus base.

    Args:
        arm: the records of the arm.
        base: the records of the first arm, in the same order.
        name: the figure.

    Returns:
        "mean", "low" and "high" (its interval; None for one prompt), "p" (two-sided, of the
        sign-flip test) and "count" (prompts); None if no asset has the figure in both arms.
    """
    values: dict[str, list[float]] = {}
    for one, other in zip(arm, base, strict=True):
        pair = one["figures"].get(name), other["figures"].get(name)
        if pair[0] is not None and pair[1] is not None:
            values.setdefault(one["prompt"], []).append(float(pair[0]) - float(pair[1]))
    if not values:
        return None
    means = torch.tensor([float(np.mean(v)) for v in values.values()], dtype=torch.float64)
    low, high = interval_of(means, (-1.0, 1.0) if toybench.FIGURES[name].share else None)
    p = sign_flip_p(means, torch.Generator().manual_seed(0))
    return {"mean": float(means.mean()), "low": low, "high": high, "p": p, "count": len(means)}


def compare(records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Compares the arms.

    Returns:
        For each arm: "figures" (statistics), "against_first" (difference from the first arm),
        "by_set" (that of the figure "all" by prompt set) and "failures" (their number). The
        differences of all arms but the first have a "p_holm", corrected for the number of arms.
    """
    base = next(iter(records.values()))
    sets = list(dict.fromkeys(record["set"] for record in base))
    comparison: dict[str, dict[str, Any]] = {
        arm: {
            "figures": {
                name: statistics(found, name, share=toybench.FIGURES[name].share)
                for name in FIGURES
            },
            "against_first": {name: difference(found, base, name) for name in FIGURES},
            "by_set": {
                name: difference(of_set(found, name), of_set(base, name), "all") for name in sets
            },
            "failures": sum(bool(record["failure"]) for record in found),
        }
        for arm, found in records.items()
    }
    others = list(comparison.values())[1:]
    for part in ("against_first", "by_set"):
        for name in comparison[next(iter(records))][part]:
            correct_for_arms([arm[part][name] for arm in others])
    return comparison


def correct_for_arms(differences: Sequence[dict[str, Any] | None]) -> None:
    """Adds "p_holm" to the differences of all arms in one figure; None is left out."""
    found = [difference for difference in differences if difference is not None]
    for difference, p in zip(found, holm([one["p"] for one in found]), strict=True):
        difference["p_holm"] = p


def of_set(records: Sequence[Record], name: str) -> list[Record]:
    """The records of the prompt set `name`, in their order."""
    return [record for record in records if record["set"] == name]


def markdown(
    comparison: Mapping[str, Any], title: str, facts: Mapping[str, Any], prompts: int
) -> str:
    """The tables as a Markdown page.

    Args:
        comparison: what `compare` returned.
        title: the heading.
        facts: name -> value of the line below the heading.
        prompts: the number of prompts.

    Returns:
        The page: means with intervals, the differences from the first arm, and those by prompt set.
    """
    shown = [name for name in FIGURES if any(arm["figures"][name] for arm in comparison.values())]
    labels = [toybench.FIGURES[name].label for name in shown]
    line = f"{prompts} prompts; " + ", ".join(f"{key} {value}" for key, value in facts.items())
    lines = [f"# {title}", "", line, ""]
    means = f"{legend(toybench.FIGURES, dict.fromkeys(shown), '95 % interval over prompts')}."
    first = next(iter(comparison))
    pairs = f"Difference from {first}, prompt by prompt, with its 95 % interval. "
    pairs += star_line(comparison)
    for part, explained in (("figures", means), ("against_first", pairs)):
        rows = {
            arm: [*(_cell(found[part][name], name, part) for name in shown), str(found["failures"])]
            for arm, found in comparison.items()
        }
        lines += [explained, "", *_table([*labels, "failures"], rows), ""]
    sets = list(comparison[first]["by_set"])
    rows = {
        arm: [_cell(found["by_set"][name], "all", "by_set") for name in sets]
        for arm, found in comparison.items()
    }
    lines += ["Difference in all attributes by prompt set.", "", *_table(sets, rows)]
    return "\n".join([*lines, ""])


def star_line(comparison: Mapping[str, Any]) -> str:
    """What a star means in a comparison, and the smallest p-value that its prompts allow."""
    arms = list(comparison.values())
    others = len(arms) - 1
    counts = [one["count"] for one in arms[0]["against_first"].values() if one]
    least = min(max(others, 1) * 2.0 ** (1 - max(counts, default=1)), 1.0)
    line = (
        f"* p < {SIGNIFICANT:g} in a paired sign-flip test, each figure corrected for "
        f"{others} arm{'s' if others != 1 else ''} (Holm)"
    )
    if least >= SIGNIFICANT:
        line += f"; with so few prompts p cannot be below {least:.2g}, so no arm can have a star"
    return f"{line}."


def _table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """The lines of a Markdown table with a row for each arm."""
    lines = [f"| arm | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {arm} | {' | '.join(cells)} |" for arm, cells in rows.items()]


def _cell(found: Mapping[str, Any] | None, name: str, part: str) -> str:
    figure = toybench.FIGURES[name]
    if found is None or part == "figures":
        return cell(found, figure)
    scale, digits, unit = (100.0, 0, " points") if figure.share else (1.0, 2, "")

    def signed(value: float) -> str:
        return f"{round(scale * value, digits) + 0.0:+.{digits}f}"  # never "-0"

    ends = [found["low"], found["high"]]
    inside = "–" if None in ends else ", ".join(map(signed, ends))
    star = "*" if found.get("p_holm", 1.0) < SIGNIFICANT else ""
    return f"{signed(found['mean'])}{unit} [{inside}]{star}"


def write_grid(records: Mapping[str, Sequence[Record]], path: Path) -> None:
    """Draws a row for each prompt: true object, visual prompt of the last arm, mesh of each arm.

    Every object is shown from two sides. Failures are left out.

    Args:
        records: arm -> its records.
        path: the PNG file.
    """
    rows = []
    for of_prompt in zip(*records.values(), strict=True):
        prompt = of_prompt[0]["prompt"]
        true = true_rgb(true_pictures(parse_caption(prompt), list(SIDES), BACKGROUND, TILE))
        row, picture = [side_by_side(true, prompt)], None
        for arm, record in zip(records, of_prompt, strict=True):
            if record["failure"]:
                continue
            task = Task(record["set"], prompt, record["seed"], "", record["source"])
            found = find_mesh(Settings(path.parent), task)
            picture = toybench.visual_prompt(found)
            if found.mesh is not None:
                cameras = orbit(SIDES, ELEVATION_DEG, DISTANCE, FOV_DEG)
                views = render_mesh(found.mesh, cameras, TILE, TILE, BACKGROUND)[0]
                row.append(side_by_side(views, arm))
        if picture is not None:
            row.insert(1, labelled(resized(picture, TILE), "visual prompt"))
        rows.append(row)
    title = (
        "True object, visual prompt, and assets: the front from the left, the back from the right"
    )
    save_image(sheet(rows, title), path)


def side_by_side(rgb: Tensor, label: str) -> Image.Image:
    """One tile with the views rgb `[N, 3, H, W]` in [0, 1] next to each other."""
    return labelled(np.concatenate(list(to_uint8(rgb)), axis=1), label)


def new_parser() -> Parser:
    """The parser of the command line."""
    doc = (__doc__ or "").split("\n\n")
    parser = Parser(prog="python -m vp3d.evaluate.ablation", description=doc[1])
    add = parser.add_argument
    add("overrides", nargs="*", metavar="key=value", help="settings for every arm")
    add("--sweep", action="store_true", help="compare settings, not the parts of the method")
    add("--arms", nargs="+", default=[], metavar="NAME", help="only these, the first is the base")
    add("--tune", action="store_true", help="compare settings of SDS, on prompts kept for tuning")
    add("--subset", choices=("all", "mini"), default="mini", help="72 prompts, or 18 (mini)")
    add("--match", nargs="+", default=[], metavar="TEXT", help="only prompts with one of these")
    add("--every", type=int, default=1, metavar="N", help="of those, every n-th (1)")
    add("--preset", choices=PRESETS, default="draft", help="preset of the runs (draft)")
    add("--config", type=Path, action="append", default=[], help="YAML settings, repeatable")
    add("--seeds", type=int, default=1, metavar="N", help="assets for each prompt (1)")
    add("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    add("--work", type=Path, help="folder of runs and results (outputs/ablation, sweep or tune)")
    add("--write", type=Path, metavar="FILE", help="the Markdown page (in --work)")
    add("--grid", type=Path, metavar="FILE", help="draw the assets of the first and last arm here")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs every arm, prints the tables and writes them as JSON and Markdown."""
    parser = new_parser()
    options = parser.parse_intermixed_args(argv)
    if min(options.every, options.seeds, options.jobs) < 1:
        parser.error("--every, --seeds and --jobs take whole numbers of 1 or more")
    if options.sweep and options.tune:
        parser.error("--sweep and --tune exclude each other: give one of them")
    every_arm = SWEEP if options.sweep else TUNE if options.tune else ARMS
    arms = select_arms(every_arm, options.arms)
    for option, path in {"--write FILE": options.write, "--grid FILE": options.grid}.items():
        if path:
            check_output(path.parent, option)
    name = "sweep" if options.sweep else "tune" if options.tune else "ablation"
    options.work = options.work or (Path() if INSTALLED else ROOT) / "outputs" / name
    tasks = suite_of(options)
    records = {arm: run_arm(arm, overrides, tasks, options) for arm, overrides in arms.items()}
    comparison = compare(records)
    title = (
        "Settings of SDS" if options.tune else f"{name.capitalize()} on toybench, {options.subset}"
    )
    prompts = len({task.prompt for task in tasks})
    facts = facts_of(options, records, len(every_arm))
    page = markdown(comparison, title, facts, prompts)
    settings = {arm: list(overrides) for arm, overrides in arms.items()}
    head = {"facts": facts, "about": circumstances(), "arms": settings}
    write_json(options.work / f"{name}.json", head | {"comparison": comparison})
    write_text(options.write or options.work / f"{name}.md", page)
    if options.grid:
        write_grid({arm: records[arm] for arm in (list(arms)[0], list(arms)[-1])}, options.grid)
    sys.stdout.write(page)


def suite_of(options: argparse.Namespace) -> Sequence[Task]:
    """The tasks that the command line selects."""
    if options.tune:
        tasks = toybench.tuning_tasks(options.seeds)
    else:
        tasks = toybench.suite_tasks(options.subset, options.seeds)
    return matching(tasks, options.match)[:: options.every]


def facts_of(
    options: argparse.Namespace, records: Mapping[str, Sequence[Record]], arm_count: int
) -> dict[str, Any]:
    """The facts below the heading, by name; date, commit and machine are those of the records.

    Args:
        options: the command line.
        records: arm -> its records, of the arms that were run.
        arm_count: the number of all arms.
    """
    facts = {"preset": options.preset, "seeds": options.seeds}
    facts |= provenance_of([record for found in records.values() for record in found])
    commits = {
        arm: ", ".join(dict.fromkeys(map(commit_of, found))) for arm, found in records.items()
    }
    if len(set(commits.values())) > 1:
        facts["by arm"] = "; ".join(f"{arm}: {commit}" for arm, commit in commits.items())
    if len(records) < arm_count:
        facts["arms"] = f"{len(records)} of {arm_count} ({'; '.join(records)})"
    if options.match:
        facts["prompts with"] = " or ".join(options.match)
    return facts


if __name__ == "__main__":
    run_program("ablation", main)

"""Which parts help: `python -m vp3d.evaluate.ablation`, and which settings are best: `python -m vp3d.evaluate.ablation --sweep`.

Every arm makes the same toybench prompts with the same seeds, steps and views. The ablation's arms are those of the VP3D paper
(arXiv 2403.17001, its ablation of visual prompt and rewards) with DreamFusion's plain SDS as the first, and one with our several
steps on the text alone; the sweep changes one setting of the default run at a time. The table tells each figure's mean with its
95 % bootstrap interval over prompts, and the difference from the first arm, prompt by prompt, with an interval of its own: an arm
helps where that lies above 0.

--arms makes only the arms that are named; the first of them is the one compared with. --match makes only some prompts:
those that are right in every arm tell nothing but harm.
Resumable: what is made lies under --work, one folder an arm. Half an hour to an hour for all arms
of the ablation at `draft` on two cores (--jobs 2).
--grid draws the assets: true object, visual prompt, first arm and last arm, each from two sides.
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
from vp3d.config.paths import ROOT
from vp3d.errors import UserError
from vp3d.evaluate import toybench
from vp3d.evaluate.runner import Record, Settings, Task, find_mesh, lock_to_settings, run_tasks
from vp3d.evaluate.statistics import bootstrap_interval, cell, circumstances, legend, statistics
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
ONE_STEP = (  # as DreamFusion estimates; what configs/sds.yaml says
    "guidance.denoise_steps=1",
    "guidance.space=latents",
    "guidance.estimate_every=1",
    "guidance.weight=1",
    "guidance.weighting=sigma2",
    "guidance.t_min=0.02",
    "guidance.t_max={start: 0.98, end: 0.5}",
)
ARMS: dict[str, tuple[str, ...]] = {
    "SDS": ("guidance.lam=0", "guidance.guidance_scale=10", *ONE_STEP, *NO_REWARDS),
    "SDS, twice the CFG": ("guidance.lam=0", "guidance.guidance_scale=20", *ONE_STEP, *NO_REWARDS),
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
SIDES, TILE = (
    (40.0, 220.0),
    112,
)  # azimuths of the two views in the picture grid, degrees; pixels of one
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


def chosen(arms: Mapping[str, tuple[str, ...]], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The arms called `names`, in that order; all of them when none is named."""
    unknown = next((name for name in names if name not in arms), None)
    if unknown is not None:
        raise UserError(
            f"there is no arm '{unknown}'; there are: {'; '.join(arms)} (key=value words stand before --arms)"
        )
    return {name: arms[name] for name in names or arms}


def matching(tasks: Sequence[Task], texts: Sequence[str]) -> Sequence[Task]:
    """The tasks whose prompt holds one of `texts`; all of them when there is none."""
    found = [task for task in tasks if not texts or any(text in task.prompt for text in texts)]
    if not found:
        raise UserError(
            f"no prompt holds {' or '.join(map(repr, texts))}: --match takes a part of one, as 'white house'"
        )
    return found


def run_arm(
    name: str, overrides: Sequence[str], tasks: Sequence[Task], options: argparse.Namespace
) -> list[Record]:
    """Make and judge the tasks with an arm's settings, in a folder of its own."""
    folder = options.work / "".join(c if c.isalnum() else "-" for c in name)
    settings = Settings(
        folder, options.preset, tuple(options.config), (*options.overrides, *overrides)
    )
    lock_to_settings(settings, {"suite": "ablation"}, toybench.JUDGES)
    sys.stderr.write(f"--- {name}: {' '.join(overrides) or 'defaults'}\n")
    return run_tasks(tasks, settings, toybench.judge_asset, options.jobs)


def difference(arm: Sequence[Record], base: Sequence[Record], name: str) -> dict[str, float] | None:
    """Mean over prompts of arm minus base, with its interval; None where a figure is not had on both sides."""
    values: dict[str, list[float]] = {}
    for one, other in zip(arm, base, strict=True):
        pair = one["figures"].get(name), other["figures"].get(name)
        if pair[0] is not None and pair[1] is not None:
            values.setdefault(one["prompt"], []).append(float(pair[0]) - float(pair[1]))
    if not values:
        return None
    means = torch.tensor([float(np.mean(v)) for v in values.values()], dtype=torch.float64)
    low, high = bootstrap_interval(means, torch.Generator().manual_seed(0))
    return {"mean": float(means.mean()), "low": low, "high": high, "count": len(means)}


def compare(records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """For each arm: statistics of every figure, the difference from the first arm, that of "all" by prompt set, the failures."""
    base = next(iter(records.values()))
    sets = list(dict.fromkeys(record["set"] for record in base))
    return {
        arm: {
            "figures": {name: statistics(found, name) for name in FIGURES},
            "against_first": {name: difference(found, base, name) for name in FIGURES},
            "by_set": {
                name: difference(of_set(found, name), of_set(base, name), "all") for name in sets
            },
            "failures": sum(bool(record["failure"]) for record in found),
        }
        for arm, found in records.items()
    }


def of_set(records: Sequence[Record], name: str) -> list[Record]:
    """Those of the prompt set `name`, in their order."""
    return [record for record in records if record["set"] == name]


def markdown(told: Mapping[str, Any], title: str, facts: Mapping[str, Any], prompts: int) -> str:
    """The table as a page: means with intervals, and below them the differences from the first arm."""
    shown = [name for name in FIGURES if any(arm["figures"][name] for arm in told.values())]
    labels, seen = [toybench.FIGURES[name].label for name in shown], dict.fromkeys(shown)
    lines = [
        f"# {title}",
        "",
        f"{prompts} prompts; " + ", ".join(f"{k} {v}" for k, v in facts.items()),
        "",
    ]
    for part, explained in (
        ("figures", f"{legend(toybench.FIGURES, seen, '95 % interval over prompts')}."),
        (
            "against_first",
            f"Difference from {next(iter(told))}, prompt by prompt, with its 95 % interval.",
        ),
    ):
        lines += [
            explained,
            "",
            f"| arm | {' | '.join(labels)} | failures |",
            "|---" * (len(shown) + 2) + "|",
        ]
        for arm, found in told.items():
            cells = [_cell(found[part][name], name, part) for name in shown]
            lines.append(f"| {arm} | {' | '.join(cells)} | {found['failures']} |")
        lines.append("")
    sets = list(next(iter(told.values()))["by_set"])
    lines += [
        "That of all attributes by prompt set.",
        "",
        f"| arm | {' | '.join(sets)} |",
        "|---" * (len(sets) + 1) + "|",
    ]
    for arm, found in told.items():
        lines.append(
            f"| {arm} | {' | '.join(_cell(found['by_set'][name], 'all', 'by_set') for name in sets)} |"
        )
    return "\n".join([*lines, ""])


def _cell(found: Mapping[str, float] | None, name: str, part: str) -> str:
    figure = toybench.FIGURES[name]
    if found is None or part == "figures":
        return cell(found, figure)
    scale, digits, unit = (100.0, 0, " points") if figure.share else (1.0, 2, "")
    mean, low, high = (scale * found[key] for key in ("mean", "low", "high"))
    return f"{mean:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]"


def write_grid(records: Mapping[str, Sequence[Record]], path: Path) -> None:
    """A row a prompt: the true object, the last arm's visual prompt, every arm's mesh from two sides; failures are left out."""
    rows = []
    for of_prompt in zip(*records.values(), strict=True):
        prompt = of_prompt[0]["prompt"]
        true = true_rgb(true_pictures(parse_caption(prompt), list(SIDES), BACKGROUND, TILE))
        row, shown = [side_by_side(true, prompt)], None
        for arm, record in zip(records, of_prompt, strict=True):
            if record["failure"]:
                continue
            found = find_mesh(
                Settings(path.parent),
                Task(record["set"], prompt, record["seed"], "", record["source"]),
            )
            shown = toybench.visual_prompt(found)
            if found.mesh is not None:
                cameras = orbit(SIDES, ELEVATION_DEG, DISTANCE, FOV_DEG)
                row.append(
                    side_by_side(render_mesh(found.mesh, cameras, TILE, TILE, BACKGROUND)[0], arm)
                )
        if shown is not None:
            row.insert(1, labelled(resized(shown, TILE), "visual prompt"))
        rows.append(row)
    save_image(
        sheet(
            rows,
            "True object, visual prompt, and assets: the front from the left, the back from the right",
        ),
        path,
    )


def side_by_side(rgb: Tensor, label: str) -> Image.Image:
    """One tile of the views rgb [N, 3, H, W] in [0, 1]."""
    return labelled(np.concatenate(list(to_uint8(rgb)), axis=1), label)


def main(argv: list[str] | None = None) -> None:
    """Run every arm, print the table and write it as JSON and Markdown."""
    parser = Parser(prog="python -m vp3d.evaluate.ablation", description=__doc__.split("\n\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for every arm")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="settings of the default run instead of the paper's parts",
    )
    parser.add_argument(
        "--arms",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only these, the first is compared with (all)",
    )
    parser.add_argument(
        "--subset",
        choices=("all", "mini"),
        default="mini",
        help="72 prompts, or 6 of each set (mini)",
    )
    parser.add_argument(
        "--match",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="only prompts that hold one of these texts",
    )
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="of those, every n-th (1)"
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="draft", help="how much work to put in (draft)"
    )
    parser.add_argument(
        "--config", type=Path, action="append", default=[], help="YAML settings, repeatable"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="assets for each prompt (1)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    parser.add_argument(
        "--work",
        type=Path,
        help="where runs and results are kept (outputs/ablation or outputs/sweep)",
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="write the page here, as docs/results/ablation.md",
    )
    parser.add_argument(
        "--grid",
        type=Path,
        metavar="FILE",
        help="draw true object, visual prompt, first and last arm here",
    )
    options = parser.parse_intermixed_args(argv)
    if min(options.every, options.seeds, options.jobs) < 1:
        parser.error("--every, --seeds and --jobs take whole numbers of 1 or more")
    every_arm = SWEEP if options.sweep else ARMS
    arms = chosen(every_arm, options.arms)
    for option, path in {"--write FILE": options.write, "--grid FILE": options.grid}.items():
        if path:
            check_output(path.parent, option)
    name = "sweep" if options.sweep else "ablation"
    options.work = options.work or ROOT / "outputs" / name
    tasks = matching(toybench.suite_tasks(options.subset, options.seeds), options.match)[
        :: options.every
    ]
    records = {arm: run_arm(arm, overrides, tasks, options) for arm, overrides in arms.items()}
    told = compare(records)
    about = circumstances()
    facts = {
        "preset": options.preset,
        "seeds": options.seeds,
        "date": about["date"],
        "machine": about["machine"],
    }
    facts |= {"commit": str((about["git"] or {}).get("commit", "none"))[:10]}
    facts |= (
        {"arms": f"{len(arms)} of {len(every_arm)} ({'; '.join(arms)})"}
        if len(arms) < len(every_arm)
        else {}
    )
    facts |= {"prompts with": " or ".join(options.match)} if options.match else {}
    page = markdown(
        told,
        f"{name.capitalize()} on toybench, {options.subset}",
        facts,
        len({task.prompt for task in tasks}),
    )
    write_json(
        options.work / f"{name}.json",
        {"about": about, "arms": {k: list(v) for k, v in arms.items()}, "told": told},
    )
    write_text(options.write or options.work / f"{name}.md", page)
    if options.grid:
        write_grid({arm: records[arm] for arm in (list(arms)[0], list(arms)[-1])}, options.grid)
    sys.stdout.write(page)


if __name__ == "__main__":
    run_program("ablation", main)

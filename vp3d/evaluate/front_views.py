"""The zero line of the front-view check: `python -m vp3d.evaluate.front_views FOLDER ...`.

The front view of an asset never equals its visual prompt: it is another drawing of the same object,
from a slightly other height, in other light. The grade of an asset that is *right* is therefore
above 1. This program measures it on finished suites (`--work` folders of `launch.py evaluate` or of
the ablation): right is an asset of which the held-out judge names object, colours, parts and
pattern correctly in every view. For contrast it grades the other assets, and each right asset
against the visual prompt of the next prompt of its suite. Suites that distil from the text alone
draw a visual prompt but do not follow it: they are a contrast too, and not in the zero line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vp3d.config.schema import CameraConfig
from vp3d.errors import UserError
from vp3d.evaluate.planted import auc
from vp3d.evaluate.statistics import circumstances
from vp3d.export.read import fit_to_cube, read_mesh
from vp3d.finish import exported
from vp3d.picture_check import check_front
from vp3d.runs.folder import RunFolder
from vp3d.system.console import Parser, run_program, say
from vp3d.system.files import JsonError, read_json_object, write_text
from vp3d.types import Mesh
from vp3d.visual_prompt.make import VisualPrompt, load_visual_prompt

RIGHT = ("right", "all")  # figures of the suites that are 1 if every view is right


@dataclass(frozen=True)
class Finished:
    """A finished asset of a suite.

    Attributes:
        suite: the name of the suite's folder.
        prompt: its prompt.
        seed: its seed.
        right: whether the judge names everything correctly in every view.
        follows: whether the visual prompt took part in the optimisation.
        mesh: the asset.
        visual_prompt: what it was made from.
        camera: distance and field of view of its views.
        ground: the grey behind the visual prompt.
    """

    suite: str
    prompt: str
    seed: int
    right: bool
    follows: bool
    mesh: Mesh
    visual_prompt: VisualPrompt
    camera: CameraConfig
    ground: float


def read_suite(work: Path) -> Iterator[Finished]:
    """The assets of a suite with a mesh and a visual prompt, in the order of their names."""
    for path in sorted((work / "results").glob("*.json")):
        try:
            record = read_json_object(path)
        except JsonError as error:
            raise UserError(f"{path} cannot be read; run the suite again") from error
        figures = record.get("figures") or {}
        source = Path(str(record.get("source", "")))
        if not figures or not source.is_dir():
            continue
        run = RunFolder.open(source)
        config = run.config()
        yield Finished(
            work.name,
            str(record["prompt"]),
            int(record["seed"]),
            is_right(figures),
            config.guidance.lam.start > 0.0 or config.rewards.image_image.weight > 0.0,
            fit_to_cube(read_mesh(exported(run))),
            load_visual_prompt(run),
            config.camera,
            config.visual_prompt.ground,
        )


def is_right(figures: Mapping[str, Any]) -> bool:
    """Whether every view of an asset is right by the judge.

    Example:
        >>> is_right({"all": 1.0}), is_right({"right": 0.875}), is_right({})
        (True, False, False)
    """
    return any(figures.get(name) == 1.0 for name in RIGHT)


def grade_of(asset: Finished, against: Finished) -> float:
    """The grade, 1 to 5, of an asset's front view against its own or another's visual prompt."""
    prompt = against.visual_prompt
    found = check_front(asset.mesh, prompt.rgb, prompt.mask, asset.camera, against.ground)
    return found.score.grade


def row(name: str, values: Sequence[float]) -> str:
    """A line of the table: count, median and the range of the middle 80 %."""
    if not values:
        return f"| {name} | 0 | | |"
    low, median, high = np.quantile(values, (0.1, 0.5, 0.9))
    return f"| {name} | {len(values)} | {median:.2f} | {low:.2f} to {high:.2f} |"


def page(rows: Sequence[str], facts: str, share: float) -> str:
    """The page of the figures; `share` is the AUC of a foreign against an own visual prompt."""
    lines = [
        "# The zero line of the front-view check",
        "",
        "    python -m vp3d.evaluate.front_views WORK ...",
        "",
        facts,
        "",
        "Grades 1 to 5 of the front view against the visual prompt; the range holds the middle",
        "80 % of the assets. Right: the held-out judge names everything correctly in every view.",
        "Suites marked with text alone draw a visual prompt but do not follow it; they are not in",
        "the zero line.",
        "",
        "| assets | count | median grade | range |",
        "|---|--:|--:|--:|",
        *rows,
        "",
        "The chance that a right asset has a higher grade against the visual prompt of another",
        f"prompt than a right asset has against its own is {share:.3f}.",
    ]
    return "\n".join(lines) + "\n"


def measure(suites: Sequence[Sequence[Finished]]) -> tuple[list[str], float]:
    """The lines of the table and the AUC of foreign against own visual prompts."""
    rows: list[str] = []
    own: list[float] = []
    foreign: list[float] = []
    for suite in suites:
        grades = [grade_of(asset, asset) for asset in suite]
        name = suite[0].suite if suite[0].follows else f"{suite[0].suite} (text alone)"
        seeds = f"seeds {min(a.seed for a in suite)} to {max(a.seed for a in suite)}"
        right = [g for g, asset in zip(grades, suite, strict=True) if asset.right]
        wrong = [g for g, asset in zip(grades, suite, strict=True) if not asset.right]
        others = [
            grade_of(asset, following)
            for asset, following in zip(suite, [*suite[1:], suite[0]], strict=True)
            if asset.right and asset.prompt != following.prompt
        ]
        rows.append(row(f"{name}, right ({seeds})", right))
        rows.append(row(f"{name}, not right in every view", wrong))
        rows.append(row(f"{name}, right, another prompt's picture", others))
        if suite[0].follows:
            own += right
            foreign += others
        say(f"{name}: {len(suite)} assets graded")
    rows.append(row("all, right: the zero line", own))
    if not own or not foreign:
        raise UserError("too few right assets to measure a zero line; give finished suites")
    return rows, auc(np.array(foreign), np.array(own))


def main(argv: list[str] | None = None) -> None:
    """Grade the front views of finished suites and print the table."""
    parser = Parser(
        prog="python -m vp3d.evaluate.front_views", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a --work folder")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page here as well")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    suites = [found for folder in options.folders if (found := list(read_suite(folder)))]
    if not suites:
        raise UserError(f"{options.folders[0]} has no finished assets; give a --work folder")
    rows, share = measure(suites)
    about = circumstances()
    commit = str(about["git"].get("commit", "none"))[:10]
    text = page(rows, f"Commit {commit}, {about['date']}.", share)
    if options.write:
        write_text(options.write, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    run_program("front_views", main)

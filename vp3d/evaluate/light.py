"""Colours with and without the light of the 2D model: `python -m vp3d.evaluate.light FOLDER`.

The folder holds runs or mesh files whose colours have the light in them, as for
`evaluate --assets`. Each is aligned with the true scene of its prompt; the error is the median
CIEDE2000 between its texture and the bare albedo of the scene, over the true surface.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vp3d.errors import UserError
from vp3d.evaluate.runner import find_assets
from vp3d.export.light import Light, fit_light, without_light
from vp3d.export.read import read_mesh
from vp3d.finish import exported
from vp3d.runs.folder import RunFolder
from vp3d.system.console import run_program
from vp3d.types import Mesh
from vp3d.worlds.toybox.scenes import parse_caption
from vp3d.worlds.toybox.truth import SurfaceIndex, color_errors, compare, truth_of


@dataclass(frozen=True)
class Errors:
    """The colour errors of one asset, median CIEDE2000, and its light.

    `removed` is that of the files: where the fit is doubtful, the light stays.
    """

    prompt: str
    baked: float
    removed: float
    light: Light


def errors_of(prompt: str, mesh: Mesh) -> Errors | None:
    """The errors of a mesh with its light; None if it cannot be compared with the true scene."""
    truth = truth_of(parse_caption(prompt))
    found = compare(mesh, truth)
    if found is None:
        return None
    light = fit_light(mesh)
    bare = mesh if light.doubt else without_light(mesh, light)
    baked, removed = (
        float(np.median(color_errors(SurfaceIndex(one), truth, found.pose, "none")))
        for one in (mesh, bare)
    )
    return Errors(prompt, baked, removed, light)


def table(rows: Sequence[Errors]) -> str:
    """A Markdown table of the assets, with the medians."""
    lines = ["| prompt | baked | removed | darkest side | explained |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        figures = f"{row.light.darkest:.2f} | {row.light.explained:.2f}"
        figures = f"stays: {row.light.doubt} |" if row.light.doubt else figures
        lines.append(f"| {row.prompt} | {row.baked:.2f} | {row.removed:.2f} | {figures} |")
    baked, removed = (np.median([getattr(r, name) for r in rows]) for name in ("baked", "removed"))
    share = f"{removed / baked:.2f} of baked"
    return "\n".join([*lines, f"| **median** | {baked:.2f} | {removed:.2f} | {share} | |"])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of the folder on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vp3d.evaluate.light",
        description="Compare colours with and without light with the true scenes.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="runs or mesh files")
    folder = parser.parse_args(argv).folder
    rows = []
    for prompt, _, path in find_assets(folder):
        try:
            parse_caption(prompt)
        except ValueError:  # not a caption of the toybox
            continue
        file = exported(RunFolder(path)) if path.is_dir() else path
        found = errors_of(prompt, read_mesh(file))
        rows += [] if found is None else [found]
    if not rows:
        raise UserError(f'{folder} holds no asset of a toybox prompt, such as "a cyan ring"')
    sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    run_program("light", main)

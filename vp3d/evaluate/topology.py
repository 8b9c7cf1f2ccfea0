"""Count through holes: `python -m vp3d.evaluate.topology FOLDER [FOLDER ...]`.

A folder holds runs or mesh files, as for `evaluate --assets`. The Euler number of each mesh is
compared with that of the true scene of its prompt: a ring has one hole, and one that is closed by
a film is a disc for a printer. Several folders, such as before and after a change, are compared
side by side; each has a column.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vp3d.errors import UserError
from vp3d.evaluate.runner import find_assets
from vp3d.export.read import read_mesh
from vp3d.finish import exported
from vp3d.metrics.shapes import euler_number
from vp3d.runs.folder import RunFolder
from vp3d.system.console import run_program
from vp3d.worlds.toybox.scenes import parse_caption
from vp3d.worlds.toybox.truth import true_mesh


@dataclass(frozen=True)
class Count:
    """The Euler number of one asset, None if it has no mesh, and that of the true scene."""

    prompt: str
    seed: int
    found: int | None
    right: int


@lru_cache(maxsize=256)
def true_euler(prompt: str) -> int:
    """Euler number of the exact scene of `prompt`, a caption of the toybox."""
    return euler_number(true_mesh(parse_caption(prompt)))


def count_folder(folder: Path) -> list[Count]:
    """The Euler numbers of every asset in a folder whose prompt is a caption of the toybox.

    Raises:
        UserError: The folder holds no such asset.
    """
    counts = []
    for prompt, seed, path in find_assets(folder):
        try:
            right = true_euler(prompt)
        except ValueError:  # not a caption of the toybox
            continue
        try:
            file = exported(RunFolder(path)) if path.is_dir() else path
            found = euler_number(read_mesh(file))
        except UserError:
            found = None
        counts.append(Count(prompt, seed, found, right))
    if not counts:
        raise UserError(f'{folder} holds no asset of a toybox prompt, such as "a cyan ring"')
    return counts


def table(names: Sequence[str], columns: Sequence[Sequence[Count]]) -> str:
    """A Markdown table: one row a prompt and seed, one column a folder, and the share right.

    Args:
        names: The heading of each column.
        columns: The counts of each folder.
    """
    by_key = [{(c.prompt, c.seed): c for c in column} for column in columns]
    keys = sorted({key for column in by_key for key in column})
    lines = ["| prompt | seed | true | " + " | ".join(names) + " |"]
    lines.append("|---|--:|--:|" + "--:|" * len(names))
    for key in keys:
        right = next(column[key].right for column in by_key if key in column)
        cells = [_cell(column.get(key)) for column in by_key]
        lines.append(f"| {key[0]} | {key[1]} | {right} | " + " | ".join(cells) + " |")
    shares = []
    for column in columns:
        good = sum(count.found == count.right for count in column)
        shares.append(f"{good} of {len(column)}")
    lines.append("| Euler number right | | | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def _cell(count: Count | None) -> str:
    if count is None:
        return ""
    return "no mesh" if count.found is None else str(count.found)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of the folders on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vp3d.evaluate.topology",
        description="Compare the through holes of meshes with those of the true scenes.",
    )
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", type=Path, help="a folder of runs or mesh files"
    )
    folders = parser.parse_args(argv).folders
    columns = [count_folder(folder) for folder in folders]
    sys.stdout.write(table([folder.name for folder in folders], columns) + "\n")


if __name__ == "__main__":
    run_program("topology", main)

"""Figures of a suite: mean, median and a 95 % interval for each prompt set and figure.

The figures of an asset are numbers, or None if a figure does not apply or could not be measured.
The seeds of one prompt are averaged first, because they are not independent assets. Mean, median
and the interval of the mean (`intervals.mean_interval`, seed 0) are then taken over prompts; one
prompt has no interval. A `Figure.share` is in [0, 1], like its interval, and is printed in per
cent.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vp3d import __version__
from vp3d.config.paths import ROOT
from vp3d.evaluate.intervals import bounded_interval, mean_interval
from vp3d.evaluate.runner import Record
from vp3d.runs.provenance import git_state, machine_name

ALL_SETS = "all"  # the name of all prompt sets together
JANUS_NOTE = "as only a mesh whose true front and back differ can have two faces"


@dataclass(frozen=True)
class Figure:
    """How a figure is printed.

    Attributes:
        label: its name in tables and plots.
        share: whether it is a share in [0, 1], printed in per cent.
        counted: whether the number of assets that have it is printed with it.
    """

    label: str
    share: bool = True
    counted: bool = False


def statistics(
    records: Sequence[Record], name: str, part: str = "figures", share: bool = False
) -> dict[str, Any] | None:
    """Statistics of the figure `name` in `part` of the records.

    Args:
        records: the records.
        name: the figure.
        part: the part of the records that has it.
        share: whether the figure, and so its interval, is in [0, 1].

    Returns:
        "mean", "median", "low" and "high" (the interval of the mean; None for one prompt), "count"
        (prompts), "assets" (assets that have the figure) and "of" (all assets); None if no asset
        has it.
    """
    by_prompt: dict[str, list[float]] = {}
    for record in records:
        value = (record.get(part) or {}).get(name)
        if value is not None:
            by_prompt.setdefault(record["prompt"], []).append(float(value))
    if not by_prompt:
        return None
    means = [float(np.mean(of_seeds)) for of_seeds in by_prompt.values()]
    values = torch.tensor(means, dtype=torch.float64)
    low, high = interval_of(values, (0.0, 1.0) if share else None)
    middle = float(np.median(values.numpy()))
    counts = {"count": len(values), "assets": sum(map(len, by_prompt.values())), "of": len(records)}
    return {"mean": float(values.mean()), "median": middle, "low": low, "high": high, **counts}


def interval_of(
    values: Tensor, limits: tuple[float, float] | None = None
) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean of values `[N]`, inside `limits` if given; None for N = 1."""
    if len(values) < 2:
        return None, None
    generator = torch.Generator().manual_seed(0)
    if limits is None:
        return mean_interval(values, generator)
    return bounded_interval(values, limits, generator)


def summarise(
    records: Sequence[Record], figures: Mapping[str, Figure], parts: Sequence[str] = ("figures",)
) -> dict[str, Any]:
    """The summary of a suite.

    Args:
        records: the records of its assets.
        figures: the figures to summarise.
        parts: the parts of the records that have figures.

    Returns:
        For each part, prompt set and figure that has values: its `statistics`. Also "assets" (their
        number), "failures" (kind -> number) and "records" (without details).
    """
    groups = list(dict.fromkeys(record["set"] for record in records))
    sets = {group: [r for r in records if r["set"] == group] for group in groups}
    sets[ALL_SETS] = list(records)
    by_part: dict[str, Any] = {}
    for part in parts:
        by_part[part] = {}
        for group, of_group in sets.items():
            found = {
                name: statistics(of_group, name, part, figure.share)
                for name, figure in figures.items()
            }
            by_part[part][group] = {name: s for name, s in found.items() if s is not None}
    failures = Counter(record["failure"] for record in records if record["failure"])
    shown = ("set", "prompt", "seed", "failure", "reason", *parts)
    return {
        "assets": len(records),
        "failures": {"count": sum(failures.values()), **failures},
        **by_part,
        "records": [{key: record.get(key) for key in shown} for record in records],
    }


def circumstances() -> dict[str, Any]:
    """Date, version, commit, machine, torch and GPU of this process, which prints the results.

    The assets may be older: `provenance_of` has the dates and commits that made them.
    """
    return {
        "date": time.strftime("%Y-%m-%d"),
        "version": __version__,
        "git": git_state(ROOT),
        "machine": machine_name(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def provenance_of(records: Sequence[Record]) -> dict[str, str]:
    """When, by which commits and on which machines the assets of records were judged.

    Returns:
        "date", or the first and the last one; "commit", all of them in their order, with a note if
        there are several; and "machine".
    """
    dates = sorted({str(record["date"]) for record in records if record.get("date")})
    commits = list(dict.fromkeys(commit_of(record) for record in records))
    machines = dict.fromkeys(str(record.get("machine", "not recorded")) for record in records)
    several = f" ({len(commits)} versions in one table)" if len(commits) > 1 else ""
    return {
        "date": " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "not recorded",
        "commit": ", ".join(commits) + several,
        "machine": "; ".join(machines),
    }


def commit_of(record: Record) -> str:
    """The commit that judged an asset, ten letters; "with changes" if it was not clean."""
    git = record.get("git") or {}
    return f"{str(git.get('commit', 'none'))[:10]}{' with changes' if git.get('dirty') else ''}"


def cell(found: Mapping[str, Any] | None, figure: Figure) -> str:
    """One table cell: mean, interval, median, and the number of assets if the figure is counted.

    One prompt has no interval: "50 % [–] 50".
    """
    if found is None:
        return "–"
    counted = f" ({found['assets']} of {found['of']})" if figure.counted else ""
    scale = 100.0 if figure.share else 1.0
    mean, middle = scale * found["mean"], scale * found["median"]
    digits = 0 if figure.share else 3 if abs(mean) < 0.1 else 2 if abs(mean) < 2.0 else 1
    unit = " %" if figure.share else ""
    ends = [found["low"], found["high"]]
    inside = "–" if None in ends else ", ".join(f"{scale * end:.{digits}f}" for end in ends)
    return f"{mean:.{digits}f}{unit} [{inside}] {middle:.{digits}f}{counted}"


def rows_of(
    summary: Mapping[str, Mapping[str, Any]], figures: Mapping[str, Figure]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one part of a summary: a row for each figure, a column for each set.

    Figures without values are left out, and so is the column of all sets if there is only one.
    """
    groups = [group for group in summary if group != ALL_SETS] + [ALL_SETS]
    groups = groups[1:] if len(groups) == 2 else groups
    rows = [
        [figure.label, *(cell(summary[group].get(name), figure) for group in groups)]
        for name, figure in figures.items()
        if any(name in summary[group] for group in groups)
    ]
    return ["figure", *groups], rows


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], title: str, width: int = 150
) -> str:
    """A table in plain text, without colour, lines at most `width` characters long."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, highlight=False, markup=False).print(table)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def legend(figures: Mapping[str, Figure], shown: Mapping[str, Any], interval: str) -> str:
    """How to read a cell.

    Args:
        figures: all figures of the suite.
        shown: the figures that are in the table.
        interval: what the interval of the mean is called.

    Returns:
        One sentence without a full stop.
    """
    counted = [figure.label for name, figure in figures.items() if figure.counted and name in shown]
    text = f"mean [{interval}] median"
    if counted:
        text += f"; {' and '.join(counted)}: (over how many of the assets), {JANUS_NOTE}"
    return text


def failures_line(summary: Mapping[str, Any]) -> str:
    """The failures of a summary in one line: "failures: 1 of 18 (1 empty)"."""
    failures = summary["failures"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in failures.items() if kind != "count")
    text = f"failures: {failures['count']} of {summary['assets']}"
    return f"{text} ({kinds})" if kinds else text

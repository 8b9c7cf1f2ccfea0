"""Figures of a suite: mean, median and a bootstrap interval for each set and figure, as JSON and as a table in plain text.

An asset's figures are numbers or None (not asked, or not to be had). Seeds of one prompt are averaged first, then the mean,
the median and the percentile bootstrap (2000 samples, 95 %, seed 0) are taken over prompts: seeds of a prompt are no
independent assets. `Figure.share` figures are shares in [0, 1] and told in per cent.
"""

from __future__ import annotations

import io
import os
import platform
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
from vp3d.evaluate.runner import Record
from vp3d.runs.provenance import git_state

COUNTED = "as only a mesh whose true front and back differ can have two faces"
WHOLE = "all"  # the name of all sets together


@dataclass(frozen=True)
class Figure:
    """How a figure is told: its label, whether it is a share in [0, 1], and whether with the count of assets that have it."""

    label: str
    share: bool = True
    counted: bool = False


def statistics(
    records: Sequence[Record], name: str, part: str = "figures"
) -> dict[str, float | int] | None:
    """mean, median, low and high of the interval of the mean, the count of prompts, and that of assets; None without a value.

    `assets` are those that have the figure, `of` is how many there are.
    """
    by_prompt: dict[str, list[float]] = {}
    for record in records:
        value = (record.get(part) or {}).get(name)
        if value is not None:
            by_prompt.setdefault(record["prompt"], []).append(float(value))
    if not by_prompt:
        return None
    values = torch.tensor(
        [float(np.mean(of_seeds)) for of_seeds in by_prompt.values()], dtype=torch.float64
    )
    low, high = bootstrap_interval(values, torch.Generator().manual_seed(0))
    middle = float(np.median(values.numpy()))
    counts = {"count": len(values), "assets": sum(map(len, by_prompt.values())), "of": len(records)}
    return {"mean": float(values.mean()), "median": middle, "low": low, "high": high, **counts}


def summarise(
    records: Sequence[Record], figures: Mapping[str, Figure], parts: Sequence[str] = ("figures",)
) -> dict[str, Any]:
    """For each part of the records and each set (and all together): the statistics of every figure that has values."""
    groups = list(dict.fromkeys(record["set"] for record in records))
    sets = {group: [r for r in records if r["set"] == group] for group in groups} | {
        WHOLE: list(records)
    }
    told = {
        part: {
            group: {
                name: found for name in figures if (found := statistics(of, name, part)) is not None
            }
            for group, of in sets.items()
        }
        for part in parts
    }
    failures = Counter(record["failure"] for record in records if record["failure"])
    return {
        "assets": len(records),
        "failures": {"count": sum(failures.values()), **failures},
        **told,
        "records": [
            {key: r.get(key) for key in ("set", "prompt", "seed", "failure", "reason", *parts)}
            for r in records
        ],
    }


def circumstances() -> dict[str, Any]:
    """When, from which commit, on what machine: what a committed table needs beside it."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "version": __version__,
        "git": git_state(ROOT),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cell(found: Mapping[str, float] | None, figure: Figure) -> str:
    """One cell: mean, interval, median, and of how many assets where that is told."""
    if found is None:
        return "–"
    counted = f" ({found['assets']} of {found['of']})" if figure.counted else ""
    if figure.share:
        mean, low, high, middle = (100.0 * found[key] for key in ("mean", "low", "high", "median"))
        return f"{mean:.0f} % [{low:.0f}, {high:.0f}] {middle:.0f}{counted}"
    mean, low, high, middle = (found[key] for key in ("mean", "low", "high", "median"))
    digits = 3 if abs(mean) < 0.1 else 2 if abs(mean) < 2.0 else 1
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] {middle:.{digits}f}{counted}"


def rows_of(
    told: Mapping[str, Mapping[str, Any]], figures: Mapping[str, Figure]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one part of a summary: a row a figure, a column a set; figures without values are left out."""
    groups = [group for group in told if group != WHOLE] + [WHOLE]
    groups = groups[1:] if len(groups) == 2 else groups
    rows = [
        [figure.label, *(cell(told[group].get(name), figure) for group in groups)]
        for name, figure in figures.items()
        if any(name in told[group] for group in groups)
    ]
    return ["figure", *groups], rows


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], title: str, width: int = 150
) -> str:
    """A table in plain text, without colour."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, highlight=False, markup=False).print(table)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def legend(figures: Mapping[str, Figure], told: Mapping[str, Any], interval: str) -> str:
    """How a cell is read; `told` are the figures that there are, `interval` what that of the mean is called."""
    counted = [figure.label for name, figure in figures.items() if figure.counted and name in told]
    shown = f"mean [{interval}] median"
    return shown + (
        f"; {' and '.join(counted)}: (over how many of the assets), {COUNTED}" if counted else ""
    )


def failures_line(summary: Mapping[str, Any]) -> str:
    """ "failures: 1 of 18 (1 empty)"."""
    kinds = ", ".join(
        f"{count} {kind}" for kind, count in summary["failures"].items() if kind != "count"
    )
    return f"failures: {summary['failures']['count']} of {summary['assets']}" + (
        f" ({kinds})" if kinds else ""
    )


def bootstrap_interval(
    values: Tensor, generator: torch.Generator, confidence: float = 0.95, samples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values [N]` (any range; booleans as 0 and 1)."""
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"the bootstrap needs values [N] with N >= 1, got {tuple(values.shape)}")
    drawn = torch.randint(len(values), (samples, len(values)), generator=generator)
    means = values.double()[drawn].mean(1)
    tail = (1.0 - confidence) / 2.0
    low, high = torch.quantile(
        means, torch.tensor([tail, 1.0 - tail], dtype=torch.float64)
    ).tolist()
    return low, high

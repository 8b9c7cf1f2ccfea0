"""What a claim is: a question, a measurement that can be interrupted, and a page with its answer.

A claim is measured in parts. The result of each part is kept in the work folder, so that the same
command run again continues. The page has the tables, a plot and a line for each statement with
"holds" or "does not hold", whatever came out.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vp3d.engine.pool import ALONE, Pool
from vp3d.evaluate.intervals import mean_interval
from vp3d.evaluate.statistics import circumstances, provenance_of
from vp3d.system.files import (
    JsonError,
    atomic_write,
    plain,
    read_json_object,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

Cell = str | float | int | None
LINE = 100  # columns of the page's prose
# Settings that exist only since results were recorded, at their defaults: such results stay valid.
LATER = {"text_encoder": False}.items()
# key, settings and computation of a part of a measurement, as `Bench.once` takes them
Part = tuple[str, dict[str, Any], Callable[[], Any]]


@dataclass(frozen=True)
class Table:
    """A table: a title, the names of its columns, and rows of cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Verdict:
    """A statement with its threshold, the measured figure, and whether it holds.

    `holds` is None where the statement is a description without a threshold.
    """

    statement: str
    measured: str
    holds: bool | None


@dataclass(frozen=True)
class Finding:
    """The answer to a claim.

    Attributes:
        verdicts: The statements.
        tables: The figures.
        notes: Sentences on circumstances and limits.
        plot: Draws the plot of the page; None for a page without one.
        pictures: Pictures of the page below its figures, by title.
    """

    verdicts: Sequence[Verdict]
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    plot: Callable[[Axes], None] | None = None
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A claim that one command measures.

    Attributes:
        name: Its name on the command line.
        title: Title of the page.
        question: What is measured and how, one paragraph of Markdown.
        measure: Measures it, part by part, in a `Bench`.
        page: What the name of its page begins with.
    """

    name: str
    title: str
    question: str
    measure: Callable[[Bench], Finding]
    page: str = "align"


@dataclass
class Bench:
    """A work folder that keeps the result of each part of a measurement.

    Attributes:
        folder: Where the results are kept.
        say: Reports progress.
        pool: Measures parts that are independent of each other.
        parts: The record of each part that was asked for, those of earlier calls included: its
            settings, value and CPU seconds, and when and by which commit it was measured.
    """

    folder: Path
    say: Callable[[str], None] = lambda text: None
    pool: Pool = ALONE
    parts: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)

    def once(self, key: str, settings: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """The result of one part: that which is kept, or `compute()`.

        Args:
            key: Name of the part, valid as a file name.
            settings: All that the result depends on; a kept result of others is not used.
            compute: Measures the part; its result is plain JSON after `plain`.

        Returns:
            The result in the types of JSON.
        """
        kept = self._kept(key, settings)
        if kept is None:
            started = cpu_seconds()
            value = plain(compute())
            seconds = round(cpu_seconds() - started, 1)
            kept = {"settings": recorded(settings), "seconds": seconds, "value": value}
            kept |= circumstances()
            write_json(self.folder / f"{key}.json", kept)
            self.say(f"{key}: {seconds:.0f} CPU seconds")
        self.parts[key] = kept
        return kept["value"]

    def facts(self) -> str:
        """CPU time of all parts, and when, by which commits and where they were measured."""
        seconds = sum(float(part["seconds"]) for part in self.parts.values())
        found = provenance_of(list(self.parts.values()))
        return (
            f"It took {seconds / 60.0:.0f} CPU minutes; date {found['date']}, "
            f"commit {found['commit']}, machine {found['machine']}."
        )

    def every(self, parts: Sequence[Part]) -> list[Any]:
        """The results of independent parts, in their order; those that are missing in parallel.

        Args:
            parts: The arguments of `once`; they are pickled if other processes measure them.
        """
        missing = [part for part in parts if self._kept(part[0], part[1]) is None]
        work = partial(_measure_part, self.folder)
        for line in self.pool.map(work, missing, self.folder / "logs"):
            self.say(line)
        return [self.once(*part) for part in parts]

    def _kept(self, key: str, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The record of a part that was measured with these settings; None without one."""
        try:
            kept = read_json_object(self.folder / f"{key}.json")
        except JsonError:  # missing, or damaged: measure it again
            return None
        same = kept.get("settings") == recorded(settings) and "value" in kept
        return kept if same else None


def cpu_seconds() -> float:
    """CPU seconds of this process and of those of its own that have ended."""
    return sum(os.times()[:4])


def recorded(settings: Any) -> Any:
    """Settings in the types of JSON, without those of `LATER` that have their default."""
    found = plain(settings)
    if not isinstance(found, dict):
        return found
    return {key: recorded(value) for key, value in found.items() if (key, value) not in LATER}


def _measure_part(folder: Path, part: Part) -> str:
    """Measure a part into its file, in a process of its own; returns what to report."""
    lines: list[str] = []
    Bench(folder, lines.append).once(*part)
    return "".join(lines)


def interval(values: Sequence[float] | Tensor, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % interval (low, high) of `values` [N], N >= 2 (intervals.py)."""
    found = torch.as_tensor(values, dtype=torch.float64)
    low, high = mean_interval(found, torch.Generator().manual_seed(seed))
    return float(found.mean()), low, high


def by_caption(seeds: Sequence[Sequence[float] | Tensor], drawings: int = 1) -> Tensor:
    """The mean of each caption over seeds and drawings [N], which are no independent samples.

    Args:
        seeds: For each seed the values `[N * drawings]`; those of one caption follow each other.
        drawings: Of each caption.
    """
    values = torch.stack([torch.as_tensor(one, dtype=torch.float64) for one in seeds])
    return values.reshape(len(seeds), -1, drawings).mean((0, 2))


def with_interval(values: Sequence[float] | Tensor, digits: int = 3) -> str:
    """`mean (low to high)` of `values` [N] as text."""
    mean, low, high = interval(values)
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def signed(values: Sequence[float] | Tensor) -> str:
    """`with_interval` of differences `values` [N], with their signs."""
    mean, low, high = interval(values)
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def above(statement: str, differences: Sequence[float] | Tensor) -> Verdict:
    """A verdict that holds if the interval of the mean of `differences` [N] is above 0."""
    return Verdict(statement, signed(differences), interval(differences)[1] > 0.0)


def write_claim(claim: Claim, finding: Finding, folder: Path, command: str, facts: str) -> Path:
    """Write the page, such as `align-NAME.md`, its plot and its pictures into `folder`.

    Args:
        claim: The claim.
        finding: Its answer.
        folder: Where the files go.
        command: The command that measured it.
        facts: How long it took, when and where it was measured (`Bench.facts`).

    Returns:
        The page.
    """
    page = folder / f"{claim.page}-{claim.name}.md"
    lines = [f"# {claim.title}", "", *wrapped(claim.question), "", "```console", command, "```", ""]
    lines += [*wrapped(facts), "", "## Result", ""]
    lines += _table(
        Table(
            "",
            ("statement", "measured", "holds"),
            [(v.statement, v.measured, _answer(v.holds)) for v in finding.verdicts],
        )
    )
    if finding.plot is not None:
        picture = page.with_suffix(".png")
        write_plot(finding.plot, picture)
        lines += ["", f"![{claim.title}]({picture.name})"]
    lines += ["", "## Figures"]
    for table in finding.tables:
        lines += ["", f"### {table.title}", "", *_table(table)]
    for number, (title, shown) in enumerate(finding.pictures.items(), start=1):
        picture = folder / f"{page.stem}-{number}.png"
        with atomic_write(picture) as temporary:
            shown.save(temporary, format="PNG", optimize=True)
        lines += ["", f"### {title}", "", f"![{title}]({picture.name})"]
    if finding.notes:
        lines += ["", "## Limits", ""]
        lines += [line for note in finding.notes for line in wrapped(f"- {note}", "  ")]
    write_text(page, "\n".join(lines) + "\n")
    return page


def wrapped(text: str, indent: str = "") -> list[str]:
    """Prose in lines of at most `LINE` columns; all but the first begin with `indent`."""
    return textwrap.wrap(text, LINE, subsequent_indent=indent, break_on_hyphens=False)


def as_text(finding: Finding) -> str:
    """The statements of a finding, one a line, for the terminal."""
    rows = [f"{_answer(v.holds):>14}  {v.statement}: {v.measured}" for v in finding.verdicts]
    return "\n".join(rows) + "\n"


def write_plot(plot: Callable[[Axes], None], path: Path) -> None:
    """Write one plot as PNG, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    plot(figure.add_subplot())
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


def _answer(holds: bool | None) -> str:
    return "-" if holds is None else "holds" if holds else "does not hold"


def _table(table: Table) -> list[str]:
    numeric = [all(isinstance(row[i], float | int | None) for row in table.rows)
               for i in range(len(table.columns))]  # fmt: skip
    rule = ["--:" if right else "---" for right in numeric]
    rows = [table.columns, rule, *([_cell(cell) for cell in row] for row in table.rows)]
    return ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def _cell(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return "" if cell is None else str(cell).replace("|", "\\|")

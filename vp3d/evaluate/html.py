"""The page of a suite: one HTML file that opens offline.

It has the tables, two plots, and every asset, next to its true object where that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from vp3d.config.schema import CameraConfig
from vp3d.evaluate.runner import FoundAsset, Record, Settings, Task
from vp3d.evaluate.statistics import ALL_SETS, Figure, failures_line, legend, rows_of
from vp3d.report import html
from vp3d.report.pictures import ring_frames
from vp3d.report.plots import PALETTE, svg_of
from vp3d.report.report import VIDEOS
from vp3d.report.video import write_turntable
from vp3d.system.console import say
from vp3d.system.files import write_text

FRAMES, SIDE, FPS = 24, 160, 8  # turntable of a mesh without a run: frames, pixels, frames a second
PARTS = {
    "figures": "The assets",
    "drawn": "The visual prompts, as the judge sees them",
    "true": "Exact renders of the true objects",
}
STYLE = (
    "<style>.asset { margin: 0 0 1rem; } .asset .row { display: flex; align-items: center; } "
    ".bad { color: #c0392b; } .asset .row img { width: 100%; min-width: 0; } "
    ".asset .turns { width: 17%; flex: none; } "
    ".asset .turns video, .asset .turns img { display: block; width: 100%; }</style>"
)


def write_page(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    summary: Mapping[str, Any],
    figures: Mapping[str, Figure],
    assets: Sequence[tuple[Task, Record]],
    settings: Settings,
) -> None:
    """Writes the page of a suite.

    Args:
        path: the HTML file.
        title: the title of the page.
        facts: name -> value of the line below the title.
        summary: what `statistics.summarise` returned.
        figures: the figures of the suite.
        assets: its tasks with their records.
        settings: the folder of results, which has the pictures and turntables.
    """
    tables = [
        html.section(label, html.table(*rows_of(summary[part], figures)))
        for part, label in PARTS.items()
        if part in summary and summary[part][ALL_SETS]
    ]
    plots = "".join(f'<div class="card">{svg}</div>' for svg in suite_plots(summary, figures))
    cards = "".join(asset_card(task, record, settings, figures) for task, record in assets)
    interval = "95 % interval of the mean over prompts"
    explained = legend(figures, summary["figures"][ALL_SETS], interval)
    note = f"<p>{escape(explained)}. {escape(failures_line(summary))}</p>"
    pictures = [
        html.section("Plots", f'<div class="plots">{plots}</div>'),
        html.section("Every asset", STYLE + cards),
    ]
    write_text(path, html.document(title, facts, "", [note, *tables, *pictures]))


def asset_card(
    task: Task, record: Record, settings: Settings, figures: Mapping[str, Figure]
) -> str:
    """One asset as HTML: its turntable, its picture, its figures in words, and its failure."""
    result = settings.result(task)
    picture, image = result.with_suffix(".png"), ""
    if picture.is_file():
        image = f'<img src="{html.data_uri(picture.read_bytes(), "image/png")}" alt="views">'
    words = [
        f"{figure.label} {format_value(record['figures'][name], figure)}"
        for name, figure in figures.items()
        if record["figures"].get(name) is not None
    ]
    failure = ""
    if record["failure"]:
        failure = f' <b class="bad">{escape(record["failure"])}: {escape(record["reason"])}</b>'
    prompt = f"<b>{escape(record['prompt'])}</b> (seed {record['seed']})"
    caption = f"{prompt}{failure} · {escape(' · '.join(words))}"
    own = turntable(Path(record["source"]) / "turntable", result)
    turns = own + turntable(true_turntable(result))
    row = f'<div class="row"><div class="turns">{turns}</div>{image}</div>'
    return f'<figure class="card asset">{row}<figcaption>{caption}</figcaption></figure>'


def format_value(value: float, figure: Figure) -> str:
    """The value of one asset's figure."""
    if figure.share:
        return f"{100 * value:.0f} %"
    return f"{value:.3f}" if abs(value) < 1.0 else f"{value:.1f}"


def turntable(*stems: Path) -> str:
    """The first turntable that exists as an HTML element, "" if there is none.

    Args:
        *stems: the paths to try, without suffix.
    """
    for path, kind in (
        (stem.with_suffix(suffix), kind) for stem in stems for suffix, kind in VIDEOS.items()
    ):
        if path.is_file():
            uri = html.data_uri(path.read_bytes(), kind)
            moving = f'<video src="{uri}" loop muted playsinline controls preload="none"></video>'
            return moving if kind.startswith("video/") else f'<img src="{uri}" alt="turntable">'
    return ""


def true_turntable(result: Path) -> Path:
    """The path of the true object's turntable, next to `result`, without suffix."""
    return result.with_name(f"{result.stem}-true")


def write_asset_turntable(found: FoundAsset, result: Path) -> None:
    """Writes a turntable of the mesh next to `result`, unless its run folder has one."""
    if found.mesh is None or (found.folder is not None and turntable(found.folder / "turntable")):
        return
    frames = ring_frames(found.mesh, FRAMES, SIDE, CameraConfig())
    write_turntable(frames, result.with_suffix(".mp4"), FPS, warn=say)


def suite_plots(summary: Mapping[str, Any], figures: Mapping[str, Figure]) -> list[str]:
    """SVG plots of a summary.

    Returns:
        One bar plot of all shares with their intervals, a colour for each set; and for at most two
        figures that are not shares, the sorted values of the assets.
    """
    by_set = summary["figures"]
    shares = [name for name, f in figures.items() if f.share and name in by_set[ALL_SETS]]
    others = [name for name, f in figures.items() if not f.share and name in by_set[ALL_SETS]]
    plots = []
    if shares:
        plots.append(svg_of(lambda axes: draw_shares(axes, by_set, shares, figures), "shares"))
    for name in others[:2]:
        draw = _sorted_plot(summary["records"], name, figures[name].label)
        plots.append(svg_of(draw, name))
    return plots


def draw_shares(
    axes: Axes, by_set: Mapping[str, Any], names: Sequence[str], figures: Mapping[str, Figure]
) -> None:
    """Draws horizontal bars in per cent with their intervals.

    Args:
        axes: where to draw.
        by_set: prompt set -> figure -> statistics.
        names: the figures to draw, all of them shares.
        figures: their labels.
    """
    groups = [group for group in by_set if group != ALL_SETS]
    for i, group in enumerate(groups):
        for j, name in enumerate(names):
            if (found := by_set[group].get(name)) is None:
                continue
            at, mean = j + (i - (len(groups) - 1) / 2) * 0.26, 100 * found["mean"]
            label = group if j == 0 else "_"
            axes.barh(at, mean, 0.24, color=PALETTE[i % len(PALETTE)], label=label)
            if found["low"] is None:
                continue
            reach = [[mean - 100 * found["low"]], [100 * found["high"] - mean]]
            axes.errorbar(mean, at, xerr=np.maximum(reach, 0.0), color="#888888", linewidth=1)
    axes.set_yticks(range(len(names)), [figures[name].label for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_title("Shares, per cent", loc="left", fontsize=11, fontweight="bold")
    axes.legend(fontsize=8)


def _sorted_plot(records: Sequence[Record], name: str, label: str) -> Callable[[Axes], None]:
    """Draws the sorted values of one figure, a line for each prompt set."""

    def draw(axes: Axes) -> None:
        groups = dict.fromkeys(record["set"] for record in records)
        for color, group in zip(PALETTE, groups, strict=False):
            of_group = [r["figures"].get(name) for r in records if r["set"] == group]
            values = sorted(value for value in of_group if value is not None)
            share = (np.arange(len(values)) + 0.5) / max(len(values), 1)
            axes.plot(share, values, ".-", color=color, label=group)
        axes.set_title(f"{label}, assets sorted", loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("share of the assets")
        axes.legend(fontsize=8)

    return draw

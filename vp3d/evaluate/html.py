"""The page of a suite: one HTML file that opens offline, with the table, two plots, and every asset beside the true object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from vp3d.config.schema import CameraConfig
from vp3d.evaluate.runner import Found, Record, Settings, Task
from vp3d.evaluate.statistics import WHOLE, Figure, failures_line, legend, rows_of
from vp3d.report import html
from vp3d.report.pictures import ring_frames
from vp3d.report.plots import PALETTE, svg_of
from vp3d.report.report import VIDEOS
from vp3d.report.video import write_turntable
from vp3d.system.console import say
from vp3d.system.files import write_text

FRAMES, SIDE, FPS = 24, 160, 8  # of the turntable of a mesh without a run; pixels, frames a second
PARTS = {
    "figures": "The assets",
    "drawn": "The visual prompts, as the judge sees them",
    "true": "Exact renders of the true objects",
}
STYLE = (
    "<style>.asset { margin: 0 0 1rem; } .asset .row { display: flex; align-items: center; } .bad { color: #c0392b; }"
    " .asset .row img { width: 100%; min-width: 0; } .asset .turns { width: 17%; flex: none; }"
    " .asset .turns video, .asset .turns img { display: block; width: 100%; }</style>"
)


def write_page(
    path: Path, title: str, facts: Mapping[str, str], summary: Mapping[str, Any], figures: Mapping[str, Figure],
    assets: Sequence[tuple[Task, Record]], settings: Settings,
) -> None:  # fmt: skip
    """Write the page of a suite whose `summary` is that of `summary.summarise`; `assets` are its tasks with their records."""
    told = [
        html.section(label, html.table(*rows_of(summary[part], figures)))
        for part, label in PARTS.items()
        if part in summary and summary[part][WHOLE]
    ]
    plots = "".join(f'<div class="card">{svg}</div>' for svg in suite_plots(summary, figures))
    cards = "".join(asset_card(task, record, settings, figures) for task, record in assets)
    read = legend(
        figures, summary["figures"][WHOLE], "95 % bootstrap interval of the mean over prompts"
    )
    note = f"<p>{escape(read)}. {escape(failures_line(summary))}</p>"
    drawn = [
        html.section("Plots", f'<div class="plots">{plots}</div>'),
        html.section("Every asset", STYLE + cards),
    ]
    write_text(path, html.document(title, facts, "", [note, *told, *drawn]))


def asset_card(
    task: Task, record: Record, settings: Settings, figures: Mapping[str, Figure]
) -> str:
    """One asset: its turntable and views above those of the true object, its figures in words, and what went wrong."""
    views = settings.result(task).with_suffix(".png")
    shown = (
        f'<img src="{html.data_uri(views.read_bytes(), "image/png")}" alt="views">'
        if views.is_file()
        else ""
    )
    words = [
        f"{f.label} {_short(record['figures'][n], f)}"
        for n, f in figures.items()
        if record["figures"].get(n) is not None
    ]
    wrong = (
        f' <b class="bad">{escape(record["failure"])}: {escape(record["reason"])}</b>'
        if record["failure"]
        else ""
    )
    caption = f"<b>{escape(record['prompt'])}</b> (seed {record['seed']}){wrong} · {escape(' · '.join(words))}"
    turns = turntable(Path(record["source"]) / "turntable", settings.result(task)) + turntable(
        true_turn(settings.result(task))
    )
    row = f'<div class="row"><div class="turns">{turns}</div>{shown}</div>'
    return f'<figure class="card asset">{row}<figcaption>{caption}</figcaption></figure>'


def _short(value: float, figure: Figure) -> str:
    return (
        f"{100 * value:.0f} %"
        if figure.share
        else f"{value:.3f}"
        if abs(value) < 1.0
        else f"{value:.1f}"
    )


def turntable(*stems: Path) -> str:
    """The first turntable that is there, embedded; `stems` are its paths without the suffix."""
    for path, kind in (
        (stem.with_suffix(suffix), kind) for stem in stems for suffix, kind in VIDEOS.items()
    ):
        if path.is_file():
            uri = html.data_uri(path.read_bytes(), kind)
            moving = f'<video src="{uri}" loop muted playsinline controls preload="none"></video>'
            return moving if kind.startswith("video/") else f'<img src="{uri}" alt="turntable">'
    return ""


def true_turn(result: Path) -> Path:
    """Where the turntable of the true object of a `result` lies, without its suffix."""
    return result.with_name(f"{result.stem}-true")


def write_turn(found: Found, result: Path) -> None:
    """The turntable of a mesh that no run has one of, beside its `result`."""
    if found.mesh is None or (found.folder is not None and turntable(found.folder / "turntable")):
        return
    frames = ring_frames(found.mesh, FRAMES, SIDE, CameraConfig())
    write_turntable(frames, result.with_suffix(".mp4"), FPS, warn=say)


def suite_plots(summary: Mapping[str, Any], figures: Mapping[str, Figure]) -> list[str]:
    """Bars of the shares with their intervals, a colour a set; and every asset's first figure that is no share, sorted."""
    told = summary["figures"]
    shares = [name for name, f in figures.items() if f.share and name in told[WHOLE]]
    drawn = (
        [svg_of(lambda axes: draw_shares(axes, told, shares, figures), "toybench shares")]
        if shares
        else []
    )
    others = [name for name, f in figures.items() if not f.share and name in told[WHOLE]]
    for name in others[:2]:
        drawn.append(
            svg_of(_sorted_plot(summary["records"], name, figures[name].label), f"toybench {name}")
        )
    return drawn


def draw_shares(
    axes: Axes, told: Mapping[str, Any], names: Sequence[str], figures: Mapping[str, Figure]
) -> None:
    """Horizontal bars in per cent, an interval on each."""
    groups = [group for group in told if group != WHOLE]
    for i, group in enumerate(groups):
        for j, name in enumerate(names):
            if (found := told[group].get(name)) is None:
                continue
            at, mean = j + (i - (len(groups) - 1) / 2) * 0.26, 100 * found["mean"]
            label = group if j == 0 else "_"
            reach = [[mean - 100 * found["low"]], [100 * found["high"] - mean]]
            axes.barh(at, mean, 0.24, color=PALETTE[i % len(PALETTE)], label=label)
            axes.errorbar(mean, at, xerr=np.maximum(reach, 0.0), color="#888888", linewidth=1)
    axes.set_yticks(range(len(names)), [figures[name].label for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_title("Shares, per cent", loc="left", fontsize=11, fontweight="bold")
    axes.legend(fontsize=8)


def _sorted_plot(records: Sequence[Record], name: str, label: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for color, group in zip(
            PALETTE, dict.fromkeys(record["set"] for record in records), strict=False
        ):
            of_group = [r["figures"].get(name) for r in records if r["set"] == group]
            values = sorted(value for value in of_group if value is not None)
            axes.plot(
                (np.arange(len(values)) + 0.5) / max(len(values), 1),
                values,
                ".-",
                color=color,
                label=group,
            )
        axes.set_title(f"{label}, assets sorted", loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("share of the assets")
        axes.legend(fontsize=8)

    return draw

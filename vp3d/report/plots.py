"""Plots of a run, drawn from its log alone: rewards, opacity and losses over the optimisation steps.

Conventions: a curve is (steps, values), both `[N]`; where the run went back (a restart) or a value was not finite, the
curve is broken by a NaN. SVGs take their text colour from the page (`currentColor`), so they read on light and dark.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vp3d.system.files import atomic_write

Curves = dict[str, tuple[np.ndarray, np.ndarray]]
INK = "#3b3f45"  # stands for the page's text colour until an SVG is finished
PALETTE = ("#3b82c4", "#d9772b", "#2f9e6e", "#b04a9c", "#c9a227", "#7a6ad8", "#8a8f98")
COUNTERS = {
    "time",
    "kind",
    "step",
    "steps",
    "iteration",
    "samples",
    "samples_per_s",
    "seconds_a_step",
    "eta_s",
    "rate_scale",
}
UNTOLD = ("loss", "sds")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "vp3d", "font.size": 10, "font.family": "sans-serif",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": INK, "grid.alpha": 0.15,
    "legend.frameon": False, "legend.labelcolor": INK, "lines.linewidth": 1.6,
}  # fmt: skip


def curves(events: Sequence[Mapping[str, Any]]) -> Curves:
    """Every number logged by the "step" events against the step, by name."""
    steps = [event for event in events if event.get("kind") == "step" and "step" in event]
    names = dict.fromkeys(name for event in steps for name in event if name not in COUNTERS)
    return {
        name: _curve(
            [(float(event["step"]), _number(event[name])) for event in steps if name in event]
        )
        for name in names
    }


def _number(value: object) -> float:
    """A logged value as a float; "inf" and anything that is no number become NaN."""
    try:
        number = float(str(value))
    except ValueError:
        return float("nan")
    return number if np.isfinite(number) else float("nan")


def _curve(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Points in the order they were logged, with a NaN wherever the step does not grow."""
    broken: list[tuple[float, float]] = []
    for step, value in points:
        if broken and step <= broken[-1][0]:
            broken.append((step, float("nan")))
        broken.append((step, value))
    array = np.array(broken, np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def grouped(found: Curves) -> dict[str, Curves]:
    """The curves by plot: "Rewards" (higher is better), "Opacity", "Losses" (unweighted terms); empty plots are left out.

    Losses are drawn on a logarithmic axis: one that is never above zero, such as a reward's, whose value is plotted anyway, is
    left out. The raw SDS number means nothing, and the weighted sum says nothing that its parts do not.
    """
    plots: dict[str, Curves] = {"Rewards": {}, "Opacity": {}, "Losses": {}}
    for name, curve in found.items():
        plot = (
            "Rewards" if name.startswith("reward") else "Opacity" if name == "opacity" else "Losses"
        )
        if name not in UNTOLD and (plot != "Losses" or bool((curve[1] > 0.0).any())):
            plots[plot][name.removeprefix("reward_").replace("_", " ")] = curve
    return {
        title: group
        for title, group in plots.items()
        if any(np.isfinite(v).any() for _, v in group.values())
    }


def draw(axes: Axes, title: str, group: Curves) -> None:
    """One plot. Losses of unlike size share a logarithmic axis."""
    for color, (name, (steps, values)) in zip(
        PALETTE * (1 + len(group) // len(PALETTE)), group.items(), strict=False
    ):
        axes.plot(
            steps,
            values,
            color=color,
            label=name,
            marker="." if np.isfinite(values).sum() < 3 else "",
        )
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("step")
    if title == "Losses":
        axes.set_yscale("log")
    if title == "Opacity":
        axes.set_ylim(0.0, 1.0)
    else:
        axes.legend(loc="best", fontsize=9)


def plot_svgs(events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Each plot of the run as an `<svg>` element, by its title; none for a run without steps."""
    return {
        title: svg_of(partial(draw, title=title, group=group), title)
        for title, group in grouped(curves(events)).items()
    }


def svg_of(draw_on: Callable[[Axes], None], salt: str) -> str:
    """What `draw_on` draws as an `<svg>` element in the page's text colour; `salt` keeps its ids apart from other plots'."""
    with rc_context(STYLE | {"svg.hashsalt": f"vp3d {salt}"}):
        figure = Figure(figsize=(5.2, 3.2))
        draw_on(figure.add_axes((0.12, 0.15, 0.85, 0.74)))
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def write_plots(events: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """All plots in one PNG; whether there was anything to plot."""
    groups = grouped(curves(events))
    if not groups:
        return False
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(groups), 3.4), dpi=120, facecolor="white")
        for i, (title, group) in enumerate(groups.items()):
            draw(
                figure.add_axes(((i + 0.12) / len(groups), 0.15, 0.82 / len(groups), 0.74)),
                title,
                group,
            )
        with atomic_write(path) as temporary:
            figure.savefig(temporary, metadata={"Software": None})
    return True

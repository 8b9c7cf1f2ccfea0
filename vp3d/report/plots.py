"""Plots of a run from its log: rewards, opacity and losses over the optimisation steps.

Conventions: a curve is (steps, values), both `[N]`. A NaN breaks a curve where the run returned to
an earlier step (a restart) or a value was not finite. SVGs take their text colour from the page
(`currentColor`), so they are legible on light and dark pages.
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
INK = "#3b3f45"  # text colour; in a finished SVG it is replaced by the page's
PALETTE = ("#3b82c4", "#d9772b", "#2f9e6e", "#b04a9c", "#c9a227", "#7a6ad8", "#8a8f98")
# Data of a "step" event that is no measurement.
COUNTERS = {"time", "kind", "step", "steps", "iteration", "samples", "samples_per_s"}
COUNTERS |= {"seconds_a_step", "eta_s", "rate_scale"}
# The raw SDS number has no meaning, and the weighted sum adds nothing to its terms.
NOT_PLOTTED = ("loss", "sds")
LOGARITHMIC = ("Losses", "Guard")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vp3d",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
}


def curves(events: Sequence[Mapping[str, Any]]) -> Curves:
    """The measurements of the "step" events over the step, by name."""
    steps = [event for event in events if event.get("kind") == "step" and "step" in event]
    names = dict.fromkeys(name for event in steps for name in event if name not in COUNTERS)
    return {
        name: _curve([(float(e["step"]), _number(e[name])) for e in steps if name in e])
        for name in names
    }


def _number(value: object) -> float:
    """A logged value as a float; "inf" and everything that is not a number become NaN."""
    try:
        number = float(str(value))
    except ValueError:
        return float("nan")
    return number if np.isfinite(number) else float("nan")


def _curve(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Points in the order of the log, with a NaN wherever the step does not grow."""
    broken: list[tuple[float, float]] = []
    for step, value in points:
        if broken and step <= broken[-1][0]:
            broken.append((step, float("nan")))
        broken.append((step, value))
    array = np.array(broken, np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def grouped(found: Curves) -> dict[str, Curves]:
    """The curves by plot: "Rewards" (higher is better), "Opacity", "Losses" (unweighted), "Guard".

    Plots without a finite value are left out. Losses have a logarithmic axis, so a loss that is
    never above zero is left out too, such as the negative of a reward, which has its own curve.
    """
    plots: dict[str, Curves] = {"Rewards": {}, "Opacity": {}, "Losses": {}, "Guard": {}}
    for name, curve in found.items():
        title = "Opacity" if name == "opacity" else "Losses"
        title = "Rewards" if name.startswith("reward") else title
        title = "Guard" if name.startswith("guard_") else title
        if name not in NOT_PLOTTED and (title not in LOGARITHMIC or bool((curve[1] > 0.0).any())):
            label = name.removeprefix("reward_").removeprefix("guard_")
            plots[title][label.replace("_", " ")] = curve
    return {
        title: group
        for title, group in plots.items()
        if any(np.isfinite(values).any() for _, values in group.values())
    }


def draw(axes: Axes, title: str, group: Curves) -> None:
    """Draw one plot. Losses share a logarithmic axis, because their sizes differ."""
    colors = PALETTE * (1 + len(group) // len(PALETTE))
    for color, (name, (steps, values)) in zip(colors, group.items(), strict=False):
        marker = "." if np.isfinite(values).sum() < 3 else ""
        axes.plot(steps, values, color=color, label=name, marker=marker)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("step")
    if title in LOGARITHMIC:
        axes.set_yscale("log")
    if title == "Opacity":
        axes.set_ylim(0.0, 1.0)
    else:
        axes.legend(loc="best", fontsize=9)


def plot_svgs(events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Each plot of a run as an `<svg>` element, by title; empty for a run without steps."""
    return {
        title: svg_of(partial(draw, title=title, group=group), title)
        for title, group in grouped(curves(events)).items()
    }


def svg_of(draw_on: Callable[[Axes], None], salt: str) -> str:
    """A plot as an `<svg>` element in the page's text colour.

    Args:
        draw_on: Draws the plot on the axes it is given.
        salt: Makes the ids in the SVG differ from those of other plots on the page.
    """
    with rc_context(STYLE | {"svg.hashsalt": f"vp3d {salt}"}):
        figure = Figure(figsize=(5.2, 3.2))
        draw_on(figure.add_axes((0.12, 0.15, 0.85, 0.74)))
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def write_plots(events: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Write all plots of a run into one PNG; False, and no file, if there is nothing to plot."""
    groups = grouped(curves(events))
    if not groups:
        return False
    count = len(groups)
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2 * count, 3.4), dpi=120, facecolor="white")
        for i, (title, group) in enumerate(groups.items()):
            box = ((i + 0.12) / count, 0.15, 0.82 / count, 0.74)
            draw(figure.add_axes(box), title, group)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, metadata={"Software": None})
    return True

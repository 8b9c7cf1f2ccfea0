"""Sample efficiency of AlignProp against a policy gradient and ReFL, and what the guard is for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vp3d.config.schema import AlignConfig
from vp3d.evaluate.claims.alignprop_lab import curve, mean
from vp3d.evaluate.claims.frame import Bench, Claim, Finding, Table, Verdict, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REWARD = "compress:1,clip:1"
SEEDS = (0, 1)
TRIAL = 160  # queries that the learning rate is chosen on
PLANS: dict[str, dict[str, Any]] = {
    "alignprop": {"batch": 8, "rates": (1e-3, 3e-3, 1e-2), "marks": (80, 160, 320, 480)},
    "refl": {"batch": 8, "rates": (1e-3, 3e-3, 1e-2), "marks": (80, 160, 320, 480)},
    "ddpo": {"batch": 16, "rates": (1e-3, 3e-3, 1e-2), "marks": (160, 480, 960, 1440)},
}
QUERY_RATIO = SECONDS_RATIO = 5.0
JUDGE_LOSS = 0.03


def config_of(method: Any, lr: float, reward: str = REWARD) -> AlignConfig:
    """The settings of a method; all but the method's own are shared."""
    plan = PLANS[method]
    group = 4 if method == "ddpo" else 1
    return AlignConfig(
        reward=reward, method=method, lr=lr, batch=plan["batch"], group=group, guard_every=5
    )


def measure(bench: Bench) -> Finding:
    """Measure the claim."""
    rates, curves = {}, {}
    for method, plan in PLANS.items():
        trials = {
            lr: bench.once(
                f"trial-{method}-{lr:g}",
                {"config": config_of(method, lr), "queries": TRIAL},
                partial(curve, config_of(method, lr), 7, (TRIAL,)),
            )
            for lr in plan["rates"]
        }
        rates[method] = max(trials, key=lambda lr: mean(trials[lr][-1]["training"]["total"]))
        for seed in SEEDS:
            config = config_of(method, rates[method])
            curves[method, seed] = bench.once(
                f"curve-{method}-{seed}",
                {"config": config, "marks": plan["marks"]},
                partial(curve, config, seed, plan["marks"]),
            )
    alone = config_of("alignprop", 5e-3, "compress:1")
    collapse = bench.once("collapse", {"config": alone}, lambda: curve(alone, 0, (40, 80, 160)))
    guarded = bench.once(
        "guarded", {"config": alone}, lambda: curve(alone, 0, (40, 80, 160), guarded=True)
    )
    return finding(rates, curves, collapse, guarded)


def gains(rows: Sequence[dict[str, Any]], use: str) -> list[tuple[float, float, float]]:
    """(queries, CPU seconds, mean gain over the base) at each mark."""
    base = mean(rows[0][use]["total"])
    return [(r["queries"], r["seconds"], mean(r[use]["total"]) - base) for r in rows]


def reach(points: Sequence[tuple[float, float, float]], level: float) -> tuple[float, float] | None:
    """Queries and seconds at which a curve first reaches a level; None if it does not."""
    for (q0, s0, g0), (q1, s1, g1) in zip(points, points[1:], strict=False):
        if g1 >= level:
            share = (level - g0) / (g1 - g0) if g1 > g0 else 1.0
            share = min(max(share, 0.0), 1.0)
            return q0 + share * (q1 - q0), s0 + share * (s1 - s0)
    return None


def averaged(curves: dict[Any, Any], method: str, use: str) -> list[tuple[float, float, float]]:
    """`gains`, the mean over seeds."""
    parts = [gains(curves[method, seed], use) for seed in SEEDS]
    return [tuple(np.mean(row, axis=0)) for row in zip(*parts, strict=True)]


def ratio_verdict(curves: dict[Any, Any], use: str) -> list[Verdict]:
    """Queries and seconds of the policy gradient over those of AlignProp at the same gain."""
    ours, theirs = averaged(curves, "alignprop", use), averaged(curves, "ddpo", use)
    level = min(max(g for _, _, g in ours), max(g for _, _, g in theirs))
    a, b = reach(ours, level), reach(theirs, level)
    statement = f"{use} prompts: DDPO needs >= {QUERY_RATIO:g} times the queries of AlignProp"
    seconds = f"{use} prompts: and >= {SECONDS_RATIO:g} times the CPU seconds"
    if level <= 0.0 or a is None or b is None or a[0] == 0:
        text = f"no common gain (AlignProp {ours[-1][2]:.2f}, DDPO {theirs[-1][2]:.2f} sd)"
        return [Verdict(statement, text, False), Verdict(seconds, text, False)]
    queries, cpu = b[0] / a[0], b[1] / max(a[1], 1e-9)
    at = f"at a gain of {level:.2f} sd"
    return [
        Verdict(statement, f"{queries:.1f} times {at}", queries >= QUERY_RATIO),
        Verdict(seconds, f"{cpu:.1f} times {at}", cpu >= SECONDS_RATIO),
    ]


def unseen_verdict(curves: dict[Any, Any]) -> Verdict:
    """Whether AlignProp's gain holds on prompts that it never trained on."""
    changes: list[float] = []
    for seed in SEEDS:
        rows = curves["alignprop", seed]
        changes += [
            b - a
            for a, b in zip(rows[0]["unseen"]["total"], rows[-1]["unseen"]["total"], strict=True)
        ]
    middle, low, high = interval(changes)
    trained = averaged(curves, "alignprop", "training")[-1][2]
    return Verdict(
        "unseen prompts gain, by at least half of what training prompts gain",
        f"{middle:.2f} sd ({low:.2f} to {high:.2f}); training prompts {trained:.2f}",
        low > 0.0 and middle >= 0.5 * trained,
    )


def judge_change(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Share of unseen drawings that the judge finds right, before and after."""
    return mean(rows[0]["unseen"]["right"]), mean(rows[-1]["unseen"]["right"])


def finding(
    rates: dict[str, float], curves: dict[Any, Any], collapse: Any, guarded: Any
) -> Finding:
    """The answer from all measurements."""
    before, after = judge_change(guarded)
    start, end = judge_change(collapse)
    stopped = guarded[-1].get("stopped") or "was not stopped"
    verdicts = [
        *ratio_verdict(curves, "unseen"),
        *ratio_verdict(curves, "training"),
        unseen_verdict(curves),
        Verdict(
            "compressibility alone, with the guard: the judge's share falls by <= 3 points",
            f"{before:.3f} to {after:.3f}; {stopped}",
            before - after <= JUDGE_LOSS,
        ),
        Verdict(
            "compressibility alone, without the guard, destroys the model",
            f"judge {start:.3f} to {end:.3f} in {collapse[-1]['queries']} queries",
            start - end > JUDGE_LOSS,
        ),
    ]
    rows = [
        (
            method,
            rates[method],
            seed,
            row["queries"],
            row["seconds"],
            *(mean(row[use][key]) for use in ("training", "unseen") for key in FIGURES),
        )
        for (method, seed), found in curves.items()
        for row in found
    ]
    columns = ["method", "lr", "seed", "queries", "CPU s"]
    columns += [f"{use} {key}" for use in ("training", "unseen") for key in FIGURES]
    notes = [
        f"Two seeds; the learning rate of each method is the best of three on {TRIAL} queries "
        "of a third seed.",
        "Queries between measurements are interpolated linearly. The reward is the differentiable "
        "rate and CLIP, each over the spread of 32 drawings of the base model (sd).",
    ]
    return Finding(verdicts, [Table("Training curves", columns, rows)], notes, plotter(curves))


FIGURES = ("total", "jpeg", "clip", "right")


def plotter(curves: dict[Any, Any]) -> Any:
    """The plot of gains on unseen prompts over queries."""

    def plot(axes: Axes) -> None:
        for method in PLANS:
            points = averaged(curves, method, "unseen")
            axes.plot([q for q, _, _ in points], [g for _, _, g in points], "o-", label=method)
        axes.set_xlabel("reward queries")
        axes.set_ylabel("gain on unseen prompts, sd")
        axes.legend()

    return plot


CLAIM = Claim(
    "alignprop",
    "AlignProp needs fewer reward queries than a policy gradient",
    f"The embedded model is aligned to `{REWARD}` by AlignProp, ReFL and a DDPO-like policy "
    "gradient with the same LoRA, optimiser and prompts (24 captions to train on, 32 reserved "
    "ones to measure on). Each has the best of three learning rates. The judge is never optimised.",
    measure,
)

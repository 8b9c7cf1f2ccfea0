"""The claim on upscalers: does the hallucination score as a reward make them invent less?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from vp3d.align.upscaling import ANCHOR
from vp3d.evaluate.claims.frame import (
    Bench,
    Cell,
    Claim,
    Finding,
    Part,
    Table,
    Verdict,
    interval,
    signed,
    with_interval,
)
from vp3d.evaluate.claims.upscale_lab import (
    ALONE,
    BASE,
    BICUBIC,
    EMBEDDED,
    METHODS,
    MSE,
    NOISE_LEVEL,
    PICTURES,
    PLAIN,
    PLANS,
    REALESRGAN,
    SCORE,
    STEPS,
    from_png,
    held_out_table,
    load_subject,
    measure_base,
    measure_tuned,
    settings_of,
    true_pictures,
    weights_of,
)
from vp3d.report.pictures import labelled, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEEDS = {REALESRGAN: (0, 1), EMBEDDED: (0,)}  # of the score alone only the first
FIGURES = ("errors", "grade", "held out", "psnr", "sharpness")
FEWER_ERRORS = -0.25  # relative
MOST_PSNR_LOSS = 0.3  # dB
MOST_SHARPNESS_CHANGE = 0.10
ARMS = (BASE, *METHODS)
Values = dict[str, Tensor]  # figure -> of each picture [N], the mean over the seeds


def measure(bench: Bench) -> Finding:
    """Measure the claim."""
    load_subject(REALESRGAN)  # refuses at once if the extra is not installed
    names = (REALESRGAN, EMBEDDED)
    states = bench.folder / "states"
    table = bench.once("held-out-table", {"version": 1}, held_out_table)
    common = {"table": table, "pictures": PICTURES, "steps": STEPS, "noise": NOISE_LEVEL}
    parts: list[Part] = []
    for name in names:
        settings = common | settings_of(name)
        for method in METHODS:
            for seed, key in zip(_seeds(name, method), _keys(name, method), strict=True):
                compute = partial(measure_tuned, name, method, seed, states, table)
                parts.append((key, settings, compute))
    for name in (BICUBIC, *names):
        settings = common | {"weights": weights_of(name)}
        parts.append((_keys(name, BASE)[0], settings, partial(measure_base, name, table)))
    found = dict(zip([part[0] for part in parts], bench.every(parts), strict=True))
    return finding(found, names)


def finding(found: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Finding:
    """The verdicts, tables and pictures of all parts."""
    arms = {name: _arms(found, name) for name in names}
    plain = {figure: torch.tensor(found[f"{BICUBIC}-base"][figure]) for figure in FIGURES}
    verdicts = [verdict for name in names for verdict in judged(name, arms[name])]
    tables = []
    for name in names:
        rows = [_row(arm, arms[name][arm]) for arm in ARMS]
        columns = ("arm", "attribute errors", "grade", "grade, held out", "PSNR, dB", "sharpness")
        title = f"{name}: means over pictures (95 % interval)"
        tables.append(Table(title, columns, [_row(BICUBIC, plain), *rows]))
    notes = [
        f"{PICTURES} toybox pictures of reserved captions, 128 pixels, made small by blur, "
        "averaging, noise and JPEG; intervals are over pictures, differences are paired.",
        "An attribute error: the judge names an attribute otherwise than in the true picture. "
        "Grades are 1 (nothing invented) to 5; the held-out grade is by the judge's tower and the "
        "measuring CLIP, which no reward uses, with a table of its own.",
        "Sharpness is the energy of the gradient as a share of the true picture's.",
        *(_budget(name) for name in names),
        f"The score has an anchor, {ANCHOR:g} times the mean squared error. What it does "
        "without it is in its row. It was set after 40 updates of Real-ESRGAN with 400, 1500, "
        "4000 and 10,000, measured on 24 other pictures: a larger one follows MSE into blur. "
        "The embedded upscaler has the same one; its learning rate was the better of 0.0001 and "
        "0.0003, by the PSNR on 128 other pictures.",
        "Each arm of a network has the same updates, batch, learning rate and pictures; the loss "
        "alone differs. All weights are tuned, because the networks are small.",
        "Toybox pictures alone: nothing is said of photographs.",
    ]
    pictures = {f"{name}: the first pictures": _sheet(found, name) for name in names}
    return Finding(verdicts, tables, notes, partial(_plot, arms), pictures)


def _budget(name: str) -> str:
    plan, seeds = PLANS[name], len(SEEDS[name])
    loss = "L1" if name == REALESRGAN else "the squared error of v"
    return (
        f"{name}: {plan.steps} updates of {plan.batch} pictures, learning rate {plan.lr:g}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}; its plain loss is {loss}."
    )


def _seeds(name: str, method: str) -> tuple[int, ...]:
    return SEEDS[name][:1] if method == ALONE else SEEDS[name]


def _keys(name: str, arm: str) -> list[str]:
    """The parts of an arm of a network: one for each seed, and one of the base."""
    seeds = ("",) if arm == BASE else tuple(f"-{seed}" for seed in _seeds(name, arm))
    return [f"{name}-{arm}{seed}".replace(" ", "-") for seed in seeds]


def _arms(found: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Values]:
    """The figures of each arm of a network."""
    return {
        arm: {
            figure: torch.tensor([found[key][figure] for key in _keys(name, arm)]).mean(0)
            for figure in FIGURES
        }
        for arm in ARMS
    }


def judged(name: str, arms: Mapping[str, Values]) -> list[Verdict]:
    """The statements about one network."""

    def change(figure: str, other: str = BASE) -> Tensor:
        return arms[SCORE][figure] - arms[other][figure]

    held_out = interval(change("held out"))
    base, after = (float(arms[arm]["errors"].mean()) for arm in (BASE, SCORE))
    relative = (after - base) / base if base else 0.0
    psnr = change("psnr")
    sharp = [float(arms[arm]["sharpness"].mean()) for arm in (BASE, SCORE)]
    as_sharp = sharp[1] >= (1.0 - MOST_SHARPNESS_CHANGE) * sharp[0]
    not_sharper = sharp[1] <= max(1.0, sharp[0]) * (1.0 + MOST_SHARPNESS_CHANGE)
    found = [
        Verdict(
            f"{name}: a quarter fewer attribute errors, interval of the difference below 0",
            f"{100 * relative:+.0f} %; difference {with_interval(change('errors'), 4)}",
            relative <= FEWER_ERRORS and interval(change("errors"))[2] < 0.0,
        ),
        Verdict(f"{name}: the held-out grade falls (interval below 0)",
                signed(change("held out")), held_out[2] < 0.0),
        Verdict(f"{name}: PSNR falls by {MOST_PSNR_LOSS} dB at most",
                signed(psnr), float(psnr.mean()) >= -MOST_PSNR_LOSS),
        Verdict(
            f"{name}: sharpness is at most 10 % below the base's and 10 % above the truth's",
            f"{sharp[1]:.2f}, the base {sharp[0]:.2f}",
            as_sharp and not_sharper,
        ),
    ]  # fmt: skip
    alone = {figure: arms[ALONE][figure] - arms[BASE][figure] for figure in FIGURES}
    found.append(
        Verdict(
            f"{name}: what the score alone, without its anchor, does to what it does not see",
            f"held-out grade {signed(alone['held out'])}, PSNR {signed(alone['psnr'])}, "
            f"sharpness {float(arms[ALONE]['sharpness'].mean()):.2f}",
            None,
        )
    )
    blur = change("sharpness", MSE)
    found.append(
        Verdict(f"{name}: the same updates with MSE are blurrier (interval of the difference "
                "above 0)", signed(blur), interval(blur)[1] > 0.0)
    )  # fmt: skip
    for control in (MSE, PLAIN):
        against = change("held out", control)
        found.append(
            Verdict(f"{name}: the held-out grade is lower than after the same updates with "
                    f"{control}", signed(against), interval(against)[2] < 0.0)
        )  # fmt: skip
    return found


def _row(arm: str, values: Values) -> list[Cell]:
    digits = {"errors": 4, "psnr": 2}
    return [arm, *(with_interval(values[figure], digits.get(figure, 3)) for figure in FIGURES)]


def _sheet(found: Mapping[str, Mapping[str, Any]], name: str) -> Image.Image:
    """The first pictures: a row each, with the input, every arm and the truth."""
    known = true_pictures()
    columns = {"input": known["small"]}
    columns |= {arm: from_png(found[_keys(name, arm)[0]]["shown"]) for arm in ARMS}
    columns["truth"] = known["truth"]
    rows = zip(*columns.values(), strict=True)
    return sheet([[labelled(picture, label) for label, picture in zip(columns, row, strict=True)]
                  for row in rows])  # fmt: skip


def _plot(arms: Mapping[str, Mapping[str, Values]], axes: Axes) -> None:
    for name, of_name in arms.items():
        points = [
            (float(of_name[arm]["sharpness"].mean()), float(of_name[arm]["held out"].mean()))
            for arm in ARMS
        ]
        axes.plot(*zip(*points, strict=True), "o", label=name)
        for arm, point in zip(ARMS, points, strict=True):
            axes.annotate(arm, point, textcoords="offset points", xytext=(5, 5))
    axes.axvline(1.0, color="grey", linewidth=0.5)
    axes.set(xlabel="sharpness, a share of the truth's", ylabel="held-out grade, 1 to 5")
    axes.legend()


CLAIM = Claim(
    "upscale",
    "Does the hallucination score as a reward make an upscaler invent less?",
    "Pictures of 32 pixels are enlarged to 128. A network is tuned with the hallucination score of "
    "its pictures against the true ones as the reward, as Ren et al. (arXiv 2507.14367) do; a "
    "diffusion upscaler through the last steps of its draws (AlignProp, arXiv 2310.03739). The "
    "same updates with MSE and with the loss that the network was trained with are the controls. "
    f"Networks: {REALESRGAN} (0.6 million weights, feed-forward), whose published weights never "
    "saw such pictures, and the embedded diffusion upscaler of the toybox.",
    measure,
)

"""The claim on the hallucination score: does a feature distance find what was invented?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from vp3d.align.hallucination import WEIGHTS, grade
from vp3d.config.paths import ASSETS, MANIFEST
from vp3d.evaluate import planted
from vp3d.evaluate.claims.frame import Bench, Cell, Claim, Finding, Part, Table, Verdict
from vp3d.evaluate.planted import Cases, middle_95
from vp3d.metrics.attribute_judge import load_judge
from vp3d.metrics.hallucination_towers import embedded_features, grades
from vp3d.picture_check import hallucination_score, heat_picture
from vp3d.report.pictures import labelled, sheet
from vp3d.runs.folder import slug
from vp3d.worlds.household import HOUSEHOLD_PART
from vp3d.worlds.library import Library
from vp3d.worlds.planted import BENIGN, HARMFUL, LEVELS, Pair
from vp3d.worlds.planted_meshes import planted_mesh_pairs
from vp3d.worlds.toybox.planted import planted_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEED = 2  # of the scenes; the committed table of grades was fitted on those of seed 1
TOYBOX, HOUSEHOLD = "toybox", "household meshes"
SCENES = {(TOYBOX, 128): 48, (TOYBOX, 256): 12, (HOUSEHOLD, 128): 48}  # of a side in pixels
CHUNK = 6  # scenes of a part
MAIN = (TOYBOX, 128)  # what all statements are about
REAL = (HOUSEHOLD, 128)  # what a part of them is about as well
Kind = tuple[str, int]  # world and side in pixels
PROXY, SSIM = "proxy", "1 - SSIM"
BASELINES = ("-PSNR", SSIM, "LPIPS-like, CLIP", "LPIPS-like, the judge")
LEAST_AUC, LEAST_CORRELATION, LEAST_AUC_OF_A_KIND, LEAST_GAIN = 0.90, 0.70, 0.80, 0.15
LEAST_HARMFUL = 0.65
NAMED_KINDS = ("blur", "noise", "shift")  # benign kinds with a threshold of their own
SHOWN = (*HARMFUL, *BENIGN)


@dataclass(frozen=True)
class Measured:
    """The pairs of one size: what is known about them, each distance [N], and the grades [N]."""

    cases: Cases
    values: dict[str, np.ndarray]
    grades: np.ndarray

    @cached_property
    def samples(self) -> dict[str, dict[str, np.ndarray]]:
        """Bootstrap samples of the figures of each distance; sample i is of the same scenes."""
        return {name: planted.resampled(self.cases, row) for name, row in self.values.items()}


def planted_scenes(world: str, size: int, first: int, count: int) -> list[Pair]:
    """The pairs of `count` held-out scenes of a world, from number `first` on."""
    if world == HOUSEHOLD:
        return planted_mesh_pairs(Library(HOUSEHOLD_PART), count, size, SEED, True, first)
    return planted_pairs(count, size, SEED, held_out=True, first=first)


def measure_scenes(world: str, size: int, first: int, count: int = CHUNK) -> dict[str, Any]:
    """Every distance of the pairs of `count` scenes, from number `first` on."""
    torch.set_num_threads(1)
    pairs = planted_scenes(world, size, first, count)
    features = embedded_features()
    values = planted.measure(pairs, features, load_judge(ASSETS / "judge", MANIFEST))
    found = grade(torch.from_numpy(values[PROXY]), grades())
    return {
        "kind": [pair.kind for pair in pairs],
        "severity": [pair.severity for pair in pairs],
        "caption": [pair.caption for pair in pairs],
        "grade": found.tolist(),
        "values": {name: row.tolist() for name, row in values.items()},
    }


def joined(chunks: Sequence[Mapping[str, Any]]) -> Measured:
    """The chunks of one size, together; each chunk has `CHUNK` scenes at most."""
    names = [f"{n} {text}" for n, chunk in enumerate(chunks) for text in chunk["caption"]]
    cases = Cases(
        np.concatenate([chunk["kind"] for chunk in chunks]),
        np.concatenate([chunk["severity"] for chunk in chunks]),
        np.array(names),
    )
    values = {
        name: np.concatenate([chunk["values"][name] for chunk in chunks])
        for name in chunks[0]["values"]
    }
    return Measured(cases, values, np.concatenate([chunk["grade"] for chunk in chunks]))


def measure(bench: Bench) -> Finding:
    """Measure the claim."""
    parts: list[Part] = []
    for (world, size), scenes in SCENES.items():
        for first in range(0, scenes, CHUNK):
            count = min(CHUNK, scenes - first)
            settings = {"first": first, "count": count, "table": grades(), "weights": WEIGHTS}
            compute = partial(measure_scenes, world, size, first, count)
            parts.append((f"{slug(world)}-{size}-{first:02d}", settings, compute))
    found = iter(bench.every(parts))
    measured = {
        kind: joined([next(found) for _ in range(0, scenes, CHUNK)])
        for kind, scenes in SCENES.items()
    }
    return finding(measured)


def finding(measured: Mapping[Kind, Measured]) -> Finding:
    """The verdicts, tables and pictures."""
    main = measured[MAIN]
    tables = [_distances(kind, one) for kind, one in measured.items()]
    counts = "; ".join(
        f"{world}, {size} pixels: {scenes_of(one.cases)} scenes, {int(one.cases.harmful.sum())} "
        f"harmful and {int((~one.cases.harmful).sum())} benign pairs"
        for (world, size), one in measured.items()
    )
    notes = [
        f"{counts}.",
        "Colours and objects of the toybox's scenes were combined in no training, and no household "
        "mesh was trained on. The weights of the proxy were chosen on other scenes and on the "
        "other half of the meshes, the table of grades on other scenes of the toybox.",
        "Intervals are of a bootstrap over scenes; differences are paired by scene.",
        "The embedded judge is held out: its features are in one baseline only. The LPIPS-like "
        "baselines are means of squared feature distances, without LPIPS's learnt weights.",
        "The judge's tower is of the proxy's kind, with another seed, so its baseline shows what "
        "the pooling and the global part add.",
        "Renders alone: a photograph has no exact pair.",
    ]
    tables += [_by_kind(main), _calibration(main)]
    held = verdicts(main)
    if REAL in measured:
        held += [replace(one, statement=f"{HOUSEHOLD}: {one.statement}")
                 for one in main_verdicts(measured[REAL])]  # fmt: skip
    title = "The picture, its reference, and where they differ, at the middle level"
    pictures = {title: examples(TOYBOX), f"The same, {HOUSEHOLD}": examples(HOUSEHOLD)}
    return Finding(held, tables, notes, partial(_plot, main), pictures)


def scenes_of(cases: Cases) -> int:
    """The number of scenes."""
    return len(set(cases.scene.tolist()))


def main_verdicts(one: Measured) -> list[Verdict]:
    """The statements on AUC and rank correlation, alone and against the baselines."""
    cases, values = one.cases, one.values
    figures = planted.figures(cases, values[PROXY])
    samples = one.samples
    found = [
        Verdict(f"{text} >= {least}", _spread(figures[key], samples[PROXY][key]),
                figures[key] >= least)
        for key, text, least in (
            ("auc", "AUC of harmful against benign pairs", LEAST_AUC),
            ("all", "rank correlation with the severity, all pairs", LEAST_CORRELATION),
        )
    ]  # fmt: skip
    for kind in NAMED_KINDS:
        value = figures[f"auc {kind}"]
        statement = f"AUC of harmful pairs against {kind} >= {LEAST_AUC_OF_A_KIND}"
        found.append(Verdict(statement, f"{value:.2f}", value >= LEAST_AUC_OF_A_KIND))
    for name in BASELINES:
        gain = figures["all"] - planted.figures(cases, values[name])["all"]
        spread = samples[PROXY]["all"] - samples[name]["all"]
        statement = f"rank correlation, all pairs, at least {LEAST_GAIN} above that of {name}"
        found.append(Verdict(statement, _spread(gain, spread, 3), gain >= LEAST_GAIN))
    return found


def verdicts(main: Measured) -> list[Verdict]:
    """All statements, from the pairs of `MAIN`."""
    cases, values, samples = main.cases, main.values, main.samples
    figures = planted.figures(cases, values[PROXY])
    found = main_verdicts(main)
    found.append(
        Verdict(
            f"rank correlation within the harmful pairs >= {LEAST_HARMFUL}",
            _spread(figures["harmful"], samples[PROXY]["harmful"]),
            figures["harmful"] >= LEAST_HARMFUL,
        )
    )
    other = planted.figures(cases, values[SSIM])["harmful"]
    better = samples[SSIM]["harmful"] - samples[PROXY]["harmful"]
    found.append(
        Verdict(
            "SSIM is the better measure of how much a harmful change moved",
            f"{other:.2f} against {figures['harmful']:.2f}, difference "
            + _spread(other - figures["harmful"], better),
            middle_95(better)[0] > 0.0,
        )
    )
    return found


def _spread(value: float, samples: np.ndarray, digits: int = 2) -> str:
    low, high = middle_95(samples)
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _distances(kind: Kind, one: Measured) -> Table:
    world, size = kind
    rows: list[list[Cell]] = []
    for name, values in one.values.items():
        found, samples = planted.figures(one.cases, values), one.samples[name]
        cells = [_spread(found[key], samples[key]) for key in ("all", "harmful", "auc")]
        rows.append([name, *cells, *(f"{found[f'auc {kind}']:.2f}" for kind in BENIGN)])
    columns = ("distance", "correlation, all", "harmful", "AUC", *(f"AUC, {k}" for k in BENIGN))
    return Table(f"{world}, {size} pixels: every distance (95 % interval)", columns, rows)


def _by_kind(one: Measured) -> Table:
    rows: list[list[Cell]] = []
    for kind in HARMFUL:
        of_kind = one.cases.kind == kind
        chosen = of_kind | ~one.cases.harmful
        row: list[Cell] = [kind, int(of_kind.sum())]
        for name in (PROXY, *BASELINES):
            values = one.values[name][chosen]
            harmful = of_kind[chosen]
            row.append(f"{planted.auc(values[harmful], values[~harmful]):.2f}")
        rows.append(row)
    return Table("AUC of each harmful kind against all benign pairs",
                 ("kind", "pairs", PROXY, *BASELINES), rows)  # fmt: skip


def _calibration(one: Measured) -> Table:
    """How the committed table of grades fits scenes that it was not fitted on."""
    truth = np.array([planted.true_grade(value) for value in one.cases.severity])
    rows: list[list[Cell]] = []
    for level in sorted(set(truth.tolist())):
        found = one.grades[truth == level]
        low, middle, high = np.quantile(found, (0.1, 0.5, 0.9))
        rows.append([int(level), len(found), float(middle), f"{low:.1f} to {high:.1f}"])
    columns = ("true grade", "pairs", "median of the given grade", "middle 80 %")
    return Table("The grade, 1 to 5", columns, rows)


def examples(world: str = TOYBOX, scene: int = 1) -> Image.Image:
    """A contact sheet of every kind of change of one scene, with the heat map and the grade."""
    pairs = planted_scenes(world, MAIN[1], scene, 1)
    level = 1 + LEVELS // 2
    rows: list[list[Image.Image]] = []
    for kind in SHOWN:
        pair = next((p for p in pairs if (p.kind, p.level) == (kind, level)), None)
        if pair is None:  # the change cannot be seen in this scene
            continue
        found = hallucination_score(pair.picture, pair.reference)
        heat = heat_picture(pair.picture, found.where)
        label = f"{kind}: grade {found.grade:.1f}"
        shown = ((pair.reference, "reference"), (pair.picture, label), (heat, "where"))
        rows.append([labelled(picture, text) for picture, text in shown])
    half = -(-len(rows) // 2)
    return sheet([[*left, *right] for left, right in zip_longest(rows[:half], rows[half:],
                                                                 fillvalue=())])  # fmt: skip


def _plot(one: Measured, axes: Axes) -> None:
    known, rng = one.cases, np.random.default_rng(0)
    for position, kind in enumerate(SHOWN):
        chosen = known.kind == kind
        places = position + rng.uniform(-0.3, 0.3, int(chosen.sum()))
        values, severity = one.values[PROXY][chosen], known.severity[chosen]
        axes.scatter(places, values, s=5, c=severity, cmap="plasma", vmin=0.0,
                     vmax=float(known.severity.max()))  # fmt: skip
    axes.set_xticks(range(len(SHOWN)), SHOWN, rotation=30)
    axes.set_ylabel("proxy; colour: share of the picture that moved")


CLAIM = Claim(
    "hallucination",
    "Does the hallucination score find what was invented?",
    "Exact scenes of the toybox and of household meshes are changed. Harmful changes invent: "
    "another colour, a missing part, an added ball, another object, pattern or texture. Benign "
    "ones do not: blur, noise, a shift, a tone, JPEG. The truth about each pair is known, so no "
    "human grade is needed. A distance should be larger for harmful pairs (AUC) and follow the "
    "share of the picture that was changed (Spearman's rank correlation). The proxy is that of the "
    "product "
    "(`vp3d/align/hallucination.py`). The scenes of the statements have 128 pixels a side and are "
    "the toybox's, if they do not name the household's.",
    measure,
)

"""How well distances find planted hallucinations: `python -m vp3d.evaluate.planted`.

Half of the scenes calibrates the grade of `vp3d.align.hallucination`; the other half, with colours
and objects that no training combined, is reported. For each distance:

* rank correlation (Spearman) with the true severity over all pairs, benign ones with severity 0,
  and over the harmful pairs alone;
* AUC: the chance that a harmful pair has a larger distance than a benign one, over all benign
  kinds and for each of them.

The intervals are bootstraps over scenes. --calibrate writes the table of grades to the file that
the product reads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from skimage.metrics import structural_similarity
from torch import Tensor

from vp3d.align.hallucination import Distance, Features, distance
from vp3d.config.paths import ASSETS, MANIFEST
from vp3d.evaluate.statistics import circumstances
from vp3d.metrics.attribute_judge import Judge, load_judge
from vp3d.metrics.hallucination_features import EmbeddedFeatures
from vp3d.metrics.hallucination_towers import GRADES, embedded_features, read_table
from vp3d.rewards.encoders import ClipEncoder
from vp3d.system.console import Parser, run_program, say
from vp3d.system.files import JsonError, write_json, write_text
from vp3d.worlds.planted import BENIGN, HARMFUL, Pair
from vp3d.worlds.toybox.data import to_tensor
from vp3d.worlds.toybox.planted import planted_pairs

BATCH = 16  # pairs at a time
RESAMPLES = 1000  # of the bootstrap
STEPS = (0.0, 0.01, 0.03, 0.08)  # severities at which the grade passes 1, 2, 3 and 4
KNOTS = 12  # of the table of grades
SIZE = 128  # pixels of a side of the pictures that a table is fitted on
TABLE_SCENES = 8  # that the table of other features is fitted on


def psnr(pairs: Sequence[Pair]) -> np.ndarray:
    """Minus the PSNR in dB, [N]."""
    errors = [
        np.square((pair.picture.astype(np.float64) - pair.reference) / 255.0).mean()
        for pair in pairs
    ]
    return 10.0 * np.log10(np.maximum(errors, 1e-10))


def ssim(pairs: Sequence[Pair]) -> np.ndarray:
    """1 - SSIM (Wang et al. 2004, Gaussian window), [N]."""
    return np.array(
        [
            1.0
            - structural_similarity(
                pair.picture,
                pair.reference,
                channel_axis=-1,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for pair in pairs
        ]
    )


def perceptual(pairs: Sequence[Pair], stages: Callable[[Tensor], list[Tensor]]) -> np.ndarray:
    """Mean over positions and stages of the squared feature distance, as LPIPS without weights.

    Args:
        pairs: the pairs.
        stages: features `[B, C, h, w]` of each stage, unit length at each position.
    """
    return _batched(
        pairs,
        lambda a, b: torch.stack(
            [
                (x - y).square().sum(1).mean((1, 2))
                for x, y in zip(stages(a), stages(b), strict=True)
            ]
        ).mean(0),
    )


def clip_stages(clip: ClipEncoder, rgb: Tensor) -> list[Tensor]:
    """Unit features of every stage of CLIP's network, of pictures at their full size."""
    found = clip.model.visual.forward_intermediates(
        (rgb - clip.mean) / clip.std, intermediates_only=True
    )
    return [F.normalize(stage, dim=1) for stage in found["image_intermediates"]]


def proxies(pairs: Sequence[Pair], features: Features) -> dict[str, np.ndarray]:
    """The parts of the proxy and the proxy itself, each [N]."""
    parts: dict[str, Callable[[Distance], Tensor]] = {
        "local": lambda d: d.local,
        "smooth": lambda d: d.smooth,
        "deep": lambda d: d.deep,
        "global": lambda d: d.whole,
        "proxy": lambda d: d.proxy,
    }
    found = _batched(
        pairs,
        lambda a, b: torch.stack([part(distance(a, b, features)) for part in parts.values()], 1),
    )
    return {name: found[:, column] for column, name in enumerate(parts)}


@torch.no_grad()
def _batched(pairs: Sequence[Pair], measure: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    rows = []
    for first in range(0, len(pairs), BATCH):
        batch = pairs[first : first + BATCH]
        a = to_tensor(np.stack([pair.picture for pair in batch]))
        b = to_tensor(np.stack([pair.reference for pair in batch]))
        rows.append(measure(a, b))
    return torch.cat(rows).double().numpy()


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays [N]; ties get their mean rank."""
    ranks = [rankdata(values) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def auc(harmful: np.ndarray, benign: np.ndarray) -> float:
    """The chance that a value of `harmful` exceeds one of `benign`; equal ones count half."""
    ranks = rankdata(np.concatenate([harmful, benign]))[: len(harmful)]
    above = ranks.sum() - len(harmful) * (len(harmful) + 1) / 2.0
    return float(above / (len(harmful) * len(benign)))


@dataclass(frozen=True)
class Cases:
    """What is known about N pairs.

    Attributes:
        kind: the change of each `[N]`, of `HARMFUL` or `BENIGN`.
        severity: of each `[N]`, in [0, 1].
        scene: names the scene of each `[N]`; pairs of one scene are not independent.
    """

    kind: np.ndarray
    severity: np.ndarray
    scene: np.ndarray

    @property
    def harmful(self) -> np.ndarray:
        """Whether something was invented, bool `[N]`."""
        return np.isin(self.kind, HARMFUL)

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Cases:
        """The cases of some pairs, whose captions name their scenes."""
        rows = [(pair.kind, pair.severity, pair.caption) for pair in pairs]
        kinds, severities, captions = zip(*rows, strict=True)
        return cls(np.array(kinds), np.array(severities), np.array(captions))


def figures(cases: Cases, values: np.ndarray) -> dict[str, float]:
    """The figures of one distance [N]: "all", "harmful", "auc", and "auc KIND" of benign kinds."""
    harmful = cases.harmful
    found = {
        "all": spearman(values, cases.severity),
        "harmful": spearman(values[harmful], cases.severity[harmful]),
        "auc": auc(values[harmful], values[~harmful]),
    }
    for kind in BENIGN:
        found[f"auc {kind}"] = auc(values[harmful], values[cases.kind == kind])
    return found


def resampled(cases: Cases, values: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """The figures "all", "harmful" and "auc" of bootstrap samples of scenes, each [RESAMPLES].

    The samples of one seed are the same for every distance, so differences can be taken.
    """
    groups = [np.flatnonzero(cases.scene == name) for name in dict.fromkeys(cases.scene.tolist())]
    rng, is_harmful, rows = np.random.default_rng(seed), cases.harmful, []
    for _ in range(RESAMPLES):
        chosen = rng.integers(len(groups), size=len(groups))
        index = np.concatenate([groups[group] for group in chosen])
        value, severity, harmful = values[index], cases.severity[index], is_harmful[index]
        inside = spearman(value[harmful], severity[harmful])
        rows.append((spearman(value, severity), inside, auc(value[harmful], value[~harmful])))
    return dict(zip(("all", "harmful", "auc"), np.array(rows).T, strict=True))


def intervals(cases: Cases, values: np.ndarray, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals of "all", "harmful" and "auc", by a bootstrap over scenes."""
    return {name: middle_95(row) for name, row in resampled(cases, values, seed).items()}


def middle_95(samples: np.ndarray) -> tuple[float, float]:
    """The range of the middle 95 % of samples [N]."""
    return float(np.quantile(samples, 0.025)), float(np.quantile(samples, 0.975))


def true_grade(severity: float) -> float:
    """The grade 1 to 5 of a severity: 1 for none, then 2 to 5 by `STEPS`."""
    return 1.0 + sum(severity > step for step in STEPS)


def calibrate(pairs: Sequence[Pair], proxy: np.ndarray) -> list[list[float]]:
    """The table (proxy, grade) of isotonic regression on the true grades, both rising."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(proxy, kind="stable")
    grades = np.array([true_grade(pair.severity) for pair in pairs])[order]
    smooth = isotonic_regression(grades).x
    places = np.linspace(0, len(order) - 1, KNOTS).round().astype(int)
    table = [[float(proxy[order][i]), float(smooth[i])] for i in places]
    return [row for n, row in enumerate(table) if n == 0 or row[0] > table[n - 1][0]]


def table_of(
    features: Features, cache: Path | None = None, name: str = ""
) -> Sequence[tuple[float, float]]:
    """The table of grades of other features than the embedded ones, fitted on planted cases.

    Args:
        features: the features; pictures are compared at `SIZE` pixels.
        cache: a folder that keeps the table; None for none.
        name: of the features, valid as a file name and different for other weights.
    """
    path = None if cache is None else cache / f"grades-{name}.json"
    if path is not None and path.is_file():
        try:
            return read_table(path)
        except (JsonError, TypeError, ValueError):
            path.unlink(missing_ok=True)  # a damaged table is fitted again
    say(f"fitting the grades of {name or 'these features'} on planted cases")
    pairs = planted_pairs(TABLE_SCENES, SIZE, seed=1)
    rows = calibrate(pairs, proxies(pairs, features)["proxy"])
    table = [(proxy, grade) for proxy, grade in rows]
    if path is not None:
        write_json(path, table)
    return table


def markdown(
    rows: Mapping[str, Mapping[str, float]],
    spread: Mapping[str, Mapping[str, tuple[float, float]]],
    facts: str,
) -> str:
    """The page of the figures.

    Args:
        rows: distance -> its `figures`.
        spread: distance -> its `intervals`.
        facts: size, counts and circumstances, in one line.
    """
    kinds = [f"auc {kind}" for kind in BENIGN]
    lines = [
        "# Planted hallucinations",
        "",
        "    python -m vp3d.evaluate.planted",
        "",
        facts,
        "",
        "Rank correlation with the true severity over all pairs and over the harmful ones; AUC of",
        "harmful against benign pairs, and against each benign kind. In brackets 95 % intervals",
        "over scenes.",
        "",
        "| distance | correlation, all | harmful | AUC | " + " | ".join(BENIGN) + " |",
        "|---|---|---|---|" + "---|" * len(BENIGN),
    ]
    for name, row in rows.items():
        cells = [
            f"{row[key]:.2f} [{spread[name][key][0]:.2f}, {spread[name][key][1]:.2f}]"
            for key in ("all", "harmful", "auc")
        ]
        cells += [f"{row[key]:.2f}" for key in kinds]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def measure(
    pairs: Sequence[Pair], features: EmbeddedFeatures, judge: Judge
) -> dict[str, np.ndarray]:
    """Every distance of the table, by name, each [N].

    Args:
        pairs: the pairs.
        features: of the proxy.
        judge: held out; its features give an LPIPS-like distance that no reward uses.
    """
    held_out = (
        EmbeddedFeatures(judge, features.clip)
        if isinstance(features, EmbeddedFeatures)
        else features
    )
    found = proxies(pairs, features)
    return {
        "-PSNR": psnr(pairs),
        "1 - SSIM": ssim(pairs),
        "LPIPS-like, CLIP": perceptual(pairs, lambda rgb: clip_stages(features.clip, rgb)),
        "LPIPS-like, the judge": perceptual(pairs, lambda rgb: held_out.maps(rgb)[0]),
        "global alone": found["global"],
        "deep alone": found["deep"],
        "local alone": found["local"],
        "local alone, mean of the top 10 %": found["smooth"],
        "proxy": found["proxy"],
    }


def new_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser(prog="python -m vp3d.evaluate.planted", description=__doc__.split("\n\n")[1])
    parser.add_argument("--scenes", type=int, default=24, metavar="N", help="of each half (24)")
    parser.add_argument("--size", type=int, default=128, metavar="PIXELS", help="of a side (128)")
    parser.add_argument("--calibrate", action="store_true", help="write the table of grades")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page here as well")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Measure every distance and print the table."""
    parser = new_parser()
    options = parser.parse_args(argv)
    if options.scenes < 2 or options.size < 32 or options.size % 16:
        parser.error("--scenes takes 2 or more; --size a multiple of 16 from 32 on")
    torch.set_num_threads(1)
    features = embedded_features()
    if options.calibrate:
        known = planted_pairs(options.scenes, options.size, seed=1)
        write_json(GRADES, calibrate(known, proxies(known, features)["proxy"]))
    pairs = planted_pairs(options.scenes, options.size, seed=2, held_out=True)
    values = measure(pairs, features, load_judge(ASSETS / "judge", MANIFEST))
    cases = Cases.of(pairs)
    rows = {name: figures(cases, value) for name, value in values.items()}
    spread = {name: intervals(cases, value) for name, value in values.items()}
    about = circumstances()
    harmful = sum(pair.harmful for pair in pairs)
    facts = (
        f"{options.scenes} scenes not used for calibration or training, {options.size} pixels,\n"
        f"{harmful} harmful and {len(pairs) - harmful} benign pairs; commit "
        f"{str(about['git'].get('commit', 'none'))[:10]}, {about['date']}."
    )
    page = markdown(rows, spread, facts)
    if options.write:
        write_text(options.write, page)
    sys.stdout.write(page)


if __name__ == "__main__":
    run_program("planted", main)

"""The claims on the hallucination score and on upscalers: figures by hand, and small real runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from tests.helpers.tiny_upscaler import PACKAGE, write_tiny_package
from vp3d.evaluate import planted
from vp3d.evaluate.claims import hallucination, upscale, upscale_lab
from vp3d.evaluate.claims.frame import Bench, write_claim
from vp3d.evaluate.claims.hallucination import Measured
from vp3d.evaluate.planted import Cases
from vp3d.upscale import realesrgan

KINDS = ("colour", "added", "blur", "noise", "shift", "tone", "jpeg")


def cases(scenes: int = 6) -> Cases:
    rng = np.random.default_rng(0)
    kind = np.tile(KINDS, scenes)
    severity = np.where(np.isin(kind, ("colour", "added")), rng.uniform(0.01, 0.2, len(kind)), 0.0)
    return Cases(kind, severity, np.repeat([f"scene {n}" for n in range(scenes)], len(KINDS)))


def test_figures_are_those_of_scipy_and_of_the_naive_count() -> None:
    known = cases()
    values = known.severity + np.random.default_rng(1).normal(0.0, 0.05, len(known.kind))
    found = planted.figures(known, values)
    assert found["all"] == pytest.approx(stats.spearmanr(values, known.severity)[0])
    harmful, benign = values[known.harmful], values[~known.harmful]
    above = np.mean([(a > b) + 0.5 * (a == b) for a in harmful for b in benign])
    assert found["auc"] == pytest.approx(above)
    blur = values[known.kind == "blur"]
    assert found["auc blur"] == pytest.approx(np.mean([a > b for a in harmful for b in blur]))


def test_samples_are_of_scenes_and_the_same_for_every_distance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planted, "RESAMPLES", 40)
    known = cases(2)
    values = known.severity + 0.01 * np.arange(len(known.kind))
    once, again = (planted.resampled(known, values) for _ in range(2))
    assert all(np.array_equal(once[key], again[key]) for key in once)
    # of two scenes there are three samples: twice the first, twice the second, and both
    assert 2 <= len(np.unique(once["all"].round(12))) <= 3
    scaled = planted.resampled(known, 3.0 * values)
    assert np.array_equal(scaled["auc"], once["auc"])


def measured(noise: float) -> Measured:
    """A proxy that follows the severity up to `noise`, and baselines that do not."""
    known, rng = cases(), np.random.default_rng(2)
    size = len(known.kind)
    values = {name: rng.normal(size=size) for name in hallucination.BASELINES}
    values["proxy"] = known.severity + noise * rng.normal(size=size)
    return Measured(known, values, 1.0 + 4.0 * known.severity)


def test_statements_hold_for_a_good_distance_and_not_for_a_random_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planted, "RESAMPLES", 40)
    good = {v.statement: v.holds for v in hallucination.verdicts(measured(1e-9))}
    bad = {v.statement: v.holds for v in hallucination.verdicts(measured(1e9))}
    assert all(holds for text, holds in good.items() if not text.startswith("SSIM"))
    assert not any(holds for text, holds in bad.items() if "AUC of harmful against benign" in text)
    assert not any(holds for text, holds in bad.items() if "rank correlation" in text)
    assert not good["SSIM is the better measure of how much a harmful change moved"]


def test_the_planted_claim_is_measured_in_parts_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hallucination, "SCENES", {hallucination.MAIN: 2, hallucination.REAL: 1})
    monkeypatch.setattr(hallucination, "CHUNK", 1)
    monkeypatch.setattr(planted, "RESAMPLES", 20)
    lines: list[str] = []
    finding = hallucination.CLAIM.measure(Bench(tmp_path, lines.append))
    assert len(lines) == 3  # a scene is a part
    again = hallucination.CLAIM.measure(Bench(tmp_path, lines.append))
    assert again.verdicts == finding.verdicts and len(lines) == 3
    page = write_claim(hallucination.CLAIM, finding, tmp_path, "x", "It took 1 CPU minute.")
    assert "align-hallucination-1.png" in page.read_text()
    for name in ("align-hallucination-1.png", "align-hallucination-2.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    household = [v for v in finding.verdicts if v.statement.startswith(hallucination.HOUSEHOLD)]
    assert len(household) == 9


def upscale_values(held_out: float, errors: float, sharp: float, psnr: float) -> dict:
    rng = np.random.default_rng(int(100 * held_out))
    spread = torch.from_numpy(rng.normal(0.0, 0.01, 64))
    middle = {"held out": held_out, "grade": held_out, "psnr": psnr, "sharpness": sharp}
    found = {figure: value + spread for figure, value in middle.items()}
    return found | {"errors": (errors + spread).clamp_min(0.0)}


def test_an_upscaler_that_invents_less_and_stays_sharp_passes_and_a_blurred_one_does_not() -> None:
    base, soft = upscale_values(3.0, 0.2, 0.5, 26.0), upscale_values(2.9, 0.18, 0.3, 26.5)
    arms = {
        upscale.BASE: base,
        upscale.MSE: soft,
        upscale.PLAIN: upscale_values(2.8, 0.18, 0.4, 26),
    }
    arms[upscale.ALONE] = upscale_values(3.5, 0.18, 6.0, 21.0)
    arms[upscale.SCORE] = upscale_values(2.0, 0.1, 0.6, 25.9)
    held = [verdict.holds for verdict in upscale.judged("x", arms)]
    assert held.count(True) == 7 and held.count(None) == 1
    arms[upscale.SCORE] = upscale_values(3.2, 0.19, 0.2, 25.0)
    assert not any(verdict.holds for verdict in upscale.judged("x", arms))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few pictures and updates; a package whose network repeats every pixel."""
    write_tiny_package(tmp_path / "package")
    monkeypatch.syspath_prepend(str(tmp_path / "package"))
    monkeypatch.setattr(realesrgan, "PACKAGE", PACKAGE)
    for name, value in {"PICTURES": 4, "CAPTIONS": 4, "KNOWN_SCENES": 2, "SHOWN": 2}.items():
        monkeypatch.setattr(upscale_lab, name, value)
    plan = upscale_lab.Plan(steps=2, lr=1e-3, batch=2, warmup=1)
    plans = dict.fromkeys(upscale_lab.PLANS, plan)
    for module in (upscale_lab, upscale):
        monkeypatch.setattr(module, "PLANS", plans)
    monkeypatch.setattr(upscale, "SEEDS", dict.fromkeys(plans, (0,)))
    upscale_lab.measured_pictures.cache_clear()
    yield
    upscale_lab.measured_pictures.cache_clear()


def test_the_claim_on_upscalers_is_measured_and_written(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscale_lab, "STEPS", 2)
    lines: list[str] = []
    finding = upscale.CLAIM.measure(Bench(tmp_path / "work", lines.append))
    assert len(lines) == 12  # the table, bicubic, two bases and twice four arms
    assert (
        upscale.CLAIM.measure(Bench(tmp_path / "work", lines.append)).verdicts == finding.verdicts
    )
    assert len(lines) == 12
    page = write_claim(upscale.CLAIM, finding, tmp_path, "x", "It took 1 CPU minute.")
    assert "align-upscale-2.png" in page.read_text() and (tmp_path / "align-upscale.png").is_file()


@pytest.mark.slow
def test_the_embedded_upscaler_is_tuned_through_its_draws_and_continues(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscale_lab, "STEPS", 2)
    found = {}
    for method in upscale_lab.METHODS:
        subject = upscale_lab.tune("embedded", method, 0, tmp_path / "states")
        found[method] = subject.module.conv_in.weight.clone()
    base = upscale_lab.load_subject("embedded").module.conv_in.weight
    assert all(not torch.equal(weight, base) for weight in found.values())
    assert not torch.equal(found["score"], found["MSE"])
    assert len(list((tmp_path / "states").iterdir())) == 4
    again = upscale_lab.tune("embedded", "score", 0, tmp_path / "states")  # from its kept state
    assert torch.equal(again.module.conv_in.weight, found["score"])
    figures = upscale_lab.figures(again.enlarge, upscale_lab.held_out_table())
    assert len(figures["psnr"]) == 4 and len(upscale_lab.from_png(figures["shown"])) == 2

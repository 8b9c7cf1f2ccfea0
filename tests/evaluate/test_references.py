"""The measurement of the cut-out: exact masks, honest counts, and the goals on a few pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vp3d.evaluate import references
from vp3d.evaluate.reference_pictures import KINDS, make_sample
from vp3d.evaluate.references import Outcome, measure, table, verdict


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_cut_out(kind: str, tmp_path: Path) -> None:
    sample = make_sample(kind, np.random.default_rng(7))
    with Image.open(io.BytesIO(sample.file)) as picture:
        assert sample.mask.shape == picture.size[::-1]
    assert 0.02 < sample.mask.mean() < 0.9
    assert sample.mask.min() >= 0.0 and sample.mask.max() <= 1.0
    again = make_sample(kind, np.random.default_rng(7))
    assert again.file == sample.file
    outcome = measure(sample, tmp_path, 0.12)
    assert outcome.warned or (outcome.iou is not None and outcome.iou > references.WRONG)


def test_the_mask_is_the_object(tmp_path: Path) -> None:
    sample = make_sample("plain", np.random.default_rng(3))
    with Image.open(io.BytesIO(sample.file)) as picture:
        rgb = np.asarray(picture, dtype=float)
    background = rgb[0, 0]
    assert np.abs(rgb[sample.mask == 0] - background).max() <= 1
    assert np.abs(rgb[sample.mask > 0.99] - background).max(-1).mean() > 10


def test_counts_and_goals() -> None:
    outcomes = [
        Outcome("plain", "a", 0.99, False),
        Outcome("plain", "b", 0.70, False),
        Outcome("plain", "c", 0.60, True),
        Outcome("noise", "d", None, True),
    ]
    lines = table(outcomes).splitlines()
    assert lines[-1].split("|")[2:-1] == [
        " 4 ", " 0.763 ", " 0.600 ", " 33.3% ", " 1 ", " 1 ", " 1 "
    ]  # fmt: skip
    text = verdict(outcomes)
    assert "33.3% of those" in text and "; 1 silent" in text and "25.0% refused" in text


def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "KINDS", {"plain": KINDS["plain"]})
    outcome = Outcome("plain", "a red ball", 0.99, False)
    monkeypatch.setattr(references, "make_samples", lambda count, seed: [None] * count)
    monkeypatch.setattr(references, "measure", lambda *_: outcome)
    report = tmp_path / "references.md"
    assert references.main(["--count", "2", "--report", str(report)]) == 0
    assert "| plain | 2 | 0.990 |" in report.read_text()
    wrong = Outcome("plain", "a red ball", 0.5, False)
    monkeypatch.setattr(references, "measure", lambda *_: wrong)
    assert references.main(["--count", "2"]) == 1

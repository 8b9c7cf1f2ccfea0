"""The frame of claims, and how figures become verdicts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from vp3d.cli.main import main
from vp3d.config.schema import AlignConfig
from vp3d.evaluate.claims.alignprop_efficiency import reach
from vp3d.evaluate.claims.command import CLAIMS
from vp3d.evaluate.claims.frame import (
    Bench,
    Claim,
    Finding,
    Table,
    Verdict,
    as_text,
    by_caption,
    write_claim,
)


def test_part_is_measured_once_and_again_for_other_settings(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> int:
        calls.append(1)
        return len(calls)

    assert Bench(tmp_path).once("a", {"lr": 1}, compute) == 1
    assert Bench(tmp_path).once("a", {"lr": 1}, compute) == 1
    assert Bench(tmp_path).once("a", {"lr": 2}, compute) == 2
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    assert Bench(tmp_path).once("a", {"lr": 2}, compute) == 3


def test_facts_are_those_of_the_parts_and_not_of_the_page(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.once("new", {}, lambda: 1)
    record = {"settings": {}, "seconds": 90.0, "value": 2}  # without a commit, as once
    old = record | {"date": "2020-01-02", "git": {"commit": "0123456789ab", "dirty": True}}
    for key, kept in (("older", record), ("old", old)):
        (tmp_path / f"{key}.json").write_text(json.dumps(kept), encoding="utf-8")
        assert bench.once(key, {}, lambda: 3) == 2
    facts = bench.facts()
    assert facts.startswith("It took 3 CPU minutes; date 2020-01-02 to ")
    assert "none, 0123456789 with changes (3 versions in one table)" in facts


def test_a_setting_that_came_later_keeps_older_results(tmp_path: Path) -> None:
    bench, older = Bench(tmp_path), asdict(AlignConfig(reward="clip"))
    del older["text_encoder"]
    bench.once("a", {"config": older}, lambda: 1)
    assert bench.once("a", {"config": AlignConfig(reward="clip")}, lambda: 2) == 1
    trained = AlignConfig(reward="clip", text_encoder=True)
    assert bench.once("a", {"config": trained}, lambda: 3) == 3


def test_page_says_what_holds_and_what_does_not(tmp_path: Path) -> None:
    finding = Finding(
        [Verdict("it is fast", "2 s", True), Verdict("it is good", "0.1", False)],
        [Table("All", ("name", "value"), [("a|b", 0.12345), ("c", None)])],
        ["One seed."],
        lambda axes: axes.plot([0, 1], [0, 1]),
    )
    claim = Claim("x", "A title", "A question.", lambda bench: finding)
    facts = "It took 2 CPU minutes, " + "and so on " * 20
    page = write_claim(claim, finding, tmp_path, "launch.py evaluate claims x", facts).read_text()
    assert "\nIt took 2 CPU minutes, and" in page
    assert max(map(len, page.splitlines())) <= 100
    assert "| it is fast | 2 s | holds |" in page
    assert "| it is good | 0.1 | does not hold |" in page
    assert "| a\\|b | 0.123 |" in page and "| c |  |" in page
    assert (tmp_path / "align-x.png").is_file()
    assert as_text(finding).splitlines()[1].strip() == "does not hold  it is good: 0.1"


def test_level_is_reached_between_two_marks() -> None:
    points = [(0.0, 0.0, 0.0), (100.0, 10.0, 1.0), (200.0, 20.0, 3.0)]
    assert reach(points, 2.0) == (150.0, 15.0)
    assert reach(points, 4.0) is None


def test_every_listed_claim_is_there_and_another_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluate", "--help"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert all(f" {name}," in listed or f" {name}." in listed for name in CLAIMS)
    assert main(["evaluate", "claims", "nothing"]) == 2
    assert "there is no claim 'nothing'" in capsys.readouterr().err
    assert main(["evaluate", "claims"]) == 2
    assert main(["evaluate", "--pages", "x"]) == 2


def test_the_drawings_and_seeds_of_a_caption_are_one_value() -> None:
    """Two captions, two drawings of each, two seeds."""
    assert by_caption([[1, 3, 10, 20], [2, 6, 30, 0]], 2).tolist() == [3.0, 15.0]
    assert by_caption([[1, 10], [3, 30]]).tolist() == [2.0, 20.0]

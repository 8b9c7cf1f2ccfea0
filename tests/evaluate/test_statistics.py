"""Means over prompts, tables and provenance of records, by hand."""

from __future__ import annotations

import pytest

from vp3d.evaluate.statistics import (
    ALL_SETS,
    JANUS_NOTE,
    Figure,
    cell,
    circumstances,
    commit_of,
    failures_line,
    interval_of,
    legend,
    provenance_of,
    rows_of,
    statistics,
    summarise,
    text_table,
)

FIGURES = {
    "right": Figure("views right"),
    "iou": Figure("IoU", share=False),
    "faces": Figure("Janus rate", counted=True),
}


def record(
    prompt: str, right: float | None, of: str = "single", seed: int = 0, failure: str = ""
) -> dict:
    figures = {"right": right, "iou": None if right is None else right / 2.0}
    head = {"set": of, "prompt": prompt, "seed": seed, "failure": failure, "reason": failure}
    return head | {"figures": figures, "drawn": None, "views": ["long"]}


RECORDS = [
    record("a", 0.2),
    record("a", 0.6, seed=1),
    record("b", 1.0),
    record("c", None, "parts"),
    record("d", 0.0, "parts", failure="empty"),
]


def test_seeds_are_averaged_before_prompts() -> None:
    found = statistics(RECORDS, "right", share=True)
    assert found is not None
    assert found["mean"] == pytest.approx((0.4 + 1.0 + 0.0) / 3) and found["median"] == 0.4
    assert (found["count"], found["assets"], found["of"]) == (3, 4, 5)
    assert found["low"] == 0.0 and found["high"] == 1.0, "the ends of a share are shares"
    free = statistics(RECORDS, "right")
    assert free is not None
    assert free["low"] == pytest.approx(0.466667 - 4.302653 * 0.503322 / 3**0.5, rel=1e-4)
    assert free["high"] == pytest.approx(0.466667 + 4.302653 * 0.503322 / 3**0.5, rel=1e-4)
    assert statistics(RECORDS, "faces") is None is statistics(RECORDS, "right", "drawn")


def test_an_interval_needs_two_prompts_and_stays_inside_its_limits() -> None:
    import torch

    assert interval_of(torch.tensor([0.5])) == (None, None)
    pair = torch.tensor([0.25, 0.75])
    assert interval_of(pair) == pytest.approx((0.5 - 12.7062 * 0.25, 0.5 + 12.7062 * 0.25))
    assert interval_of(pair, (-1.0, 2.0)) == (-1.0, 2.0)
    assert interval_of(pair) == interval_of(pair), "the same sample gives the same interval"
    many = torch.rand(40, generator=torch.Generator().manual_seed(0))
    assert interval_of(many) == interval_of(many, (0.0, 1.0))


def test_a_summary_has_every_set_and_all_of_them() -> None:
    found = summarise(RECORDS, FIGURES, ("figures", "drawn"))
    assert list(found["figures"]) == ["single", "parts", ALL_SETS] and ALL_SETS == "all"
    assert found["figures"]["single"]["right"]["mean"] == pytest.approx(0.7)
    assert found["figures"]["parts"]["right"]["mean"] == 0.0
    assert found["figures"][ALL_SETS]["right"]["count"] == 3
    assert found["figures"]["single"]["right"]["low"] == 0.0, "a share"
    assert found["figures"]["single"]["iou"]["low"] < 0.0, "no share"
    assert found["drawn"] == {"single": {}, "parts": {}, ALL_SETS: {}}
    assert found["assets"] == 5 and found["failures"] == {"count": 1, "empty": 1}
    assert found["records"][0]["figures"] == RECORDS[0]["figures"]
    assert "views" not in found["records"][0] and found["records"][4]["reason"] == "empty"
    assert list(summarise(RECORDS, FIGURES)["records"][0])[:2] == ["set", "prompt"]


def test_failures_in_one_line() -> None:
    none = summarise(RECORDS[:3], FIGURES)
    assert failures_line(none) == "failures: 0 of 3"
    assert failures_line(summarise(RECORDS, FIGURES)) == "failures: 1 of 5 (1 empty)"


def stats(mean: float, low: float | None, high: float | None, middle: float) -> dict:
    return {"mean": mean, "low": low, "high": high, "median": middle, "assets": 2, "of": 7}


@pytest.mark.parametrize(
    ("found", "figure", "expected"),
    [
        (None, Figure("x"), "–"),
        (stats(0.5, 0.25, 1.0, 0.75), Figure("x"), "50 % [25, 100] 75"),
        (stats(0.5, None, None, 0.5), Figure("x"), "50 % [–] 50"),
        (stats(0.5, 0.25, 1.0, 0.75), Figure("x", counted=True), "50 % [25, 100] 75 (2 of 7)"),
        (stats(0.05, 0.01, 0.1, 0.04), Figure("x", share=False), "0.050 [0.010, 0.100] 0.040"),
        (stats(0.1, 0.0, 0.2, 0.1), Figure("x", share=False), "0.10 [0.00, 0.20] 0.10"),
        (stats(-0.05, -0.1, 0.0, 0.0), Figure("x", share=False), "-0.050 [-0.100, 0.000] 0.000"),
        (stats(1.99, 1.0, 3.0, 2.0), Figure("x", share=False), "1.99 [1.00, 3.00] 2.00"),
        (stats(2.0, 1.0, 3.0, 2.0), Figure("x", share=False), "2.0 [1.0, 3.0] 2.0"),
        (stats(9.0, None, None, 9.0), Figure("x", share=False), "9.0 [–] 9.0"),
    ],
)
def test_a_cell(found: dict | None, figure: Figure, expected: str) -> None:
    assert cell(found, figure) == expected


def test_columns_are_the_sets_and_rows_the_figures_that_were_measured() -> None:
    header, rows = rows_of(summarise(RECORDS, FIGURES)["figures"], FIGURES)
    assert header == ["figure", "single", "parts", "all"]
    assert [row[0] for row in rows] == ["views right", "IoU"]
    assert rows[0][2] == "0 % [–] 0"
    header, rows = rows_of(summarise(RECORDS[:3], FIGURES)["figures"], FIGURES)
    assert header == ["figure", "all"] and len(rows[0]) == 2, "one set needs one column"
    text = text_table(header, rows, "The assets", width=60)
    lines = text.splitlines()
    assert lines[0] == "The assets" and lines[1].startswith("figure") and len(lines) == 4
    assert max(map(len, lines)) <= 60 and lines[2].startswith("views right")
    assert lines[1].endswith("all"), "numbers are flush right"


def test_the_legend_explains_what_is_shown() -> None:
    assert legend(FIGURES, {"right": 1, "iou": 1}, "95 %") == "mean [95 %] median"
    text = legend(FIGURES, {"right": 1, "faces": 1}, "95 %")
    assert text == (f"mean [95 %] median; Janus rate: (over how many of the assets), {JANUS_NOTE}")


def test_provenance_is_that_of_the_records() -> None:
    def made(commit: str, date: str, dirty: bool = False, machine: str = "m") -> dict:
        return {"git": {"commit": commit * 40, "dirty": dirty}, "date": date, "machine": machine}

    one = [made("a", "2026-01-02"), made("a", "2026-01-02")]
    assert provenance_of(one) == {"date": "2026-01-02", "commit": "a" * 10, "machine": "m"}
    two = [made("b", "2026-02-01", True, "n"), *one, made("a", "2026-01-15")]
    assert provenance_of(two) == {
        "date": "2026-01-02 to 2026-02-01",
        "commit": f"{'b' * 10} with changes, {'a' * 10} (2 versions in one table)",
        "machine": "n; m",
    }
    assert commit_of({"git": None}) == "none" == commit_of({})


def test_circumstances_are_those_of_this_process() -> None:
    found = circumstances()
    assert set(found) == {"date", "version", "git", "machine", "torch", "cuda"}
    assert "cores" in found["machine"] and len(found["date"]) == 10


def test_a_figure_that_only_one_set_has_keeps_its_row() -> None:
    one, none = {"mean": 0.5, "low": 0.4, "high": 0.6, "median": 0.5, "count": 2}, {}
    summary = {"single": none, "parts": {"right": one}, "all": {"right": one}}
    _, rows = rows_of(summary, FIGURES)
    assert [row[0] for row in rows] == ["views right"] and rows[0][1] == cell(
        None, FIGURES["right"]
    )

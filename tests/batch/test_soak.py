"""The acceptance rows C1 to C5 of batches, by tiny runs: `python -m tests.batch.soak`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.batch import soak
from tests.engine.test_ray_tasks import needs_ray


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose batches the rows share."""
    return tmp_path_factory.mktemp("soak")


def said(root: Path, capfd: pytest.CaptureFixture[str], row: str, *words: str) -> str:
    """The line that a row prints."""
    code = soak.main([row, "--tiny", "--work", str(root), *words])
    line = next(line for line in capfd.readouterr().out.splitlines() if line[:2] == row.upper())
    assert code == (1 if "FAIL" in line else 0)
    return line


def test_killed_workers_leave_the_bytes_of_one_process(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = said(root, capfd, "c1", "--assets", "2", "--kills", "1", "--pause", "1")
    assert line.startswith(
        "C1 PASS (local, tiny runs): 1 of 1 kills, 2 of 2 assets, 2 with the bytes"
    )


def test_a_killed_command_makes_nothing_twice(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = said(root, capfd, "c2", "--assets", "3")  # a third waits while two are made
    assert line.startswith("C2 PASS (local, tiny runs): killed with")
    assert "redid 0 of them and finished 3 of 3, in 3 run folders" in line


@pytest.mark.slow
def test_two_workers_are_compared_with_one(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = said(root, capfd, "c3", "--assets", "2")  # tiny runs are all overhead
    found = re.search(r": (\S+) times the throughput .*; overhead (\S+) %", line)
    assert found and float(found[1]) > 0.0 and 0.0 <= float(found[2]) <= 100.0


@pytest.mark.slow
def test_shards_are_disjoint_and_the_whole(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = said(root, capfd, "c4", "--assets", "3", "--shards", "2")
    assert line.startswith("C4 PASS (local, tiny runs): 2 shards of 2, 1 assets, 3 different ones")


@pytest.mark.slow
def test_one_that_fails_leaves_the_others(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = said(root, capfd, "c5", "--assets", "3")
    assert line.startswith("C5 PASS (local, tiny runs): 2 of 3 assets, exit code 1, lines that")


@needs_ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize("row", ["c1", "c2"])
def test_ray_does_the_same(root: Path, capfd: pytest.CaptureFixture[str], row: str) -> None:
    kills = ("--kills", "1", "--pause", "1")
    line = said(root, capfd, row, "--engine", "ray", "--assets", "2", *kills)
    assert line.startswith(f"{row.upper()} PASS (ray, tiny runs)")


def test_time_without_work_is_lost_only_while_an_asset_waits() -> None:
    # two workers that could begin at 10: one begins at 11, pauses from 14 to 15; the second
    # begins at 12; the last asset begins at 16, and that one worker is idle from 17 is no loss
    found = [(11.0, 14.0), (15.0, 17.0), (12.0, 16.0), (16.0, 20.0)]
    # until 16 there are 12 seconds of workers, of which 3 + 1 + 4 are work: 4 of 2 x 10 are lost
    assert soak.lost_share(found, 10.0, 10.0, 2) == pytest.approx(0.2)
    assert soak.lost_share([(9.0, 14.0), (14.0, 20.0)], 10.0, 10.0, 1) == 0.0


def test_the_lines_of_many_assets_are_all_different() -> None:
    for tiny in (False, True):
        lines = soak.prompt_lines(60, tiny)
        assert len(set(lines)) == 60 and all(" seed=" in line for line in lines)


def test_a_row_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(soak.ROWS, "c4", lambda bench: (False, f"{len(bench.prompts)} lines"))
    assert soak.main(["c4", "--work", str(tmp_path), "--assets", "5"]) == 1

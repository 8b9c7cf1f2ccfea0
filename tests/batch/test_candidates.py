"""`generate --candidates`: seeds of one prompt, all kept, and one of them taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.tiny_batch import tiny_settings
from vp3d.batch.publish import LINES, PAGE
from vp3d.cli.main import main


def test_candidates_are_kept_and_listed_and_the_highest_score_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = tiny_settings(tmp_path).files
    words = ["generate", "a red sphere", "--config", str(file), f"output_dir={tmp_path / 'out'}"]
    words += ["--seed", "3", "--candidates"]
    assert main([*words, "2"]) == 0
    chosen = Path(capsys.readouterr().out.strip())
    assert (chosen / "model.glb").is_file()
    (folder,) = (tmp_path / "out").iterdir()
    (line,) = [json.loads(text) for text in (folder / LINES).read_text().splitlines()]
    found = line["candidates"]
    assert [one["seed"] for one in found] == [3, 4] and not any(one["failure"] for one in found)
    assert all((folder / one["run"] / "report.html").is_file() for one in found)
    best = max(found, key=lambda one: one["score"])
    assert chosen == folder / best["run"] and line["seed"] == best["seed"]
    page = (folder / PAGE).read_text()
    assert page.count("<img") == 2 and f"seed {best['seed']}: reward" in page
    assert f"<b>seed {best['seed']}" in page and "<title>Candidates" in page
    # the same request makes nothing again, and says the same
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/model.glb")}
    assert len(before) == 2
    assert main([*words, "2"]) == 0
    assert Path(capsys.readouterr().out.strip()) == chosen
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # one that is made alone has the same bytes: the light and all else are those of `generate`
    assert main([*words[:-3], "--seed", str(best["seed"])]) == 0
    alone = Path(capsys.readouterr().out.strip())
    assert (alone / "model.glb").read_bytes() == (chosen / "model.glb").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a red sphere", "--candidates", "0"], "from 1 to 1000, not 0"),
        (["a red sphere", "--candidates", "1001"], "from 1 to 1000, not 1001"),
        (["a red zeppelin", "--candidates", "2"], "zeppelin"),
        (["a red sphere", "--seed", str(2**63 - 2), "--candidates", "3"], "give a lower --seed"),
        (["a red\tsphere", "--candidates", "2"], "control character"),
    ],
)
def test_a_wrong_request_is_one_line_and_makes_no_folder(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())

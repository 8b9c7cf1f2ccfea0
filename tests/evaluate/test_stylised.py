"""The smoke suite's command line: what is wrong is told in one line, before anything is made."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from vp3d.errors import UserError
from vp3d.evaluate import stylised
from vp3d.jobs import make_once


def refuse_to_make(*_: object) -> None:
    raise AssertionError("nothing may be made")


def test_a_prompt_that_is_no_caption_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "own.txt"
    prompts.write_text("# mine\nA red sphere.\na fluffy cat seed=3\n")
    monkeypatch.setattr(make_once, "make", refuse_to_make)
    monkeypatch.setattr(
        sys, "argv", ["smoke", "suite", "--prompts", str(prompts), "--work", str(tmp_path / "work")]
    )
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(stylised.__file__, run_name="__main__")
    told = capsys.readouterr().err
    assert (
        ended.value.code == 2
        and told.count("\n") == 1
        and f"{prompts}, line 3: not a toybox caption" in told
    )
    prompts.write_text("# mine\nA red sphere.\n")
    assert stylised.read_captions(prompts)[0][1].noun == "sphere"


def test_runs_of_unknown_weights_are_not_judged_with_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stylised, "make", refuse_to_make)
    run = tmp_path / "01-a-red-sphere" / "run"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 1\n")
    for what in ("suite", "stylized"):
        with pytest.raises(UserError, match="does not say from which weights"):
            stylised.main([what, "--work", str(tmp_path)])

"""Gallery and stylised suites: mistakes are one line before anything is generated, and records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vp3d.cli import main
from vp3d.engine.pool import Pool
from vp3d.evaluate import gallery, runner, stylised
from vp3d.evaluate.command import evaluate_stylised
from vp3d.evaluate.runner import FoundAsset, Settings, Task
from vp3d.types import Mesh
from vp3d.worlds.toybox.scenes import parse_caption
from vp3d.worlds.toybox.truth import lit, true_mesh


def refuse_to_make(*_: object) -> None:
    raise AssertionError("nothing may be generated")


def test_a_prompt_that_is_no_caption_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "own.txt"
    prompts.write_text("# mine\nA red sphere.\na fluffy cat seed=3\n")
    monkeypatch.setattr(runner, "make", refuse_to_make)
    words = ["evaluate", "--suite", "gallery", "--prompts", str(prompts)]
    assert main.main([*words, "--work", str(tmp_path / "work")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and f"{prompts}, line 3: not a toybox caption" in message
    prompts.write_text("# mine\nA red sphere.\n")
    assert gallery.read_captions(prompts)[0][1].noun == "sphere"


def test_runs_of_unknown_weights_are_not_judged_with_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "make", refuse_to_make)
    run = tmp_path / "01-a-red-sphere" / "run"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 1\n")
    for suite in ("gallery", "stylised"):
        assert main.main(["evaluate", "--suite", suite, "--work", str(tmp_path)]) == 2
        assert "does not say from which weights" in capsys.readouterr().err


def test_tasks_of_the_gallery_suite() -> None:
    tasks = gallery.suite_tasks([], 1, 1)
    assert len(tasks) == len({task.key for task in tasks}) == 24
    assert {task.group for task in tasks} == {"gallery"}
    assert gallery.suite_tasks([], 6, 1) == tasks[::6]
    assert [task.seed for task in gallery.suite_tasks([], 24, 3)] == [0, 1, 2]


def test_a_task_has_its_own_picture(tmp_path: Path) -> None:
    settings = Settings(tmp_path, "draft", overrides=("image=given.png",))
    for image, expected in ((None, "given.png"), ("", ""), ("own.png", "own.png")):
        config = settings.config(Task("s", "a chair", 3, "k", image=image))
        assert (config.image, config.prompt, config.seed) == (expected, "a chair", 3)


def test_the_gallery_judges_the_mesh_and_draws_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = lit(true_mesh(parse_caption("a red sphere"), cells=24))
    settings, task = Settings(tmp_path, "draft"), Task("gallery", "A red sphere.", 0, "k")
    monkeypatch.setattr(gallery, "find_mesh", lambda *_: FoundAsset(mesh, seconds=1.0))
    record = gallery.judge_asset(settings, task)
    assert record["figures"]["passed"] == record["figures"]["right"] == 1.0
    assert record["named"] == "red sphere" and len(record["views"]) == 8
    assert (tmp_path / "results" / "k.png").is_file() and (tmp_path / "results" / "k.mp4").is_file()


def test_the_stylised_suite_compares_with_and_without_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Assets with a picture have its main colour here, those without are green; one run fails."""
    meshes: dict[str, Mesh] = {
        color: lit(true_mesh(parse_caption(f"a {color} mug"), cells=24))
        for color in ("red", "green")
    }
    generated: list[str] = []

    def find_mesh(settings: Settings, task: Task) -> FoundAsset:
        generated.append(task.key)
        if task.key == "rocket-without-s0":
            return FoundAsset(None, "empty", "no surface")
        return FoundAsset(meshes["red" if task.image else "green"], seconds=2.0)

    monkeypatch.setattr(stylised, "NOUNS", ("mug", "rocket"))
    monkeypatch.setattr(stylised, "REFERENCES", ("a red sphere",))
    monkeypatch.setattr(stylised, "find_mesh", find_mesh)
    monkeypatch.setattr(runner, "check_request", lambda *_, **__: None)
    monkeypatch.setattr(runner, "_check_models", lambda *_: None)
    text = evaluate_stylised(Settings(tmp_path, "draft"), seeds=1, pool=Pool())
    assert "views with the noun" in text and "failures: 0 of 2" in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    mug, rocket = (record["figures"] for record in summary["records"])
    assert mug["kept"] == 1.0 and mug["color_error"] < 15.0 < 40.0 < mug["without"]
    assert rocket["kept"] == 0.0 and rocket["without"] is None
    record = json.loads((tmp_path / "results" / "mug-0-with-s0.json").read_text())
    assert record["reference"] == "a red sphere"
    with Image.open(tmp_path / "stylised.png") as page:
        assert np.asarray(page.convert("RGB")).std() > 0
    assert generated.count("rocket-without-s0") == 1, "a failed run is not repeated"

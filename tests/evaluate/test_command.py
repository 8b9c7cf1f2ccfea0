"""Suites: prompts, results once, failures, summary, and the verb from end to end."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from tests.helpers.assets import asset_of
from tests.helpers.tiny_models import save_manifest
from vp3d.cli import main
from vp3d.config.loader import load_config
from vp3d.config.paths import ROOT
from vp3d.engine import local
from vp3d.engine.pool import Pool
from vp3d.errors import EmptyFieldError, ResourceError, UserError
from vp3d.evaluate import runner, t3bench, toybench
from vp3d.evaluate.command import finish
from vp3d.evaluate.html import turntable, write_asset_turntable
from vp3d.evaluate.prompt_file import read_suite
from vp3d.evaluate.runner import (
    FoundAsset,
    Record,
    Settings,
    Task,
    asset_task,
    find_assets,
    find_mesh,
    key_of,
    lock_to_settings,
    run_tasks,
)
from vp3d.evaluate.statistics import (
    ALL_SETS,
    Figure,
    cell,
    failures_line,
    legend,
    rows_of,
    statistics,
    summarise,
    text_table,
)
from vp3d.evaluate.toybench import MINI, SETS, failed, folder_tasks, suite_file, suite_tasks
from vp3d.export.glb import write_glb
from vp3d.jobs.make_once import failure_of, is_finished, make
from vp3d.runs.folder import RunFolder
from vp3d.runs.provenance import git_state
from vp3d.system.files import plain, write_json
from vp3d.types import Asset, Mesh
from vp3d.worlds.toybox.scenes import NOUNS, caption, parse_caption, uses_held_out
from vp3d.worlds.toybox.truth import lit, true_mesh


@pytest.mark.parametrize("name", SETS)
def test_prompt_sets(name: str) -> None:
    entries = read_suite(suite_file(name))
    specs = [parse_caption(entry.prompt) for entry in entries]
    assert len(entries) == len({e.prompt for e in entries}) == len({e.seed for e in entries}) == 24
    assert [caption(spec) for spec in specs] == [entry.prompt for entry in entries]
    held_out = [uses_held_out(spec) for spec in specs]
    assert sum(held_out) == 8 and sum(held_out[:MINI]) == 2
    assert all(
        bool(spec.relation) == (name == "relation") and bool(spec.accent) == (name == "parts")
        for spec in specs
    )
    assert (
        {spec.noun for spec in specs} == set(NOUNS)
        if name != "relation"
        else sum(s.relation == "on" for s in specs) == 12
    )


def test_tasks_of_the_suite_and_its_subset() -> None:
    mini, whole = suite_tasks("mini", 1), suite_tasks("all", 2)
    assert (len(mini), len(whole)) == (18, 144) and len({task.key for task in whole}) == 144
    assert {(t.prompt, t.seed) for t in mini} <= {(t.prompt, t.seed) for t in whole}
    assert mini[0].key == "single-01-a-red-car-s101" and whole[1].seed == whole[0].seed + 1


def note(settings: Settings, task: Task) -> Record:
    """A judge that writes down that it was asked."""
    with (settings.folder / "asked.txt").open("a") as stream:
        stream.write(f"{task.key}\n")
    return {
        "set": task.group,
        "prompt": task.prompt,
        "seed": task.seed,
        "failure": "",
        "figures": {"iou": 0.5},
    }


def test_a_finished_result_is_not_made_again_and_a_damaged_one_is(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    tasks = [Task("s", "a red sphere", n, f"k{n}", source="x.glb") for n in range(3)]
    asked = tmp_path / "asked.txt"
    run_tasks(tasks[:2], settings, note)
    assert asked.read_text().split() == ["k0", "k1"]
    settings.result(tasks[1]).write_text('{"figures": ')
    assert [record["seed"] for record in run_tasks(tasks, settings, note)] == [0, 1, 2]
    assert asked.read_text().split() == ["k0", "k1", "k1", "k2"]


def test_a_result_of_another_prompt_is_not_taken_for_this_one(tmp_path: Path) -> None:
    settings, asked = Settings(tmp_path), tmp_path / "asked.txt"
    long = "a fluffy orange cat lying on its back in a"  # file names hold no more of a prompt
    for place in ("patch of sunlight", "dark cellar", "dark cellar"):
        prompt = f"{long} {place}"
        (record,) = run_tasks(
            [Task("s", prompt, 0, key_of(3, prompt, 0), source="x.glb")], settings, note
        )
        assert record["prompt"] == prompt
    assert len(asked.read_text().split()) == 2 and len(list((tmp_path / "results").iterdir())) == 1


def test_what_only_hinders_is_no_failure_of_the_asset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object) -> None:
        raise ResourceError("out of memory while exporting")

    monkeypatch.setattr(runner, "make", out_of_memory)
    with pytest.raises(ResourceError):
        find_mesh(Settings(tmp_path), Task("s", "a red sphere", 0, "k"))


@pytest.mark.slow
def test_several_processes_give_the_same_records(tmp_path: Path) -> None:
    tasks = [Task("s", "a red sphere", n, f"k{n}", source="x.glb") for n in range(3)]
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    assert run_tasks(tasks, Settings(tmp_path / "two"), note, Pool(2)) == run_tasks(
        tasks, Settings(tmp_path / "one"), note
    )
    assert list((tmp_path / "two" / "logs").iterdir())


def test_a_killed_process_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed:
        """A pool whose processes are killed at once."""

        def __init__(self, *_: object) -> None:
            pass

        def submit(self, *_: object) -> Future[None]:
            future: Future[None] = Future()
            future.set_exception(BrokenProcessPool("a child process terminated abruptly"))
            return future

        def shutdown(self, cancel_futures: bool) -> None:
            assert cancel_futures

    monkeypatch.setattr(local, "ProcessPoolExecutor", Killed)
    tasks = [Task("s", "a red sphere", n, f"k{n}", source="x.glb") for n in range(3)]
    with pytest.raises(
        UserError,
        match="one of 2 processes was killed.* kept in .*; run the same command again to resume",
    ):
        run_tasks(tasks, Settings(tmp_path), note, Pool(2))


def test_a_prompt_that_cannot_be_drawn_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown words"):
        run_tasks([Task("s", "a fluffy cat", 0, "k")], Settings(tmp_path), note)
    assert not (tmp_path / "asked.txt").exists()


def judged_by(folder: Path) -> list[tuple[str, str]]:
    """Weights of a judge with their manifest, as `lock_to_settings` takes them."""
    if not (folder / "judge.safetensors").is_file():
        folder.mkdir(parents=True)
        (folder / "judge.safetensors").write_bytes(b"trained")
    save_manifest(folder.parent)
    return [(str(folder), str(folder.parent / "MANIFEST.json"))]


def test_a_folder_keeps_one_suite_of_one_setting(tmp_path: Path) -> None:
    judge, work = judged_by(tmp_path / "weights" / "judge"), tmp_path / "work"
    lock_to_settings(Settings(work, overrides=("optim.steps=5",)), {"suite": "toybench"}, judge)
    lock_to_settings(Settings(work), {"suite": "toybench"}, judge)  # nothing was made yet
    run_tasks([Task("s", "a red sphere", 0, "k", source="x.glb")], Settings(work), note)
    lock_to_settings(Settings(work), {"suite": "toybench"}, judge)
    with pytest.raises(
        UserError,
        match="other settings: optim.steps was .* and is 3 now; give another --work or remove",
    ):
        lock_to_settings(Settings(work, overrides=("optim.steps=3",)), {"suite": "toybench"}, judge)
    (work / "suite.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        lock_to_settings(Settings(work), {"suite": "toybench"}, judge)
    (work / "suite.json").write_text('["toybench"]')
    with pytest.raises(UserError, match="damaged"):
        lock_to_settings(Settings(work), {"suite": "toybench"}, judge)


def test_a_folder_keeps_to_the_weights_its_results_come_from(tmp_path: Path) -> None:
    judge, work = judged_by(tmp_path / "weights" / "judge"), tmp_path / "work"
    lock_to_settings(Settings(work), {"suite": "toybench"}, judge)
    kept = json.loads((work / "suite.json").read_text())
    assert {
        "assets/toybox/pipeline/unet/diffusion_pytorch_model.safetensors",
        "assets/toybox/clip/tokenizer.json",
    } <= set(kept["weights"])
    (record,) = run_tasks([Task("s", "a red sphere", 0, "k", source="x.glb")], Settings(work), note)
    assert len(record["date"]) == 10 and record["git"] == git_state(ROOT)
    (tmp_path / "weights" / "judge" / "judge.safetensors").write_bytes(b"retrained")
    judged_by(tmp_path / "weights" / "judge")
    with pytest.raises(
        UserError, match=r"other weights: \S*judge/judge.safetensors changed; give another --work"
    ):
        lock_to_settings(Settings(work), {"suite": "toybench"}, judge)
    del kept["weights"]
    (work / "suite.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match="does not say from which weights"):
        lock_to_settings(Settings(work), {"suite": "toybench"}, judge)


def test_a_finished_run_is_taken_and_one_cut_short_is_not(
    finished_run: Asset, tmp_path: Path
) -> None:
    config = RunFolder(finished_run.run_dir).config()
    shutil.copytree(finished_run.run_dir, tmp_path / "work" / "run")
    run = RunFolder(tmp_path / "work" / "run")
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace(config.output_dir, str(tmp_path / "work")))
    made = make(config, tmp_path / "work")
    assert (
        made.folder == run.path
        and len(made.mesh.faces) == len(finished_run.mesh.faces)
        and made.seconds > 0
    )
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["run"]
    run.event("done", steps=3, stopped=True)
    assert not is_finished(run)


def test_kinds_of_failures(tmp_path: Path) -> None:
    assert (
        failure_of(EmptyFieldError("nothing"), tmp_path) == "empty"
        and failure_of(UserError("no"), tmp_path) == "no mesh"
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 1\n")
    RunFolder(tmp_path / "run").event("failed", message="not finite")
    assert failure_of(UserError("stopped"), tmp_path) == "nan"
    second = tmp_path / "second"
    (second / "run").mkdir(parents=True)
    (second / "run" / "config.yaml").write_text("seed: 1\n")
    RunFolder(second / "run").event("refine_failed", message="not finite")
    assert failure_of(UserError("stopped"), second) == "nan"
    body = trimesh.creation.box((1, 1, 1))
    cube = Mesh(
        np.asarray(body.vertices, np.float32),
        np.asarray(body.faces, np.int64),
        vertex_colors=np.full((8, 3), np.nan),
    )
    assert failed(cube, {}) == "empty" and failed(cube, {"volume": 1.0}) == "nan"
    bare = Mesh(cube.vertices, cube.faces)
    assert failed(bare, {"volume": 7.9}) == "solid" and failed(bare, {"volume": 1.0}) == ""


def test_names_of_meshes_tell_prompt_and_seed(tmp_path: Path, finished_run: Asset) -> None:
    for name in ("03-a-red-sphere-s7.glb", "a_blue_mug.obj", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    shutil.copytree(finished_run.run_dir, tmp_path / "run")
    assert [found[:2] for found in find_assets(tmp_path)] == [
        ("a red sphere", 7),
        ("a blue mug", 0),
        ("a red sphere", 3),
    ]
    first = asset_task(1, "single", *find_assets(tmp_path)[0])
    (tmp_path / "03-a-red-sphere-s7.glb").write_bytes(b"y")
    assert asset_task(1, "single", *find_assets(tmp_path)[0]).key != first.key
    (tmp_path / "a-fluffy-cat.ply").write_bytes(b"x")
    with pytest.raises(UserError, match="a-fluffy-cat.ply.*name the file by its caption"):
        folder_tasks(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run folders"):
        find_assets(tmp_path / "empty")


def test_the_folder_of_an_earlier_evaluation_is_a_folder_of_assets(
    tmp_path: Path, finished_run: Asset
) -> None:
    write_json(tmp_path / "suite.json", {"suite": "gallery"})
    shutil.copytree(finished_run.run_dir, tmp_path / "runs" / "01-a-red-sphere" / "run")
    assert [found[:2] for found in find_assets(tmp_path)] == [("a red sphere", 3)]


def test_one_bad_entry_does_not_refuse_the_folder(tmp_path: Path) -> None:
    folder, settings = tmp_path / "assets", Settings(tmp_path / "work")
    for name, prompt in (("stopped", "a red sphere"), ("loud", "A Blue  CUBE, front view.")):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").write_text(f"prompt: {prompt!r}\n")
    shutil.copy(folder / "loud" / "config.yaml", folder / "loud" / "model.stl")
    loud, stopped = folder_tasks(folder)
    assert (loud.prompt, stopped.prompt) == ("a blue cube", "a red sphere")
    found = find_mesh(settings, stopped)
    assert found.mesh is None and found.failure == "no mesh" and "has no mesh yet" in found.reason
    (folder / "stopped" / "model.glb").write_bytes(b"finished")
    assert folder_tasks(folder)[1].key != stopped.key


def records() -> list[Record]:
    """Two seeds of one prompt and one of another, and a failure."""
    rows = [("p", 0.2), ("p", 0.4), ("q", 0.9)]
    found = []
    for n, (prompt, value) in enumerate(rows):
        head = {"set": "s", "prompt": prompt, "seed": n, "failure": "", "reason": ""}
        found.append(head | {"figures": {"iou": value, "janus": None}})
    failed = {"set": "t", "prompt": "r", "seed": 0, "failure": "empty", "reason": "x"}
    return [*found, failed | {"figures": {"iou": 0.0}}]


def test_statistics_are_over_prompts() -> None:
    found = statistics(records()[:3], "iou")
    assert (
        found is not None
        and found["count"] == 2
        and found["mean"] == found["median"] == pytest.approx(0.6)
    )
    half = 12.7062 * 0.3  # Student's t with one degree of freedom
    assert (found["low"], found["high"]) == pytest.approx((0.6 - half, 0.6 + half), rel=1e-4)
    inside = statistics(records()[:3], "iou", share=True)
    assert inside is not None and (inside["low"], inside["high"]) == (0.0, 1.0)
    one = statistics(records()[:2], "iou")
    assert (
        one is not None and one["low"] is None is one["high"] and one["mean"] == pytest.approx(0.3)
    )
    assert statistics(records(), "janus") is None


def test_summary_and_table() -> None:
    figures = {"iou": Figure("IoU", share=False), "janus": Figure("Janus", share=False)}
    summary = summarise(records(), figures)
    assert summary["figures"][ALL_SETS]["iou"]["mean"] == pytest.approx(0.4) and summary[
        "failures"
    ] == {
        "count": 1,
        "empty": 1,
    }
    assert failures_line(summary) == "failures: 1 of 4 (1 empty)"
    header, rows = rows_of(summary["figures"], figures)
    assert (
        header == ["figure", "s", "t", ALL_SETS]
        and len(rows) == 1
        and rows[0][1:3] == ["0.60 [-3.21, 4.41] 0.60", "0.000 [–] 0.000"]
    )
    assert (
        cell({"mean": 0.5, "low": 0.25, "high": 1.0, "median": 0.5}, Figure("x"))
        == "50 % [25, 100] 50"
    )
    assert "IoU" in text_table(header, rows, "The assets")


def test_the_janus_rate_is_told_with_the_assets_it_is_counted_over() -> None:
    figures = {"two_faced": Figure("Janus rate", counted=True), "iou": Figure("IoU", share=False)}
    made = records()
    made[0]["figures"]["two_faced"], made[1]["figures"]["two_faced"] = 1.0, 0.0
    summary = summarise(made, figures)["figures"]
    assert (
        summary[ALL_SETS]["two_faced"]["assets"] == 2 and summary[ALL_SETS]["two_faced"]["of"] == 4
    )
    assert rows_of(summary, figures)[1][0] == [
        "Janus rate",
        "50 % [–] 50 (2 of 3)",
        "–",
        "50 % [–] 50 (2 of 4)",
    ]
    assert "Janus rate: (over how many of the assets)" in legend(figures, summary[ALL_SETS], "95 %")
    assert legend(figures, summary["t"], "95 %") == "mean [95 %] median"


def test_the_verb_judges_a_folder_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    folder, work = tmp_path / "meshes", tmp_path / "work"
    mug = lit(true_mesh(parse_caption("a white mug with a red handle"), cells=48))
    write_glb(asset_of(mug), folder / "a-white-mug-with-a-red-handle.glb")
    (folder / "a-red-sphere.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    assert main.main(["evaluate", "--assets", str(folder), "--work", str(work)]) == 0
    out = capsys.readouterr().out
    assert "failures: 1 of 2 (1 empty)" in out and str(work / "index.html") in out
    summary = json.loads((work / "summary.json").read_text())
    assert (
        summary["figures"]["parts"]["iou"]["mean"] > 0.95
        and summary["figures"]["parts"]["color_error"]["mean"] < 2.0
    )
    assert (
        summary["figures"]["single"]["iou"]["mean"] == 0.0
        and summary["true"]["single"]["all"]["mean"] > 0.8
    )
    text = (work / "index.html").read_text()
    assert text.count("data:image/png") == 2 and text.count('<video src="data:video/mp4') == 4, (
        "each asset and its true object"
    )
    assert 'src="http' not in text and "a white mug with a red handle" in text
    assert "(1 of 2)" in out and "(1 of 2)" in text
    assert "preset" not in out and "preset" not in text and "preset" not in summary["facts"], (
        "it had no part in these"
    )
    before = {path: path.stat().st_mtime_ns for path in (work / "results").iterdir()}
    assert main.main(["evaluate", "--assets", str(folder), "--work", str(work)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (work / "results").iterdir()} == before


def test_a_mesh_turns_on_the_page_as_a_run_does(tmp_path: Path, finished_run: Asset) -> None:
    result = tmp_path / "results" / "k.json"
    write_asset_turntable(FoundAsset(finished_run.mesh, folder=finished_run.run_dir), result)
    assert not result.parent.exists(), "the run has its own"
    write_asset_turntable(FoundAsset(finished_run.mesh), result)
    assert [path.name for path in result.parent.iterdir()] == ["k.mp4"]
    assert "data:video/mp4" in turntable(tmp_path / "turntable", result)


def test_a_suite_bakes_the_light_in_unless_a_file_or_an_override_sets_it(tmp_path: Path) -> None:
    file, word = tmp_path / "own.yaml", "export.light=removed"
    file.write_text("export: {light: removed}\n")

    def light(**settings: Any) -> str:
        return Settings(tmp_path, **settings).config().export.light

    assert light() == light(preset="high") == light(overrides=("export.grid=72",)) == "baked"
    assert light(files=(file,)) == light(overrides=(word,)) == "removed"
    assert light(files=(file,), overrides=("export.light=baked",)) == "baked"
    assert light(light="") == load_config().export.light == "removed"
    # the folders of older versions have this configuration
    given = Settings(tmp_path, overrides=("export.light=baked",)).config()
    assert plain(Settings(tmp_path).config()) == plain(given)


def test_table_and_page_tell_how_the_assets_were_made(tmp_path: Path) -> None:
    settings = Settings(
        tmp_path, "draft", (ROOT / "configs" / "sds.yaml", Path("own.yaml")), ("optim.steps=3",)
    )
    tasks = [Task("s", "a red sphere", n, f"k{n}") for n in (1, 2)]
    made = []
    for task, day, letter in zip(tasks, ("2026-01-03", "2026-01-02"), "ab", strict=True):
        git = {"commit": 40 * letter, "dirty": False}
        record = {**note(settings, task), "reason": "", "source": ""}
        made.append(record | {"date": day, "git": git})
    out = finish(
        "Toybench", tasks, made, settings, {"iou": Figure("IoU", share=False)}, ("figures",)
    )
    head = (
        "preset draft, seeds 2, config configs/sds.yaml, own.yaml, "
        "settings optim.steps=3, date 2026-01-02 to 2026-01-03"
    )
    commits = "commit aaaaaaaaaa, bbbbbbbbbb (2 versions in one table), machine not recorded"
    assert f"Toybench: {head}, {commits}" in out
    text = (tmp_path / "index.html").read_text()
    assert "<b>configs/sds.yaml, own.yaml</b>" in text and "seeds <b>2</b>" in text
    assert json.loads((tmp_path / "summary.json").read_text())["facts"]["seeds"] == "2"


@pytest.mark.parametrize(
    "words",
    [
        "--seeds 3".split(),
        "--subset mini".split(),
        "--preset draft".split(),
        "--config configs/sds.yaml".split(),
        "optim.steps=3".split(),
        "--suite t3bench --prompts own.txt".split(),
        "--suite t3bench --seeds 2".split(),
        "--scorer imagereward".split(),
        "--grader judge".split(),
        "--size 256".split(),
        "--prompts own.txt".split(),
        "--endpoint-model m".split(),
        "--suite t3bench --subset mini".split(),
        "--suite t3bench optim.steps=3".split(),
        "--suite t3bench --endpoint http://localhost/v1".split(),
        "--suite gallery".split(),
        "--suite stylised".split(),
        "--every 2".split(),
    ],
)
def test_options_that_change_nothing_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-red-sphere.glb").write_bytes(b"x")
    work = tmp_path / "work"
    assert main.main(["evaluate", "--assets", str(tmp_path), "--work", str(work), *words]) == 2
    message = capsys.readouterr().err
    assert "nothing with" in message and message.count("\n") == 1 and not work.exists()


@pytest.mark.slow  # 810 pictures
def test_t3bench_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    folder, work = tmp_path / "meshes", tmp_path / "work"
    sphere = lit(true_mesh(parse_caption("a red sphere"), cells=16))
    write_glb(asset_of(sphere), folder / "a-red-sphere.glb")
    words = "evaluate --suite t3bench --size 32 --grader judge".split()
    words += ["--assets", str(folder), "--work", str(work)]
    assert main.main(words) == 0
    (record,) = (json.loads(path.read_text()) for path in (work / "results").glob("*.json"))
    assert (
        record["figures"]["grade"] == 5
        and 0 < record["figures"]["quality"] < 100
        and len(record["captions"]) == 12
    )
    assert "quality" in capsys.readouterr().out
    (folder / "a-fluffy-cat.glb").write_bytes((folder / "a-red-sphere.glb").read_bytes())
    assert main.main(words) == 2 and "knows only the toybox's words" in capsys.readouterr().err


def test_t3bench_prompts_are_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "prompt_single.txt").write_text("A fluffy cat\nA red chair\n")
    tasks = t3bench.prompt_tasks([tmp_path / "prompt_single.txt"], 2)
    assert [(t.group, t.prompt, t.seed) for t in tasks[:3]] == [
        ("prompt_single", "A fluffy cat", 0),
        ("prompt_single", "A fluffy cat", 1),
        ("prompt_single", "A red chair", 0),
    ]


def test_captions_a_view_may_be_taken_for_are_the_whole_suite() -> None:
    assert len(toybench.judges().texts) == 72


def test_a_judge_other_than_the_manifests_does_not_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(toybench.ASSETS / "judge", tmp_path / "judge")
    shutil.copy(toybench.MANIFEST, tmp_path)
    with (tmp_path / "judge" / "judge.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"?")
    for module in (toybench, t3bench):
        monkeypatch.setattr(module, "ASSETS", tmp_path)
        monkeypatch.setattr(module, "MANIFEST", tmp_path / "MANIFEST.json")
    monkeypatch.setattr(
        toybench, "load_clip", lambda *_: SimpleNamespace(text=lambda prompts: prompts)
    )
    for load in (
        toybench.judges.__wrapped__,
        lambda: t3bench.grader_of.__wrapped__(t3bench.Protocol(grader="judge")),
    ):
        with pytest.raises(UserError, match="judge.safetensors is damaged or was changed"):
            load()


def test_a_prompt_file_that_never_ends_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "latin.txt").write_bytes(b"a caf\xe9\n")
    for path, reason in (
        (tmp_path / "pipe.txt", "pipe"),
        (Path("/dev/zero"), "more than"),
        (tmp_path / "latin.txt", "decode"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(UserError, match=rf"^cannot read the prompt file [^\n]*{reason}"):
            read_suite(path)

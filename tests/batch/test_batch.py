"""The verb `batch` on tiny runs: one after the other, in processes, in shards, killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_batch import LONG, tiny_settings, words_of
from vp3d.batch.command import BatchOptions, run_batch
from vp3d.batch.publish import LINES, PAGE
from vp3d.cli.main import main
from vp3d.errors import UserError
from vp3d.evaluate.runner import Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models, shared by the tests."""
    return tmp_path_factory.mktemp("batch")


def write_prompts(path: Path, *prompts: str) -> Path:
    """A prompt file."""
    path.write_text("".join(f"{prompt}\n" for prompt in prompts))
    return path


def lines_of(work: Path) -> list[dict[str, Any]]:
    """The lines of batch.jsonl."""
    return [json.loads(line) for line in (work / LINES).read_text().splitlines()]


def meshes(work: Path) -> dict[tuple[str, int], bytes]:
    """Prompt and seed -> the bytes of the GLB."""
    return {
        (line["prompt"], line["seed"]): (work / line["files"]["glb"]).read_bytes()
        for line in lines_of(work)
        if not line["failure"]
    }


def times(work: Path) -> dict[Path, int]:
    """When each record and mesh was written."""
    paths = [*work.glob("results/*.json"), *work.glob("runs/*/*/model.glb")]
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def plain(root: Path) -> Settings:
    """A batch that was made one after the other, with one prompt that always fails."""
    settings = tiny_settings(root, "plain")
    prompts = write_prompts(root / "plain.txt", "a red sphere", LONG, "a blue cube seed=2")
    assert main(words_of(settings, prompts)) == 1
    return settings


def test_a_prompt_that_fails_leaves_the_others_and_one_line(
    root: Path, plain: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(plain.folder)
    assert len(before) == 5  # three records, two meshes
    assert main(words_of(plain, root / "plain.txt")) == 1
    assert times(plain.folder) == before
    out, err = capsys.readouterr()
    assert "2 of 3 assets" in out
    (line,) = [line for line in err.splitlines() if line.startswith("vp3d: very")]
    assert "failed: no mesh, the prompt is too long" in line
    found = lines_of(plain.folder)
    assert [bool(line["failure"]) for line in found] == [False, True, False]
    assert [line["seed"] for line in found] == [0, 0, 2]
    for n in (0, 2):
        (candidate,) = found[n]["candidates"]
        assert candidate["seed"] == found[n]["seed"] and isinstance(candidate["score"], float)


def test_the_page_shows_every_asset_and_its_links_lead_somewhere(plain: Settings) -> None:
    page = (plain.folder / PAGE).read_text()
    assert page.count("<figure") == 3 and page.count("data:image/jpeg") == 2
    links = [part.split('"')[0] for part in page.split('href="')[1:]]
    assert len(links) >= 4 and all((plain.folder / link).is_file() for link in links)


def test_more_candidates_are_added_and_the_best_is_taken(root: Path, plain: Settings) -> None:
    prompts = write_prompts(root / "one.txt", "a red sphere")
    copy = Settings(root / "more", plain.preset, plain.files, plain.overrides, light="")
    shutil.copytree(plain.folder, copy.folder)
    before = times(copy.folder)
    (line,) = run_batch(prompts, copy, BatchOptions(best_of=2))
    assert times(copy.folder).items() > before.items()
    scores = {found["seed"]: found["score"] for found in line["candidates"]}
    assert set(scores) == {0, 1}
    assert scores[line["seed"]] == max(scores.values())
    assert f"seed {line['seed']}" in (copy.folder / PAGE).read_text()


def test_shards_fill_one_folder(root: Path, plain: Settings) -> None:
    settings = tiny_settings(root, "shards")
    prompts = write_prompts(root / "two.txt", "a red sphere", "a blue cube seed=2")
    (first,) = run_batch(prompts, settings, BatchOptions(shard=(0, 2)))
    assert [line["prompt"] for line in lines_of(settings.folder)] == ["a red sphere"]
    (second,) = run_batch(prompts, settings, BatchOptions(shard=(1, 2)))
    assert lines_of(settings.folder) == [first, second]
    wanted = meshes(settings.folder)
    assert wanted.items() <= meshes_of_all_runs(plain).items()


def meshes_of_all_runs(settings: Settings) -> dict[tuple[str, int], bytes]:
    """Prompt and seed -> the bytes of the GLB of every run, chosen or not."""
    found = {}
    for path in settings.folder.glob("results/*.json"):
        record = json.loads(path.read_text())
        if record["source"]:
            mesh = (settings.folder / record["source"] / "model.glb").read_bytes()
            found[(record["prompt"], record["seed"])] = mesh
    return found


def test_sigterm_leaves_the_folder_ready_for_the_same_command(root: Path) -> None:
    settings = tiny_settings(root, "stopped")
    prompts = write_prompts(root / "one.txt", "a red sphere")
    command = [sys.executable, str(ROOT / "launch.py"), *words_of(settings, prompts)]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=root)
    until = time.monotonic() + 200.0
    while not list(settings.folder.glob("runs/*/*/events.jsonl")):
        assert driver.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=100)
    assert driver.returncode == 130 and "Traceback" not in err
    (line,) = run_batch(prompts, settings, BatchOptions())
    assert "<title>Batch" in (settings.folder / PAGE).read_text()
    assert line["failure"] == "" and len(list(settings.folder.glob("runs/*/*"))) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "takes one prompt file"),
        (["p.txt", "q.txt"], "takes one prompt file"),
        (["no.txt"], "there is no prompt file"),
        (["p.txt", "seed=3"], "cannot be set"),
        (["p.txt", "--seeds", "0"], "--seeds takes"),
        (["p.txt", "--best-of", "0"], "--best-of takes"),
        (["p.txt", "--shard", "2/2"], "--shard 2/2"),
        (["p.txt", "--shard", "3/2"], "--shard 3/2"),
        (["p.txt", "--workers", "0"], "--workers takes"),
        (["p.txt", "--gpus", "1"], "without --engine ray"),
        (["p.txt", "--engine", "ray", "--gpus", "1.5"], "or whole GPUs"),
        (["p.txt", "--engine", "ray", "--gpus", "nan"], "from 0 to 64"),
        (["p.txt", "--work", "p.txt"], "p.txt"),
        (["."], "cannot read the prompt file"),
        (["empty.txt"], "has no prompts"),
        (["bell.txt"], "bell.txt, line 2 has the control character"),
        (["half.jsonl"], "half.jsonl, line 1 has the control character"),
        (["seed.txt"], "seed.txt, line 1: seed 9223372036854775807 is above"),
        (["two.txt", "--seeds", "10000", "--best-of", "1000"], "20,000,000 runs"),
        (["twice.txt"], "asked for twice"),
        (["overlap.txt", "--seeds", "2"], "asked for twice"),
    ],
)
def test_a_wrong_request_is_one_line_and_makes_nothing(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "p.txt", "a red sphere")
    write_prompts(tmp_path / "two.txt", "a red sphere", "a blue cube")
    write_prompts(tmp_path / "empty.txt", "# nothing", "")
    write_prompts(tmp_path / "bell.txt", "a red sphere", "a red\acube")
    write_prompts(tmp_path / "half.jsonl", '{"prompt": "a red \\ud800cube"}')
    write_prompts(tmp_path / "seed.txt", "a red sphere seed=9223372036854775807")
    write_prompts(tmp_path / "twice.txt", "a red sphere", "a red sphere")
    write_prompts(tmp_path / "overlap.txt", "a red sphere", "a red sphere seed=1")
    assert main(["batch", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.glob("outputs/*/runs"))


def test_a_folder_of_other_settings_is_refused(root: Path, plain: Settings) -> None:
    other = Settings(plain.folder, plain.preset, plain.files, ("optim.steps=5",), light="")
    with pytest.raises(UserError, match="optim.steps was 4 and is 5 now"):
        run_batch(root / "plain.txt", other, BatchOptions())
    assert list(plain.folder.glob("results/*.json"))

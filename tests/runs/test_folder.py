"""Whole files or none, one folder a run, a log that survives a kill, and one line for every trouble
with the disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from vp3d.checks import changed_weights
from vp3d.config.loader import load_config
from vp3d.config.paths import ROOT
from vp3d.config.schema import Config
from vp3d.errors import DamagedFileError, ResourceError, RunInUseError, UserError
from vp3d.runs.folder import RunFolder, slug
from vp3d.runs.provenance import git_state
from vp3d.system.files import atomic_write, check_output, plain, sha256_file, write_json, write_text
from vp3d.weights.hashes import weight_hashes


@pytest.fixture
def config(tmp_path: Path) -> Config:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "a.safetensors").write_bytes(b"abc")
    overrides = [f"output_dir={tmp_path / 'runs'}", "prompt=A Red  ball, on: a/b!", "seed=3"]
    overrides += [f"prior.path={weights}", "prior.ip_adapter=", "rewards.clip=some/hub-id"]
    return load_config("draft", [], overrides)


def names(folder: Path) -> list[str]:
    """What is in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write_text(path, "old")
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == path.suffix
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(path.parent) == ["x.json"]


def test_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_text(tmp_path / "x.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "x.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "x.txt").read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_a_long_name_still_has_room_for_the_temporary_one(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 250 + ".txt"), "x")
    assert len(names(tmp_path)) == 1


def test_a_killed_writer_never_leaves_half_a_file(tmp_path: Path) -> None:
    """A child rewrites one file with 1 MB of a single letter, over and over, until it is killed."""
    script = (
        "import sys, pathlib, itertools; from vp3d.system.files import write_text\n"
        "for letter in itertools.cycle('ab'):\n"
        "    write_text(pathlib.Path(sys.argv[1]), letter * 1_000_000)"
    )
    path = tmp_path / "x.txt"
    child = subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=ROOT)
    try:
        while not path.exists() and child.poll() is None:
            time.sleep(0.01)
        for _ in range(20):
            text = path.read_text()
            assert len(text) == 1_000_000 and len(set(text)) == 1
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert len(path.read_text()) == 1_000_000


@pytest.mark.parametrize("place", ["/proc/nowhere", "FILE/below"])
def test_unwritable_output_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "FILE").touch()
    place = place.replace("FILE", str(tmp_path / "FILE"))
    with pytest.raises(ResourceError, match=r"^cannot write [^\n]*output_dir=FOLDER$"):
        RunFolder.create(load_config(None, [], ["prompt=x", f"output_dir={place}"]))
    with pytest.raises(
        ResourceError, match=r"^cannot write [^\n]*or choose another folder with --write FILE$"
    ):
        check_output(Path(place), "--write FILE")
    with pytest.raises(
        ResourceError,
        match=r"^cannot write [^\n]*try again; `python launch.py resume RUN` continues a run$",
    ):
        write_text(Path(place) / "x.txt", "x")


@pytest.mark.parametrize("place", ["FILE", "FILE/below", "LINK", "LOOP/below"])
def test_a_file_or_link_where_a_folder_should_be_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "FILE").touch()
    (tmp_path / "LINK").symlink_to(tmp_path / "nowhere")
    (tmp_path / "LOOP").symlink_to("LOOP")
    with pytest.raises(ResourceError, match=r"^cannot write [^\n]*output_dir=FOLDER$") as caught:
        check_output(tmp_path / place)
    words = "symbolic links" if place.startswith("LOOP") else "where a folder should be"
    assert words in str(caught.value)
    assert (tmp_path / "FILE").read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match="No space left on device; free some space"),
        atomic_write(tmp_path / "x") as temporary,
    ):
        temporary.symlink_to("/dev/full")
        temporary.write_text("x" * 100_000)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_in_the_log(config: Config) -> None:
    run = RunFolder.create(config)
    run.events_file.symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="events.jsonl.*free some space"):
        run.event("step", text="x" * 100_000)


def test_create_and_open(config: Config) -> None:
    run = RunFolder.create(config)
    assert run.path.parent == Path(config.output_dir)
    assert run.path.name.endswith("-a-red-ball-on-a-b-s3")
    assert (run.path / "checkpoints").is_dir() and run.visual_prompt.is_dir()
    assert RunFolder.open(run.path).config() == config
    manifest = json.loads((run.path / "provenance.json").read_text())
    assert manifest["versions"]["torch"] == torch.__version__
    assert {"numba", "scipy", "scikit-image", "fast_simplification", "Pillow", "xatlas"} <= set(
        manifest["versions"]
    )
    assert None not in manifest["versions"].values()
    digest = hashlib.sha256(b"abc").hexdigest()
    assert manifest["weights"] == {
        f"{config.prior.path}/a.safetensors": digest,
        "some/hub-id": "not a local folder",
    }
    assert {"python", "platform", "device", "git", "command"} <= set(manifest)


def test_opening_what_is_not_a_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="not a run folder"):
            RunFolder.open(path)


def test_runs_of_the_same_second_get_folders_of_their_own(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    made = [RunFolder.create(config).path.name for _ in range(3)]
    assert made == [f"20260101-000000-a-red-ball-on-a-b-s3{end}" for end in ("", "-2", "-3")]


def test_events_that_are_none_are_left_out(config: Config) -> None:
    run = RunFolder.create(config)
    run.event("step", step=1)
    with run.events_file.open("a") as log:
        log.write(
            '{"time": null, "kind": "step", "step": 3}\n'
            '{"time": 1, "kind": "step", "step": [1]}\n{"kind": "done"}\n'
            '{"time": 1, "kind": "start", "process_started": "\\u0000"}\n'
            '{"time": 1, "kind": "start", "called": [1], "process_started": null}\n'
            '{"time": 1, "kind": "start", "called": 0.5, "process_started": null}\n'
        )
    assert [event["step"] for event in run.events("step")] == [1]
    assert [event["called"] for event in run.events("start")] == [0.5]


def test_a_config_that_was_cut_short_is_not_written_anew(config: Config) -> None:
    run = RunFolder.create(config)
    whole = (run.path / "config.yaml").read_text()
    run.keep_export(replace(config.export, faces=123))
    assert run.config().export.faces == 123
    for cut in ("", whole[: whole.index("export:")]):
        (run.path / "config.yaml").write_text(cut)
        with pytest.raises(UserError, match="config.yaml is damaged, it lacks"):
            run.keep_export(config.export)
        assert (run.path / "config.yaml").read_text() == cut


def test_events_round_trip_in_order(config: Config) -> None:
    run = RunFolder.create(config)
    run.event(
        "step", step=1, loss=torch.tensor(0.5), rewards=np.array([1.0, 2.0]), path=Path("a/b")
    )
    run.event("step", step=np.int64(2), loss=float("nan"), worst=float("-inf"))
    run.event("note", text="two\nlines é")
    first, second = run.events("step")
    assert (first["step"], first["loss"], first["rewards"], first["path"]) == (
        1,
        0.5,
        [1.0, 2.0],
        str(Path("a/b")),
    )
    assert (
        second["step"] == 2
        and math.isnan(float(second["loss"]))
        and float(second["worst"]) == -math.inf
    )
    assert [event["kind"] for event in run.events()] == ["step", "step", "note"]
    assert len(run.events_file.read_text().splitlines()) == 3
    for line in run.events_file.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_log_line_cut_by_a_kill_costs_only_itself(config: Config) -> None:
    run = RunFolder.create(config)
    run.event("step", step=1)
    with run.events_file.open("a") as stream:
        stream.write('{"kind": "step", "st')
    run = RunFolder.open(run.path)
    run.event("step", step=3)
    assert [event["step"] for event in run.events("step")] == [1, 3]


def _try_lock(path: str) -> str:
    try:
        with RunFolder(Path(path)).lock():
            return "free"
    except RunInUseError as error:
        return str(error)


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_lock_keeps_a_second_process_out_until_released(config: Config) -> None:
    run = RunFolder.create(config)
    with get_context("fork").Pool(1) as pool:
        with run.lock():
            assert "in use by another process" in pool.apply(_try_lock, (str(run.path),))
        assert pool.apply(_try_lock, (str(run.path),)) == "free"


def test_json_of_what_runs_hold(tmp_path: Path) -> None:
    @dataclass
    class Point:
        x: float
        path: Path

    write_json(
        tmp_path / "x.json",
        {"point": Point(math.inf, tmp_path), "n": np.float32(0.5), 3: (True, None)},
    )
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "point": {"x": "inf", "path": str(tmp_path)},
        "n": 0.5,
        "3": [True, None],
    }
    assert plain(torch.ones(2, 1)) == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red  Ball!", "a-red-ball"),
        ("../../etc", "etc"),
        ("é/ü", "asset"),
        ("", "asset"),
        ("x" * 99, "x" * 40),
        ("a" * 39 + " b", "a" * 39),
    ],
)
def test_slug(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.safetensors").write_bytes(b"abc")
    (tmp_path / "config.json").write_text("{}")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256_file(tmp_path / "b.safetensors") == empty
    assert list(weight_hashes((str(tmp_path), ""))) == [
        f"{tmp_path}/b.safetensors",
        f"{tmp_path}/sub/a.safetensors",
    ]


def test_weights_that_changed_since_the_run_began_are_named(config: Config) -> None:
    folder = Path(config.prior.path)
    run = RunFolder.create(config)
    assert changed_weights(run, config) == ""
    (folder / "a.safetensors").write_bytes(b"abd")
    assert changed_weights(run, config) == f"{folder}/a.safetensors"
    (folder / "a.safetensors").write_bytes(b"abc")
    (folder / "b.safetensors").write_bytes(b"more")
    assert changed_weights(run, config) == f"{folder}/b.safetensors"
    for path in folder.iterdir():
        path.unlink()
    assert changed_weights(run, config) == f"{folder}/a.safetensors"


def test_a_prior_that_has_drawn_may_change(config: Config) -> None:
    drawing = Path(config.prior.path).parent / "drawing"
    drawing.mkdir()
    (drawing / "d.safetensors").write_bytes(b"1")
    config.visual_prompt.prior.path = str(drawing)
    run = RunFolder.create(config)
    (drawing / "d.safetensors").unlink()
    assert changed_weights(run, config) == f"{drawing}/d.safetensors"
    write_json(run.visual_prompt / "scores.json", {})
    assert changed_weights(run, config) == ""


def test_a_lost_manifest_is_one_line(config: Config) -> None:
    run = RunFolder.create(config)
    (run.path / "provenance.json").write_text("{}")
    with pytest.raises(
        UserError,
        match=r"^[^\n]*provenance.json is missing or damaged \(KeyError\)[^\n]*launch.py export",
    ):
        changed_weights(run, config)


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git = [
        "git",
        "-C",
        str(tmp_path),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "core.hooksPath=",
    ]
    (tmp_path / "f").write_text("1")
    for words in (["init", "-q"], ["add", "f"], ["commit", "-q", "--no-verify", "-m", "x"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    state = git_state(tmp_path)
    assert state is not None and len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "f").write_text("2")
    assert git_state(tmp_path) == state | {"dirty": True}
    assert git_state(tmp_path / "missing") is None


def test_a_name_that_is_not_utf8_is_written_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "caf\udce9.png")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "caf\\udce9.png"


def test_a_hub_id_is_compared_by_its_commit(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    config.guidance.debias = "owner/name"
    old = RunFolder.create(config)  # as in version 0.1.0: no commit is known
    assert old.recorded_weights()["owner/name"] == "not a local folder"
    refs = tmp_path / "hub" / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("1" * 40)
    run = RunFolder.create(config)
    assert run.recorded_weights()["owner/name"] == f"commit {'1' * 40}"
    assert changed_weights(run, config) == changed_weights(old, config) == ""
    (refs / "main").write_text("2" * 40)
    assert changed_weights(run, config) == "owner/name"
    assert changed_weights(old, config) == ""


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "[]", '{"weights": 1}', '{"weights": {}, "weights": {}}']
)
def test_a_damaged_record_of_weights_is_one_line(text: str, config: Config) -> None:
    run = RunFolder.create(config)
    (run.path / "provenance.json").write_text(text)
    with pytest.raises(DamagedFileError, match="missing or damaged") as caught:
        run.recorded_weights()
    assert "\n" not in str(caught.value)


def test_a_deep_line_of_the_log_costs_only_itself(config: Config) -> None:
    run = RunFolder.create(config)
    run.event("a")
    with run.events_file.open("a") as stream:
        stream.write("[" * 200_000 + "\n" + '{"kind": "x", "time": 1, "v": ' + "[" * 999 + "\n")
    run.event("b")
    assert [event["kind"] for event in run.events()] == ["a", "b"]

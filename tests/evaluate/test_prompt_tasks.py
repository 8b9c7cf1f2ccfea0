"""Names, keys and older results of prompt files: no two prompts share a record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vp3d.errors import UserError
from vp3d.evaluate import gallery, t3bench
from vp3d.evaluate.prompt_tasks import adopt_former, set_names
from vp3d.evaluate.runner import Settings, Task, read_record, run_tasks

LONG = "a very long prompt about a small red fox that sits"  # longer than a name keeps


def write(path: Path, *prompts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    return path


def judge(settings: Settings, task: Task) -> dict:
    """A record that says whose it is."""
    head = {"set": task.group, "prompt": task.prompt, "seed": task.seed}
    return head | {"failure": "", "reason": "", "source": "x", "figures": {"length": len(task.key)}}


def as_found(tasks: list[Task]) -> list[Task]:
    """The tasks as those of an existing mesh, so that no model is loaded."""
    return [Task(t.group, t.prompt, t.seed, t.key, "x.glb", former_key=t.former_key) for t in tasks]


def test_files_of_one_name_with_prompts_of_one_beginning_keep_their_own_records(
    tmp_path: Path,
) -> None:
    files = [
        write(tmp_path / "a" / "prompt_single.txt", f"{LONG} on a blue chair"),
        write(tmp_path / "b" / "prompt_single.txt", f"{LONG} on a green table"),
    ]
    tasks = as_found(t3bench.prompt_tasks(files, 1))
    assert tasks[0].former_key == tasks[1].former_key, "which is what went wrong"
    assert [task.group for task in tasks] == ["a/prompt_single", "b/prompt_single"]
    settings = Settings(tmp_path / "work")
    for _ in range(2):
        records = run_tasks(tasks, settings, judge)
        assert [record["prompt"] for record in records] == [task.prompt for task in tasks]
    assert len(list((settings.folder / "results").iterdir())) == 2


PAIRS = {
    "the same start": (f"{LONG} here", f"{LONG} there"),
    "punctuation": ("a red fox!", "a red fox?"),
    "case": ("A red fox", "a red fox"),
    "accents": ("a café", "a caf"),
    "other letters": ("狐", "猫"),
    "the same prompt": ("a fox", "a fox"),
    "commas": ("a fox, red", "a fox red"),
    "no letters": ("!!!", "???"),
    "spaces": ("a  red fox", "a red fox"),
    "a trailing dash": ("a fox -", "a fox"),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_no_two_tasks_have_one_key(tmp_path: Path, kind: str) -> None:
    one, other = PAIRS[kind]
    files = [write(tmp_path / "a" / "p.txt", one), write(tmp_path / "b" / "p.txt", other)]
    keys = [task.key for task in t3bench.prompt_tasks(files, 3)]
    assert len(set(keys)) == 6
    within = t3bench.prompt_tasks([write(tmp_path / "c" / "p.txt", one, other)], 3)
    assert len({task.key for task in within}) == 6
    assert all(len(key) < 120 and "/" not in key and key.isascii() for key in keys)


def test_names_are_as_short_as_they_can_be() -> None:
    def names(*paths: str) -> list[str]:
        return set_names([Path(path) for path in paths])

    assert names("/a/single.txt", "/a/style.txt") == ["single", "style"]
    assert names("/a/p.txt", "/b/p.txt", "/b/q.txt") == ["a/p", "b/p", "q"]
    assert names("/a/p.txt", "/a/p.md") == ["p.txt", "p.md"]
    assert names("/x/a/p.txt", "/y/a/p.txt") == ["x/a/p.txt", "y/a/p.txt"]
    assert names("/p.txt", "/a/p.txt") == ["//p", "a/p"]
    several = names("/a/p.txt", "/a/p.md", "/a/p.txt.txt", "/b/a/p.txt", "/p.txt")
    assert len(set(several)) == 5


@pytest.mark.parametrize("again", ["p.txt", "../work/p.txt", "./p.txt"])
def test_a_file_that_is_given_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    folder = tmp_path / "work"
    file = write(folder / "p.txt", "a red cube")
    monkeypatch.chdir(folder)
    for suite in (t3bench.prompt_tasks, lambda files, seeds: gallery.suite_tasks(files, 1, seeds)):
        with pytest.raises(UserError, match="is given twice"):
            suite([file, folder / again], 1)


def test_equal_keys_of_any_suite_are_refused(tmp_path: Path) -> None:
    tasks = [Task("s", "a red cube", 0, "key", "x.glb"), Task("t", "a cone", 0, "key", "y.glb")]
    with pytest.raises(UserError, match=r"s: 'a red cube'.*would share the result key"):
        run_tasks(tasks, Settings(tmp_path), judge)


def test_results_of_an_older_version_are_recognised(tmp_path: Path) -> None:
    file = write(tmp_path / "v1.5 set.txt", "a red cube", "a blue cone")
    tasks, settings = t3bench.prompt_tasks([file], 1), Settings(tmp_path / "work")
    results = settings.folder / "results"
    results.mkdir(parents=True)
    (settings.folder / "runs" / tasks[0].former_key).mkdir(parents=True)
    old = judge(settings, tasks[0]) | {"set": "v1.5 set"}
    (results / f"{tasks[0].former_key}.json").write_text(json.dumps(old))
    (results / f"{tasks[0].former_key}.png").write_bytes(b"picture")
    other = judge(settings, tasks[1]) | {"prompt": "a blue cone, another one"}
    (results / f"{tasks[1].former_key}.json").write_text(json.dumps(other))
    assert tasks[0].former_key == "v1.5 set-01-a-red-cube-s0"
    adopt_former(settings, tasks)
    assert read_record(settings, tasks[0]) == old
    assert settings.result(tasks[0]).with_suffix(".png").read_bytes() == b"picture"
    assert settings.runs(tasks[0]).name == tasks[0].former_key, "its runs stay where they are"
    assert read_record(settings, tasks[1]) is None, "the record of another prompt"
    assert settings.runs(tasks[1]).name == tasks[1].key
    adopt_former(settings, tasks)
    assert len(list(results.iterdir())) == 3


def test_a_shared_older_record_goes_to_the_prompt_that_it_is_of(tmp_path: Path) -> None:
    files = [write(tmp_path / name / "p.txt", f"{LONG} {name}") for name in ("first", "second")]
    tasks, settings = t3bench.prompt_tasks(files, 1), Settings(tmp_path / "work")
    path = settings.folder / "results" / f"{tasks[0].former_key}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(judge(settings, tasks[1]) | {"set": "p"}))
    adopt_former(settings, tasks)
    assert read_record(settings, tasks[0]) is None
    found = read_record(settings, tasks[1])
    assert found is not None and found["set"] == "second/p"

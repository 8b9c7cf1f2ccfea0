"""Prompt files, seeds, shards, the choice among candidates, and assets that kill their process."""

from __future__ import annotations

import json
import os
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from vp3d.batch.assets import (
    Asset,
    assets_of,
    choose,
    parse_shard,
    read_line,
    read_prompts,
    shard_of,
)
from vp3d.batch.attempts import MOST_KILLS, NOTE, KilledTooOftenError, noted_attempt
from vp3d.batch.publish import LINES, append_line
from vp3d.errors import UserError
from vp3d.evaluate.prompt_file import SuitePrompt


def test_both_kinds_of_prompt_file_say_the_same(tmp_path: Path) -> None:
    text, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_text("a red cube  # first\n\na blue mug seed=7\n")
    lines.write_text('{"prompt": "a red cube"}\n\n{"seed": 7, "prompt": "a blue mug"}\n')
    wanted = [SuitePrompt("a red cube", 0), SuitePrompt("a blue mug", 7)]
    assert read_prompts(text) == read_prompts(lines) == wanted


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ('["a red cube"]', "not an object"),
        ('{"seed": 3}', "no prompt"),
        ('{"prompt": "  "}', "no prompt"),
        ('{"prompt": "a", "seed": -1}', "whole number"),
        ('{"prompt": "a", "seed": true}', "whole number"),
        ('{"prompt": "a", "seed": 1.5}', "whole number"),
        (f'{{"prompt": "a", "seed": {2**62 + 1}}}', "is above 4611686018427387904"),
        ('{"prompt": "a", "image": "x.png"}', "'image' is not read"),
        ('{"prompt": "a", "prompt": "b"}', "line 2"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_line(line, "p.jsonl, line 2")
    assert str(caught.value).startswith("p.jsonl, line 2")


def test_a_byte_order_mark_and_unusual_line_ends_are_no_part_of_a_prompt(tmp_path: Path) -> None:
    for name, text in (("p.txt", "a red cube\r\n"), ("p.jsonl", '{"prompt": "a red cube"}\r\n')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert read_prompts(tmp_path / name) == [SuitePrompt("a red cube", 0)]


def test_a_missing_empty_or_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, message in (("no", "there is no"), ("empty", "no prompts"), ("binary", "UTF-8")):
        with pytest.raises(UserError, match=message):
            read_prompts(tmp_path / f"{name}.jsonl")


@pytest.mark.parametrize(("count", "shards"), [(0, 1), (1, 4), (10, 4), (24, 24), (7, 3)])
def test_shards_are_disjoint_and_together_the_whole(count: int, shards: int) -> None:
    every = assets_of([SuitePrompt("a red cube", n) for n in range(count)], 1, 2)
    parts = [shard_of(every, index, shards) for index in range(shards)]
    keys = [task.key for part in parts for asset in part for task in asset.candidates]
    assert sorted(keys) == sorted(t.key for a in every for t in a.candidates)
    assert len(set(keys)) == 2 * count or count > 1  # seeds of the lines overlap
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "1", "4/4", "-1/4", "0/0", "a/b", "0/4/2", "0.5/2", "²/4"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--shard"):
        parse_shard(text)


def test_more_candidates_keep_those_that_exist_and_lines_may_move() -> None:
    few = assets_of([SuitePrompt("a cube", 5), SuitePrompt("a mug", 0)], 2, 1)
    many = assets_of([SuitePrompt("a mug", 0), SuitePrompt("a cube", 5)], 2, 3)
    keys = {task.key for asset in many for task in asset.candidates}
    assert {task.key for asset in few for task in asset.candidates} < keys and len(keys) == 12
    assert [t.seed for t in many[2].candidates] == [5, 7, 9]
    assert [t.seed for t in many[3].candidates] == [6, 8, 10]


def records_of(asset: Asset, *scores: float | None) -> dict[str, dict[str, Any]]:
    """A record for each of the first candidates; None is a failure."""
    return {
        task.key: {
            "seed": task.seed,
            "failure": "empty" if score is None else "",
            "figures": {} if score is None else {"score": score},
        }
        for task, score in zip(asset.candidates, scores, strict=False)
    }


def test_the_highest_score_is_chosen_among_those_that_did_not_fail() -> None:
    (asset,) = assets_of([SuitePrompt("a cube", 0)], 1, 3)

    def chosen(*scores: float | None) -> object:
        found = choose(asset, records_of(asset, *scores))
        return None if found is None else (found["seed"], found["failure"])

    assert chosen(0.1, 0.3, 0.2) == (1, "")
    assert chosen(None, -0.5, None) == (1, "")
    assert chosen(0.2, 0.2, 0.1) == (0, "")
    assert chosen(None, None, None) == (0, "empty")
    assert chosen(0.1, 0.3) is None


def test_a_line_that_a_kill_cut_off_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    append_line(tmp_path, {"n": 1})
    with (tmp_path / LINES).open("a") as stream:
        stream.write('{"n": 2')
    append_line(tmp_path, {"n": 3})
    lines = (tmp_path / LINES).read_text().splitlines()
    assert [lines[0], lines[2]] == [json.dumps({"n": 1}), json.dumps({"n": 3})]


def killed_attempt(work: str) -> None:
    """An attempt whose process is killed."""
    with noted_attempt(Path(work)):
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_asset_that_kills_its_process_is_given_up_unless_it_gets_further(tmp_path: Path) -> None:
    def kill(times: int) -> None:
        for _ in range(times):
            process = get_context("fork").Process(target=killed_attempt, args=(str(tmp_path),))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL

    kill(MOST_KILLS - 1)
    checkpoint = tmp_path / "run" / "checkpoints" / "coarse" / "000050.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    kill(MOST_KILLS)
    with pytest.raises(KilledTooOftenError, match=f"killed {MOST_KILLS} times in a row"):
        noted_attempt(tmp_path).__enter__()
    (tmp_path / NOTE).unlink()
    with pytest.raises(ValueError, match="an ordinary error"), noted_attempt(tmp_path):
        raise ValueError("an ordinary error")
    assert not (tmp_path / NOTE).exists()

"""A prompt file as assets to make, each with one candidate or several, and shards of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vp3d.errors import UserError
from vp3d.evaluate.prompt_file import (
    SuitePrompt,
    prompt_of_line,
    read_prompt_text,
    read_suite,
)
from vp3d.evaluate.prompt_tasks import hash_of
from vp3d.evaluate.runner import Task
from vp3d.jobs.best_of import highest
from vp3d.prompts import check_text
from vp3d.runs.folder import slug
from vp3d.system.files import JsonError, parse_json

GROUP = "batch"  # the prompt set of every task
KEYS = {"prompt", "seed"}  # of a line of a .jsonl file


@dataclass(frozen=True)
class Asset:
    """One asset of a batch: the candidates it is chosen from, one in most batches."""

    prompt: str
    candidates: tuple[Task, ...]


def read_prompts(path: Path) -> list[SuitePrompt]:
    """The prompts of a file: `.jsonl` with an object a line, else one prompt a line.

    Raises:
        UserError: the file does not exist, is not UTF-8 text, or a line is wrong (the message
            gives its number).
    """
    found = read_suite(path) if path.suffix.lower() != ".jsonl" else read_lines(path)
    for entry in found:
        check_text(entry.prompt, f"prompt of {path}, line {entry.line}")
    return found


def read_lines(path: Path) -> list[SuitePrompt]:
    """The prompts of a `.jsonl` file."""
    lines = read_prompt_text(path).split("\n")  # not at a U+2028, which JSON allows in a text
    found = [
        read_line(line, f"{path}, line {number}", number)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise UserError(f'{path} has no prompts; write one a line: {{"prompt": "a red sphere"}}')
    return found


def read_line(text: str, where: str, number: int = 0) -> SuitePrompt:
    """The prompt of one line of a `.jsonl` file; `where` is how messages call the line.

    Example:
        >>> read_line('{"prompt": "a red cube", "seed": 7}', "line 1")
        SuitePrompt(prompt='a red cube', seed=7, line=0)
    """
    try:
        found = parse_json(text, unique_keys=True)
    except JsonError as error:
        raise UserError(f"{where}: {error.reason}") from error
    if not isinstance(found, dict):
        raise UserError(f'{where}: not an object; write {{"prompt": "a red sphere", "seed": 3}}')
    unknown = sorted(found.keys() - KEYS)
    if unknown:
        raise UserError(f"{where}: '{unknown[0]}' is not read; a line has a prompt and a seed")
    prompt, seed = found.get("prompt"), found.get("seed", 0)
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f'{where}: there is no prompt; add a text as "prompt"')
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"{where}: seed {seed!r} is not a whole number >= 0")
    return prompt_of_line(prompt, seed, where, number)


def assets_of(prompts: Sequence[SuitePrompt], seeds: int, best_of: int) -> list[Asset]:
    """The assets of a batch: `seeds` for each prompt, each with `best_of` candidates.

    Asset m of a prompt with the seed s has the seeds s + m, s + m + seeds, s + m + 2 seeds, ...:
    a larger `best_of` adds candidates to those that exist. The key of a run depends on its prompt
    and seed alone, so lines can be added to the file or moved later.
    """
    found = []
    for entry in prompts:
        for first in range(entry.seed, entry.seed + seeds):
            own = range(first, first + seeds * best_of, seeds)
            tasks = (Task(GROUP, entry.prompt, s, key_of(entry.prompt, s)) for s in own)
            found.append(Asset(entry.prompt, tuple(tasks)))
    return found


def key_of(prompt: str, seed: int) -> str:
    """The name of the files of a run: readable, with a hash because long prompts are cut."""
    return f"{slug(prompt)}-s{seed}-{hash_of(GROUP, prompt, seed)}"


def shard_of(assets: Sequence[Asset], index: int, count: int) -> list[Asset]:
    """Every `count`-th asset from `index` on: the shards are disjoint and together the whole."""
    return list(assets[index::count])


def parse_shard(text: str) -> tuple[int, int]:
    """The two numbers of `--shard i/n`.

    Example:
        >>> parse_shard("0/4")
        (0, 4)
    """
    index, _, count = text.partition("/")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in (index, count)):
        raise UserError(f"--shard {text}: give two numbers such as 0/4, the first of four shards")
    if not int(index) < int(count):
        raise UserError(
            f"--shard {text}: the first number is below the second; {count} shards are numbered "
            f"0/{count} to {max(int(count) - 1, 0)}/{count}"
        )
    return int(index), int(count)


def choose(asset: Asset, records: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The record of the asset's best candidate: the highest score, the first of equal ones.

    Args:
        asset: the asset.
        records: key -> record of the candidates that are finished.

    Returns:
        A failed record if every candidate failed; None if one is not finished yet.
    """
    found = [records.get(task.key) for task in asset.candidates]
    finished = [record for record in found if record is not None]
    if len(finished) < len(found):
        return None
    return dict(highest(finished) or finished[0])

"""Prompt files: one prompt a line, as the suites of `launch.py evaluate` read them.

A prompt may be followed by `seed=N`; `#` starts a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vp3d.config.text_file import read_text
from vp3d.errors import UserError

SEED = re.compile(r"\s+seed=(\S+)\s*$")
HIGHEST_SEED = 2**62  # of a line; --seeds and --best-of add to it, below LAST_SEED
MOST_BYTES = 50_000_000  # of a prompt file
DIGITS = 100  # of a seed, leading zeros included; more are not read


@dataclass(frozen=True)
class SuitePrompt:
    """A prompt, its seed, and its line number in the file (not compared)."""

    prompt: str
    seed: int = 0
    line: int = field(default=0, compare=False)


def parse_suite(text: str, name: str = "the suite") -> list[SuitePrompt]:
    """The prompts in `text`, in order.

    Raises:
        UserError: a line has a wrong seed or no prompt (the message gives its number), or there
            is no prompt at all. `name` is how the message calls the text.

    Example:
        >>> parse_suite("a red cube seed=7  # first")
        [SuitePrompt(prompt='a red cube', seed=7, line=1)]
    """
    prompts = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#")[0].strip()
        found = SEED.search(f" {line}")
        where = f"{name}, line {number}"
        if found and not found[1].isdecimal():
            raise UserError(f"{where}: seed={found[1]} is not a whole number >= 0")
        prompt = SEED.sub("", f" {line}").strip()
        if found and not prompt:
            raise UserError(f"{where}: there is a seed but no prompt; add a prompt")
        if prompt:
            prompts.append(prompt_of_line(prompt, found[1] if found else 0, where, number))
    if not prompts:
        raise UserError(f"{name} has no prompts; write one a line, like `a red sphere seed=3`")
    return prompts


def prompt_of_line(prompt: str, seed: int | str, where: str, number: int) -> SuitePrompt:
    """The prompt of one line of a file of any kind.

    Args:
        prompt: the prompt.
        seed: a whole number >= 0, or its digits.
        where: how messages call the line.
        number: the number of the line.

    Raises:
        UserError: the seed is above `HIGHEST_SEED`.
    """
    digits = str(seed)
    if len(digits) > DIGITS or int(digits) > HIGHEST_SEED:
        raise UserError(f"{where}: seed {digits[:40]} is above {HIGHEST_SEED}")
    return SuitePrompt(prompt, int(digits), number)


def read_suite(path: Path) -> list[SuitePrompt]:
    """`parse_suite` of a file.

    Raises:
        UserError: the file does not exist, is not UTF-8 text, or `parse_suite` refuses it.
    """
    return parse_suite(read_prompt_text(path), str(path))


def with_seeds(entries: Iterable[SuitePrompt], seeds: int) -> Iterator[tuple[int, str, int]]:
    """The number from 1 on, prompt and seed of each run: its own seed and those after it.

    Args:
        entries: the prompts.
        seeds: how many seeds each prompt has.
    """
    for number, entry in enumerate(entries, 1):
        for seed in range(entry.seed, entry.seed + seeds):
            yield number, entry.prompt, seed


def read_prompt_text(path: Path) -> str:
    """The text of a prompt file of any kind; UserError if it is missing or not UTF-8."""
    try:
        return read_text(path, MOST_BYTES, "utf-8-sig")  # some editors write a byte order mark
    except FileNotFoundError as error:
        raise UserError(f"there is no prompt file {path}; check the path") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"cannot read the prompt file {path} ({reason}); it must be a UTF-8 text file"
        ) from error

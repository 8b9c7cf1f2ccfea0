"""Files of prompts, one prompt a line, as the suites of `launch.py evaluate` read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vp3d.errors import UserError
from vp3d.metrics.attributes import _SEED


@dataclass(frozen=True)
class SuitePrompt:
    """One line of a suite, and its number in the file."""

    prompt: str
    seed: int = 0
    line: int = field(default=0, compare=False)


def parse_suite(text: str, name: str = "the suite") -> list[SuitePrompt]:
    """The prompts of a suite's text; UserError names the line that is wrong."""
    prompts = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#")[0].strip()
        found = _SEED.search(f" {line}")
        if found and not found[1].isdecimal():
            raise UserError(f"{name}, line {number}: seed={found[1]} is not a whole number >= 0")
        prompt = _SEED.sub("", f" {line}").strip()
        if found and not prompt:
            raise UserError(f"{name}, line {number}: there is a seed but no prompt")
        if prompt:
            prompts.append(SuitePrompt(prompt, int(found[1]) if found else 0, number))
    if not prompts:
        raise UserError(f"{name} holds no prompts; write one a line, like `a red sphere seed=3`")
    return prompts


def read_suite(path: Path) -> list[SuitePrompt]:
    """`parse_suite` of a file."""
    try:
        return parse_suite(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise UserError(f"there is no prompt file {path}; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the prompt file {path} ({error}); it must be a UTF-8 text file"
        ) from error

"""Settings that were written with blanks: `optim.steps = 100` instead of `optim.steps=100`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields

from vp3d.config.schema import Config
from vp3d.errors import UserError

THREESTUDIO_GROUPS = ("data", "system", "trainer")
GROUPS = {field.name for field in fields(Config)}.union(THREESTUDIO_GROUPS)
DOTTED_KEY = re.compile(r"[a-z]\w*(?:\.[a-z]\w*)+")
KEY = re.compile(r"[A-Za-z_][\w.]*")


def check_assignments(words: Sequence[str]) -> None:
    """Refuse words that are pieces of one setting; the message shows the setting in one word.

    Args:
        words: the words of a command line that belong to no option, in their order.

    Raises:
        UserError: for `key = value`, `key= value`, `key =value`, `key: value` and `key value`.

    Example:
        >>> check_assignments(["a red cube", "optim.steps=100"])
        >>> check_assignments(["optim.steps", "=", "100"])
        Traceback (most recent call last):
        vp3d.errors.UserError: a setting is one word of the form key=value: write optim.steps=100
    """
    for index in range(len(words)):
        key = _key_of(words, index)
        if key is None:
            continue
        rest = [part.lstrip("=") for part in words[index + 1 :]]
        value = next((part for part in rest if part), "VALUE")
        quoted = f'"{value}"' if " " in value else value
        raise UserError(f"a setting is one word of the form key=value: write {key}={quoted}")
    if any(word.startswith("=") for word in words):
        raise UserError("a setting is one word of the form key=value: write optim.steps=100")


def _key_of(words: Sequence[str], index: int) -> str | None:
    """The key of a setting in pieces that starts at a word; None if none does."""
    word, following = words[index], [*words[index + 1 :], ""][0]
    if KEY.fullmatch(word) and following.startswith("="):
        return word
    key = word.rstrip(":=")
    if key.partition(".")[0] not in GROUPS:  # a file name, such as prompts.txt
        return None
    if not DOTTED_KEY.fullmatch(key) or not following or KEY.match(following) and "=" in following:
        return None
    others = [other for at, other in enumerate(words) if at != index and "=" not in other]
    has_prompt = any(" " in other for other in others)
    is_cut = word != key or len(others) > 1 or not has_prompt
    return key if is_cut and " " not in following else None

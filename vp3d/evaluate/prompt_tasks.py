"""Tasks of prompt files: names of their sets, keys of their results, and results of older versions.

A key is a readable name and a hash of set, whole prompt and seed, because the readable part is
shortened and two prompts may share it. Older versions had no hash in it: `adopt_former` renames
their results, as far as they are those of the same prompt and seed.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from vp3d.errors import UserError
from vp3d.evaluate.prompt_file import SuitePrompt
from vp3d.evaluate.runner import Settings, Task, key_of, read_record
from vp3d.runs.folder import slug
from vp3d.system.files import write_json

HASH_LETTERS = 10  # of SHA-256, in hexadecimal


def file_tasks(prompts: Mapping[Path, Sequence[tuple[int, SuitePrompt]]], seeds: int) -> list[Task]:
    """A task for each prompt of each file and each of `seeds` seeds from its own on.

    Args:
        prompts: file -> its prompts, each with its number in the file.
        seeds: seeds for each prompt.

    Returns:
        The tasks, file by file.
    """
    found = []
    names = set_names(list(prompts))
    for (file, numbered), name in zip(prompts.items(), names, strict=True):
        for number, entry in numbered:
            for seed in range(entry.seed, entry.seed + seeds):
                own = key_of(number, entry.prompt, seed)
                key = f"{slug(name)}-{own}-{hash_of(name, entry.prompt, seed)}"
                former = f"{file.stem}-{own}"
                found.append(Task(name, entry.prompt, seed, key, former_key=former))
    return found


def hash_of(name: str, prompt: str, seed: int) -> str:
    """A short hash of the set's name, the whole prompt and the seed."""
    text = "\0".join((name, prompt, str(seed)))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:HASH_LETTERS]


def set_names(files: Sequence[Path]) -> list[str]:
    """A name for each prompt file: its stem, with folders or suffix where that is not unique.

    Raises:
        UserError: a file is given twice.

    Example:
        >>> set_names([Path("/a/single.txt"), Path("/b/single.txt"), Path("/b/style.txt")])
        ['a/single', 'b/single', 'style']
    """
    paths = [file.resolve() for file in files]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UserError(f"the prompt file {files[i]} is given twice; leave one out")
    names = [_shortest(path, paths) for path in paths]
    return names if len(set(names)) == len(names) else [path.as_posix() for path in paths]


def _shortest(path: Path, paths: Sequence[Path]) -> str:
    """The first of a file's names that no other file has."""

    def forms(of: Path) -> list[str]:
        folders = of.parent.parts
        parents = ["/".join([*folders[len(folders) - n :], of.name]) for n in range(len(folders))]
        return [of.stem, "/".join([*folders[-1:], of.stem]), *parents]

    for n, form in enumerate(forms(path)):
        if sum(form in forms(other)[n : n + 1] for other in paths) == 1:
            return form
    return path.as_posix()


def adopt_former(settings: Settings, tasks: Sequence[Task]) -> None:
    """Gives results of older versions their new names, if they are those of a task.

    A record that two tasks could have shared belongs to the one with its prompt and seed. Runs stay
    where they are (`Settings.runs`).
    """
    for task in tasks:
        if not task.former_key or settings.result(task).exists():
            continue
        former = dataclasses.replace(task, key=task.former_key)
        record = read_record(settings, former)
        if record is None:
            continue
        old, new = settings.result(former), settings.result(task)
        for path in old.parent.glob(f"{glob.escape(task.former_key)}.*"):
            if path != old:
                path.rename(new.with_name(f"{new.stem}{path.suffix}"))
        write_json(new, record | {"set": task.group})
        old.unlink()

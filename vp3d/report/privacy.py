"""Take the folders of the user's machine out of a report, which is passed on to others.

A path becomes the name of its file, and a folder of the user becomes "...". Names below VP3D's own
folder, hub ids and names of the catalogue stay, because a reader needs them to repeat the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from vp3d.config.paths import expand
from vp3d.config.reader import Dumper
from vp3d.config.schema import Config

DEFAULT_OUTPUT = Config().output_dir
HIDDEN = "..."
SENTENCES = ("prompt", "negative_prompt")  # settings and data that are no path
OUTSIDE = re.compile(r"[~/\\]|[A-Za-z]:[\\/]|\.\.?(?:[\\/]|$)")  # how a path outside VP3D starts
SEPARATORS = re.compile(r"[\\/]+")
# An absolute path with at least two parts inside a sentence; the last part is its name.
PATH = re.compile(
    r"""(?<![\w/.:~\\])(?:~|[A-Za-z]:)?[\\/](?:[^\s/\\'":;,()]+[\\/])+([^\s/\\'":;,()]*)"""
)


def public_settings(tree: Mapping[str, Any]) -> str:
    """The YAML of a run's settings, with names for the paths of the user.

    Args:
        tree: nested settings, as in config.yaml.
    """
    return yaml.dump(_public(tree), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def personal_folders(run_dir: Path, image: str, output_dir: str) -> list[Path]:
    """Folders of the user that a message may name: of runs and picture, the home, the current one.

    Args:
        run_dir: the run folder.
        image: the path of the picture; may be empty.
        output_dir: the folder of all runs.
    """
    picture = expand(image).absolute().parent
    return [run_dir.absolute().parent, picture, expand(output_dir), expand("~"), Path.cwd()]


def public_events(
    events: Iterable[Mapping[str, Any]], folders: Iterable[Path]
) -> list[dict[str, Any]]:
    """The events of a run with names for the paths in their texts.

    Args:
        events: the lines of events.jsonl.
        folders: folders that may have blanks in their names; they are taken out as they are.
    """
    absolute = {str(path) for path in folders if len(path.parts) > 1 and path.is_absolute()}
    known = sorted(absolute, key=len, reverse=True)
    return [
        {
            name: value if name in SENTENCES else _without_paths(value, known)
            for name, value in event.items()
        }
        for event in events
    ]


def file_name(path: str) -> str:
    """The last part of a path of any system; the path itself if it has no name.

    Example:
        >>> file_name("/home/ann/my pictures/mug.png"), file_name("outputs")
        ('mug.png', 'outputs')
    """
    return SEPARATORS.split(path.rstrip("\\/"))[-1] or path


def _public(tree: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found[key] = _public(value)
        elif isinstance(value, str) and key not in SENTENCES:
            found[key] = file_name(value) if key == "image" or OUTSIDE.match(value) else value
            if key == "output_dir" and value != DEFAULT_OUTPUT:
                found[key] = HIDDEN
        else:
            found[key] = value
    return found


def _without_paths(value: Any, folders: list[str]) -> Any:
    """`value` with the known folders and other absolute paths replaced in every text in it."""
    if isinstance(value, Mapping):
        return {name: _without_paths(part, folders) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part, folders) for part in value]
    if not isinstance(value, str):
        return value
    for folder in folders:
        value = re.sub(rf"{re.escape(folder)}(?![\w.-])", HIDDEN, value.replace(f"{folder}/", ""))
    return PATH.sub(lambda match: match[1] or HIDDEN, value)

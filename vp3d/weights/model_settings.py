"""Checks of the `config.json` of a model, before a library builds a network from it.

A file of a few numbers can ask for a network that no machine holds, for code of the hub, or for the
files of another repository. VP3D reads none of that out of a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

MAX_LAYERS = 64  # of a network; the largest of the catalogue has 48
MAX_SIZE = 1_000_000  # any other whole number: widths, vocabularies, pixels
MAX_LIST = 64  # blocks of a network
MAX_DEPTH = 6  # of groups in groups
IMPLEMENTATIONS = (None, "eager", "sdpa")  # of attention, in transformers itself


def check_model_settings(settings: Any, depth: int = 0) -> None:
    """Refuse settings that no published model has.

    Args:
        settings: The content of a `config.json`.
        depth: Of the group of settings in the file.

    Raises:
        ValueError: They are not an object, name code of the hub, or a number in them is too large.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"its config.json contains a {type(settings).__name__}, not an object")
    if depth > MAX_DEPTH:
        raise ValueError("its config.json is nested too deeply")
    for name, value in settings.items():
        if str(name).endswith("_implementation") and value not in IMPLEMENTATIONS:
            raise ValueError(f"its config.json asks for {name} {str(value)[:60]!r}")
        limit = MAX_LAYERS if "layers" in str(name) else MAX_SIZE
        items = _flat(value)
        if isinstance(value, list | tuple) and len(items) > MAX_LIST:
            raise ValueError(f"its config.json has {len(items)} values for {name}")
        for item in items:
            if isinstance(item, Mapping):
                check_model_settings(item, depth + 1)
            elif isinstance(item, int | float) and not abs(item) <= limit:
                raise ValueError(f"its config.json has {str(item)[:20]} for {name}")


def _flat(value: Any) -> list[Any]:
    """The values in a list of lists, or the one value."""
    if not isinstance(value, list | tuple):
        return [value]
    return [item for part in value for item in (part if isinstance(part, list) else [part])]


@contextmanager
def offline(local: bool = True) -> Iterator[None]:
    """Let the loaders ask nobody while the files of a local folder are read.

    `local_files_only` is not enough: it is not passed on everywhere.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or local
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before

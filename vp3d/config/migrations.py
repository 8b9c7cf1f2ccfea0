"""Bring a `config.yaml` of an older version to today's keys.

Every run stores its whole config and the version of its keys, `config_version`. A file without
it is a recipe of the user's, which holds today's keys and stays as it is, or a run of version 1.
A change that renames or removes a key, or adds one whose default changes what old runs mean, adds
one function to `MIGRATIONS` and raises `CONFIG_VERSION`. A key that is only added needs nothing:
the default fills it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

Tree = dict[str, Any]  # a config as nested mappings
Migration = Callable[[Tree], None]  # changes the tree in place

VERSION_KEY = "config_version"


def no_change(tree: Tree) -> None:
    """Version 1 to 2: version 2 added `config_version` itself and changed no key."""


def without_fog(tree: Tree) -> None:
    """Version 2 to 3: version 3 added `loss.fog`, which older runs were optimised without."""
    if isinstance(tree.get("loss"), dict):
        off = {"start": 0.0, "end": 0.0, "from_": 0.0, "to": 1.0}
        tree["loss"].setdefault("fog", off)


def with_baked_light(tree: Tree) -> None:
    """Version 3 to 4: version 4 added `export.light`; older runs left the light in the colours."""
    if isinstance(tree.get("export"), dict):
        tree["export"].setdefault("light", "baked")


def with_given_models(tree: Tree) -> None:
    """Version 4 to 5: version 5 added `embedded`; older runs have the models that they name."""
    if isinstance(tree.get("prior"), dict):
        tree.setdefault("embedded", "given")


MIGRATIONS: dict[int, Migration] = {
    1: no_change,
    2: without_fog,
    3: with_baked_light,
    4: with_given_models,
}  # version -> the step to the next one
CONFIG_VERSION = 1 + len(MIGRATIONS)


def migrate(tree: Tree, version: int | None = None) -> Tree:
    """A copy of `tree` with today's keys and without `config_version`.

    Args:
        tree: a config as it was read; it may be partial.
        version: the version of its keys if the file does not say it; None means today's.
    """
    found = tree.get(VERSION_KEY, version)
    migrated = copy.deepcopy({key: value for key, value in tree.items() if key != VERSION_KEY})
    if isinstance(found, int):
        for step in sorted(number for number in MIGRATIONS if number >= found):
            MIGRATIONS[step](migrated)
    return migrated


def move_key(tree: Tree, old: str, new: str) -> None:
    """Rename a dotted key in place, if the tree has it: for use in migrations."""
    *groups, name = old.split(".")
    node: Any = tree
    for group in groups:
        node = node.get(group) if isinstance(node, dict) else None
    if not isinstance(node, dict) or name not in node:
        return
    value = node.pop(name)
    *groups, name = new.split(".")
    target = tree
    for group in groups:
        target = target.setdefault(group, {})
    target[name] = value


def split_known(tree: Tree, schema: type) -> tuple[Tree, list[str]]:
    """The part of `tree` that the dataclass `schema` knows, and the dotted keys it does not.

    A run of a newer version, or one whose keys were removed since, is still read: what is unknown
    is reported and left out. Values are not checked here.
    """
    kinds = get_type_hints(schema)
    names = {item.name for item in fields(schema)}
    known: Tree = {}
    unknown: list[str] = []
    for key, value in tree.items():
        kind = kinds.get(key)
        if key not in names:
            unknown.append(str(key))
        elif isinstance(value, dict) and isinstance(kind, type) and is_dataclass(kind):
            known[key], below = split_known(value, kind)
            unknown += [f"{key}.{name}" for name in below]
        else:
            known[key] = value
    return known, unknown

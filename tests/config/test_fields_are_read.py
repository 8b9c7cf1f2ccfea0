"""Every setting has an effect: some module outside vp3d/config reads it."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

from vp3d.config.paths import ROOT
from vp3d.config.schema import Config, Schedule


def groups(node: Any) -> list[Any]:
    """A config node and every group below it, except schedules, which read their own fields."""
    values = (getattr(node, item.name) for item in dataclasses.fields(node))
    below = [v for v in values if dataclasses.is_dataclass(v) and not isinstance(v, Schedule)]
    return [node] + [found for group in below for found in groups(group)]


def names_read(source: str) -> set[str]:
    """The attributes that Python source reads."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_no_field_is_dead() -> None:
    """A field is dead when no module outside vp3d/config has its name as an attribute."""
    read = set()
    for path in (ROOT / "vp3d").rglob("*.py"):
        if ROOT / "vp3d" / "config" not in path.parents:
            read |= names_read(path.read_text(encoding="utf-8"))
    dead = {
        f"{type(group).__name__}.{item.name}"
        for group in groups(Config())
        for item in dataclasses.fields(group)
        if item.name not in read
    }
    assert not dead, f"config fields that no module reads: {sorted(dead)}"


def test_only_reading_counts() -> None:
    assert names_read("config.optim.steps = a.views") == {"optim", "views"}
    assert names_read("Config(steps=3); text = 'steps'") == set()

"""One YAML file of threestudio: its values, its references, and what was read of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from vp3d.config.reader import convert, parse_typed
from vp3d.errors import UserError

TOP_LEVEL = "top level"  # the group of keys that are in no group
REFERENCE = re.compile(r"\$\{\s*([\w.]+)\s*\}")  # a value such as ${system.loss.lambda_sds}
MISSING = "???"  # the value of a key that the user must set

Layer = dict[str, Any]
Schedule = float | dict[str, float]  # a constant, or the fields of a `Schedule`


class ThreestudioFile:
    """The tree of a file. It resolves references and records which keys were read."""

    def __init__(self, tree: Layer, name: str) -> None:
        self.tree, self.name = tree, name
        self.read: set[str] = set()
        self.reasons: dict[str, str] = {}  # why a key is ignored, where that is not obvious
        self.notes: dict[str, list[str]] = {}  # group -> what else the user should know

    def find(self, key: str) -> Any:
        """The value of a dotted key, references resolved; None for no value or `???`."""
        value = self._at(key)
        followed = {key}
        while isinstance(value, str) and (match := REFERENCE.fullmatch(value)):
            if match[1] in followed:
                raise UserError(f"{self.name}: '{key}' refers to itself by {value}")
            followed.add(match[1])
            value = self._at(match[1])
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"{self.name}: '{key}' is {value}; only complete references such as ${{seed}} are "
                "read, so write the value out"
            )
        return None if value == MISSING else value

    def take(self, key: str, kind: Any) -> Any:
        """The value as `kind`, or None; the key counts as read. Errors name threestudio's key."""
        value = self.find(key)
        self.read.add(key)
        return None if value is None else convert(value, kind, key)

    def text(self, key: str) -> str | None:
        """The value as text, or None."""
        found: str | None = self.take(key, str)
        return found

    def pair(self, key: str) -> list[float] | None:
        """The value as a range `[low, high]`, or None."""
        found: list[float] | None = self.take(key, list[float])
        if found is not None and (len(found) != 2 or found[0] > found[1]):
            raise UserError(f"config key '{key}': {found} is not a range [low, high]")
        return found

    def schedule(self, key: str, steps: int | None) -> Schedule | None:
        """The value as a number or as the fields of a `Schedule`.

        None if there is no value, or one that a `Schedule` cannot express; the reason is recorded.

        Args:
            key: the dotted key.
            steps: steps of the run; None if the file does not say.
        """
        value = self.find(key)
        if value is None:
            return None
        value = parse_typed(value, key)
        if not isinstance(value, list):
            return float(self.take(key, float))
        found = read_schedule(value, steps, key)
        if isinstance(found, str):
            self.reasons[key] = f"{value}: {found}"
            return None
        self.read.add(key)
        return found

    def constant(self, key: str, steps: int | None) -> float | None:
        """As `schedule`, for a setting that VP3D keeps constant during a run."""
        found = self.schedule(key, steps)
        if not isinstance(found, dict):
            return found
        self.read.discard(key)
        self.reasons[key] = "a schedule, but a number in VP3D"
        return None

    def add_defaults(self, defaults: Mapping[str, Any]) -> None:
        """Set dotted keys that the file does not have; notes name them with their values."""
        added: dict[str, list[str]] = {}
        for key, value in defaults.items():
            if self._at(key) not in (None, MISSING):
                continue
            *groups, name = key.split(".")
            node = self.tree
            for group in groups:
                node[group] = dict(node[group]) if node.get(group) is not None else {}
                node = node[group]
            node[name] = value
            added.setdefault(group_of(key), []).append(f"{name} {value}")
        for group, values in added.items():
            self.note(group, f"threestudio's defaults: {', '.join(values)}")

    def note(self, group: str, text: str) -> None:
        """Add `text` to the line of a group."""
        self.notes.setdefault(group, []).append(text)

    def lines(self) -> list[str]:
        """One line for each group of which something was ignored or converted."""
        ignored: dict[str, list[str]] = {group: [] for group in self.notes}
        for key in leaves(self.tree):
            if key in self.read or any(key.startswith(f"{read}.") for read in self.read):
                continue
            group = group_of(key)
            name = key.removeprefix(f"{group}.").partition(".")[0]
            name += f" ({self.reasons[key]})" if key in self.reasons else ""
            names = ignored.setdefault(group, [])
            names += [] if name in names else [name]
        lines = []
        for group, names in ignored.items():
            parts = ([f"ignored {', '.join(names)}"] if names else []) + self.notes.get(group, [])
            lines.append(f"{self.name} (threestudio), {group}: {'; '.join(parts)}")
        return lines

    def resolved(self, group: Mapping[str, Any], key: str) -> Layer:
        """The group at the dotted `key`, references resolved, values `???` left out."""
        found = {}
        for name in group:
            value = self.find(f"{key}.{name}")
            if isinstance(value, Mapping):
                value = self.resolved(value, f"{key}.{name}")
            if value is not None:
                found[name] = value
        return found

    def _at(self, key: str) -> Any:
        """The value of a dotted key as it is written, or None."""
        node: Any = self.tree
        for part in key.split("."):
            if node is not None and not isinstance(node, Mapping):
                raise UserError(
                    f"{self.name}: '{key.rpartition('.')[0]}' is {node!r}, not a group of keys"
                )
            node = None if node is None else node.get(part)
        return node


def group_of(key: str) -> str:
    """The group that names a key in the notes: "data", "system.guidance", ...

    A key directly in `system` belongs to "system".
    """
    parts = key.split(".")
    if len(parts) == 1:
        return TOP_LEVEL
    return ".".join(parts[:2] if parts[0] == "system" and len(parts) > 2 else parts[:1])


def leaves(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of all values that are not groups; an empty group counts as a value."""
    found = []
    for name, value in tree.items():
        nested = isinstance(value, Mapping) and value
        found += leaves(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return found


def read_schedule(value: list[Any], steps: int | None, key: str) -> Schedule | str:
    """Convert one of threestudio's lists, in steps, into shares of the run.

    Args:
        value: `[start, end, end_step]` or `[start_step, start, end, end_step]`; further pairs
            `value, step` may follow.
        steps: steps of the run; None if the file does not say.
        key: the dotted key, for messages.

    Returns:
        A number, the fields of a `Schedule`, or a text with the reason why neither is possible.

    Raises:
        UserError: for a list that threestudio would not accept either.
    """
    points = _points(value, key)
    if isinstance(points, str):
        return points
    while len(points) > 1 and points[0][1] == points[1][1]:  # constant at the start
        points.pop(0)
    while len(points) > 1 and points[-1][1] == points[-2][1]:  # constant at the end
        points.pop()
    if len(points) == 1:
        return points[0][1]
    if len(points) > 2:
        return "more than one slope"
    if not steps:
        return "in steps, and the file has no trainer.max_steps"
    (first, start), (last, end) = points
    if first < 0:
        return "starts before the run"
    if first >= steps:
        return start
    if last > steps:
        last, end = steps, start + (end - start) * (steps - first) / (last - first)
    return {"start": start, "end": end, "from_": first / steps, "to": last / steps}


def _points(value: list[Any], key: str) -> list[tuple[float, float]] | str:
    """The (step, value) pairs of one of threestudio's lists, or why they cannot be used."""
    finite = [item for item in value if type(item) in (int, float) and math.isfinite(item)]
    full = [0, *value] if len(value) == 3 else value
    if len(finite) != len(value) or len(full) < 4 or len(full) % 2:
        raise UserError(
            f"config key '{key}': {value} is not a number or [start_step, start, end, end_step]"
        )
    ends = full[3::2]
    if any(type(end) is float for end in ends):
        return "a step with a decimal point counts epochs, and VP3D has one epoch"
    points = [(float(full[0]), float(full[1]))]
    points += [(float(step), float(level)) for level, step in zip(full[2::2], ends, strict=True)]
    if any(later[0] <= earlier[0] for earlier, later in zip(points, points[1:], strict=False)):
        raise UserError(f"config key '{key}': the steps of {value} do not increase")
    return points

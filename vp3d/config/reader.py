"""Hold what a person wrote, in YAML or as key=value, against the annotations of a tree of dataclasses.

A field may be a scalar, a `Literal`, a list, another dataclass, or `Annotated[one of these, Range(low, high)]`.
Nothing is guessed: an unknown key, a wrong type or a value out of range is a `UserError` that names the key, the value
and what is allowed.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import yaml

from vp3d.config.schema import Range
from vp3d.errors import UserError


class _Words(str):
    """The value of a key=value override as typed: text where text is wanted, else read as YAML."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, for which YAML 1.1 wants 1.0e-3, and refuses a key that stands there twice."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node, its parts first: an anchor that holds itself is an error then, not a tree without end."""
        return super().construct_object(node, True)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} stands there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the text "1e-3", so that `_Loader` reads it as text again."""


_EXPONENT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
for _kind in (_Loader, Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(
            f"cannot read config file {path}: {error.strerror}; configs/ has some to start from"
        ) from error
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, or a date or number that is none
        raise UserError(
            f"config file {path} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(tree, dict | None):
        raise UserError(
            f"config file {path} must hold `key: value` lines, not a {type(tree).__name__}"
        )
    return tree or {}


def read_override(text: str) -> dict[str, Any]:
    """`a.b=value` as {"a": {"b": value}}."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"'{text}' is not of the form key=value, for example optim.steps=200")
    tree: Any = _Words(value.strip())
    for name in reversed(key.strip().split(".")):
        tree = {name: tree}
    return tree


def keys(node: object, prefix: str = "") -> Iterator[str]:
    """Every dotted key below a config node: groups and single values."""
    for item in dataclasses.fields(node):  # type: ignore[arg-type]
        yield prefix + item.name
        if dataclasses.is_dataclass(getattr(node, item.name)):
            yield from keys(getattr(node, item.name), f"{prefix}{item.name}.")


def merge(root: Any, layer: Mapping[str, Any]) -> None:
    """Set the fields of the dataclass tree `root` that `layer` names, in place."""
    try:
        _merge(root, layer, "", None)
    except _UnknownKey as error:
        raise UserError(f"unknown config key '{error}'{_suggestion(str(error), root)}") from None


class _UnknownKey(Exception):
    """A dotted key no field has."""


def _merge(node: Any, layer: Mapping[str, Any], prefix: str, limits: Range | None) -> None:
    """`limits` bounds the `start` and `end` of a node that is a schedule."""
    kinds = get_type_hints(type(node), include_extras=True)
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if name not in kinds:
            raise _UnknownKey(_whole_key(key, value))
        kind = (
            Annotated[kinds[name], limits] if limits and name in ("start", "end") else kinds[name]
        )
        setattr(node, name, convert(value, kind, key, getattr(node, name)))


def _whole_key(key: str, value: Any) -> str:
    """`key` and the single keys below it, so that a misspelt group is shown as the user wrote it."""
    while isinstance(value, Mapping) and len(value) == 1:
        (name, value), *_ = value.items()
        key = f"{key}.{name}"
    return key


def _suggestion(key: str, root: object) -> str:
    """The known key closest in spelling, by the whole key or by its last part alone."""

    def likeness(known: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, key, known).ratio()
        last = difflib.SequenceMatcher(
            None, key.rsplit(".", 1)[-1], known.rsplit(".", 1)[-1]
        ).ratio()
        return max(whole, 0.98 * last), whole

    best = max(keys(root), key=likeness)
    return (
        f"; did you mean '{best}'?"
        if likeness(best)[0] >= 0.6
        else "; config.yaml in any run folder lists them all"
    )


def convert(value: Any, kind: Any, key: str, current: Any = None) -> Any:
    """`value` as the annotation `kind` wants it, or a UserError naming the key, the value and what is allowed."""
    limits = None
    if get_origin(kind) is Annotated:
        kind, limits = get_args(kind)
    value = str(value) if kind is str and isinstance(value, _Words) else parse_words(value, key)
    if get_origin(kind) is Literal:
        return _check_choice(value, get_args(kind), key)
    if get_origin(kind) is list:
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
        if not isinstance(items, list) or not items:
            raise UserError(f"config key '{key}': {value!r} is not a list of at least one item")
        return [convert(item, get_args(kind)[0], key) for item in items]
    if dataclasses.is_dataclass(kind):
        return _convert_node(value, kind, key, current, limits)
    return _convert_scalar(value, kind, key, limits)


def parse_words(value: Any, key: str) -> Any:
    """The value of a key=value override read as YAML; any other value as it is."""
    if not isinstance(value, _Words):
        return value
    try:
        return yaml.load(value, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"config key '{key}': cannot read the value {str(value)[:80]!r}") from error


def _check_choice(value: Any, choices: tuple[Any, ...], key: str) -> Any:
    if value not in choices:
        raise UserError(
            f"config key '{key}': {value!r} is not allowed; choose one of {', '.join(map(str, choices))}"
        )
    return value


def _convert_node(value: Any, kind: Any, key: str, current: Any, limits: Range | None) -> Any:
    """A group of keys; a class with a `constant` method (a schedule) also takes a bare number."""
    if hasattr(kind, "constant") and isinstance(value, int | float):
        value = dataclasses.asdict(kind.constant(value))
    if not isinstance(value, Mapping):
        wanted = ", ".join(item.name for item in dataclasses.fields(kind))
        raise UserError(f"config key '{key}': {value!r} is not a group; it holds {wanted}")
    node = copy.deepcopy(current)
    _merge(node, value, f"{key}.", limits)
    return node


def _convert_scalar(value: Any, kind: Any, key: str, limits: Range | None) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 1023 else math.inf
    if type(value) is not kind:
        wanted = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[
            kind
        ]
        raise UserError(f"config key '{key}': {value!r} is not {wanted}")
    if kind is str and "\0" in value:
        raise UserError(f"config key '{key}': {value!r} holds a NUL character")
    if kind is float and not math.isfinite(value):
        raise UserError(f"config key '{key}': {value!r} is not a finite number")
    if limits and not limits.low <= value <= limits.high:
        bounds = (
            f"{limits.low} to {limits.high}" if limits.high < math.inf else f"at least {limits.low}"
        )
        raise UserError(f"config key '{key}': {value!r} is out of range; allowed is {bounds}")
    return value

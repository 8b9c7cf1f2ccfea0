"""Check what a user wrote, in YAML or as key=value, against the annotations of dataclasses.

A field may be a scalar, a `Literal`, a list, another dataclass, or `Annotated[one of these,
Range(low, high)]`. Nothing is guessed: an unknown key, a wrong type or a value out of range is a
`UserError` that names the key, the value and what is allowed.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import yaml

from vp3d.config.paths import expand
from vp3d.config.schema import Range
from vp3d.config.text_file import read_text
from vp3d.errors import UserError, in_one_line

SHOWN = 80  # characters of a value that a message quotes
MAX_NODES = 20_000  # values of a YAML text once its aliases are written out
MAX_YAML_SIZE = 200_000  # bytes of a config file
LIKENESS = 0.6  # of a key to a known key, from which the known key is suggested; 1 is equal
LAST_PART_LIKENESS = 0.98  # factor for the likeness of the last parts alone
YAML_ERRORS = (  # ValueError: not UTF-8, or a date or number that does not exist
    yaml.YAMLError,
    ValueError,
    RecursionError,
)
LARGEST_EXACT = 2**53  # up to here a float holds every whole number
LINE_BREAK = re.compile(r"\s*[\n\r\v\f\x85\u2028\u2029]\s*")
SENTENCES = ("prompt", "negative_prompt", "words", "view", "debias_words")  # last parts of keys
KIND_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class _Typed(str):
    """The value of a key=value override: text if the field is text, else read as YAML."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads numbers as YAML 1.2 does, and refuses a key that occurs twice.

    In YAML 1.1, 1e-3 is text, 010 is 8 and 1:30 is 90.
    """

    def get_single_node(self) -> yaml.Node | None:
        """The tree of a text; an error if its aliases, written out, make it very large."""
        root: yaml.Node | None = super().get_single_node()
        if root is not None and _count_nodes(root, {}) > MAX_NODES:
            raise yaml.constructor.ConstructorError(
                None, None, f"it has more than {MAX_NODES:,} values", root.start_mark
            )
        return root

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node, built depth first: an anchor that contains itself is an error."""
        return super().construct_object(node, True)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """The whole number of a node: 010 is 10, and 0b11, 0o17 and 0x1f have their prefix."""
        digits = self.construct_scalar(node).replace("_", "")
        return int(digits, 0 if digits.lstrip("+-")[1:2] in ("b", "o", "x") else 10)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = next((name for name, count in counts.items() if count > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} occurs twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _count_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """The values below a node, each as often as an alias repeats it.

    Args:
        node: the node.
        known: the counts of nodes that were counted before, by identity; an alias of a node that
            contains it counts as nothing here, and is refused when it is built.
    """
    if id(node) not in known:
        known[id(node)] = 0
        below: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            below = node.value
        elif isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count_nodes(part, known) for part in below)
    return known[id(node)]


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the text "1e-3", so that `_Loader` reads it as text again."""


_INT = re.compile(r"^[-+]?(0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)$")
_FLOAT = re.compile(
    r"^([-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_SIGNS = "-+.0123456789"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (_Loader, Dumper):  # what YAML 1.1 takes as a number is quoted as well
    for _tag, _pattern in zip(_NUMBERS, (_INT, _FLOAT), strict=True):
        _kind.add_implicit_resolver(_tag, _pattern, list(_SIGNS))
_Loader.add_constructor(_NUMBERS[0], _Loader.construct_yaml_int)


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        tree = yaml.load(read_text(path, MAX_YAML_SIZE), _Loader)
    except OSError as error:
        raise UserError(
            f"cannot read config file {path}: {error.strerror}; configs/ has examples"
        ) from error
    except YAML_ERRORS as error:
        reason = in_one_line(error)
        raise UserError(f"config file {path} is not valid YAML: {reason}") from error
    if not isinstance(tree, dict | None):
        raise UserError(
            f"config file {path} must contain `key: value` lines, not a {type(tree).__name__}"
        )
    return tree or {}


def read_stack(path: Path, below: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """The layers of a config file: those of the file that it extends, then its own.

    `extends: FILE` names one file, relative to the folder of the file that contains the key.

    Args:
        path: the file.
        below: the files that extend this one; a file may not be among them.
    """
    tree = read_file(path)
    if "extends" not in tree:
        return [tree]
    name, files = tree.pop("extends"), (*below, path.resolve())
    if not isinstance(name, str):
        raise UserError(f"config file {path}: 'extends' takes the name of one file, not {name!r}")
    base = path.parent / expand(name)
    if base.resolve() in files:
        raise UserError(f"config file {path}: 'extends: {name}' leads back to {base.name} itself")
    return [*read_stack(base, files), tree]


def read_override(text: str) -> dict[str, Any]:
    """`a.b=value` as {"a": {"b": value}}."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"'{text}' is not of the form key=value, for example optim.steps=200")
    tree: Any = _Typed(value.strip())
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
    """Set the fields of the dataclass tree `root` that `layer` names, in place.

    `layer` may name a field as `optim: {steps: 100}` or as `optim.steps: 100`.
    """
    try:
        _merge(root, nested(layer), "", None)
    except _UnknownKey as error:
        key = str(error)
        raise UserError(f"unknown config key '{key[:SHOWN]}'{_suggestion(key, root)}") from None


def nested(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The layer with a group for each key that has dots, such as `optim.steps`.

    Raises:
        UserError: two keys name the same field.
    """
    found: dict[str, Any] = {}
    for name, value in layer.items():
        first, *rest = name.split(".") if isinstance(name, str) else [name]
        for part in reversed(rest):
            value = {part: value}
        if first in found:
            value = _joined(found[first], value, str(name))
        found[first] = value
    return found


def _joined(group: Any, more: Any, key: str) -> dict[str, Any]:
    """Two groups as one; UserError if both have a field of the same name."""
    if not isinstance(group, Mapping) or not isinstance(more, Mapping):
        raise UserError(f"config key '{key[:SHOWN]}' occurs twice, with dots and as a group")
    both = {name: _joined(group[name], more[name], key) for name in set(group) & set(more)}
    return {**group, **more, **both}


class _UnknownKey(Exception):
    """A dotted key that no field has."""


def _merge(node: Any, layer: Mapping[str, Any], prefix: str, limits: Range | None) -> None:
    """`merge` below `prefix`; `limits` bounds `start` and `end` of a node that is a schedule."""
    kinds = get_type_hints(type(node), include_extras=True)
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if name not in kinds:
            raise _UnknownKey(_full_key(key, value))
        kind = kinds[name]
        if limits and name in ("start", "end"):
            kind = Annotated[kind, limits]
        setattr(node, name, convert(value, kind, key, getattr(node, name)))


def _full_key(key: str, value: Any) -> str:
    """`key` and the single keys below it, so that a misspelt group is shown as it was written."""
    while isinstance(value, Mapping) and len(value) == 1:
        (name, value), *_ = value.items()
        key = f"{key}.{name}"
    return key


def _suggestion(key: str, root: object) -> str:
    """The known key closest in spelling, by the full key or by its last part alone."""

    def likeness(known: str) -> tuple[float, float]:
        full = difflib.SequenceMatcher(None, key, known).ratio()
        end, known_end = key.rsplit(".", 1)[-1], known.rsplit(".", 1)[-1]
        last = difflib.SequenceMatcher(None, end, known_end).ratio()
        return max(full, LAST_PART_LIKENESS * last), full

    if len(key) > SHOWN:
        return ""
    best = max(keys(root), key=likeness)
    if likeness(best)[0] >= LIKENESS:
        return f"; did you mean '{best}'?"
    return "; config.yaml in any run folder lists all keys"


def convert(value: Any, kind: Any, key: str, current: Any = None) -> Any:
    """`value` as the annotation `kind` requires.

    Args:
        value: what the user wrote: from YAML, or the text of an override.
        kind: the annotation of the field.
        key: the dotted key, for messages.
        current: the present value of the field, needed if it is a dataclass.

    Returns:
        The value to set.

    Raises:
        UserError: names the key, the value and what is allowed.
    """
    limits = None
    if get_origin(kind) is Annotated:
        kind, limits = get_args(kind)
    is_typed = isinstance(value, _Typed)
    is_text = kind is str and is_typed
    value = str(value) if is_text else parse_typed(value, key)
    if kind is str and isinstance(value, str) and not is_text:
        value = unfold(value, key)
    if get_origin(kind) is Literal:
        return _check_choice(value, get_args(kind), key)
    if get_origin(kind) is list:
        item_kind = get_args(kind)[0]
        items = _items(value, item_kind) if isinstance(value, str) else value
        if not isinstance(items, list) or not items:
            raise UserError(
                f"config key '{key}': {quoted(value)} is not a list of at least one item"
            )
        return [convert(item, item_kind, key) for item in items]
    if dataclasses.is_dataclass(kind):
        if value is None and not (is_typed or hasattr(kind, "constant")):
            return copy.deepcopy(current)  # a group of a file whose keys are all comments
        return _convert_group(value, kind, key, current, limits)
    return _convert_scalar(value, kind, key, limits)


def _items(text: str, kind: Any) -> list[str]:
    """The items of a list that was written as text; those that are no sentences have no blanks."""
    parts = text.split(",") if kind is str else re.split(r"[,;\s]+", text)
    return [part.strip() for part in parts if part.strip()]


def unfold(text: str, key: str) -> str:
    """A text of a file without the line breaks of YAML's `>` and `|`.

    A break at the end is dropped. In a sentence, such as a prompt, one inside becomes a blank.

    Args:
        text: the value.
        key: the dotted key.
    """
    text = text.rstrip("\r\n")
    is_sentence = key.rsplit(".", 1)[-1] in SENTENCES and LINE_BREAK.search(text)
    return LINE_BREAK.sub(" ", text).strip() if is_sentence else text


def parse_typed(value: Any, key: str) -> Any:
    """The value of a key=value override read as YAML; any other value unchanged."""
    if not isinstance(value, _Typed):
        return value
    try:
        return yaml.load(value, _Loader)
    except YAML_ERRORS as error:
        shown = str(value)[:SHOWN]
        raise UserError(f"config key '{key}': cannot read the value {shown!r} as YAML") from error


def quoted(value: Any) -> str:
    """`value` as a message quotes it: at most `SHOWN` characters."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _check_choice(value: Any, choices: tuple[Any, ...], key: str) -> Any:
    if isinstance(value, str):  # GLB, .glb
        plain = value.strip().lower().removeprefix(".")
        value = plain if plain in choices else value
    if value not in choices:
        allowed = ", ".join(map(str, choices))
        raise UserError(
            f"config key '{key}': {quoted(value)} is not allowed; choose one of {allowed}"
        )
    return value


def _convert_group(value: Any, kind: Any, key: str, current: Any, limits: Range | None) -> Any:
    """A group of keys; a class with a `constant` method (a schedule) also takes a bare number."""
    if hasattr(kind, "constant") and isinstance(value, int | float):
        value = dataclasses.asdict(kind.constant(value))
    if not isinstance(value, Mapping):
        names = ", ".join(item.name for item in dataclasses.fields(kind))
        raise UserError(
            f"config key '{key}': {quoted(value)} is not a group of keys; it may contain {names}"
        )
    node = copy.deepcopy(current)
    _merge(node, value, f"{key}.", limits)
    return node


def _convert_scalar(value: Any, kind: Any, key: str, limits: Range | None) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 1023 else math.inf
    if kind is int and type(value) is float and value.is_integer():  # 1e4
        if abs(value) > LARGEST_EXACT:
            raise UserError(f"config key '{key}': {value!r} is rounded; write all its digits")
        value = int(value)
    fault = ""
    if value is None:
        fault = f"is no value; give {KIND_NAMES[kind]} as {key}=..., without blanks"
    elif type(value) is not kind:
        fault = f"is not {KIND_NAMES[kind]}"
        if kind is str and not isinstance(value, list | dict):
            fault += "; write it in quotes"
        elif isinstance(value, str) and type(parse_typed(_Typed(value), key)) is kind:
            fault = f"is text and not {KIND_NAMES[kind]}; write it without quotes"
    elif kind is str and "\0" in value:
        fault = "contains a NUL character"
    elif kind is float and not math.isfinite(value):
        fault = "is not a finite number"
    elif limits and not limits.low <= value <= limits.high:
        low, high = limits.low, limits.high
        allowed = f"{low} to {high}" if high < math.inf else f"at least {low}"
        fault = f"is out of range; allowed is {allowed}"
    if fault:
        raise UserError(f"config key '{key}': {quoted(value)} {fault}")
    return value

"""Write the reference pages that come from the code: command line, configuration, models, events.

    python docs/generate_reference.py            write the pages of docs/reference/
    python docs/generate_reference.py --check    exit with code 1 if a page is stale, write nothing

The pages hold nothing that depends on the machine, the width of the terminal or the date.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from vp3d.cli.main import build_parser  # noqa: E402
from vp3d.config.loader import PRESETS  # noqa: E402
from vp3d.config.schema import Config  # noqa: E402
from vp3d.runs import events  # noqa: E402
from vp3d.weights.catalogue import MODELS, Model, Part  # noqa: E402

NOTE = "<!-- Written by docs/generate_reference.py from the code: do not edit. -->"
WIDTH = 100
KINDS = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Path: "path"}


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or with --check name those that are stale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="only name the stale pages; exit code 1"
    )
    check = parser.parse_args(argv).check
    stale = stale_pages()
    for path, text in stale.items():
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{'stale' if check else 'written'}: {path.relative_to(DOCS.parent)}\n")
    return 1 if check and stale else 0


def stale_pages() -> dict[Path, str]:
    """Path and new text of each page whose file is missing or differs."""
    return {
        path: text
        for path, text in pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def pages() -> dict[Path, str]:
    """Path and text of every generated page."""
    written = {
        "cli.md": command_line_page(build_parser()),
        "configuration.md": configuration_page(),
        "models.md": models_page(),
        "events.md": events_page(events),
    }
    return {
        DOCS / "reference" / name: f"{NOTE}\n\n{text.rstrip()}\n" for name, text in written.items()
    }


def paragraph(text: str) -> str:
    """A docstring as Markdown: its paragraphs wrapped, its indented blocks kept."""
    blocks = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        b if b.startswith((" ", "-", "*")) else wrap(b.replace(" * ", r" \* ")) for b in blocks
    )


def wrap(text: str) -> str:
    """One paragraph at WIDTH columns."""
    return textwrap.fill(
        " ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the cells must fit one line each."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(" ".join(c.split()) for c in line) + " |" for line in lines)


def code(text: object) -> str:
    """Inline code that is safe inside a table."""
    return f"`{text}`".replace("|", "\\|") if str(text) else ""


def cell(text: str) -> str:
    """Running text that is safe inside a table and outside inline code."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


# Command line


def command_line_page(parser: argparse.ArgumentParser) -> str:
    """Every command of the parser with its arguments."""
    intro = (
        "In a checkout, `python launch.py` is the same as `vp3d`. Without a verb the command is "
        '`generate`: `vp3d "a red mushroom"` is `vp3d generate "a red mushroom"`. '
        "`key=value` changes any [setting](configuration.md)."
    )
    parts = ["# Command line", wrap(intro)]
    if parser.description:
        parts.append(fence(parser.description))
    commands = subcommands(parser)
    if commands:
        rows = [[f"[`{name}`](#{anchor(name)})", cell(summary)] for name, summary, _ in commands]
        parts += ["## Verbs", table(["verb", "what it does"], rows)]
    parts.append(arguments(parser))
    if parser.epilog:
        parts.append(fence(parser.epilog))
    for name, summary, command in commands:
        parts += command_section(name, summary, command, depth=2)
    return "\n\n".join(part for part in parts if part)


def command_section(
    name: str, summary: str, parser: argparse.ArgumentParser, depth: int
) -> list[str]:
    """Heading, usage, arguments and examples of one command, then of the commands below it."""
    parts = [f"{'#' * depth} {name}", wrap(sentence(summary or parser.description or ""))]
    parts.append(fence(usage(name, parser)))
    if parser.description and sentence(parser.description) != sentence(summary):
        parts.append(paragraph(parser.description))
    parts.append(arguments(parser))
    if parser.epilog:
        parts.append(fence(parser.epilog))
    for below, about, command in subcommands(parser):
        parts += command_section(f"{name} {below}", about, command, min(depth + 1, 4))
    return parts


def subcommands(
    parser: argparse.ArgumentParser,
) -> list[tuple[str, str, argparse.ArgumentParser]]:
    """(name, summary, parser) of each subcommand, in the order they were added."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            found += [(name, summaries.get(name, ""), p) for name, p in action.choices.items()]
    return found


def usage(name: str, parser: argparse.ArgumentParser) -> str:
    """The command with its arguments, as argparse shows them, whatever Python's version."""
    shown = [a for a in parser._actions if a.help != argparse.SUPPRESS]
    words = ["vp3d", name] + [values(a) or f"[{a.dest}]" for a in shown if not a.option_strings]
    if any(a.option_strings for a in shown):
        words.append("[options]")
    return " ".join(word for word in words if word)


def arguments(parser: argparse.ArgumentParser) -> str:
    """A table of the arguments and options of one parser."""
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        if action.dest == "help":
            continue
        names = action.option_strings or [""]
        word = ", ".join(" ".join(filter(None, (name, values(action)))) for name in names)
        rows.append([code(word), cell(help_text(action)), default_text(action)])
    return table(["argument", "meaning", "default"], rows) if rows else ""


def values(action: argparse.Action) -> str:
    """The values of an argument as a user types them: FILE, [NAME ...], {draft,standard}."""
    if action.nargs == 0:
        return ""
    metavar = action.metavar
    if action.choices is not None and metavar is None:
        metavar = "{" + ",".join(map(str, action.choices)) + "}"
    if metavar is None:
        metavar = action.dest.upper()
    word = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    forms = {"?": f"[{word}]", "*": f"[{word} ...]", "+": f"{word} [{word} ...]"}
    return forms.get(str(action.nargs), word)


def help_text(action: argparse.Action) -> str:
    """The help of an argument, its %(default)s and the like filled in."""
    known = {**vars(action), "prog": "vp3d"}
    return (action.help or "") % known if "%" in (action.help or "") else action.help or ""


def default_text(action: argparse.Action) -> str:
    """The default of an option; empty where there is none to show."""
    empty = action.default in (None, argparse.SUPPRESS, "", []) or action.default is False
    return "" if empty else code(action.default)


def fence(text: str) -> str:
    """Preformatted text."""
    return f"```text\n{textwrap.dedent(text).strip()}\n```"


def sentence(text: str) -> str:
    """The text with a capital at its start and a full stop at its end."""
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def anchor(heading: str) -> str:
    """The anchor that Markdown gives a heading."""
    return heading.lower().replace(" ", "-").replace("`", "").replace(".", "")


# Configuration


def configuration_page() -> str:
    """Every key of the config tree."""
    hints, notes = get_type_hints(Config, include_extras=True), comments(Config)
    fields = dataclasses.fields(Config)
    groups = [f for f in fields if dataclasses.is_dataclass(bare(hints[f.name]))]
    plain = [f for f in fields if f not in groups]
    default = Config()
    intro = (
        "A run has one tree of settings. Each key below can be set on the command line "
        "(`optim.steps=600`), in a YAML file (`--config FILE`) and in Python "
        '(`load_config(optim={"steps": 600})`). Settings are layered: defaults, preset, files in '
        "their order, options, `key=value`. An unknown key, a wrong type or a value out of range "
        "is an error."
    )
    parts = ["# Configuration", wrap(intro), "## Top level"]
    parts.append(key_table(plain, default, hints, notes, ""))
    value_kinds: dict[type, None] = {}
    sections = {bare(hints[f.name]): f.name for f in groups}
    for group in groups:
        kind = bare(hints[group.name])
        parts += [f"## {group.name}", paragraph(kind.__doc__ or "")]
        value = getattr(default, group.name)
        parts.append(group_table(kind, value, group.name, sections, value_kinds))
    parts += ["## Presets", wrap("A preset holds only what differs from the defaults."), presets()]
    parts += ["## Value types", "Groups of keys that occur in several places."]
    done: set[type] = set()
    while todo := [kind for kind in value_kinds if kind not in done]:
        for kind in todo:
            done.add(kind)
            parts += [f"### {kind.__name__}", paragraph(kind.__doc__ or "")]
            parts.append(group_table(kind, kind(), "", sections, value_kinds))
    return "\n\n".join(part for part in parts if part)


def group_table(
    kind: type, default: Any, prefix: str, sections: dict[type, str], value_kinds: dict[type, None]
) -> str:
    """The keys of one dataclass; the dataclasses among its fields are noted in `value_kinds`."""
    hints, notes = get_type_hints(kind, include_extras=True), comments(kind)
    for item in dataclasses.fields(kind):
        below = bare(hints[item.name])
        if dataclasses.is_dataclass(below) and below not in sections:
            value_kinds[below] = None
    fields = list(dataclasses.fields(kind))
    return key_table(fields, default, hints, notes, prefix, sections)


def key_table(
    fields: list[Any],
    default: Any,
    hints: dict[str, Any],
    notes: dict[str, str],
    prefix: str,
    sections: dict[type, str] | None = None,
) -> str:
    """A table of the keys of one dataclass: type, default and meaning."""
    rows = []
    for item in fields:
        name = f"{prefix}.{item.name}" if prefix else item.name
        value = default_value(getattr(default, item.name))
        kind_text = type_text(hints[item.name], sections or {})
        rows.append([code(name), kind_text, value, cell(notes.get(item.name, ""))])
    return table(["key", "type and range", "default", "meaning"], rows)


def bare(hint: Any) -> Any:
    """The type without its Annotated metadata."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def type_text(hint: Any, sections: dict[type, str]) -> str:
    """A field's annotation in words: type or choices, and range."""
    kind = bare(hint)
    limits = (
        [] if kind is hint else [limit for limit in get_args(hint)[1:] if hasattr(limit, "low")]
    )
    if get_origin(kind) is Literal:
        text = ", ".join(code(choice) for choice in get_args(kind))
    elif get_origin(kind) is list:
        text = f"list of {type_text(get_args(kind)[0], sections)}"
    elif dataclasses.is_dataclass(kind):
        name = sections.get(kind, "") or kind.__name__
        text = f"[{name}](#{anchor(name)})"
    else:
        text = KINDS.get(kind, cell(str(getattr(kind, "__name__", kind))))
    return ", ".join([text, *(range_text(limit) for limit in limits)])


def range_text(limit: Any) -> str:
    """A Range in words."""
    if limit.high == float("inf"):
        return f"at least {limit.low:g}"
    high = limit.high
    return f"{limit.low:g} to {high:,}" if isinstance(high, int) else f"{limit.low:g} to {high:g}"


def default_value(value: Any) -> str:
    """A default as it is written in YAML."""
    if dataclasses.is_dataclass(value):
        first, names = type(value)(), [f.name for f in dataclasses.fields(value)]
        changed = {
            name: getattr(value, name)
            for name in names
            if name in ("start", "end") or getattr(value, name) != getattr(first, name)
        }
        if set(changed) == {"start", "end"} and changed["start"] == changed["end"]:
            return code(scalar(changed["start"]))
        return code(scalar(changed)) if changed else ""
    return code(scalar(value))


def scalar(value: Any) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        first = type(value)()
        value = {name: v for name, v in changed.items() if v != getattr(first, name)}
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {scalar(v)}" for name, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(scalar, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return '""' if value == "" else str(value)


def presets() -> str:
    """Each preset with the keys it changes."""
    keys = list(dict.fromkeys(key for preset in PRESETS.values() for key in leaves(preset)))
    default = Config()
    rows = []
    for key in keys:
        row = [code(key)]
        for preset in PRESETS.values():
            node: Any = default
            for name in key.split("."):
                node = getattr(node, name)
            row.append(code(scalar(dict(leaves(preset)).get(key, node))))
        rows.append(row)
    return table(["key", *(code(name) for name in PRESETS)], rows)


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested mapping."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        found |= leaves(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return found


def comments(kind: type) -> dict[str, str]:
    """The comment of each field of a dataclass: beside it, inside it, or on the lines above it."""
    source = textwrap.dedent(inspect.getsource(kind))
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.ClassDef)
    found = dict(comment_lines(source))
    alone = {n for n, line in enumerate(source.splitlines(), 1) if line.lstrip().startswith("#")}
    notes = {}
    for item in node.body:
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        first = item.lineno
        while first - 1 in alone:
            first -= 1
        lines = [found[n] for n in range(first, (item.end_lineno or item.lineno) + 1) if n in found]
        notes[item.target.id] = " ".join(lines)
    return notes


def comment_lines(source: str) -> Iterator[tuple[int, str]]:
    """(line number, comment) of the source; marks for tools are left out."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = token.string.lstrip("# ").strip()
        if token.type == tokenize.COMMENT and not text.startswith(("noqa", "type:", "fmt:")):
            yield token.start[0], text


# Models


def models_page() -> str:
    """The catalogue of published models."""
    intro = (
        "`vp3d models fetch NAME` downloads a model of this list once; after that nothing needs "
        "the network. Files are checked against the SHA-256 given here, where there is one. The "
        "sources are tried in their order. The embedded models are not in this list: they ship "
        "with VP3D (see [How the embedded models are trained](../explanation/embedded_models.md))."
    )
    rows = [
        [f"[`{name}`](#{anchor(name)})", cell(m.purpose), gigabytes(m.size), cell(m.licence)]
        for name, m in MODELS.items()
    ]
    parts = ["# Models", wrap(intro), table(["name", "purpose", "size", "licence"], rows)]
    for name, model in MODELS.items():
        parts += model_section(name, model)
    return "\n\n".join(parts)


def model_section(name: str, model: Model) -> list[str]:
    """Sources and files of one model."""
    parts = [f"## {name}", wrap(sentence(model.purpose)) + f"\nLicence: {model.licence}."]
    for part in model.parts:
        parts += [source_list(part), file_table(part)]
    if model.written:
        names = ", ".join(code(path) for path, _ in model.written)
        parts.append(wrap(f"Written by VP3D itself: {names}."))
    return parts


def source_list(part: Part) -> str:
    """Where the files come from, in the order they are tried."""
    lines = ["Sources:", "", *(f"{n}. `{source}`" for n, source in enumerate(part.sources, 1))]
    if part.pickle:
        lines += ["", f"The publisher's own file, a pickle for `models convert`: <{part.pickle}>"]
    return "\n".join(lines)


def file_table(part: Part) -> str:
    """Path, size and hash of each file."""
    rows = [[code(f.path), gigabytes(f.size), code(f.sha256) or "not known"] for f in part.files]
    return table(["file", "size", "SHA-256"], rows)


def gigabytes(size: int) -> str:
    """Bytes as GB or MB; sizes of small files are not in the catalogue."""
    if size < 1e5:
        return "small"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


# Events


def events_page(module: ModuleType) -> str:
    """The dataclasses of the events module, in the order of the source."""
    kinds = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and dataclasses.is_dataclass(kind)
        and kind.__module__ == module.__name__
    ]
    kinds.sort(key=lambda kind: inspect.getsourcelines(kind)[1])
    parts = ["# Events", paragraph(module.__doc__ or "")]
    for kind in kinds:
        parts += [f"## {kind.__name__}", paragraph(kind.__doc__ or "")]
        parts.append(event_table(kind))
    return "\n\n".join(part for part in parts if part)


def event_table(kind: type) -> str:
    """The fields of one event: type, default and meaning."""
    notes = comments(kind)
    rows = []
    for item in dataclasses.fields(kind):
        kind_text = item.type if isinstance(item.type, str) else inspect.formatannotation(item.type)
        default = "" if item.default is dataclasses.MISSING else scalar(item.default)
        if callable(item.default):  # its repr holds an address
            default = item.default.__name__
        rows.append([code(item.name), code(kind_text), code(default), cell(notes[item.name])])
    return table(["field", "type", "default", "meaning"], rows) if rows else ""


if __name__ == "__main__":
    raise SystemExit(main())

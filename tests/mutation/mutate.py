"""One-line mutants of a Python source: each changes a constant, an operator or a call.

A mutant replaces a stretch of the text, so that the rest of the file keeps its bytes. Annotations,
text, docstrings, imports and messages of errors are left alone: no figure rests on them.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
OPERATORS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
SWAPPED_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
DROPPED_METHODS = {  # a call of them is replaced by its receiver
    *("abs", "clamp", "clamp_", "clamp_max", "clamp_min", "clip", "detach", "round"),
    *("nan_to_num", "sqrt", "square"),
}
SKIPPED_KEYWORDS = {"exist_ok", "parents", "set_to_none", "strict"}  # checks and habits
SKIPPED = (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Raise, ast.Assert)


@dataclass(frozen=True)
class Mutant:
    """A replacement in a source.

    Attributes:
        line: the line, from 1.
        start: offset of the replaced text in the UTF-8 bytes of the source.
        end: offset of its end.
        before: the replaced text.
        after: the new text.
    """

    line: int
    start: int
    end: int
    before: str
    after: str

    def apply(self, source: str) -> str:
        """The source with this replacement."""
        data = source.encode()
        return (data[: self.start] + self.after.encode() + data[self.end :]).decode()

    @property
    def change(self) -> str:
        """The replacement in words: "`<` -> `<=`"."""
        return f"`{self.before}` -> `{self.after}`"


def mutants(source: str) -> list[Mutant]:
    """All mutants of a source, in the order of the text."""
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = [
        Mutant(line, starts[line - 1] + first, starts[last_line - 1] + last, before, after)
        for line, first, last_line, last, before, after in _changes(ast.parse(source), lines)
    ]
    return sorted(set(found), key=lambda mutant: (mutant.start, mutant.end, mutant.after))


# line, column, last line, last column, text before, text after
Change = tuple[int, int, int, int, str, str]


def _changes(tree: ast.AST, lines: list[bytes]) -> Iterator[Change]:
    for node in _walk(tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            words = COMPARISONS[type(node.ops[0])]
            yield from _between(node.left, node.comparators[0], words, lines)
        elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            yield from _between(node.left, node.right, OPERATORS[type(node.op)], lines)
        elif isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
            old, new = OPERATORS[type(node.op)]
            yield from _between(node.target, node.value, (f"{old}=", f"{new}="), lines)
        elif isinstance(node, ast.BoolOp):
            words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from _between(left, right, words, lines)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield from _replace(node, _text(node.operand, lines), lines)
        elif isinstance(node, ast.Constant):
            yield from _constant(node, lines)
        elif isinstance(node, ast.Call):
            yield from _call(node, lines)
        elif isinstance(node, ast.If | ast.While | ast.IfExp) and isinstance(
            node.test, ast.Name | ast.Attribute | ast.Call
        ):
            yield from _replace(node.test, f"not {_text(node.test, lines)}", lines)


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that may be changed."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            children = value if isinstance(value, list) else [value]
            waiting += [
                child
                for child in children
                if isinstance(child, ast.AST)
                and not isinstance(child, SKIPPED)
                and not (isinstance(child, ast.keyword) and child.arg in SKIPPED_KEYWORDS)
            ]


def _constant(node: ast.Constant, lines: list[bytes]) -> Iterator[Change]:
    if isinstance(node.value, bool):
        yield from _replace(node, str(not node.value), lines)
    elif isinstance(node.value, int):
        yield from _replace(node, str(node.value + 1), lines)
    elif isinstance(node.value, float):
        changed = 1.0 if node.value == 0.0 else node.value * 1.5
        yield from _replace(node, repr(changed), lines)


def _call(node: ast.Call, lines: list[bytes]) -> Iterator[Change]:
    if isinstance(node.func, ast.Name) and node.func.id in SWAPPED_CALLS:
        yield from _replace(node.func, SWAPPED_CALLS[node.func.id], lines)
    elif isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED_METHODS:
        yield from _replace(node, f"({_text(node.func.value, lines)})", lines)


def _replace(node: ast.expr, after: str, lines: list[bytes]) -> Iterator[Change]:
    assert node.end_lineno is not None and node.end_col_offset is not None
    before = _text(node, lines)
    yield node.lineno, node.col_offset, node.end_lineno, node.end_col_offset, before, after


def _text(node: ast.expr, lines: list[bytes]) -> str:
    """The text of an expression."""
    assert node.end_lineno is not None
    part = lines[node.lineno - 1 : node.end_lineno]
    part = [*part[:-1], part[-1][: node.end_col_offset]]
    part[0] = part[0][node.col_offset :]
    return b"".join(part).decode()


def _between(
    left: ast.expr, right: ast.expr, words: tuple[str, str], lines: list[bytes]
) -> Iterator[Change]:
    """The operator `words[0]` between two expressions, replaced by `words[1]`."""
    assert left.end_lineno is not None and left.end_col_offset is not None
    old, new = words
    text = b"".join(lines[left.end_lineno - 1 : right.lineno]).decode()
    first = len(lines[left.end_lineno - 1][: left.end_col_offset].decode())
    tokens = list(_tokens(text[first:]))
    parts = old.split()
    for n in range(len(tokens) - len(parts) + 1):
        if [word for word, _, _ in tokens[n : n + len(parts)]] == parts:
            start, end = first + tokens[n][1], first + tokens[n + len(parts) - 1][2]
            head, whole = text[:start].encode(), text[:end].encode()
            line, column = _position(head, left.end_lineno)
            last_line, last = _position(whole, left.end_lineno)
            yield line, column, last_line, last, text[start:end], new
            return


def _position(head: bytes, first_line: int) -> tuple[int, int]:
    """Line and byte column of the end of a text that starts at the start of a line."""
    return first_line + head.count(b"\n"), len(head) - (head.rfind(b"\n") + 1)


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """(text, start, end) of the tokens of a text that may end in the middle of an expression."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    opening = "(" * text.count(")")  # so that the text's closing brackets have a partner
    shift = len(opening)
    try:
        for token in tokenize.generate_tokens(io.StringIO(opening + text).readline):
            row, column = token.start[0] - 1, token.start[1]
            start = starts[row] + column - (shift if row == 0 else 0)
            if start >= 0 and token.type in (tokenize.OP, tokenize.NAME):
                yield token.string, start, start + len(token.string)
    except (tokenize.TokenError, IndentationError):
        return

"""The question to a multimodal model: what did picture A invent, compared with picture B?

The scale is that of the hallucination score (Ren et al. 2025, arXiv 2507.14367): 1 for nothing
invented to 5 for another object. The words are ours; that paper does not publish its own. The
model lists what was invented before it grades, so that the grade follows from the list.

This module has the text and the reading of the answer; `vp3d.metrics.hallucination_judge` asks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vp3d.system.files import JsonError, parse_json

VERSION = 1  # changes with the text; answers are kept for one version
KINDS = ("added", "removed", "changed", "texture")
SIZES = ("small", "large")
LOWEST, HIGHEST = 1, 5
MAX_ELEMENTS, MAX_WORDS = 50, 200  # of an answer; a longer text is cut

QUESTION = """\
Two pictures follow. The first, A, was computed. The second, B, is the reference.
Find what A invented: content that B does not support. Invention is an object, a part, a colour, a
pattern or a structured texture that A has and B has not, that A lacks, or that A shows otherwise.
It is not invention if A is blurred, noisy, compressed, shifted by a few pixels, or lighter or
darker as a whole.

First list each invented element: what it is, its kind (added, removed, changed or texture) and its
size (small or large). Then grade A:
1: nothing is invented
2: small inventions that one has to look for
3: an invention that one sees at once, but the object is the same
4: several large inventions; the object is hard to take for that of B
5: A shows another object

Answer with JSON alone, in this form:
{"elements": [{"what": "...", "kind": "added", "size": "small"}], "score": 1}
"""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "elements": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "what": {"type": "string"},
                    "kind": {"type": "string", "enum": list(KINDS)},
                    "size": {"type": "string", "enum": list(SIZES)},
                },
                "required": ["what", "kind", "size"],
                "additionalProperties": False,
            },
        },
        "score": {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST},
    },
    "required": ["elements", "score"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Element:
    """One invented element: what it is, one of `KINDS`, and one of `SIZES`."""

    what: str
    kind: str
    size: str


@dataclass(frozen=True)
class Answer:
    """A valid answer: the grade, 1 to 5, and what was invented."""

    score: float
    elements: tuple[Element, ...]


def complaint(fault: str) -> str:
    """What is added to the question after an answer that could not be used."""
    return f"{QUESTION}\nYour last answer could not be used: {fault}. Answer with the JSON alone."


def read_answer(text: str) -> Answer:
    """The answer in a text, which may have words or a fence around its JSON object.

    Raises:
        ValueError: what is wrong with it, in words for the model and for the user.

    Example:
        >>> read_answer('Sure! {"elements": [], "score": 1}').score
        1.0
    """
    fault = "it has no JSON object"
    for found in _objects(text):
        try:
            return _check(found)
        except ValueError as error:
            fault = str(error)
    raise ValueError(fault)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects of a text, in order."""
    start = text.find("{")
    while start >= 0:
        end = _end_of_object(text, start)
        if end < 0:
            return
        try:
            found = parse_json(text[start:end])
        except JsonError:
            found = None
        if isinstance(found, dict):
            yield found
            start = text.find("{", end)
        else:
            start = text.find("{", start + 1)


def _end_of_object(text: str, start: int) -> int:
    """The position behind the bracket that closes the one at `start`; -1 if none does."""
    depth, quoted, escaped = 0, False, False
    for position in range(start, len(text)):
        character = text[position]
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = character == "\\", character != '"'
        elif character == '"':
            quoted = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position + 1
    return -1


def _check(found: dict[str, Any]) -> Answer:
    score, rows = found.get("score"), found.get("elements")
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        raise ValueError("its score is not a number")
    if not LOWEST <= score <= HIGHEST:
        raise ValueError(f"its score is not between {LOWEST} and {HIGHEST}")
    if not isinstance(rows, list):
        raise ValueError("it does not list the elements before the score")
    elements = []
    for row in rows[:MAX_ELEMENTS]:
        if not isinstance(row, dict) or not isinstance(row.get("what"), str):
            raise ValueError("an element does not say what was invented")
        if row.get("kind") not in KINDS or row.get("size") not in SIZES:
            kinds, sizes = ", ".join(KINDS), ", ".join(SIZES)
            raise ValueError(f"the kind of an element is one of {kinds}; its size one of {sizes}")
        elements.append(Element(row["what"][:MAX_WORDS], row["kind"], row["size"]))
    if score > LOWEST and not elements:
        raise ValueError("it grades an invention and lists none")
    return Answer(float(score), tuple(elements))


def as_json(answer: Answer) -> str:
    """The answer as `read_answer` reads it."""
    rows = [{"what": e.what, "kind": e.kind, "size": e.size} for e in answer.elements]
    return json.dumps({"elements": rows, "score": answer.score}, ensure_ascii=False)

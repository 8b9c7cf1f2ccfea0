"""Prompts: how the view is told, what counts as the same prompt, and which words the prior knows.

Conventions: a prompt is lower case, words separated by single spaces, a comma followed by one space, no full stop at the
end (`normalize_prompt`). The view stands last: "a red mushroom with a white stem, front view from above". Azimuth 0 is
the front and grows counter-clockwise seen from above, so 90 degrees is the object's left side; elevation 0 is level.

A vocabulary file is `{"words": [...], "nouns": [...], "colors": {"red": [r, g, b]}, "held_out": [["red", "cube"]]}`, with
an optional `"max_words"`. With `"parts": {"chair": "legs"}` it also tells the grammar of the captions (see `is_in_grammar`):
other nouns are solids, its words that are nothing else are patterns, and `"supports": ["table"]` are what things stand on.
A prior for the open world has no vocabulary.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from vp3d.errors import UserError
from vp3d.types import Camera

SECTORS = (
    "front view",
    "front left view",
    "left side view",
    "back left view",
    "back view",
    "back right view",
    "right side view",
    "front right view",
)
ABOVE = " from above"
ABOVE_DEG = 25.0  # elevation beyond which a view is "from above"
MAX_WORDS = 60  # what fits a CLIP text encoder of 77 tokens with some room for the view words
MAX_WORDS_VOCABULARY = (
    20  # the longest sentence of a small grammar, unless its vocabulary says otherwise
)
ARTICLES = frozenset({"a", "an"})
RELATIONS = (["on"], ["next", "to"])
OPEN_WORLD = "for the open world use --config configs/sd15.yaml"
_JOINT = re.compile(r"\s+(?:next to|beside|on|with|and)\s+")  # between the phrases of a prompt
_VIEW = re.compile(rf"[\s,]*\b(?:{'|'.join(SECTORS)})(?:{ABOVE})?\s*$")


def view_words(azimuth_deg: float, elevation_deg: float) -> str:
    """The view in words: one of eight sectors of 45 degrees, with " from above" when the elevation is over 25 degrees."""
    turn = (azimuth_deg + 180.0) % 360.0 - 180.0
    steps = math.ceil((abs(turn) - 22.5) / 45.0)
    sector = SECTORS[steps if turn >= 0 else -steps]
    return sector + ABOVE if elevation_deg > ABOVE_DEG else sector


def all_views() -> list[str]:
    """Every value of `view_words`: the sectors level, then from above."""
    return [
        view_words(45.0 * i, elevation) for elevation in (0.0, 90.0) for i in range(len(SECTORS))
    ]


def with_view(prompt: str, view: str) -> str:
    """The prompt with these view words in place of its own; unchanged but for its own when `view` is empty."""
    return ", ".join(part for part in (strip_view(prompt), view) if part)


def view_prompt(prompt: str, azimuth_deg: float, elevation_deg: float) -> str:
    """The prompt as told for one camera: "a red cube, back view from above"."""
    return with_view(prompt, view_words(azimuth_deg, elevation_deg))


def view_prompts(prompt: str, camera: Camera) -> list[str]:
    """`view_prompt` for each of the B cameras."""
    views = zip(camera.azimuth_deg.tolist(), camera.elevation_deg.tolist(), strict=True)
    return [view_prompt(prompt, azimuth, elevation) for azimuth, elevation in views]


def negative_prompts(negative_prompt: str, count: int) -> list[str]:
    """The negative prompt for `count` pictures. It is not told the view: it must not push away from one."""
    return [strip_view(negative_prompt)] * count


def strip_view(prompt: str) -> str:
    """The normalised prompt without view words at its end."""
    return _VIEW.sub("", normalize_prompt(prompt))


def phrases(prompt: str) -> list[str]:
    """What a prompt is put together from, "a red car" and "a white house"; nothing where it is one phrase."""
    found = [part for part in _JOINT.split(strip_view(prompt)) if part.strip()]
    return found if len(found) > 1 else []


def normalize_prompt(prompt: str) -> str:
    """One spelling for prompts that mean the same: case, white space, spaces around commas, full stops at the end."""
    text = unicodedata.normalize("NFKC", prompt).lower()
    text = "".join(c if c.isprintable() else " " for c in text)
    return ", ".join(
        part for part in (" ".join(p.split()) for p in text.rstrip(" .,\t\r\n").split(",")) if part
    )


@dataclass(frozen=True)
class Vocabulary:
    """The words a prior was trained on. `colors` are sRGB in [0, 1]; `held_out` are (colour, noun) pairs it never saw.

    `parts` is the part of a noun that may have its own colour; empty where the file tells no grammar. `supports` are the nouns
    that others were seen to stand on; empty where that could be any.
    """

    words: frozenset[str]
    nouns: frozenset[str]
    colors: dict[str, tuple[float, float, float]]
    held_out: tuple[tuple[str, str], ...] = ()
    max_words: int = MAX_WORDS_VOCABULARY
    parts: dict[str, str] = field(default_factory=dict)
    supports: frozenset[str] = frozenset()

    @property
    def patterns(self) -> frozenset[str]:
        """The words that are no noun, colour, part, view or function word: "stripes"."""
        other = {"with", *ARTICLES, *self.nouns, *self.colors, *self.parts.values()}.union(
            *RELATIONS
        )
        return self.words - other - set(" ".join([*SECTORS, ABOVE]).split())


def load_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary file; UserError when it is missing or damaged."""
    restore = f"restore it with `git checkout -- {path}` or set prior.vocabulary"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        nouns = frozenset(data["nouns"])
        vocabulary = Vocabulary(
            words=frozenset(data["words"])
            | {word for noun in nouns for word in noun.split()}
            | ARTICLES,
            nouns=nouns,
            colors={
                name: (float(r), float(g), float(b)) for name, (r, g, b) in data["colors"].items()
            },
            held_out=tuple((color, noun) for color, noun in data.get("held_out", [])),
            max_words=int(data.get("max_words", MAX_WORDS_VOCABULARY)),
            parts=dict(data.get("parts", {})),
            supports=frozenset(data.get("supports", [])),
        )
    except FileNotFoundError as error:
        raise UserError(f"vocabulary {path} is missing: {restore}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"vocabulary {path} is damaged ({type(error).__name__}): {restore}"
        ) from error
    if not nouns:
        raise UserError(f"vocabulary {path} names no objects: {restore}")
    return vocabulary


def check_prompt(prompt: str, vocabulary: Vocabulary | None) -> None:
    """Raise UserError unless the prior can draw this prompt. Without a vocabulary only emptiness and length are checked."""
    words = _words(prompt)
    if not words:
        raise UserError(
            'the prompt is empty: say what to make, for example "a red mushroom with a white stem"'
        )
    _check_length("prompt", words, vocabulary)
    if vocabulary is None:
        return
    _check_known("prompt", words, vocabulary)
    spoken = f" {' '.join(words)} "
    if not any(f" {noun} " in spoken for noun in vocabulary.nouns):
        raise UserError(
            f"the prompt names no object: name one of {', '.join(sorted(vocabulary.nouns))}; {OPEN_WORLD}"
        )


def check_negative_prompt(prompt: str, vocabulary: Vocabulary | None) -> None:
    """As `check_prompt`, but it may be empty and need not name an object."""
    _check_length("negative prompt", _words(prompt), vocabulary)
    if vocabulary is not None:
        _check_known("negative prompt", _words(prompt), vocabulary)


def is_in_grammar(prompt: str, vocabulary: Vocabulary) -> bool:
    """Whether a prompt of known words is a caption as the prior was trained on, each colour optional; True without a grammar.

    `[COLOUR] NOUN`, then nothing, `with [COLOUR] PART` (or a pattern on a solid), or `on` or `next to` `[COLOUR] NOUN`; one of
    `supports` after `on`.
    """
    if not vocabulary.parts:
        return True
    noun, rest = _read_object([word for word in _words(prompt) if word not in ARTICLES], vocabulary)
    if not noun or not rest:
        return bool(noun)
    if rest[0] == "with":
        allowed = {vocabulary.parts[noun]} if noun in vocabulary.parts else vocabulary.patterns
        return rest[-1] in allowed and (
            len(rest) == 2 or len(rest) == 3 and rest[1] in vocabulary.colors
        )
    relation = next((words for words in RELATIONS if rest[: len(words)] == words), rest)
    other, rest = _read_object(rest[len(relation) :], vocabulary)
    stands = relation != ["on"] or not vocabulary.supports or other in vocabulary.supports
    return bool(other) and not rest and stands


def _read_object(words: list[str], vocabulary: Vocabulary) -> tuple[str, list[str]]:
    """The noun that `words` begin with, after at most one colour, and the words after it; "" where they begin with none."""
    words = words[1:] if words and words[0] in vocabulary.colors else words
    noun = next(
        (noun for noun in vocabulary.nouns if words[: len(noun.split())] == noun.split()), ""
    )
    return noun, words[len(noun.split()) :]


def _words(prompt: str) -> list[str]:
    """The words of a prompt without its view."""
    return strip_view(prompt).replace(",", " ").split()


def _check_length(name: str, words: list[str], vocabulary: Vocabulary | None) -> None:
    limit = vocabulary.max_words if vocabulary else MAX_WORDS
    if len(words) > limit:
        raise UserError(
            f"the {name} is too long: {len(words)} words, at most {limit} are understood; shorten it"
        )


def _check_known(name: str, words: list[str], vocabulary: Vocabulary) -> None:
    unknown = [word for word in dict.fromkeys(words) if word not in vocabulary.words]
    if not unknown:
        return
    hints = [_hint(word, vocabulary) for word in unknown[:5]] + ["..."] * (len(unknown) > 5)
    objects = ", ".join(sorted(vocabulary.nouns))
    raise UserError(
        f"unknown words in the {name}: {', '.join(hints)}; known objects: {objects}; {OPEN_WORLD}"
    )


def _hint(word: str, vocabulary: Vocabulary) -> str:
    near = difflib.get_close_matches(word, sorted(vocabulary.words), n=3, cutoff=0.6)
    shown = word if len(word) <= 30 else word[:30] + "..."
    return f'"{shown}" (nearest: {", ".join(near)})' if near else f'"{shown}"'

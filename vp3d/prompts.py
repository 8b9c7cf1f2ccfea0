"""Prompts: view words, normalisation, and the check against a prior's vocabulary and grammar.

Conventions: a normalised prompt is lower case, its words are separated by single spaces, a comma is
followed by one space, and there is no full stop at the end (`normalize_prompt`). View words come
last: "a red mushroom with a white stem, front view from above". Azimuth 0 is the front and grows
counter-clockwise as viewed from above, so 90 degrees is the object's left side; elevation 0 is
level.

A vocabulary file is JSON:

    {"words": [...], "nouns": [...], "colors": {"red": [r, g, b]}, "held_out": [["red", "cube"]]}

Optional keys: "max_words"; "parts", such as {"chair": "legs"}; "supports", such as ["table"], the
nouns that other objects are placed on. A file with "parts" also defines the grammar of the
captions (`is_in_grammar`): nouns without a part are solids, and words without another role are
patterns. A prior of the open world has no vocabulary.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vp3d.config.paths import restore_advice
from vp3d.errors import UserError
from vp3d.synonyms import nearest
from vp3d.system.files import JsonError, read_json

if TYPE_CHECKING:  # so that a service can check a prompt without loading torch
    from vp3d.types import Camera

# One sector for each 45 degrees of azimuth, counter-clockwise from the front.
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
ABOVE_SUFFIX = " from above"
ABOVE_DEG = 25.0  # elevation in degrees above which a view is "from above"
MAX_CHARACTERS = 4000  # of a prompt; a text encoder reads fewer and cuts the rest
MAX_WORDS_VOCABULARY = 20  # default limit of a prior that has a vocabulary
ARTICLES = frozenset({"a", "an"})
RELATIONS = (["on"], ["next", "to"])
OPEN_WORLD_HINT = "for the open world use --config configs/sd15.yaml"
_JOINT = re.compile(r"\s+(?:next to|beside|on|with|and)\s+")
_VIEW = re.compile(rf"[\s,]*\b(?:{'|'.join(SECTORS)})(?:{ABOVE_SUFFIX})?\s*$")


def check_text(text: str, name: str) -> None:
    """Refuse text that has control characters. Its length is checked with the words.

    Args:
        text: the prompt; may be empty.
        name: what the text is, for the message.

    Raises:
        UserError: when the text is refused.
    """
    refused = ("Cc", "Cs", "Zl", "Zp")  # control, surrogate, line and paragraph separators
    bad = next((letter for letter in text if unicodedata.category(letter) in refused), None)
    if bad is not None:
        raise UserError(
            f"the {name} has the control character {bad!r}; write one line of plain text"
        )


def view_words(azimuth_deg: float, elevation_deg: float) -> str:
    """The view in words: one of the eight `SECTORS`, with " from above" over 25 degrees.

    Args:
        azimuth_deg: Azimuth in degrees, any turn.
        elevation_deg: Elevation in degrees.

    Returns:
        For example "back left view from above".

    Example:
        >>> view_words(90.0, 30.0)
        'left side view from above'
    """
    turn = (azimuth_deg + 180.0) % 360.0 - 180.0
    # A sector edge belongs to the sector nearer to the front, on both sides alike.
    steps = math.ceil((abs(turn) - 22.5) / 45.0)
    sector = SECTORS[steps if turn >= 0 else -steps]
    return sector + ABOVE_SUFFIX if elevation_deg > ABOVE_DEG else sector


def all_views() -> list[str]:
    """All 16 values of `view_words`: the level sectors, then those from above."""
    return [
        view_words(45.0 * i, elevation) for elevation in (0.0, 90.0) for i in range(len(SECTORS))
    ]


def with_view(prompt: str, view: str) -> str:
    """The normalised prompt with its view words replaced by `view`; "" only removes them.

    Example:
        >>> with_view("A red cube, front view", "back view")
        'a red cube, back view'
    """
    return ", ".join(part for part in (strip_view(prompt), view) if part)


def view_prompt(prompt: str, azimuth_deg: float, elevation_deg: float) -> str:
    """The prompt for one camera: "a red cube, back view from above". Angles in degrees."""
    return with_view(prompt, view_words(azimuth_deg, elevation_deg))


def view_prompts(prompt: str, camera: Camera) -> list[str]:
    """`view_prompt` for each of the B cameras."""
    views = zip(camera.azimuth_deg.tolist(), camera.elevation_deg.tolist(), strict=True)
    return [view_prompt(prompt, azimuth, elevation) for azimuth, elevation in views]


def negative_prompts(negative_prompt: str, count: int) -> list[str]:
    """The negative prompt, `count` times.

    View words are removed, so that guidance does not push away from a view.
    """
    return [strip_view(negative_prompt)] * count


def strip_view(prompt: str) -> str:
    """The normalised prompt without view words at its end."""
    return _VIEW.sub("", normalize_prompt(prompt))


def phrases(prompt: str) -> list[str]:
    """The phrases of a prompt that joins several, without its view words; else an empty list.

    Example:
        >>> phrases("a red car next to a white house")
        ['a red car', 'a white house']
        >>> phrases("a red car")
        []
    """
    found = [part for part in _JOINT.split(strip_view(prompt)) if part.strip()]
    return found if len(found) > 1 else []


def normalize_prompt(prompt: str) -> str:
    """One spelling for equal prompts: case, white space, commas, and full stops at the end.

    Invisible characters inside a word, such as a soft hyphen, are dropped.

    Example:
        >>> normalize_prompt("  A red  CUBE ,on a table. ")
        'a red cube, on a table'
    """
    text = unicodedata.normalize("NFKC", prompt).lower()
    text = "".join(c if c.isprintable() else "" if _is_invisible(c) else " " for c in text)
    parts = (" ".join(part.split()) for part in text.rstrip(" .,\t\r\n").split(","))
    return ", ".join(part for part in parts if part)


def _is_invisible(letter: str) -> bool:
    """Whether a character has no width and parts no words; a zero-width space does."""
    return unicodedata.category(letter) == "Cf" and letter != "\u200b"


@dataclass(frozen=True)
class Vocabulary:
    """The words that a prior was trained on.

    Attributes:
        words: All known words.
        nouns: The objects; a noun may have several words.
        colors: Colour words and their sRGB values in [0, 1].
        held_out: (colour, noun) pairs that are in no training caption.
        max_words: The longest prompt in words, without view words.
        parts: For a noun, the part that may have its own colour. Empty: no grammar is defined.
        supports: Nouns that other objects are placed on. Empty: any noun.
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
        """Words that are no noun, colour, part, view word or function word, such as "stripes"."""
        other = {"with", *ARTICLES, *self.nouns, *self.colors, *self.parts.values()}
        other = other.union(*RELATIONS)
        return self.words - other - set(" ".join([*SECTORS, ABOVE_SUFFIX]).split())


def load_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary file.

    Raises:
        UserError: The file is missing, damaged or has no nouns.
    """
    restore = f"{restore_advice(path)} or set prior.vocabulary"
    try:
        vocabulary = _parse_vocabulary(read_json(path))
    except JsonError as error:
        fault = "is missing" if error.missing else f"is damaged ({error.reason})"
        raise UserError(f"vocabulary {path} {fault}: {restore}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"vocabulary {path} is damaged ({type(error).__name__}): {restore}"
        ) from error
    if not vocabulary.nouns:
        raise UserError(f"vocabulary {path} has no nouns: {restore}")
    return vocabulary


def _parse_vocabulary(data: Any) -> Vocabulary:
    """The vocabulary of a parsed JSON file; ValueError, KeyError, TypeError or AttributeError."""
    nouns = frozenset(data["nouns"])
    noun_words = {word for noun in nouns for word in noun.split()}
    colors = {name: (float(r), float(g), float(b)) for name, (r, g, b) in data["colors"].items()}
    return Vocabulary(
        words=frozenset(data["words"]) | noun_words | ARTICLES,
        nouns=nouns,
        colors=colors,
        held_out=tuple((color, noun) for color, noun in data.get("held_out", [])),
        max_words=int(data.get("max_words", MAX_WORDS_VOCABULARY)),
        parts=dict(data.get("parts", {})),
        supports=frozenset(data.get("supports", [])),
    )


def check_prompt(prompt: str, vocabulary: Vocabulary | None) -> None:
    """Refuse a prompt that the prior cannot draw.

    Args:
        prompt: The prompt, with or without view words.
        vocabulary: The prior's words; None checks only that the prompt is neither empty nor long.

    Raises:
        UserError: The prompt is empty or too long, has unknown words or names no object.
    """
    words = words_of(prompt)
    if not words:
        raise UserError(
            "the prompt is empty: describe an object, "
            'for example "a red mushroom with a white stem"'
        )
    _check_length("prompt", words, vocabulary)
    if vocabulary is None:
        return
    _check_known("prompt", words, vocabulary)
    text = f" {' '.join(words)} "
    if not any(f" {noun} " in text for noun in vocabulary.nouns):
        nouns = ", ".join(sorted(vocabulary.nouns))
        raise UserError(f"the prompt names no object: use one of {nouns}; {OPEN_WORLD_HINT}")


def check_negative_prompt(prompt: str, vocabulary: Vocabulary | None) -> None:
    """As `check_prompt`, but the prompt may be empty and need not name an object."""
    _check_length("negative prompt", words_of(prompt), vocabulary)
    if vocabulary is not None:
        _check_known("negative prompt", words_of(prompt), vocabulary)


def is_in_grammar(prompt: str, vocabulary: Vocabulary) -> bool:
    """Whether a prompt of known words has the form of a training caption; articles are ignored.

    The forms, with an optional colour before each NOUN, PART and PATTERN:

        NOUN
        NOUN with PART          if the noun has a part
        NOUN with PATTERN       if it has none
        NOUN on NOUN            the second one in `supports`, unless that is empty
        NOUN next to NOUN

    Args:
        prompt: The prompt, with or without view words.
        vocabulary: The prior's words.

    Returns:
        Whether the prompt has one of these forms; True if the vocabulary defines no grammar.
    """
    if not vocabulary.parts:
        return True
    noun, rest = _read_object(
        [word for word in words_of(prompt) if word not in ARTICLES], vocabulary
    )
    if not noun or not rest:
        return bool(noun)
    if rest[0] == "with":
        allowed = {vocabulary.parts[noun]} if noun in vocabulary.parts else vocabulary.patterns
        is_colored = len(rest) == 3 and rest[1] in vocabulary.colors
        return rest[-1] in allowed and (len(rest) == 2 or is_colored)
    relation = next((words for words in RELATIONS if rest[: len(words)] == words), rest)
    other, rest = _read_object(rest[len(relation) :], vocabulary)
    supported = relation != ["on"] or not vocabulary.supports or other in vocabulary.supports
    return bool(other) and not rest and supported


def _read_object(words: list[str], vocabulary: Vocabulary) -> tuple[str, list[str]]:
    """The noun at the start of `words`, after at most one colour, and the words that follow it.

    The noun is "" if `words` start with none.
    """
    words = words[1:] if words and words[0] in vocabulary.colors else words
    matches = (noun for noun in vocabulary.nouns if words[: len(noun.split())] == noun.split())
    noun = next(matches, "")
    return noun, words[len(noun.split()) :]


def words_of(prompt: str) -> list[str]:
    """The words of a prompt without its view words and commas."""
    return strip_view(prompt).replace(",", " ").split()


def _check_length(name: str, words: list[str], vocabulary: Vocabulary | None) -> None:
    """Refuse what no encoder reads; an encoder of the open world cuts what it does not read."""
    characters = len(" ".join(words))
    if vocabulary is None and characters > MAX_CHARACTERS:
        raise UserError(
            f"the {name} is too long: it has {characters} characters, at most {MAX_CHARACTERS} "
            "are read; shorten it"
        )
    if vocabulary and len(words) > vocabulary.max_words:
        raise UserError(
            f"the {name} is too long: it has {len(words)} words, at most {vocabulary.max_words} "
            "fit; shorten it"
        )


def _check_known(name: str, words: list[str], vocabulary: Vocabulary) -> None:
    unknown = [word for word in dict.fromkeys(words) if word not in vocabulary.words]
    if not unknown:
        return
    hints = [_hint(word, vocabulary) for word in unknown[:5]] + ["..."] * (len(unknown) > 5)
    objects = ", ".join(sorted(vocabulary.nouns))
    raise UserError(
        f"unknown words in the {name}: {', '.join(hints)}; "
        f"known objects: {objects}; {OPEN_WORLD_HINT}"
    )


def _hint(word: str, vocabulary: Vocabulary) -> str:
    """The word in quotes, shortened, with the known words nearest by meaning or spelling."""
    near = nearest(word, vocabulary.words)
    shown = word if len(word) <= 30 else word[:30] + "..."
    return f'"{shown}" (nearest: {", ".join(near)})' if near else f'"{shown}"'

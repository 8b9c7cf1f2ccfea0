"""Read a prompt as people write it: say it in the words of a prior's vocabulary.

Punctuation and quotes are no words, "the" is an article, and a synonym or another number of a
known word is taken with one line that says so. Nothing is guessed from spelling: a word that has no
equal is left for `vp3d.prompts.check_prompt` to refuse, with the nearest known words.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from vp3d.prompts import ARTICLES, Vocabulary, normalize_prompt, strip_view, words_of
from vp3d.synonyms import LONGEST, meaning

DETERMINERS = frozenset({"the", "this", "that", "one", "some", "any", "my", "your", "our"})
WITH = re.compile(r"(?<!\w)w/\s*", re.IGNORECASE)
APOSTROPHES = "'\u2018\u2019\u02bc"


@dataclass(frozen=True)
class Reading:
    """A prompt in the words of a vocabulary.

    Attributes:
        text: The prompt, with known words instead of their synonyms.
        changes: What was read for what: ("couch", "sofa"). "" is a phrase that was left out.
    """

    text: str
    changes: tuple[tuple[str, str], ...] = ()

    def note(self, name: str = "prompt") -> str:
        """One line on the changes, for the user; "" without any."""
        parts = [
            f'"{phrase}" is taken as "{target}"' if target else f'"{phrase}" is left out'
            for phrase, target in self.changes
        ]
        return f'the {name} is read as "{self.text}": {", ".join(parts)}' if parts else ""


def read_prompt(prompt: str, vocabulary: Vocabulary | None) -> Reading:
    """Say a prompt in known words: without punctuation, and with words for their synonyms.

    A prompt of known words is returned unchanged, and so is every prompt without a vocabulary. A
    word that nobody knows is kept, for `check_prompt` to refuse. A change of the article or of
    punctuation is not listed.

    Args:
        prompt: The prompt as written, with or without view words.
        vocabulary: The prior's words; None for the open world.

    Returns:
        The reading.

    Example:
        >>> words = frozenset("a red sofa with stripes".split())
        >>> known = Vocabulary(words, frozenset({"sofa"}), {"red": (1.0, 0.0, 0.0)})
        >>> read_prompt("The crimson couch!", known)
        Reading(text='a red sofa', changes=(('crimson', 'red'), ('couch', 'sofa')))
    """
    if vocabulary is None or all(word in vocabulary.words for word in words_of(prompt)):
        return Reading(prompt)
    text = normalize_prompt(_without_punctuation(prompt))
    body = strip_view(text)
    tokens, changes = _known_tokens(body.replace(",", " , ").split(), vocabulary)
    found = normalize_prompt(" ".join(_with_right_articles(tokens, vocabulary)))
    view = text[len(body) :].strip(" ,")
    return Reading(", ".join(part for part in (found, view) if part), tuple(changes))


def _without_punctuation(prompt: str) -> str:
    """The prompt with blanks for punctuation, quotes and mathematical signs, but commas.

    An apostrophe between letters and a point or colon between digits belong to the word.
    """
    text = WITH.sub(" with ", prompt.replace("&", " and ").replace("+", " and "))
    kept = []
    for before, letter, after in zip(f" {text}", text, f"{text[1:]} ", strict=False):
        inside = (letter in APOSTROPHES and before.isalpha() and after.isalpha()) or (
            letter in ".:" and before.isdigit() and after.isdigit()
        )
        kind = unicodedata.category(letter)
        is_mark = (kind.startswith("P") or kind in ("Sk", "Sm")) and letter not in ",\uff0c"
        kept.append(" " if is_mark and not inside else letter)
    return "".join(kept)


def _known_tokens(
    tokens: list[str], vocabulary: Vocabulary
) -> tuple[list[str], list[tuple[str, str]]]:
    """The tokens with known words for their synonyms, the longest phrase first; and the changes."""
    found: list[str] = []
    changes: list[tuple[str, str]] = []
    start = 0
    while start < len(tokens):
        for length in range(min(LONGEST, len(tokens) - start), 0, -1):
            words = tokens[start : start + length]
            known = all(word in vocabulary.words or word == "," for word in words)
            target = None if known else meaning(" ".join(words), vocabulary.words)
            if target is not None:
                found += target.split()
                changes.append((" ".join(words), target))
                break
            if length == 1:
                found.append("a" if words[0] in DETERMINERS else words[0])
        start += length
    return found, changes


def _with_right_articles(tokens: list[str], vocabulary: Vocabulary) -> list[str]:
    """The tokens with one article where several follow each other: "a" or "an" by the next word,
    none before the name of a part or pattern in the plural."""
    found: list[str] = []
    for index, token in enumerate(tokens):
        if token not in ARTICLES:
            found.append(token)
            continue
        rest = [word for word in tokens[index + 1 :] if word not in vocabulary.colors][:1]
        following = tokens[index + 1 : index + 2]
        plural = {*vocabulary.parts.values(), *vocabulary.patterns}
        is_plural = bool(rest) and rest[0] in plural and rest[0].endswith("s")
        if not (set(following) & ARTICLES or is_plural):
            vowel = bool(following) and following[0][0] in "aeiou"
            found.append("an" if vowel else "a")
    return found

"""What a prompt may say: the vocabulary of a profile, and the check while somebody types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from vp3d.config.loader import build_config
from vp3d.config.paths import locate
from vp3d.errors import UserError
from vp3d.jobs.request import Limits, check_text, profile_layers
from vp3d.prompt_reading import read_prompt
from vp3d.prompt_world import is_open, world_of
from vp3d.prompts import (
    Vocabulary,
    check_negative_prompt,
    check_prompt,
    is_in_grammar,
    load_vocabulary,
    words_of,
)
from vp3d.serve.problems import Problem
from vp3d.synonyms import nearest

EXAMPLES = (
    "a red mushroom with a white stem",
    "a green sphere with yellow stripes",
    "a purple chair with brown legs",
    "a pink cone on a green cylinder",
    "a red car next to a white house",
)


@lru_cache(maxsize=16)
def _load(path: str) -> Vocabulary:
    return load_vocabulary(locate(path))


def vocabularies(profile: str, prompt: str = "", negative_prompt: str = "") -> list[Vocabulary]:
    """The vocabularies that a run of a profile would check these prompts by.

    Of the embedded models, that of the prompts; the settings of a request name no models.
    """
    config = build_config(None, profile_layers(profile))
    draws = config.visual_prompt.prior
    if prompt.strip() and is_open(config.embedded, config.prior, draws.path, config.rewards.clip):
        return [_load(world_of(prompt, negative_prompt).path("vocabulary.json"))]
    return [
        _load(path) for path in dict.fromkeys([config.prior.vocabulary, draws.vocabulary]) if path
    ]


def describe(profile: str) -> dict[str, Any]:
    """Words, grammar and examples of a profile; `open` is true if every word is known."""
    found = vocabularies(profile)
    if not found:
        return {"profile": profile, "open": True, "words": [], "examples": []}
    words = found[0]
    return {
        "profile": profile,
        "open": False,
        "words": sorted(words.words),
        "nouns": sorted(words.nouns),
        "colors": {name: list(rgb) for name, rgb in words.colors.items()},
        "parts": dict(sorted(words.parts.items())),
        "patterns": sorted(words.patterns),
        "supports": sorted(words.supports),
        "max_words": words.max_words,
        "grammar": [
            "a COLOR NOUN",
            "a COLOR NOUN with a COLOR PART",
            "a COLOR SOLID with COLOR PATTERN",
            "a COLOR NOUN on a COLOR NOUN",
            "a COLOR NOUN next to a COLOR NOUN",
        ],
        "examples": list(EXAMPLES),
    }


def check(prompt: str, profile: str, limits: Limits) -> dict[str, Any]:
    """Whether a prompt can be made: unknown words with the nearest known ones, and how it reads.

    Raises UserError for an unknown profile.
    """
    try:
        check_text(prompt, "prompt", limits.prompt)  # before it costs anything
        if not prompt.strip():
            raise UserError("the prompt is empty")
    except UserError as error:
        answer = {"ok": False, "in_grammar": True, "unknown": [], "read_as": prompt}
        return {**answer, "message": str(error)}
    return _read(prompt, vocabularies(profile, prompt), check_prompt)


def _read(
    text: str, found: Sequence[Vocabulary], check_words: Callable[[str, Vocabulary], None]
) -> dict[str, Any]:
    """How each vocabulary reads a text, and the first refusal by `check_words`."""
    answer: dict[str, Any] = {"ok": False, "in_grammar": True, "unknown": [], "read_as": text}
    try:
        for vocabulary in found:
            text = read_prompt(text, vocabulary).text
            answer["read_as"] = text
            answer["unknown"] += _unknown(text, vocabulary)
            answer["in_grammar"] &= is_in_grammar(text, vocabulary)
            check_words(text, vocabulary)
    except UserError as error:
        return {**answer, "message": str(error)}
    return {**answer, "ok": True, "message": ""}


def _unknown(prompt: str, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    unknown = [word for word in dict.fromkeys(words_of(prompt)) if word not in vocabulary.words]
    return [{"word": word, "nearest": nearest(word, vocabulary.words)[:4]} for word in unknown]


def refuse_unknown(
    prompt: str, negative_prompt: str, profile: str, pointer: str = "/prompt"
) -> None:
    """The problem of a run whose prompt or negative prompt its models do not know.

    Args:
        prompt: the prompt, of a length that is allowed (`config_of`).
        negative_prompt: the same of it.
        profile: the models.
        pointer: the field that the prompt came in.
    """
    found = vocabularies(profile, prompt, negative_prompt)
    for text, field, check_words in (
        (prompt, pointer, check_prompt),
        (negative_prompt, "/negative_prompt", check_negative_prompt),
    ):
        answer = _read(text, found, check_words)
        if not answer["ok"]:
            code = "unknown_words" if answer["unknown"] else "bad_request"
            errors = [{"pointer": field, **word} for word in answer["unknown"]]
            raise Problem(422, code, answer["message"], errors)

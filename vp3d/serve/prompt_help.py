"""What a prompt may say: the vocabulary of a profile, and the check while somebody types."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from vp3d.config.loader import build_config
from vp3d.config.paths import locate
from vp3d.errors import UserError
from vp3d.jobs.request import Limits, check_text, profile_layers
from vp3d.prompt_reading import read_prompt
from vp3d.prompt_world import is_default, world_of
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


def vocabularies(profile: str, prompt: str = "") -> list[Vocabulary]:
    """The vocabularies of the priors of a profile; of the embedded ones, that of the prompt."""
    config = build_config(None, profile_layers(profile))
    draws, given = config.visual_prompt.prior.path, config.embedded == "given"
    if prompt.strip() and is_default(config.prior, config.rewards.clip) and not (draws or given):
        return [_load(world_of(prompt).path("vocabulary.json"))]
    paths = [config.prior.vocabulary, config.visual_prompt.prior.vocabulary]
    return [_load(path) for path in dict.fromkeys(paths) if path]


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
    found = vocabularies(profile, prompt)
    answer: dict[str, Any] = {"ok": False, "in_grammar": True, "unknown": [], "read_as": prompt}
    try:
        check_text(prompt, "prompt", limits.prompt)
        if not prompt.strip():
            raise UserError("the prompt is empty")
        for vocabulary in found:
            prompt = read_prompt(prompt, vocabulary).text
            answer["read_as"] = prompt
            answer["unknown"] += _unknown(prompt, vocabulary)
            answer["in_grammar"] &= is_in_grammar(prompt, vocabulary)
            check_prompt(prompt, vocabulary)
    except UserError as error:
        return {**answer, "message": str(error)}
    return {**answer, "ok": True, "message": ""}


def _unknown(prompt: str, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    unknown = [word for word in dict.fromkeys(words_of(prompt)) if word not in vocabulary.words]
    return [{"word": word, "nearest": nearest(word, vocabulary.words)[:4]} for word in unknown]


def refuse_unknown(prompt: str, profile: str, limits: Limits, pointer: str = "/prompt") -> None:
    """The problem of a prompt that cannot be made."""
    found = check(prompt, profile, limits)
    if found["ok"]:
        return
    code = "unknown_words" if found["unknown"] else "bad_request"
    errors = [{"pointer": pointer, **word} for word in found["unknown"]]
    raise Problem(422, code, found["message"], errors)


def refuse_negative(prompt: str, profile: str) -> None:
    """The problem of a negative prompt with words that the profile does not know."""
    for vocabulary in vocabularies(profile) if prompt.strip() else ():
        prompt = read_prompt(prompt, vocabulary).text
        try:
            check_negative_prompt(prompt, vocabulary)
        except UserError as error:
            unknown = _unknown(prompt, vocabulary)
            errors = [{"pointer": "/negative_prompt", **word} for word in unknown]
            code = "unknown_words" if unknown else "bad_request"
            raise Problem(422, code, str(error), errors) from error

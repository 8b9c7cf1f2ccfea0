"""View words, the spelling of prompts, and the errors for prompts that cannot be drawn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vp3d import prompts
from vp3d.checks import is_outside_grammar
from vp3d.config.paths import ROOT
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.prompts import (
    Vocabulary,
    check_negative_prompt,
    check_prompt,
    is_in_grammar,
    load_vocabulary,
    normalize_prompt,
    phrases,
    strip_view,
    view_prompt,
    view_prompts,
    view_words,
)
from vp3d.types import Camera
from vp3d.worlds.toybox.scenes import caption, parse_caption, sample_spec, without_colors

WORDS = (
    "red yellow pink green purple brown white sphere cube cone cylinder chair mushroom stem legs "
    "stripes with on next to"
)
NOUNS = ["sphere", "cube", "cone", "cylinder", "chair", "mushroom"]
COLORS = {"red": [0.9, 0.1, 0.1], "white": [1, 1, 1]}


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    path = tmp_path / "vocabulary.json"
    data = {"words": WORDS.split(), "nouns": NOUNS, "colors": COLORS, "held_out": [["red", "cube"]]}
    path.write_text(json.dumps(data))
    return load_vocabulary(path)


def refusal(prompt: str, vocabulary: Vocabulary | None) -> str:
    with pytest.raises(UserError) as caught:
        check_prompt(prompt, vocabulary)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("azimuth", "words"),
    [
        (0, "front view"),
        (45, "front left view"),
        (90, "left side view"),
        (135, "back left view"),
        (180, "back view"),
        (225, "back right view"),
        (270, "right side view"),
        (315, "front right view"),
    ],
)
def test_sector_centres_in_any_turn(azimuth: float, words: str) -> None:
    for turn in (-720, -360, 0, 360):
        for off in (-22.4, 0.0, 22.4):
            assert view_words(azimuth + turn + off, 0) == words


def test_sector_edges_belong_to_the_side_nearer_the_front() -> None:
    assert view_words(22.5, 0) == view_words(-22.5, 0) == view_words(337.5, 0) == "front view"
    assert view_words(157.5, 0) == "back left view"
    assert view_words(202.5, 0) == "back right view"


def test_views_are_the_nearest_sector_and_mirror_left_and_right() -> None:
    for azimuth in torch.linspace(-179.77, 179.77, 353).tolist():
        nearest = min(range(8), key=lambda k: abs((azimuth - 45 * k + 180) % 360 - 180))
        assert view_words(azimuth, 0) == prompts.SECTORS[nearest]
        swapped = (
            view_words(azimuth, 0)
            .replace("left", "#")
            .replace("right", "left")
            .replace("#", "right")
        )
        assert view_words(-azimuth, 0) == swapped


def test_from_above_begins_over_25_degrees() -> None:
    assert view_words(0, 25.0) == "front view"
    assert view_words(0, 25.1) == "front view from above"
    assert view_words(180, -40) == "back view"


def test_view_prompts_follow_the_cameras() -> None:
    camera = Camera(
        torch.tensor([0.0, 95.0]), torch.tensor([30.0, 0.0]), torch.ones(2), torch.ones(2)
    )
    found = view_prompts("A red  mushroom with a white stem.", camera)
    assert found == [
        "a red mushroom with a white stem, front view from above",
        "a red mushroom with a white stem, left side view",
    ]


@pytest.mark.parametrize("azimuth", range(0, 360, 45))
@pytest.mark.parametrize("elevation", [0, 40])
def test_strip_view_undoes_view_prompt(azimuth: int, elevation: int) -> None:
    found = view_prompt("a purple chair with brown legs", azimuth, elevation)
    assert strip_view(found) == "a purple chair with brown legs"
    assert view_prompt(found, 180, 0) == "a purple chair with brown legs, back view"


def test_strip_view_leaves_words_that_are_not_the_view() -> None:
    assert strip_view("a view of a red house") == "a view of a red house"
    assert strip_view("a front view mirror") == "a front view mirror"
    assert strip_view("a red cube front view") == "a red cube"
    assert strip_view("front view") == ""


def test_with_view_empty_adds_nothing() -> None:
    assert prompts.with_view("a red cube", "") == "a red cube"
    assert prompts.with_view("", "front view") == "front view"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("  A Red\tCUBE. ", "a red cube"),
        ("a red cube ,front view..", "a red cube, front view"),
        ("a red\ncube", "a red cube"),
        ("a red\u00a0cube\x00", "a red cube"),
        (" .,. ", ""),
        ("a,, b,", "a, b"),
        ("a r\u00aded c\u200dub\u2060e\ufeff", "a red cube"),
        ("a\u200bred cube", "a red cube"),
        ("\u202ea red cube\u202c", "a red cube"),
    ],
)
def test_normalize(written: str, meant: str) -> None:
    assert normalize_prompt(written) == meant
    assert normalize_prompt(meant) == meant


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red car next to a white house", ["a red car", "a white house"]),
        ("a green cactus on an orange cube, back view", ["a green cactus", "an orange cube"]),
        ("a knight with a sword and a shield", ["a knight", "a sword", "a shield"]),
        ("a red sphere", []),
        ("a lion standing", []),
        ("with", []),
    ],
)
def test_phrases(prompt: str, expected: list[str]) -> None:
    assert phrases(prompt) == expected


def test_negative_prompts() -> None:
    assert prompts.negative_prompts("Blurry, back view.", 3) == ["blurry"] * 3
    assert prompts.negative_prompts("", 2) == ["", ""]


@pytest.mark.parametrize(
    "prompt",
    [
        "a red sphere with yellow stripes",
        "a pink cone on a green cylinder",
        "A purple chair with brown legs.",
        "a purple chair with brown legs, front view",
        "an red cube next to a white mushroom, back left view from above",
        "SPHERE",
    ],
)
def test_grammar_passes(prompt: str, vocabulary: Vocabulary) -> None:
    check_prompt(prompt, vocabulary)


@pytest.mark.parametrize("prompt", ["", "   ", ".", "\n\t", ",", "front view"])
def test_empty(prompt: str, vocabulary: Vocabulary) -> None:
    assert "empty" in refusal(prompt, vocabulary)
    assert "empty" in refusal(prompt, None)


def test_too_long(vocabulary: Vocabulary) -> None:
    assert "21 words, at most 20" in refusal("a red sphere " * 7, vocabulary)
    assert "4009 characters, at most 4000" in refusal("word " * 802, None)
    check_prompt("word " * 800, None)
    check_negative_prompt("word " * 800, None)
    check_prompt("a red sphere " * 6 + "on a, front right view from above", vocabulary)


def test_unknown_words_come_with_the_nearest_and_the_config(vocabulary: Vocabulary) -> None:
    message = refusal("a redd spheres on a dragon", vocabulary)
    assert '"redd" (nearest: red' in message and "sphere" in message and '"dragon"' in message
    assert "--config configs/sd15.yaml" in message
    check_prompt("a redd spheres on a dragon", None)


def test_unknown_words_stay_one_short_line(vocabulary: Vocabulary) -> None:
    message = refusal(f"a sphere {'x' * 5000} \U0001f344 w1 w2 w3 w4 w5 w6", vocabulary)
    assert len(message) < 500 and "..." in message


def test_an_object_is_needed(vocabulary: Vocabulary) -> None:
    message = refusal("a red with yellow stripes", vocabulary)
    assert "names no object" in message and "mushroom" in message


EMBEDDED = load_vocabulary(ROOT / "assets" / "toybox" / "vocabulary.json")


def test_every_caption_is_in_the_grammar_with_colours_and_without() -> None:
    rng = np.random.default_rng(0)
    for spec in (sample_spec(rng) for _ in range(500)):
        for text in (caption(spec), without_colors(caption(spec))):
            assert is_in_grammar(text, EMBEDDED), text
            assert is_in_grammar(f"{text.upper()}, back left view from above.", EMBEDDED), text
    assert EMBEDDED.patterns == {"stripes", "checks"}


@pytest.mark.parametrize(
    "prompt",
    [
        "red blue green cube cube cube on on",
        "a chair with yellow stripes",
        "a purple chair with brown wheels",
        "a red cube next to a blue cube next to a green cube",
        "a red cube with",
        "a red cube on",
        "a red cube next a cone",
        "a red cube, a blue cone",
        "with a red cube",
        "a sphere red",
        "a red blue sphere",
        "a red sphere with red yellow stripes",
    ],
)
def test_known_words_in_no_sentence_of_the_grammar(prompt: str) -> None:
    check_prompt(prompt, EMBEDDED)
    assert not is_in_grammar(prompt, EMBEDDED)
    with pytest.raises(ValueError, match="not a toybox caption"):
        parse_caption(prompt.replace("a red cube, a blue cone", "a red cube a blue cone"))


def test_nothing_was_seen_to_stand_on_a_ball() -> None:
    assert is_in_grammar("a red cube on a blue table", EMBEDDED) and is_in_grammar(
        "a red cube next to a sphere", EMBEDDED
    )
    assert not is_in_grammar("a red cube on a blue sphere", EMBEDDED)
    assert is_in_grammar(
        "a red cube on a blue sphere", dataclasses.replace(EMBEDDED, supports=frozenset())
    )


def test_a_vocabulary_without_parts_tells_no_grammar(vocabulary: Vocabulary) -> None:
    assert is_in_grammar("cube cube with on", vocabulary)


def test_a_prompt_outside_the_grammar_is_warned_of_in_the_run() -> None:
    config = Config(prompt="a chair with yellow stripes")
    assert is_outside_grammar(config)
    config.prior.vocabulary = ""
    assert not is_outside_grammar(config)


def test_negative_prompt_may_be_empty_but_not_unknown(vocabulary: Vocabulary) -> None:
    check_negative_prompt("", vocabulary)
    check_negative_prompt("red", vocabulary)
    check_negative_prompt("blurry", None)
    with pytest.raises(UserError, match="negative prompt"):
        check_negative_prompt("blurry", vocabulary)


def test_vocabulary_fields(vocabulary: Vocabulary) -> None:
    assert vocabulary.colors["red"] == (0.9, 0.1, 0.1)
    assert vocabulary.held_out == (("red", "cube"),)
    assert {"a", "an"} <= vocabulary.words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"words": []}',
        '{"words": [], "nouns": [], "colors": {}}',
        '{"words": ["a"], "nouns": ["b"], "colors": {"r": 1}}',
    ],
)
def test_damaged_vocabulary(text: str, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(text)
    with pytest.raises(UserError, match="git checkout"):
        load_vocabulary(path)


def test_missing_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        load_vocabulary(tmp_path / "none.json")

"""View words, the spelling of prompts, and the errors for prompts that cannot be drawn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vp3d import prompts
from vp3d.checks import is_outside_grammar, read_prompts
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
    read_prompt,
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


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a red mushroom with a white stem!", "a red mushroom with a white stem"),
        ("a red mushroom with a white stem?!", "a red mushroom with a white stem"),
        ("a red mushroom; with a white stem", "a red mushroom with a white stem"),
        ("\u201ca red cube\u201d", "a red cube"),
        ("\u00aba red cube\u00bb", "a red cube"),
        ("\u201ea red cube\u201c", "a red cube"),
        ("\u300ca red cube\u300d", "a red cube"),
        ("'a red cube'", "a red cube"),
        ("`a red cube`", "a red cube"),
        ("\u00b4a red cube\u00b4", "a red cube"),
        ("a red cube\u2026!", "a red cube"),
        ("a red cube \u2014 next to a blue cone", "a red cube next to a blue cone"),
        ("\u00bfa red cube?", "a red cube"),
        ("((a [red] {cube}))", "a red cube"),
        ("red_cube", "red cube"),
        ("a red-cube", "a red cube"),
        ("a red cube\u3002", "a red cube"),
        ("a red cube! front view from above", "a red cube, front view from above"),
        ("a red\uff0c blue cube!", "a red, blue cube"),
    ],
)
def test_punctuation_and_quotes_are_no_words(written: str, read: str) -> None:
    found = read_prompt(written, EMBEDDED)
    assert (found.text, found.changes, found.note()) == (read, (), "")
    check_prompt(found.text, EMBEDDED)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("the red mushroom", "a red mushroom"),
        ("The Red Mushroom.", "a red mushroom"),
        ("the orange cube", "an orange cube"),
        ("this egg", "an egg"),
        ("my red car with the white wheels", "a red car with white wheels"),
        ("one red cube", "a red cube"),
    ],
)
def test_every_article_is_the_one_of_the_captions(written: str, read: str) -> None:
    assert read_prompt(written, EMBEDDED).text == read


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a couch", "a sofa"),
        ("a crimson ball", "a red sphere"),
        ("a cup", "a mug"),
        ("a plane", "an airplane"),
        ("an automobile", "a car"),
        ("red mushrooms with white stems", "red mushroom with white stem"),
        ("boxes", "cube"),
        ("cacti", "cactus"),
        ("a chair with a brown leg", "a chair with brown legs"),
        ("a white house beside a green tree", "a white house next to a green tree"),
        ("a ball on top of a box", "a sphere on a cube"),
        ("a red cube and a blue cone", "a red cube next to a blue cone"),
        ("a red cube & a blue cone", "a red cube next to a blue cone"),
        ("a ball having yellow stripes", "a sphere with yellow stripes"),
        ("a light-blue Christmas tree, back view", "a cyan tree, back view"),
        ("a dark red box", "a red cube"),
        ("a red-coloured ball", "a red sphere"),
        ("a photo of a rubber duck", "a duck"),
        ("the red couch, the blue ball", "a red sofa, a blue sphere"),
    ],
)
def test_a_synonym_is_taken_and_said(written: str, read: str) -> None:
    found = read_prompt(written, EMBEDDED)
    assert found.text == read
    note = found.note()
    assert note.startswith(f'the prompt is read as "{read}": ') and "\n" not in note
    for phrase, target in found.changes:
        assert f'"{phrase}"' in note and (f'"{target}"' in note or "left out" in note)
    check_prompt(found.text, EMBEDDED)


def test_a_prompt_of_known_words_is_the_same_text() -> None:
    rng = np.random.default_rng(1)
    for spec in (sample_spec(rng) for _ in range(300)):
        for text in (
            caption(spec),
            f"{caption(spec).upper()},  front view..",
            without_colors(caption(spec)),
        ):
            assert read_prompt(text, EMBEDDED) == prompts.Reading(text)
    for text in ("The crimson couch!", "  odd \t text;", "", "a\nb"):
        assert read_prompt(text, None) == prompts.Reading(text)
    assert read_prompt("", EMBEDDED).text == ""


def test_a_reading_is_read_as_itself() -> None:
    for text in ("the crimson couch; on top of a box!", "cups & balls", "some gray thing"):
        once = read_prompt(text, EMBEDDED).text
        assert read_prompt(once, EMBEDDED) == prompts.Reading(once)


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("grey", "white, black"),
        ("gray", "white, black"),
        ("silver", "white, black"),
        ("striped", "with stripes"),
        ("armchairs", "chair, sofa"),
        ("truck", "car"),
        ("bottle", "cylinder"),
        ("under", "on"),
        ("mushrom", "mushroom"),
        ("coutch", "sofa"),
        ("yelow", "yellow"),
    ],
)
def test_a_word_that_nobody_knows_has_the_nearest_by_meaning_then_by_spelling(
    word: str, near: str
) -> None:
    reading = read_prompt(f"a {word} cube", EMBEDDED)
    assert reading.changes == ()
    message = refusal(reading.text, EMBEDDED)
    assert f'"{word}" (nearest: {near}' in message and "--config configs/sd15.yaml" in message
    assert "green" not in message.split("; known")[0]


@pytest.mark.parametrize(
    "prompt",
    [
        "a red mushroom \U0001f344",
        "un champignon bleu",
        "a (red:1.3) mushroom",
        "a mushroom's stem",
        "a dog",
        "two cubes",
        "a cube to the right of a cone",
        "\u043a\u0440\u0430\u0441\u043d\u044b\u0439 \u043a\u0443\u0431",
    ],
)
def test_what_has_no_equal_is_refused(prompt: str) -> None:
    assert "unknown words" in refusal(read_prompt(prompt, EMBEDDED).text, EMBEDDED)


def test_the_request_is_read_once_for_every_prior() -> None:
    config = Config(prompt="the crimson couch!", negative_prompt="a ball")
    read, notes = read_prompts(config)
    assert (read.prompt, read.negative_prompt) == ("a red sofa", "a sphere")
    assert [note.partition(" is read")[0] for note in notes] == [
        "the prompt",
        "the negative prompt",
    ]
    assert config.prompt == "the crimson couch!" and read_prompts(read) == (read, [])
    config.prior.vocabulary = ""
    assert read_prompts(config) == (config, [])

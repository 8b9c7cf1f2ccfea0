"""Prompts as people write them: punctuation, articles, plurals, synonyms; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from vp3d.checks import read_prompts
from vp3d.config.paths import ASSETS
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.prompt_reading import Reading, read_prompt
from vp3d.prompts import check_prompt, load_vocabulary
from vp3d.worlds.toybox.scenes import caption, sample_spec, without_colors

EMBEDDED = load_vocabulary(ASSETS / "vocabulary.json")


def refusal(prompt: str) -> str:
    with pytest.raises(UserError) as caught:
        check_prompt(prompt, EMBEDDED)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
        ("<a red cube>", "a red cube"),
        ("a red cube | front view", "a red cube, front view"),
        ("a red mushroom w/ a white stem", "a red mushroom with a white stem"),
        ("a red mushroom W/ white stem", "a red mushroom with white stem"),
        ("a r\u00aded cu\u2060be!", "a red cube"),
        ("a\u200bred\u00a0cube!", "a red cube"),
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
        ("a red cube + a blue cone", "a red cube next to a blue cone"),
        ("a single red cube", "a red cube"),
        ("red fungi", "red mushroom"),
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
            assert read_prompt(text, EMBEDDED) == Reading(text)
    for text in ("The crimson couch!", "  odd \t text;", "", "a\nb"):
        assert read_prompt(text, None) == Reading(text)
    assert read_prompt("", EMBEDDED).text == ""


def test_a_reading_is_read_as_itself() -> None:
    for text in ("the crimson couch; on top of a box!", "cups & balls", "some gray thing"):
        once = read_prompt(text, EMBEDDED).text
        assert read_prompt(once, EMBEDDED) == Reading(once)


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
        ("geese", "duck"),
        ("people", "robot"),
        ("bushes", "tree"),
    ],
)
def test_a_word_that_nobody_knows_has_the_nearest_by_meaning_then_by_spelling(
    word: str, near: str
) -> None:
    reading = read_prompt(f"a {word} cube", EMBEDDED)
    assert reading.changes == ()
    message = refusal(reading.text)
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
    assert "unknown words" in refusal(read_prompt(prompt, EMBEDDED).text)


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

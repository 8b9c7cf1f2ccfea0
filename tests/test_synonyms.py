"""The table of synonyms: large, consistent with the toybox, and its colours near by CIEDE2000."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import ImageColor

from vp3d.config.paths import ASSETS
from vp3d.metrics.colors import ciede2000
from vp3d.prompts import load_vocabulary
from vp3d.synonyms import NEIGHBOURS, SYNONYMS, meaning, nearest, other_numbers
from vp3d.worlds.household import HOUSEHOLD as HOUSEHOLD_FOLDER
from vp3d.worlds.household import NOUNS, library_world
from vp3d.worlds.household import vocabulary as _household_vocabulary

VOCABULARY = load_vocabulary(ASSETS / "vocabulary.json")
KNOWN = VOCABULARY.words


HOUSEHOLD = _household_vocabulary(library_world(HOUSEHOLD_FOLDER, known=NOUNS))
HOUSEHOLD_WORDS = frozenset(HOUSEHOLD["words"])
TOYBOX_SAME = {p: t for p, targets in SYNONYMS.items() for t in targets if set(t.split()) <= KNOWN}


def test_every_noun_colour_pattern_relation_and_part_has_synonyms() -> None:
    assert len(TOYBOX_SAME) >= 150
    targets = set(TOYBOX_SAME.values())
    named = {*VOCABULARY.nouns, *VOCABULARY.colors, *VOCABULARY.patterns, "on", "next to", "with"}
    assert named <= targets and set(VOCABULARY.parts.values()) <= targets


def test_targets_are_known_and_phrases_are_not() -> None:
    for phrase, targets in SYNONYMS.items():
        for target in targets:
            worlds = [w for w in (KNOWN, HOUSEHOLD_WORDS) if set(target.split()) <= w]
            assert worlds, (phrase, target)
            if KNOWN in worlds:
                assert not set(phrase.split()) <= KNOWN, phrase
    for phrase, targets in NEIGHBOURS.items():
        for target in targets:
            known = [w for w in (KNOWN, HOUSEHOLD_WORDS) if set(target.split()) <= w]
            assert known, (phrase, target)
    assert not set(TOYBOX_SAME) & {
        p for p, targets in NEIGHBOURS.items() if any(set(t.split()) <= KNOWN for t in targets)
    }


def test_every_noun_of_the_household_has_synonyms_by_meaning() -> None:
    household = {p: meaning(p, HOUSEHOLD_WORDS) for p in SYNONYMS}
    missing = set(NOUNS) - set(household.values())
    assert not missing
    for phrase, target in (
        ("couch", "sofa"),
        ("puppy", "dog"),
        ("automobile", "car"),
        ("refrigerators", "fridge"),
        ("burger", "hamburger"),
        ("teddy", "teddy"),  # a word of "teddy bear": not guessed
        ("tea kettle", "teapot"),
        ("lorry", "truck"),
        ("teacup", "cup"),
        ("made of wood", "wooden"),
    ):
        assert meaning(phrase, HOUSEHOLD_WORDS) == target, phrase
    assert meaning("teacup", KNOWN) == "mug" and meaning("lorry", KNOWN) is None
    assert nearest("lorry", KNOWN) == ["car"] and "teapot" in nearest("kettle", HOUSEHOLD_WORDS)


# Names that everyday English uses for another colour than CSS does.
CSS_DIFFERS = {"lavender": "white"}


def test_colours_that_css_knows_are_near_their_targets() -> None:
    """The target is one of the two toybox colours nearest by CIEDE2000."""
    names = list(VOCABULARY.colors)
    toybox = np.array([VOCABULARY.colors[name] for name in names])
    checked = 0
    for phrase, target in TOYBOX_SAME.items():
        css = ImageColor.colormap.get(phrase.replace(" ", ""))
        if target not in names or not isinstance(css, str):
            continue
        value = np.array(ImageColor.getrgb(css)) / 255.0
        distance = ciede2000(np.broadcast_to(value, toybox.shape), toybox)
        order = [names[k] for k in np.argsort(distance)]
        expected = CSS_DIFFERS.get(phrase, target)
        assert expected in order[:2], (phrase, target, order[:3])
        checked += 1
    assert checked >= 20


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("balls", "ball"),
        ("boxes", "box"),
        ("couches", "couch"),
        ("buses", "bus"),
        ("bodies", "body"),
        ("leaves", "leaf"),
        ("knives", "knife"),
        ("snowmen", "snowman"),
        ("potatoes", "potato"),
        ("rubber ducks", "rubber duck"),
        ("paint brushes", "paint brush"),
        ("snow geese", "snow goose"),
        ("children", "child"),
        ("foot", "feet"),
    ],
)
def test_plurals(plural: str, singular: str) -> None:
    assert singular in other_numbers(plural)


def test_parts_in_the_singular_are_those_of_the_captions() -> None:
    for word, expected in {"leg": "legs", "wheel": "wheels", "stripe": "stripes"}.items():
        assert meaning(word, KNOWN) == expected


def test_glass_is_no_plural() -> None:
    assert "glas" not in other_numbers("glass")


def test_a_target_outside_the_vocabulary_is_not_used() -> None:
    assert meaning("couch", {"chair"}) is None
    assert nearest("couch", {"chair"}) == []
    assert nearest("stool", {"chair"}) == ["chair"]


def test_nearest_is_by_meaning_before_spelling_and_at_most_three() -> None:
    assert nearest("grey", KNOWN) == ["white", "black"]  # by spelling: green
    assert nearest("greem", KNOWN)[0] == "green"
    assert nearest("xyzzy", KNOWN) == []
    letters = json.loads(json.dumps(sorted(KNOWN)))
    assert all(len(nearest(f"{word}x", KNOWN)) <= 3 for word in letters)

"""Planted hallucinations: what is changed is changed, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from vp3d.worlds.planted import (
    BENIGN,
    HARMFUL,
    LEAST_SEVERITY,
    LEVELS,
    MOVED,
    Pair,
    moved,
)
from vp3d.worlds.toybox.images import view_vectors
from vp3d.worlds.toybox.planted import plant, planted_pairs
from vp3d.worlds.toybox.scenes import parse_caption

VIEW = view_vectors(*(np.array([value]) for value in (30.0, 15.0, 2.9, 40.0)))
CAPTION = "a red cube with white stripes"


def planted(kind: str, level: int, caption: str = CAPTION, seed: int = 0) -> Pair:
    rng = np.random.default_rng(seed)
    pair = plant(parse_caption(caption), VIEW, 64, rng, kind, level)
    assert pair is not None
    return pair


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return planted_pairs(4, 64, seed=5)


def test_every_kind_and_level_is_there_and_the_same_again(pairs: list[Pair]) -> None:
    kinds = {pair.kind for pair in pairs}
    assert kinds >= {"colour", "swapped", "texture", *BENIGN}
    assert {pair.level for pair in pairs} == set(range(1, LEVELS + 1))
    again = planted_pairs(4, 64, seed=5)
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(pairs, again, strict=True))


def test_harmful_pairs_can_be_seen_and_benign_ones_have_no_severity(pairs: list[Pair]) -> None:
    for pair in pairs:
        assert pair.harmful == (pair.kind in HARMFUL)
        assert pair.picture.shape == pair.reference.shape == (64, 64, 3)
        assert not np.array_equal(pair.picture, pair.reference)
        assert pair.severity == pytest.approx(pair.mask.mean())
        assert pair.severity >= LEAST_SEVERITY if pair.harmful else pair.severity == 0.0


@pytest.mark.parametrize("kind", ["colour", "texture", "added"])
def test_a_higher_level_moves_more(kind: str) -> None:
    found = [planted(kind, level, seed=3) for level in (1, 3)]
    changes = [np.abs(pair.picture.astype(float) - pair.reference).mean() for pair in found]
    assert changes[1] > changes[0]


def test_a_part_is_dropped_and_a_single_primitive_stays() -> None:
    pair = planted("part", 1, "a red mushroom with a white stem")
    assert 0.0 < pair.severity < 0.5
    rng = np.random.default_rng(0)
    assert plant(parse_caption("a red sphere"), VIEW, 64, rng, "part", 1) is None
    assert plant(parse_caption("a red sphere"), VIEW, 64, rng, "pattern", 1) is None


def test_a_pattern_changes_its_period_and_then_its_kind() -> None:
    finer, other = planted("pattern", 2), planted("pattern", 3)
    assert not np.array_equal(finer.picture, other.picture)
    checks = planted("pattern", 3, "a red cube with white checks")
    stripes = planted("blur", 1)
    assert np.array_equal(checks.picture, stripes.reference)


def test_a_texture_stays_on_the_object() -> None:
    pair = planted("texture", 3)
    background = (pair.reference == pair.reference[0, 0]).all(-1)
    assert np.array_equal(pair.picture[background], pair.reference[background])
    inside = (pair.picture.astype(float) - pair.reference)[~background] / 255.0
    assert 0.06 < inside.std() < 0.15


def test_what_moved_by_hand() -> None:
    reference = np.full((64, 64, 3), 100, np.uint8)
    picture = reference.copy()
    picture[20:40, 20:40, 1] += round(255 * MOVED) + 3
    assert moved(picture, reference, blur=False).sum() == 400
    picture[20:40, 20:40, 1] = 100 + round(255 * MOVED) - 3
    assert moved(picture, reference, blur=False).sum() == 0
    picture[:] = 100
    picture[30, 30] = 255
    assert moved(picture, reference, blur=False).sum() == 1
    assert moved(np.roll(reference, 1, 0), reference).sum() == 0

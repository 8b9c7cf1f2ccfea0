"""The grammar and its scenes."""

from __future__ import annotations

import numpy as np
import pytest

from vp3d.worlds.toybox.images import scene_distance
from vp3d.worlds.toybox.scenes import (
    BALL_RADIUS,
    COLORS,
    COMPOUNDS,
    NOUNS,
    SOLIDS,
    Spec,
    build_scene,
    caption,
    is_held_out,
    parse_caption,
    sample_spec,
    uses_held_out,
    without_colors,
    words,
)


def test_caption_and_parse_are_inverse_over_the_whole_grammar() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        spec = sample_spec(rng)
        assert parse_caption(caption(spec)) == spec
        assert parse_caption(caption(spec) + ", back left view from above") == spec


def test_the_issues_own_examples() -> None:
    assert parse_caption("a red sphere with yellow stripes") == Spec(
        "sphere", "red", "yellow", "stripes"
    )
    assert parse_caption("a purple chair with brown legs") == Spec("chair", "purple", "brown")
    assert parse_caption("a pink cone on a green cylinder").relation == "on"
    assert caption(Spec("egg", "orange")) == "an orange egg"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sphere",
        "a red wug",
        "a red sphere with legs",
        "a red chair with blue wheels",
        "a red cube under a blue cube",
    ],
)
def test_outside_the_grammar(text: str) -> None:
    with pytest.raises(ValueError, match="not a toybox caption"):
        parse_caption(text)


def test_world_is_as_large_as_promised() -> None:
    assert len(NOUNS) >= 24 and len(COLORS) == 12
    share = sum(is_held_out(c, n) for c in COLORS for n in NOUNS) / (len(COLORS) * len(NOUNS))
    assert 0.09 < share < 0.11
    assert all(any(is_held_out(c, n) for c in COLORS) for n in NOUNS)


def test_held_out_pairs_are_never_drawn_unless_asked_for() -> None:
    rng = np.random.default_rng(1)
    assert not any(uses_held_out(sample_spec(rng)) for _ in range(300))
    assert all(uses_held_out(sample_spec(rng, held_out=True)) for _ in range(50))


def test_every_caption_word_is_in_the_vocabulary() -> None:
    rng, known = np.random.default_rng(2), set(words())
    for _ in range(300):
        assert set(caption(sample_spec(rng)).split()) <= known


@pytest.mark.parametrize("noun", NOUNS)
def test_scene_fills_the_ball_and_stays_inside(noun: str) -> None:
    scene = build_scene(Spec(noun, "red"))
    rng = np.random.default_rng(3)
    points = rng.normal(size=(4000, 3))
    points *= 1.02 * BALL_RADIUS / np.linalg.norm(points, axis=1, keepdims=True)
    outside, _ = scene_distance(scene.prims, points)
    assert outside.min() > 0.0
    inside, _ = scene_distance(scene.prims, rng.uniform(-0.8, 0.8, (20_000, 3)))
    assert (inside < 0).mean() > 0.01


def test_sphere_distance_is_exact() -> None:
    scene = build_scene(Spec("sphere", "red"))
    points = np.random.default_rng(4).uniform(-1, 1, (200, 3))
    distance, _ = scene_distance(scene.prims, points)
    np.testing.assert_allclose(distance, np.linalg.norm(points, axis=1) - BALL_RADIUS, atol=1e-12)


@pytest.mark.parametrize("noun", ["cube", "cylinder", "cone", "ring", "capsule"])
def test_distance_is_the_distance_to_the_nearest_surface_point(noun: str) -> None:
    """Naive second version: the nearest of many points where the sign changes."""
    prims = build_scene(Spec(noun, "red")).prims
    axis = np.linspace(-1, 1, 81)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    values, _ = scene_distance(prims, grid)
    shell = grid[np.abs(values) < 0.02]
    points = np.random.default_rng(5).uniform(-1, 1, (40, 3))
    distance, _ = scene_distance(prims, points)
    nearest = np.linalg.norm(points[:, None] - shell[None], axis=-1).min(1)
    np.testing.assert_allclose(np.abs(distance), nearest, atol=0.045)


def test_on_means_above_and_next_to_means_left() -> None:
    def centre(spec: Spec, slots: tuple[int, ...]) -> np.ndarray:
        scene = build_scene(spec)
        rows = [p for p in scene.prims if scene.materials[int(p[8]), 11] in slots]
        return np.mean([p[1:4] for p in rows], axis=0)

    on = Spec("sphere", "red", relation="on", noun_b="cube", color_b="blue")
    assert centre(on, (0,))[2] > centre(on, (3,))[2] + 0.3
    beside = Spec("sphere", "red", relation="next to", noun_b="cube", color_b="blue")
    assert centre(beside, (0,))[1] < centre(beside, (3,))[1] - 0.3


def test_solids_have_no_parts_and_compounds_have_one() -> None:
    assert not set(SOLIDS) & set(COMPOUNDS)
    for noun, (part, make) in COMPOUNDS.items():
        assert any(paint == "part" for *_, paint in make()), f"{noun} has no {part}"


def test_without_colors() -> None:
    assert without_colors("an orange chair with brown legs") == "a chair with legs"
    assert without_colors("a red egg next to an orange airplane") == "an egg next to an airplane"
    assert without_colors("a white mushroom with a red stem") == "a mushroom with a stem"

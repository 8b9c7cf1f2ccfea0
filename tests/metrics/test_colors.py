from __future__ import annotations

import itertools

import numpy as np
import pytest

from vp3d.metrics.colors import Palette, ciede2000, dominant_color_distance, dominant_colors

RED, BLUE, WHITE = (0.86, 0.10, 0.12), (0.12, 0.24, 0.84), (0.97, 0.97, 0.96)


def test_ciede2000_known_pair_and_metric() -> None:
    # Black to white differ by their lightness alone: 100 by definition of the scale.
    assert float(ciede2000(np.zeros(3), np.ones(3))) == pytest.approx(100.0, abs=0.05)
    assert float(ciede2000(np.array(RED), np.array(RED))) == 0.0
    assert float(ciede2000(np.array(RED), np.array(BLUE))) == pytest.approx(
        float(ciede2000(np.array(BLUE), np.array(RED)))
    )
    assert float(ciede2000(np.array(RED), np.array(BLUE))) > 30


def picture() -> tuple[np.ndarray, np.ndarray]:
    rgb = np.full((20, 20, 3), 0.5)
    rgb[:10], rgb[10:14], rgb[14:15] = RED, BLUE, WHITE
    mask = np.zeros((20, 20), bool)
    mask[:15] = True
    return rgb, mask


def test_dominant_colors_of_known_areas() -> None:
    palette = dominant_colors(*picture(), k=4)
    assert palette.weights == pytest.approx([10 / 15, 4 / 15, 1 / 15])
    assert palette.colors == pytest.approx(np.array([RED, BLUE, WHITE]), abs=1e-3)


def test_dominant_colors_shades_count_as_one_and_nothing_is_random() -> None:
    rgb, mask = picture()
    shaded = np.clip(rgb * np.linspace(0.93, 1.0, 20)[None, :, None], 0, 1)
    first, second = dominant_colors(shaded, mask), dominant_colors(shaded, mask)
    assert len(first.colors) == 3
    assert np.array_equal(first.colors, second.colors) and np.array_equal(
        first.weights, second.weights
    )
    with pytest.raises(ValueError, match="empty"):
        dominant_colors(rgb, np.zeros((20, 20), bool))


def test_palette_distance_against_all_matchings() -> None:
    rng = np.random.default_rng(3)
    for k in (2, 3, 4):  # with equal shares the best transport is the best one-to-one matching
        a, b = (Palette(rng.random((k, 3)), np.full(k, 1 / k)) for _ in range(2))
        cost = ciede2000(a.colors[:, None], b.colors[None])
        naive = min(
            np.mean([cost[i, j] for i, j in enumerate(p)]) for p in itertools.permutations(range(k))
        )
        assert dominant_color_distance(a, b) == pytest.approx(naive, abs=1e-6)


def test_palette_distance_properties() -> None:
    one = Palette(np.array([RED, BLUE]), np.array([0.75, 0.25]))
    flipped = Palette(np.array([BLUE, RED]), np.array([0.25, 0.75]))
    other = Palette(np.array([RED]), np.array([1.0]))
    assert dominant_color_distance(one, flipped) == pytest.approx(0.0, abs=1e-9)
    # A quarter of the object must change colour.
    moved = 0.25 * float(ciede2000(np.array(RED), np.array(BLUE)))
    assert dominant_color_distance(one, other) == pytest.approx(moved)
    assert dominant_color_distance(other, one) == pytest.approx(moved)

"""The figures' own arithmetic, on true pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vp3d.embedded import measure, sample_sheet
from vp3d.metrics.attribute_judge import load_judge
from vp3d.prompts import SECTORS
from vp3d.worlds.toybox.data import to_tensor
from vp3d.worlds.toybox.images import render_spec
from vp3d.worlds.toybox.scenes import parse_caption


@pytest.mark.parametrize("noun", ["car", "chair", "duck", "mug", "sofa", "airplane"])
def test_true_views_are_seen_from_where_they_are_and_from_nowhere_else(noun: str) -> None:
    spec = parse_caption(f"a yellow {noun}")
    rng = np.random.default_rng(0)
    for view in range(len(SECTORS)):
        picture = render_spec(spec, [45.0 * view + 8.0], elevation_deg=6.0, ground=0.9)[0] / 255.0
        picture = picture + rng.normal(0.0, 0.02, picture.shape)
        assert measure.shows_view(picture, spec, view)
        assert not measure.shows_view(picture, spec, (view + 2) % 8)


def test_what_looks_the_same_all_round_is_seen_from_everywhere() -> None:
    spec = parse_caption("a red mushroom")
    picture = render_spec(spec, [0.0], elevation_deg=10.0)[0] / 255.0
    assert all(measure.shows_view(picture, spec, view) for view in (0, 1, 7))


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_a_sheet_shows_every_picture_and_fills_up_its_last_row(count: int) -> None:
    levels = torch.arange(1, count + 1) * 40.0
    rgb = (levels[:, None, None, None] / 255.0).expand(-1, 3, 2, 5)
    shown = np.asarray(sample_sheet.grid(rgb, 4))
    rows = -(-count // 4)
    assert shown.shape == (2 * rows, 20, 3)
    for number in range(4 * rows):
        y, x = 2 * (number // 4), 5 * (number % 4)
        expected = 40 * (number + 1) if number < count else 0
        assert (shown[y : y + 2, x : x + 5] == expected).all()


def test_shares_are_told_by_kind() -> None:
    texts = [
        "a red cube",
        "a red cube with blue checks",
        "a cyan cone on a green table",
        "a pink duck with a black beak",
    ]
    specs = [parse_caption(t) for t in texts]
    rgb = to_tensor(np.concatenate([render_spec(s, [30.0]) for s in specs]))
    judge = load_judge(measure.ASSETS / "judge")
    found = measure.share_right(judge, rgb, specs)
    assert found == {"all": 1.0, "plain": 1.0, "checks": 1.0, "on": 1.0, "part": 1.0}
    swapped = measure.share_right(judge, rgb[[1, 0, 2, 3]], specs)
    assert swapped == {"all": 0.5, "plain": 0.0, "checks": 0.0, "on": 1.0, "part": 1.0}

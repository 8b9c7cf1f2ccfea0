"""What judge and CLIP say of the true objects: right, and asked only for what shows."""

from __future__ import annotations

import pytest
import torch

from vp3d.config.paths import ASSETS
from vp3d.metrics.attribute_judge import load_judge
from vp3d.rewards.encoders import load_clip
from vp3d.worlds.toybox.prompt_check import (
    VIEWS,
    azimuths,
    expected_views,
    r_precision,
    true_pictures,
    true_rgb,
    verdict,
)
from vp3d.worlds.toybox.scenes import parse_caption


def test_only_what_shows_is_asked() -> None:
    mug = expected_views(
        true_pictures(parse_caption("a white mug with a red handle"), azimuths(VIEWS), 0.7, 64)
    )
    assert (
        mug[0]["accent_a"] == "red" and "accent_a" not in mug[18]
    )  # the handle stands to +y: hidden from -y
    pair = expected_views(
        true_pictures(parse_caption("a cyan cube next to a red egg"), azimuths(VIEWS), 0.7, 64)
    )
    assert (
        pair[0]["object_a"] == "cube"
        and pair[12]["object_a"] == "egg"
        and "object_a" not in pair[6]
    )


@pytest.mark.parametrize("prompt", ["a red car with black wheels", "a red sphere on a blue cube"])
def test_true_objects_are_judged_right_and_other_prompts_wrong(prompt: str) -> None:
    spec, judge = parse_caption(prompt), load_judge(ASSETS / "judge")
    pictures = true_pictures(spec, azimuths(8), 0.7, 64)
    found = verdict(judge, true_rgb(pictures), spec, expected_views(pictures))
    assert (
        found["all"] is not None
        and found["all"] > 0.7
        and found["objects"] == found["colors"] == 1.0
    )
    assert (found["parts"] is None) == (not spec.accent) and (found["relation"] is None) == (
        not spec.relation
    )
    other = parse_caption("a green duck")
    wrong = verdict(
        judge, true_rgb(pictures), other, expected_views(true_pictures(other, azimuths(8), 0.7, 64))
    )
    assert wrong["all"] == wrong["objects"] == 0.0


def test_r_precision_counts_views_nearest_to_their_own_caption() -> None:
    clip, prompts = load_clip(str(ASSETS / "clip")), ["a red car", "a green duck", "a blue mug"]
    texts = dict(zip(prompts, clip.text(prompts), strict=True))
    rgb = true_rgb(true_pictures(parse_caption("a green duck"), azimuths(6), 0.7, 64))
    assert (
        r_precision(clip, rgb, "a green duck", texts) == 1.0
        and r_precision(clip, rgb, "a red car", texts) == 0.0
    )
    mixed = torch.cat(
        [rgb[:3], true_rgb(true_pictures(parse_caption("a red car"), azimuths(3), 0.7, 64))]
    )
    assert r_precision(clip, mixed, "a red car", texts) == 0.5

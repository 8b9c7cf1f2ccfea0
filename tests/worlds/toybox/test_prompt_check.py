"""What judge and CLIP say of the true objects: right, and asked only for what shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vp3d.config.paths import ASSETS
from vp3d.metrics.attribute_judge import load_judge
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.report.pictures import ELEVATION_DEG
from vp3d.rewards.encoders import load_clip
from vp3d.worlds.toybox import prompt_check
from vp3d.worlds.toybox.data import DISTANCE, FOV_DEG
from vp3d.worlds.toybox.images import render_spec
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
from vp3d.worlds.toybox.truth import lit, true_mesh


def test_the_true_views_have_the_cameras_of_the_judged_ones() -> None:
    spec, sides = parse_caption("a red car with black wheels"), azimuths(3)
    assert sides == [0.0, 120.0, 240.0]
    found = true_pictures(spec, sides, 0.5, 48)
    cameras = ring(3, ELEVATION_DEG, DISTANCE, FOV_DEG)
    mesh = replace(lit(true_mesh(spec, 96)), uv=None, texture=None)
    views = render_mesh(mesh, cameras, 48, 48, 0.5)[0]
    assert (true_rgb(found) - views).abs().mean() < 0.02
    assert np.array_equal(found.images, render_spec(spec, sides, ELEVATION_DEG, 0.5, 48))
    assert found.elevation_deg.tolist() == [ELEVATION_DEG] * 3
    assert found.azimuth_deg.tolist() == sides and set(found.scene_of) == {0}


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


CAR = {"object_a": "car", "color_a": "red", "accent_a": "black", "pattern": "plain"}
ALONE = {"object_b": "none", "color_b": "none", "relation": "none"}
PAIR = {"object_b": "cube", "color_b": "blue", "relation": "on"}
SPHERE = {"object_a": "sphere", "color_a": "red", "accent_a": "none", "pattern": "plain"}
NAMES = {"a red car with black wheels": CAR | ALONE, "a red sphere on a blue cube": SPHERE | PAIR}


def named(
    prompt: str, monkeypatch: pytest.MonkeyPatch, *views: dict[str, str]
) -> dict[str, float | None]:
    """The verdict on a caption whose views the judge names as the caption with some changes."""
    truth = NAMES[prompt]
    monkeypatch.setattr(prompt_check, "judge_views", lambda *_: [truth | view for view in views])
    rgb = torch.zeros(len(views), 3, 8, 8)
    return verdict(None, rgb, parse_caption(prompt), [truth] * len(views))


@pytest.mark.parametrize("prompt", NAMES)
def test_all_attributes_need_every_attribute(prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts, pattern and relation too, whether or not the prompt names them."""
    assert named(prompt, monkeypatch, {})["all"] == 1.0
    for key in NAMES[prompt]:
        wrong = named(prompt, monkeypatch, {key: "another"})
        assert wrong["all"] == 0.0, key
        assert wrong["objects"] == float(not key.startswith("object"))
        assert wrong["colors"] == float(not key.startswith("color"))
        if wrong["parts"] is not None:
            assert wrong["parts"] == float(key not in ("accent_a", "pattern"))
        if wrong["relation"] is not None:
            assert wrong["relation"] == float(key != "relation")
    mixed = named(prompt, monkeypatch, {}, {}, {"pattern": "checks"}, {"relation": "under"})
    assert mixed["all"] == 0.5 and mixed["objects"] == mixed["colors"] == 1.0


def test_a_figure_counts_the_views_where_it_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    car = CAR | ALONE
    hidden = {key: value for key, value in car.items() if key != "accent_a"}
    seen = [car | {"accent_a": "white"}, car | {"accent_a": "white"}, car, car]
    monkeypatch.setattr(prompt_check, "judge_views", lambda *_: seen)
    spec, rgb = parse_caption("a red car with black wheels"), torch.zeros(4, 3, 8, 8)
    found = verdict(None, rgb, spec, [car, hidden, car, {}])
    assert found["parts"] == pytest.approx(2 / 3), "the pattern alone is asked in the second view"
    assert found["all"] == pytest.approx(2 / 3), "nothing is asked in the last view"
    assert found["objects"] == 1.0 and found["relation"] is None
    with pytest.raises(ValueError, match="argument"):
        verdict(None, rgb, spec, [car] * 3)


def test_views_are_at_even_azimuths_from_the_front() -> None:
    assert VIEWS == 24 and azimuths(4) == [0.0, 90.0, 180.0, 270.0]
    pictures = true_pictures(parse_caption("a red sphere"), [0.0, 90.0], 0.5, 16)
    assert pictures.images.shape == (2, 16, 16, 3)
    assert true_rgb(pictures)[:, :, 0, 0].mean() == pytest.approx(0.5, abs=0.01)

"""Training pictures: deterministic chunks, reserved captions, targets that ask only for what can be
seen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vp3d.worlds.toybox import data
from vp3d.worlds.toybox.data import (
    HEADS,
    attribute_targets,
    attributes,
    confuse,
    heldout_pictures,
    is_reserved,
    make_pictures,
    noun_maps,
    swapped,
    thumbnails,
    training_pictures,
)
from vp3d.worlds.toybox.scenes import NOUNS, caption, parse_caption, uses_held_out


def test_chunks_are_the_same_again_and_hold_no_reserved_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "SCENES", 12)
    first = training_pictures(tmp_path / "a", 2)
    again = training_pictures(tmp_path / "a", 2)
    other = training_pictures(tmp_path / "b", 2)
    assert len(first) == 2 * 12 * data.VIEWS
    assert (first.images == again.images).all() and (first.images == other.images).all()
    assert not any(is_reserved(caption(s)) or uses_held_out(s) for s in first.specs)
    assert first.scene_of[-1] == len(first.specs) - 1


def test_heldout_pictures_are_reserved_or_pairs() -> None:
    assert all(is_reserved(caption(s)) and not uses_held_out(s) for s in heldout_pictures(20).specs)
    assert all(uses_held_out(s) for s in heldout_pictures(20, pairs=True).specs)


def pictures_from(text: str, azimuth: float) -> data.Pictures:
    from vp3d.worlds.toybox.images import render_scenes, view_vectors
    from vp3d.worlds.toybox.scenes import build_scene

    spec = parse_caption(text)
    full = np.ones(1)
    views = view_vectors(full * azimuth, full * 15, full * 2.9, full * 40)
    images, seen = render_scenes([build_scene(spec)], np.zeros(1), views, full * 0.7)
    return data.Pictures(
        images, seen, (full * azimuth).astype(np.float32), full * 15, np.zeros(1, int), [spec]
    )


def told(text: str, azimuth: float) -> dict[str, str | None]:
    row = attribute_targets(pictures_from(text, azimuth))[0]
    return {h: None if v < 0 else HEADS[h][v] for h, v in zip(HEADS, row, strict=True)}


def test_hidden_parts_are_not_asked_for() -> None:
    assert told("a yellow duck with a red beak", 0.0)["accent_a"] == "red"
    assert told("a yellow duck with a red beak", 180.0)["accent_a"] is None
    assert told("a yellow duck with a red beak", 180.0)["color_a"] == "yellow"


def test_next_to_is_named_from_left_to_right_in_the_picture() -> None:
    text = "a red sphere next to a blue cube"
    assert told(text, 0.0)["object_a"] == "sphere" and told(text, 0.0)["color_b"] == "blue"
    assert told(text, 180.0)["object_a"] == "cube" and told(text, 180.0)["color_b"] == "red"
    assert told(text, 90.0)["object_a"] is None
    assert told("a red sphere on a blue cube", 180.0)["object_a"] == "sphere"


@pytest.mark.parametrize("text", ["a red cone next to a blue cube", "a red ring on a blue cube"])
def test_noun_maps_put_each_noun_where_its_colour_is(text: str) -> None:
    pictures = make_pictures([parse_caption(text)], 24, np.random.default_rng(0))
    maps = noun_maps(pictures, np.arange(24)).numpy()
    facing = np.abs(np.cos(np.deg2rad(pictures.azimuth_deg)))
    told = maps.sum((1, 2, 3)) > 0
    assert (told == (facing >= 0.4)).all() if "next to" in text else told.all()
    red = pictures.images[..., 0] > pictures.images[..., 2].astype(int) + 20
    blue = pictures.images[..., 2] > pictures.images[..., 0].astype(int) + 20
    for noun, pixels in ((pictures.specs[0].noun, red), ("cube", blue)):
        cells = pixels.reshape(24, 8, 8, 8, 8).mean((2, 4))
        missed = np.abs(maps[:, list(NOUNS).index(noun)] - cells).mean((1, 2))[told]
        assert missed.max() < 0.05 and cells.mean() > 0.02, noun


def test_noun_maps_of_one_object_are_its_silhouette() -> None:
    pictures = make_pictures([parse_caption("a yellow duck")], 4, np.random.default_rng(0))
    maps = noun_maps(pictures, np.arange(4))
    assert torch.equal(
        maps[:, list(NOUNS).index("duck")].flatten(1), thumbnails(pictures.images)[:, :64]
    )
    assert float(maps.sum()) == pytest.approx(float(maps[:, list(NOUNS).index("duck")].sum()))


def test_confuse_is_nearly_right_but_another_caption() -> None:
    rng = np.random.default_rng(0)
    pictures = make_pictures([parse_caption("a red sphere on a blue cube")], 1, rng)
    other = [confuse(pictures.specs[0], rng) for _ in range(50)]
    assert sum(o != pictures.specs[0] for o in other) > 40
    assert all(parse_caption(caption(o)) == o for o in other)
    assert swapped(swapped(attributes(other[0]))) == attributes(other[0])


def test_an_image_prompt_stays_in_its_place_and_others_are_shifted() -> None:
    rgb = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    still = [data.augment(rgb, np.random.default_rng(seed), 0.0, most_shift=0) for seed in range(4)]
    assert all(torch.equal(picture, rgb) for picture in still)
    assert any(
        not torch.equal(data.augment(rgb, np.random.default_rng(seed), 0.0), rgb)
        for seed in range(4)
    )

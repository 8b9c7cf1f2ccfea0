"""Captions of one and of two meshes, which pairs make sense, and where two meshes are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.worlds.test_mesh_library import cube
from vp3d.worlds import library as library_module
from vp3d.worlds.arrangement import (
    EXTENT_M,
    GAP,
    PLACES,
    SUPPORTS,
    arrange,
    drawn_ratio,
    sensible_pairs,
)
from vp3d.worlds.household import HOUSEHOLD, NOUNS, library_world, vocabulary
from vp3d.worlds.library import Library
from vp3d.worlds.library_captions import LibrarySpec, caption, joined, parse_caption
from vp3d.worlds.library_data import make_pictures
from vp3d.worlds.mesh_library import LibraryMesh, save_mesh
from vp3d.worlds.toybox.scenes import BALL_RADIUS, is_held_out

MUG, TABLE = LibrarySpec("mug", color="red"), LibrarySpec("table", material="wooden")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A mug that can be painted and a wooden table."""
    for name in ("mug_1", "table_1"):
        save_mesh(cube(), tmp_path / "meshes" / f"{name}.npz")
    rows = "name,noun,paint,own,material\nmug_1,mug,0 1,,\ntable_1,table,,,wooden\n"
    (tmp_path / "meshes.csv").write_text(rows)
    return tmp_path


def test_a_caption_and_its_reading_are_inverse() -> None:
    specs = (MUG, TABLE, LibrarySpec("armchair"), joined(MUG, "on", TABLE))
    texts = ("a red mug", "a wooden table", "an armchair", "a red mug on a wooden table")
    for spec, text in zip(specs, texts, strict=True):
        assert caption(spec) == text
        assert parse_caption(f"{text.upper()}, back view from above", NOUNS) == spec
    beside = parse_caption("a washing machine next to an orange fridge", NOUNS)
    assert (beside.noun, beside.relation, beside.second) == (
        "washing machine", "next to", LibrarySpec("fridge", color="orange")
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "a dragon",
        "a red",
        "a wooden red table",
        "a mug under a table",
        "a mug on",
        "a mug with legs",
    ],
)
def test_what_is_no_caption_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a caption of this world"):
        parse_caption(text, NOUNS)


def test_pairs_that_make_sense_are_of_known_nouns_with_a_size() -> None:
    pairs = sensible_pairs(NOUNS)
    assert ("mug", "on", "table") in pairs and ("cat", "on", "sofa") in pairs
    assert ("table", "on", "mug") not in pairs and ("bus", "on", "sofa") not in pairs
    assert {n for a, _, b in pairs for n in (a, b)} <= set(EXTENT_M) & set(NOUNS)
    assert {*SUPPORTS, *(n for group in PLACES for n in group)} <= set(NOUNS)
    assert all(a != b for a, _, b in pairs) and sensible_pairs(["mug", "dragon"]) == []
    assert drawn_ratio("mug", "on", "table") == pytest.approx(np.sqrt(0.12 / 1.4), abs=1e-3)
    assert drawn_ratio("bus", "next to", "dog") == 2.5


def test_two_things_stand_where_the_caption_says_and_fill_the_ball() -> None:
    a, b = cube(), cube()
    for relation in ("on", "next to"):
        scales, offsets = arrange(a, b, relation, 0.5)
        assert scales[0] == pytest.approx(0.5 * scales[1])
        first, second = (
            m.position * s + o for m, s, o in zip((a, b), scales, offsets, strict=True)
        )
        both = np.concatenate([first, second])
        assert np.linalg.norm(both, axis=1).max() == pytest.approx(BALL_RADIUS, abs=1e-5)
        if relation == "on":
            assert first[:, 2].min() == pytest.approx(second[:, 2].max(), abs=0.01)
            assert abs(first[:, :2].mean(0) - second[:, :2].mean(0)).max() < 1e-5
        else:
            assert first[:, 2].min() == pytest.approx(second[:, 2].min(), abs=1e-5)
            gap = second[:, 1].min() - first[:, 1].max()
            assert gap == pytest.approx(GAP * scales[1], abs=1e-5)


def test_a_cat_sits_on_the_seat_and_not_on_the_back_of_a_sofa() -> None:
    seat, back = boxes(0.0, 0.6, -0.4, 0.0), boxes(-0.3, 0.1, -0.4, 0.6)
    scales, offsets = arrange(boxes(0.0, 0.5, -0.25, 0.25), merged(seat, back), "on", 0.3)
    low = (boxes(0.0, 0.5, -0.25, 0.25).position * scales[0] + offsets[0])[:, 2].min()
    assert low == pytest.approx((0.0 * scales[1] + offsets[1])[2], abs=0.01)


def boxes(x: float, half: float, low: float, high: float) -> LibraryMesh:
    """A box: centre x, half width and depth, from height low to high."""
    mesh = cube()
    unit = mesh.position / np.abs(mesh.position).max()
    size, centre = [half, half, (high - low) / 2], [x, 0.0, (low + high) / 2]
    return replace(mesh, position=(unit * size + centre).astype(np.float32))


def merged(a: LibraryMesh, b: LibraryMesh) -> LibraryMesh:
    return replace(
        a,
        position=np.concatenate([a.position, b.position]),
        triangles=np.concatenate([a.triangles, b.triangles + len(a.position)]),
    )


def test_pictures_of_two_things_state_and_show_both(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "PAIR_SHARE", 1.0)
    library, world = Library(folder), library_world(folder, "test")
    assert library.pairs == [("mug", "on", "table")]
    pictures = make_pictures(library, world, 12, np.random.default_rng(1))
    stated = pictures.stated_targets(np.arange(12))
    for row, spec in zip(stated.tolist(), pictures.specs, strict=True):
        named = {
            head: values[number] if number >= 0 else None
            for number, (head, values) in zip(row, world.heads.items(), strict=True)
        }
        assert (named["object_a"], named["relation"], named["object_b"]) == ("mug", "on", "table")
        assert named["color_a"] == (spec.color or None) and named["color_b"] is None
        assert "mug on a" in caption(spec)
    assert (pictures.coverage.sum((2, 3)) > 0).all()
    maps = pictures.noun_maps(np.arange(12))
    np.testing.assert_allclose(maps.numpy(), pictures.coverage / 255.0, atol=1e-6)
    heights = (maps * np.arange(8)[:, None]).sum((2, 3)) / maps.sum((2, 3))
    assert (heights[:, 0] < heights[:, 1]).all(), "rows grow downwards; the mug is above"
    often = pictures.quantiles({"on": 6.0})
    np.testing.assert_allclose(np.diff(often), 1 / 12)


def test_from_behind_the_left_one_is_the_captions_second(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "PAIR_SHARE", 1.0)
    library, world = Library(folder), library_world(folder, "test")
    pictures = make_pictures(library, world, 8, np.random.default_rng(1))
    spec = joined(
        LibrarySpec("mug", "red", mesh="mug_1", painted=True),
        "next to",
        LibrarySpec("table", mesh="table_1"),
    )
    azimuth = np.array([0.0, 180.0, 90.0, 10.0, 170.0, 20.0, 0.0, 0.0], dtype=np.float32)
    coverage = np.full_like(pictures.coverage, 100)
    coverage[6, 0] = 0
    pictures = replace(pictures, specs=[spec] * 8, azimuth_deg=azimuth, coverage=coverage)
    heads = list(world.heads)
    rows = pictures.visible_targets()
    object_a = rows[:, heads.index("object_a")].tolist()
    assert object_a == [0, 1, -100, 0, 1, 0, -100, 0]
    red = world.heads["color_a"].index("red")
    assert rows[0, heads.index("color_a")] == red and rows[1, heads.index("color_b")] == red + 1
    assert rows[2, heads.index("relation")] == rows[0, heads.index("relation")] >= 0


def test_the_vocabulary_has_relations_only_where_there_are_pairs(tmp_path: Path) -> None:
    known = vocabulary(library_world(HOUSEHOLD, known=NOUNS))
    assert {"on", "next", "to", "wooden"} <= set(known["words"]) and "sofa" in known["supports"]
    (tmp_path / "meshes.csv").write_text("name,noun\ngnome_1,gnome\n")
    own = library_world(tmp_path, "own")
    assert "relation" not in own.heads and "on" not in vocabulary(own)["words"]


def test_no_painted_pair_of_a_training_caption_is_held_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "PAIR_SHARE", 1.0)
    library, rng = Library(folder), np.random.default_rng(0)
    specs = [library.sample(rng) for _ in range(200)]
    assert {s.relation for s in specs} == {"on"} and any(s.color for s in specs)
    assert not any(is_held_out(s.color, s.noun) for s in specs if s.color)

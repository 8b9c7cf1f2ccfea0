"""Captions, held-out parts and pictures of a folder of meshes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.worlds.test_mesh_library import cube
from vp3d.errors import UserError
from vp3d.worlds import library as library_module
from vp3d.worlds import library_data
from vp3d.worlds.household import (
    HOUSEHOLD,
    HOUSEHOLD_PART,
    NOUNS,
    household,
    library_world,
    vocabulary,
)
from vp3d.worlds.library import Library, read_table
from vp3d.worlds.library_captions import LibrarySpec, caption
from vp3d.worlds.library_data import make_pictures, training_pictures
from vp3d.worlds.mesh_library import save_mesh
from vp3d.worlds.toybox.scenes import COLORS, is_held_out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four armchairs that can be painted and a dog that cannot."""
    names = ["armchair_1", "armchair_2", "armchair_3", "armchair_4", "dog_1"]
    rows = [f"{n},{n.split('_')[0]},{'1' if n[0] == 'a' else ''},," for n in names]
    rows[-1] = "dog_1,dog,,brown,"
    for name in names:
        save_mesh(cube(), tmp_path / "meshes" / f"{name}.npz")
    (tmp_path / "meshes.csv").write_text("\n".join(["name,noun,paint,own,material", *rows]) + "\n")
    return tmp_path


def test_the_licence_of_the_models_names_that_of_the_meshes() -> None:
    world, _ = household(HOUSEHOLD_PART, 1)
    assert world.licence == "Apache-2.0; trained on meshes under CC0-1.0"
    assert library_world(HOUSEHOLD_PART, "own").licence == ""


def test_captions_read_well() -> None:
    assert caption(LibrarySpec("armchair")) == "an armchair"
    assert caption(LibrarySpec("table", material="wooden")) == "a wooden table"
    assert caption(LibrarySpec("car", color="orange")) == "an orange car"


def test_one_mesh_of_a_noun_with_three_and_a_tenth_of_the_colours_are_held_out(
    folder: Path,
) -> None:
    library, rng = Library(folder), np.random.default_rng(0)
    assert len(library.held_out) == 1 and next(iter(library.held_out)).startswith("armchair")
    trained = [library.sample(rng) for _ in range(300)]
    assert not {s.mesh for s in trained} & library.held_out
    assert len({s.mesh for s in trained}) == 4
    assert not any(s.color and is_held_out(s.color, s.noun) for s in trained)
    assert any(s.painted for s in trained) and not any(
        s.painted for s in trained if s.noun == "dog"
    )
    pairs = [library.sample(rng, "pair") for _ in range(20)]
    assert all(s.painted and is_held_out(s.color, s.noun) for s in pairs)
    assert {library.sample(rng, "mesh").mesh for _ in range(5)} == library.held_out


def test_pictures_state_what_they_show(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "PAIR_SHARE", 0.0)
    library, world = Library(folder), library_world(folder, "test")
    pictures = make_pictures(library, world, 12, np.random.default_rng(1))
    index = np.arange(12)
    assert pictures.images[index].shape == (12, 128, 128, 3)
    targets = pictures.stated_targets(index)
    for row, spec in zip(targets.tolist(), pictures.specs, strict=True):
        assert world.nouns[row[0]] == spec.noun
        assert (row[1] < 0) == (not spec.color)
        assert row[1] < 0 or list(COLORS)[row[1]] == spec.color
    maps = pictures.noun_maps(index)
    present = maps.sum((2, 3)) > 0
    assert present.sum(1).tolist() == [1] * 12
    assert present[:, 0].tolist() == [s.noun == "armchair" for s in pictures.specs]
    cells = pictures.coverage.sum(1) / 255.0
    np.testing.assert_allclose(maps.sum(1).numpy(), cells, atol=1e-6)
    for number, other in zip(
        index, pictures.other_views(index, np.random.default_rng(2)), strict=True
    ):
        assert pictures.specs[other].mesh == pictures.specs[number].mesh


def test_chunks_are_kept_and_equal_when_rendered_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_data, "CHUNK", 3)
    library, world = Library(folder), library_world(folder, "test")
    first, second = (
        training_pictures(library, world, tmp_path / name, 2, lambda _: None) for name in "ab"
    )
    assert len(first) == 6 and first.specs == second.specs
    assert np.array_equal(first.images[:], second.images[:])
    assert np.array_equal(first.images[[4]], first.images[4:5])


def test_the_key_changes_with_nouns_rows_and_meshes_and_only_with_them(folder: Path) -> None:
    first, few = Library(folder).key, Library(folder, ["dog"]).key
    assert len(first) == 64 and first != few
    save_mesh(cube(), folder / "meshes" / "armchair_1.npz")
    assert Library(folder).key == first, "the same mesh packed again"
    moved = cube()
    moved.position[0] *= 0.5
    save_mesh(moved, folder / "meshes" / "armchair_1.npz")
    changed = Library(folder).key
    assert changed != first and Library(folder, ["dog"]).key == few
    table = folder / "meshes.csv"
    table.write_text(table.read_text().replace("dog_1,dog,,brown", "dog_1,dog,,black"))
    assert Library(folder).key not in (first, changed) and Library(folder, ["dog"]).key != few


def test_a_table_that_is_missing_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no library of meshes"):
        Library(tmp_path)
    for text in ("name,noun,turn\nx,y,north\n", "name,noun\n../x,y\n", "noun\nchair\n"):
        (tmp_path / "meshes.csv").write_text(text)
        with pytest.raises(UserError, match="damaged table"):
            Library(tmp_path)


def test_the_household_has_its_nouns_and_names_creators() -> None:
    rows = read_table(HOUSEHOLD / "meshes.csv")
    assert len({r.noun for r in rows}) >= 120 and set(NOUNS) <= {r.noun for r in rows}
    assert len({r.name for r in rows}) == len(rows)
    assert {r.licence for r in rows} == {"CC0-1.0", "CC-BY-3.0", "CC-BY-3.0-US"}
    assert all(r.creator for r in rows if r.licence != "CC0-1.0")
    known = vocabulary(library_world(HOUSEHOLD, known=NOUNS))
    assert {"teddy", "bear", "red"} <= set(known["words"]) and "xylophone" not in known["words"]

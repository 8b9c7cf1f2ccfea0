"""Planted hallucinations on household meshes: what is changed is changed, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from vp3d.worlds.household import HOUSEHOLD_PART
from vp3d.worlds.library import Library
from vp3d.worlds.library_captions import LibrarySpec
from vp3d.worlds.mesh_library import LibraryMesh
from vp3d.worlds.planted import BENIGN, HARMFUL, LEAST_SEVERITY, LEVELS, Pair
from vp3d.worlds.planted_meshes import DROPPED, _areas, _pieces, plant_mesh, planted_mesh_pairs
from vp3d.worlds.toybox.images import view_vectors

VIEW = view_vectors(*(np.array([value]) for value in (30.0, 15.0, 2.9, 40.0)))
TABLE = LibrarySpec("table", mesh="table_2")


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(HOUSEHOLD_PART)


def planted(
    library: Library, kind: str, level: int, spec: LibrarySpec = TABLE, seed: int = 0
) -> Pair | None:
    return plant_mesh(library, spec, VIEW, 64, np.random.default_rng(seed), kind, level)


def test_every_kind_is_there_the_same_again_and_the_halves_share_no_mesh(
    library: Library,
) -> None:
    pairs = planted_mesh_pairs(library, 3, 64, seed=5)
    kinds = {pair.kind for pair in pairs}
    assert kinds >= {"colour", "added", "swapped", "texture", *BENIGN}
    assert {pair.level for pair in pairs} == set(range(1, LEVELS + 1))
    again = planted_mesh_pairs(library, 2, 64, seed=5, first=1)
    later = [pair for pair in pairs if pair.caption != pairs[0].caption]
    assert len(later) == len(again)
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(later, again, strict=True))
    for pair in pairs:
        assert pair.harmful == (pair.kind in HARMFUL)
        assert pair.picture.shape == pair.reference.shape == (64, 64, 3)
        assert not np.array_equal(pair.picture, pair.reference)
        assert pair.severity >= LEAST_SEVERITY if pair.harmful else pair.severity == 0.0
    names = [
        {pair.caption.split("(")[1] for pair in planted_mesh_pairs(library, 12, 16, 5, half)}
        for half in (False, True)
    ]
    assert min(map(len, names)) > 3 and not names[0] & names[1]


def test_a_new_colour_moves_further_with_its_level_and_the_rest_stays(library: Library) -> None:
    pairs = [planted(library, "colour", level, seed=1) for level in (1, 3)]
    change = [np.abs(p.picture.astype(float) - p.reference).mean() for p in pairs if p]
    assert len(change) == 2 and change[1] > change[0] > 0.0
    painted = LibrarySpec("table", color="pink", mesh="table_2", painted=True)
    found = [planted(library, "colour", 3, painted, seed) for seed in range(6)]
    kept = [(p.picture == p.reference).all(-1) & _on_the_object(p) for p in found if p]
    assert any(bool(one.any()) for one in kept)  # what is not recoloured keeps its paint


def _on_the_object(pair: Pair) -> np.ndarray:
    return np.asarray((pair.reference != pair.reference[0, 0]).any(-1))


def test_pieces_are_dropped_up_to_their_share_and_a_single_piece_stays(library: Library) -> None:
    mesh = library.mesh("table_2")
    piece = _pieces(mesh)
    assert piece.max() > 0 and len(piece) == len(mesh.triangles)
    places = [set(map(tuple, mesh.position[mesh.triangles[piece == n]].reshape(-1, 3).round(5)))
              for n in range(piece.max() + 1)]  # fmt: skip
    assert sum(map(len, places)) == len(set.union(*places))  # pieces share no place
    share = np.bincount(piece, _areas(mesh)) / _areas(mesh).sum()
    pairs = {n: p for n in (1, 2, 3) if (p := planted(library, "part", n))}
    assert bool(pairs) == bool((share <= DROPPED[-1]).any())
    one = LibraryMesh(
        np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), np.zeros((3, 2), np.float32),
        np.array([[0, 1, 2]], np.int32), np.zeros(1, np.int32),
        np.array([[1, 0, 0, 1, -1, 0]], np.float32), (), ("a",),
    )  # fmt: skip
    assert _pieces(one).tolist() == [0] and _areas(one) == pytest.approx([np.sqrt(3) / 2])


def test_a_mesh_without_textures_has_no_pattern(library: Library) -> None:
    plain = next(row for row in library.rows if not library.mesh(row.name).textures)
    spec = LibrarySpec(plain.noun, mesh=plain.name)
    assert all(planted(library, "pattern", level, spec) is None for level in (1, 2, 3))


def test_a_texture_stays_on_the_object(library: Library) -> None:
    pair = planted(library, "texture", 3)
    assert pair is not None
    ground = ~_on_the_object(pair)
    assert np.array_equal(pair.picture[ground], pair.reference[ground])

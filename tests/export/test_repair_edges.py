"""Edges that more than two faces share: which faces belong together, and how they are parted."""

from __future__ import annotations

import numpy as np
import pytest

from vp3d.export import repair
from vp3d.types import Mesh

BASE = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])  # of a tetrahedron, outwards


@pytest.mark.parametrize(
    ("signs", "pairs"),
    [
        ("+-+-", {(0, 3), (2, 1)}),
        ("-+-+", {(1, 0), (3, 2)}),
        ("++--", {(0, 3), (1, 2)}),
        ("+--+", {(3, 2), (0, 1)}),
        ("--++", {(2, 1), (3, 0)}),
        ("-++-", {(1, 0), (2, 3)}),
    ],
)
def test_faces_around_an_edge_are_paired_by_the_matter_between_them(
    signs: str, pairs: set[tuple[int, int]]
) -> None:
    """Four faces at 0, 90, 180 and 270 degrees around the edge from vertex 0 up to vertex 1.

    A face "+" runs up the edge, so its outside is at larger angles and matter at smaller ones, down
    to a face "-". Where matter lies inside matter, the inner pair is matched first.
    """
    turns = np.radians([0, 90, 180, 270])
    tips = np.stack([np.cos(turns), np.sin(turns), np.zeros(4)], -1)
    vertices = np.float32([[0, 0, -1], [0, 0, 1], *tips])
    faces = np.array(
        [[0, 1, 2 + n] if sign == "+" else [1, 0, 2 + n] for n, sign in enumerate(signs)]
    )
    found = repair.pair_corners(Mesh(vertices, faces)) // 3
    assert {tuple(pair) for pair in found.tolist()} == pairs


def chain(seed: int) -> Mesh:
    """Three tetrahedra; the first shares one edge with the second and another with the third.

    So two edges of one of its faces have four faces. `seed` shuffles vertices, faces and corners.
    """
    points = np.array(
        [[0, 0, 0], [1, 0, 0], [0.4, 0.9, 0], [0.5, 0.3, 0.8]]
        + [[0.2, -0.9, 0.3], [0.7, -0.8, -0.6]]  # with vertices 0 and 1
        + [[1.4, 1.0, 0.2], [1.3, 0.9, -0.7]]  # with vertices 1 and 2
    )
    solids = [[0, 1, 2, 3], [0, 1, 4, 5], [1, 2, 6, 7]]
    faces = []
    for solid in solids:
        a, b, c, d = points[solid]
        outwards = np.linalg.det([b - a, c - a, d - a]) > 0
        faces.append(np.array(solid)[BASE if outwards else BASE[:, ::-1]])
    rng = np.random.default_rng(seed)
    place = rng.permutation(len(points))
    mixed = place[rng.permutation(np.concatenate(faces))]
    turned = np.stack([np.roll(face, rng.integers(3)) for face in mixed])
    return Mesh(points[np.argsort(place)].astype(np.float32) * 0.5, turned)


def edge_uses(mesh: Mesh) -> set[int]:
    edges = np.sort(mesh.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1)
    return set(np.unique(edges, axis=0, return_counts=True)[1].tolist())


@pytest.mark.parametrize("seed", range(12))
def test_two_pinched_edges_of_one_face_are_both_split(seed: int) -> None:
    pinched = chain(seed)
    volume = repair.face_measures(pinched)[1].sum()
    assert edge_uses(pinched) == {2, 4} and volume > 0
    split = repair.split_pinched_edges(pinched)
    assert edge_uses(split) == {2} and repair.is_watertight(split)
    assert len(split.vertices) == 10 and len(split.faces) == 16  # a vertex and two faces an edge
    assert repair.face_measures(split)[1].sum() == pytest.approx(volume, rel=1e-3)
    assert (repair.face_measures(split)[0] > 0).all()

"""Make a marching-cubes surface one clean manifold: floaters, doubled and pinched parts."""

from __future__ import annotations

import numpy as np
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from vp3d.types import Mesh

KEEP_SHARE = 0.05


def components(mesh: Mesh) -> np.ndarray:
    """The number [F] of the connected piece each face belongs to; faces are connected through shared vertices."""
    a, b = mesh.faces[:, [0, 1]].ravel(), mesh.faces[:, [1, 2]].ravel()
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(len(mesh.vertices),) * 2)
    return connected_components(graph, directed=False)[1][mesh.faces[:, 0]]


def face_measures(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Area [F] >= 0 and signed volume [F] (of the tetrahedron with the origin) of every face; volumes sum to the mesh's."""
    p0, p1, p2 = (mesh.vertices[mesh.faces[:, k]].astype(np.float64) for k in range(3))
    area = 0.5 * np.linalg.norm(np.cross(p1 - p0, p2 - p0), axis=1)
    return area, np.einsum("fc,fc->f", p0, np.cross(p1, p2)) / 6.0


def select_faces(mesh: Mesh, keep: np.ndarray) -> Mesh:
    """The faces of a bare `mesh` where `keep [F]` is true, without the vertices no face uses."""
    used, faces = np.unique(mesh.faces[keep], return_inverse=True)
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3).astype(np.int64))


def drop_floaters(mesh: Mesh, keep_share: float = KEEP_SHARE) -> Mesh:
    """Keep the pieces that the rule at the top of this module keeps (`keep_share` in [0, 1])."""
    if not len(mesh.faces):
        return mesh
    piece = components(mesh)
    area, volume = (np.bincount(piece, weights=w) for w in face_measures(mesh))
    solid = volume > 1e-9
    if not solid.any():
        return select_faces(mesh, np.zeros(len(mesh.faces), bool))
    return select_faces(mesh, (solid & (area >= keep_share * area[solid].max()))[piece])


def clean(mesh: Mesh) -> Mesh:
    """Merge equal vertices, drop what is degenerate or cancels out, part sheets that touch, close holes, turn faces outwards."""
    places, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    mesh = split_pinched_edges(
        part_sheets(Mesh(places, cancel_doubles(index.reshape(-1)[mesh.faces])))
    )
    body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    if not body.is_watertight:
        trimesh.repair.fill_holes(body)
    if body.volume < 0:
        body.invert()
    return Mesh(np.asarray(body.vertices, np.float32), np.asarray(body.faces, np.int64))


def cancel_doubles(faces: np.ndarray) -> np.ndarray:
    """`faces [F, 3]` without those that use a vertex twice; of faces on the same three vertices, opposite ones cancel out."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    a, b, c = faces.T
    ascending = (
        (a < b).astype(int) + (b < c) + (c < a)
    )  # 2 for the rotations of the sorted order, 1 for the mirrored ones
    sign = np.where(ascending == 2, 1, -1)
    _, first, group = np.unique(np.sort(faces, 1), axis=0, return_index=True, return_inverse=True)
    net = np.bincount(group.reshape(-1), sign, minlength=len(first))
    kept = np.sort(faces[first], 1)[net != 0]
    kept[net[net != 0] < 0] = kept[net[net != 0] < 0][:, ::-1]
    return kept.astype(np.int64)


def pair_corners(mesh: Mesh) -> np.ndarray:
    """Which face meets which in each edge: pairs [P, 2] of corner numbers `3 * face + k`, the edge running from corner k on.

    Edges of two faces pair them. Where more meet, each pair encloses matter: going round the edge into the solid from a face
    that runs along it, the next free one that runs against it is its partner, as brackets close.
    """
    starts, ends = mesh.faces.ravel(), mesh.faces[:, [1, 2, 0]].ravel()
    key = np.minimum(starts, ends) * len(mesh.vertices) + np.maximum(starts, ends)
    order = np.argsort(key, kind="stable")
    _, first, uses = np.unique(key[order], return_index=True, return_counts=True)
    plain = first[uses == 2]
    pairs = [np.stack([order[plain], order[plain + 1]], -1)]
    for begin, count in zip(first[uses > 2], uses[uses > 2], strict=True):
        corners = order[begin : begin + count]
        pairs.append(
            _close_brackets(corners[np.argsort(-_angles(mesh, corners), kind="stable")], starts)
        )
    return np.concatenate(pairs)


def _angles(mesh: Mesh, corners: np.ndarray) -> np.ndarray:
    """Angle of each face (by its corner) around the edge they share, which runs from its lower to its higher vertex."""
    starts, ends, tips = (
        mesh.faces.ravel()[corners - corners % 3 + (corners + k) % 3] for k in range(3)
    )
    vertices = mesh.vertices.astype(np.float64)
    low, high = vertices[min(starts[0], ends[0])], vertices[max(starts[0], ends[0])]
    axis = (high - low) / max(float(np.linalg.norm(high - low)), 1e-20)
    arms = vertices[tips] - low
    side = arms[0] - axis * (arms[0] @ axis)
    return np.arctan2(arms @ np.cross(axis, side), arms @ side)


def _close_brackets(corners: np.ndarray, starts: np.ndarray) -> np.ndarray:
    along = np.where(starts[corners] == starts[corners].min(), 1, -1)
    begin = int(np.cumsum(along).argmin()) + 1
    pairs, waiting = [], []
    for corner, direction in zip(np.roll(corners, -begin), np.roll(along, -begin), strict=True):
        if direction > 0:
            waiting.append(corner)
        elif waiting:
            pairs.append((waiting.pop(), corner))
    return np.array(pairs, np.int64).reshape(-1, 2)


def part_sheets(mesh: Mesh) -> Mesh:
    """Where two sheets touch in an edge or a vertex, give each its own vertices, a hair apart, so that every edge has two faces.

    The corners of faces that meet in an edge (see `pair_corners`) belong together; every such group becomes one vertex.
    """
    starts = mesh.faces.ravel()
    one, two = pair_corners(mesh).T
    after_one, after_two = (corner - corner % 3 + (corner + 1) % 3 for corner in (one, two))
    same = starts[one] == starts[two]
    a, b = (
        np.r_[one, after_one],
        np.r_[np.where(same, two, after_two), np.where(same, after_two, two)],
    )
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(len(starts),) * 2)
    groups, vertex = connected_components(graph, directed=False)
    old = np.zeros(groups, np.int64)
    old[vertex] = starts
    vertices = mesh.vertices[old].astype(np.float64)
    centres = mesh.vertices[mesh.faces].mean(1).repeat(3, 0)
    size = np.bincount(vertex, minlength=groups)[:, None]
    middle = np.stack([np.bincount(vertex, centres[:, c], groups) for c in range(3)], -1) / size
    shared = np.bincount(old, minlength=len(mesh.vertices))[old] > 1
    vertices[shared] += HAIR * (middle - vertices)[shared]
    return Mesh(vertices.astype(np.float32), vertex.reshape(-1, 3).astype(np.int64))


def split_pinched_edges(mesh: Mesh, rounds: int = 4) -> Mesh:
    """Where pairs of faces share an edge but hang together elsewhere at both ends, all pairs but one get a middle vertex."""
    for _ in range(rounds):
        pairs = pair_corners(mesh)
        starts, ends = mesh.faces.ravel(), mesh.faces[:, [1, 2, 0]].ravel()
        edge = np.sort(np.stack([starts[pairs[:, 0]], ends[pairs[:, 0]]], -1), 1)
        extra = np.setdiff1d(np.arange(len(pairs)), np.unique(edge, axis=0, return_index=True)[1])
        if not len(extra):
            break
        vertices, faces = list(mesh.vertices), mesh.faces.tolist()
        touched: set[int] = set()
        for pair in pairs[extra]:
            if touched.isdisjoint(pair // 3):
                touched.update((pair // 3).tolist())
                _insert_middle(vertices, faces, pair)
        mesh = Mesh(np.array(vertices, np.float32), np.array(faces, np.int64))
    return mesh


def _insert_middle(vertices: list[np.ndarray], faces: list[list[int]], pair: np.ndarray) -> None:
    """Split the edge of the two corners in `pair`, and both its faces, in place."""
    tips = []
    for corner in pair.tolist():
        face, k = divmod(corner, 3)
        a, b, tip = (faces[face][(k + i) % 3] for i in range(3))
        faces[face] = [a, len(vertices), tip]
        faces.append([len(vertices), b, tip])
        tips.append(vertices[tip])
    middle = (vertices[a] + vertices[b]) / 2
    vertices.append(middle + HAIR * (np.mean(tips, 0) - middle))


def is_watertight(mesh: Mesh) -> bool:
    """Whether every edge belongs to exactly two faces that run along it in opposite directions."""
    body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    return bool(body.is_watertight and body.is_winding_consistent)


HAIR = 1e-3  # how far sheets that touched are moved apart, as a share of the way to the middle of their faces

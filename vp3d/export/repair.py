"""Turn a marching-cubes or decimated surface into clean closed manifolds.

Conventions: faces wind counter-clockwise seen from outside. Corner number 3 * face + k is the k-th
corner of a face; the edge of a corner runs from it to the next corner of the same face. A mesh here
is bare: it has no normals, colours or UVs.

Which pieces remain: a piece (connected component) remains if it encloses a positive volume and has
at least KEEP_SHARE of the surface area of the largest such piece. The measure is area rather than
volume, so that a thin real part next to a big one remains. Cavities (negative volume) are invisible
from outside and are always removed.
"""

from __future__ import annotations

import numpy as np
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from vp3d.types import Mesh

KEEP_SHARE = 0.05
MIN_VOLUME = 1e-9  # cubic world units; a piece with less counts as a cavity
# Sheets that touched are moved apart by this share of the way to the centres of their faces.
SHEET_GAP = 1e-3


def components(mesh: Mesh) -> np.ndarray:
    """Number of the connected piece of each face `[F]`; faces connect through shared vertices."""
    a, b = mesh.faces[:, [0, 1]].ravel(), mesh.faces[:, [1, 2]].ravel()
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(len(mesh.vertices),) * 2)
    return connected_components(graph, directed=False)[1][mesh.faces[:, 0]]


def face_measures(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Area `[F]` >= 0 and signed volume `[F]` of each face.

    The volume is that of the tetrahedron with the origin. The volumes of a closed mesh sum to its
    own.
    """
    p0, p1, p2 = (mesh.vertices[mesh.faces[:, k]].astype(np.float64) for k in range(3))
    area = 0.5 * np.linalg.norm(np.cross(p1 - p0, p2 - p0), axis=1)
    return area, np.einsum("fc,fc->f", p0, np.cross(p1, p2)) / 6.0


def select_faces(mesh: Mesh, keep: np.ndarray) -> Mesh:
    """The faces where `keep [F]` is true, without unused vertices."""
    used, faces = np.unique(mesh.faces[keep], return_inverse=True)
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3).astype(np.int64))


def drop_floaters(mesh: Mesh, keep_share: float = KEEP_SHARE) -> Mesh:
    """The mesh without small pieces and cavities, by the rule at the top of this module.

    Args:
        mesh: The mesh.
        keep_share: Smallest area of a piece, as a share of the largest one's, in [0, 1].
    """
    if not len(mesh.faces):
        return mesh
    piece = components(mesh)
    area, volume = (np.bincount(piece, weights=w) for w in face_measures(mesh))
    solid = volume > MIN_VOLUME
    if not solid.any():
        return select_faces(mesh, np.zeros(len(mesh.faces), bool))
    return select_faces(mesh, (solid & (area >= keep_share * area[solid].max()))[piece])


def clean(mesh: Mesh) -> Mesh:
    """The mesh as closed manifolds with outward faces.

    Merges equal vertices, drops degenerate faces and pairs of opposite ones, separates sheets that
    touch, fills holes, and turns the faces outwards.
    """
    vertices, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    faces = cancel_doubled_faces(index.reshape(-1)[mesh.faces])
    mesh = split_pinched_edges(separate_sheets(Mesh(vertices, faces)))
    body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    if not body.is_watertight:
        trimesh.repair.fill_holes(body)
    if body.volume < 0:
        body.invert()
    return Mesh(np.asarray(body.vertices, np.float32), np.asarray(body.faces, np.int64))


def cancel_doubled_faces(faces: np.ndarray) -> np.ndarray:
    """`faces [F, 3]` without degenerate ones, and with at most one face on the same vertices.

    A face that uses a vertex twice is dropped. Faces on the same three vertices are counted by
    winding; opposite ones cancel, and one face of the winding in excess remains, if there is any.
    """
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    a, b, c = faces.T
    # 2 for a rotation of the ascending order, 1 for a rotation of the mirrored one.
    ascending = (a < b).astype(int) + (b < c) + (c < a)
    sign = np.where(ascending == 2, 1, -1)
    _, first, group = np.unique(np.sort(faces, 1), axis=0, return_index=True, return_inverse=True)
    net = np.bincount(group.reshape(-1), sign, minlength=len(first))
    kept = np.sort(faces[first], 1)[net != 0]
    kept[net[net != 0] < 0] = kept[net[net != 0] < 0][:, ::-1]
    return kept.astype(np.int64)


def pair_corners(mesh: Mesh) -> np.ndarray:
    """Pairs of faces that meet in an edge: `[P, 2]` corner numbers, each naming face and edge.

    The two faces of an ordinary edge are a pair. Where more faces meet, each pair encloses matter:
    around the edge, a face that runs along it is paired with the next free face that runs against
    it, as an opening bracket with its closing one.
    """
    starts, ends = mesh.faces.ravel(), mesh.faces[:, [1, 2, 0]].ravel()
    key = np.minimum(starts, ends) * len(mesh.vertices) + np.maximum(starts, ends)
    order = np.argsort(key, kind="stable")
    _, first, uses = np.unique(key[order], return_index=True, return_counts=True)
    plain = first[uses == 2]
    pairs = [np.stack([order[plain], order[plain + 1]], -1)]
    for begin, count in zip(first[uses > 2], uses[uses > 2], strict=True):
        corners = order[begin : begin + count]
        around = corners[np.argsort(-_angles(mesh, corners), kind="stable")]
        pairs.append(_match_brackets(around, starts))
    return np.concatenate(pairs)


def _angles(mesh: Mesh, corners: np.ndarray) -> np.ndarray:
    """Angle `[K]` in radians of each face around the edge that the K corners share.

    The axis runs from the edge's vertex with the lower number to the other one.
    """
    starts, ends, tips = (
        mesh.faces.ravel()[corners - corners % 3 + (corners + k) % 3] for k in range(3)
    )
    vertices = mesh.vertices.astype(np.float64)
    low, high = vertices[min(starts[0], ends[0])], vertices[max(starts[0], ends[0])]
    axis = (high - low) / max(float(np.linalg.norm(high - low)), 1e-20)
    arms = vertices[tips] - low
    side = arms[0] - axis * (arms[0] @ axis)
    return np.arctan2(arms @ np.cross(axis, side), arms @ side)


def _match_brackets(corners: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Pairs `[P, 2]` among the corners of one edge, which are in order around it."""
    along = np.where(starts[corners] == starts[corners].min(), 1, -1)
    begin = int(np.cumsum(along).argmin()) + 1
    pairs, open_corners = [], []
    for corner, direction in zip(np.roll(corners, -begin), np.roll(along, -begin), strict=True):
        if direction > 0:
            open_corners.append(corner)
        elif open_corners:
            pairs.append((open_corners.pop(), corner))
    return np.array(pairs, np.int64).reshape(-1, 2)


def separate_sheets(mesh: Mesh) -> Mesh:
    """Give sheets that touch in an edge or a vertex their own vertices, SHEET_GAP apart.

    Corners of faces that meet in an edge (see `pair_corners`) belong together. Each connected group
    of corners becomes one vertex.
    """
    starts = mesh.faces.ravel()
    one, two = pair_corners(mesh).T
    after_one, after_two = (corner - corner % 3 + (corner + 1) % 3 for corner in (one, two))
    same = starts[one] == starts[two]
    a = np.r_[one, after_one]
    b = np.r_[np.where(same, two, after_two), np.where(same, after_two, two)]
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(len(starts),) * 2)
    groups, vertex = connected_components(graph, directed=False)
    old = np.zeros(groups, np.int64)  # old vertex of each new one
    old[vertex] = starts
    vertices = mesh.vertices[old].astype(np.float64)
    centres = mesh.vertices[mesh.faces].mean(1).repeat(3, 0)
    size = np.bincount(vertex, minlength=groups)[:, None]
    middle = np.stack([np.bincount(vertex, centres[:, c], groups) for c in range(3)], -1) / size
    shared = np.bincount(old, minlength=len(mesh.vertices))[old] > 1
    vertices[shared] += SHEET_GAP * (middle - vertices)[shared]
    return Mesh(vertices.astype(np.float32), vertex.reshape(-1, 3).astype(np.int64))


def split_pinched_edges(mesh: Mesh, rounds: int = 4) -> Mesh:
    """Split edges that several pairs of faces still share, so that each pair has its own edge.

    This happens where the pairs are connected elsewhere at both ends of the edge. All pairs but one
    get a vertex in the middle of the edge. A face is split once in a round.

    Args:
        mesh: The mesh.
        rounds: Largest number of rounds.
    """
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
    """Split the edge of the two corners in `pair`, and both of its faces, in place."""
    tips = []
    for corner in pair.tolist():
        face, k = divmod(corner, 3)
        a, b, tip = (faces[face][(k + i) % 3] for i in range(3))
        faces[face] = [a, len(vertices), tip]
        faces.append([len(vertices), b, tip])
        tips.append(vertices[tip])
    middle = (vertices[a] + vertices[b]) / 2
    vertices.append(middle + SHEET_GAP * (np.mean(tips, 0) - middle))


def is_watertight(mesh: Mesh) -> bool:
    """Whether each edge belongs to exactly two faces that run along it in opposite directions."""
    body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    return bool(body.is_watertight and body.is_winding_consistent)

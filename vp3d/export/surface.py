"""From a density field to a clean closed triangle mesh.

Density is sampled on the nodes of a grid over [-1, 1]^3, marching cubes runs at several thresholds, and the mesh whose
silhouette agrees best (IoU) with the field's own rendered opacity (cut at half of its maximum) is taken. Then it is
cleaned, smoothed, decimated, and made manifold again: decimation pinches edges together, see `part_sheets`.

Closed at the border: one layer of zeros is put around the grid and vertices are clipped back to the cube.
Which pieces stay: a piece (connected component) stays if it encloses positive volume and has at least `KEEP_SHARE` of
the surface area of the largest such piece. Area rather than volume, so that a thin real part beside a big one
stays; cavities (negative volume) are never seen from outside and always go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from vp3d.errors import UserError
from vp3d.render.raster import rasterize
from vp3d.types import Camera, Mesh

KEEP_SHARE = 0.05
COARSE_LEVELS = 8  # thresholds tried over the whole range
FINE_LEVELS = 4  # thresholds tried around the best of them
LOWEST_SHARE, HIGHEST_SHARE = (
    0.01,
    0.8,
)  # the range, as shares of the 99.9th percentile of the density
HAIR = 1e-3  # how far sheets that touched are moved apart, as a share of the way to the middle of their faces
FAINTEST = 0.05  # largest opacity below which a render counts as empty
TAUBIN = (
    0.5,
    0.53,
)  # shrinking and growing step (Taubin 1995, "A signal processing approach to fair surface design")


class SurfaceField(Protocol):
    """What the export asks of a field; `x [N, 3]` is in [-1, 1]."""

    def density(self, x: Tensor) -> Tensor:
        """sigma [N] >= 0."""
        ...

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """sigma [N] >= 0 and albedo [N, 3] in [0, 1]."""
        ...


class EmptyMesh(UserError):
    """The field has no surface to export."""


@dataclass(frozen=True)
class Surface:
    """A mesh without colours, the density threshold it was cut at, and its silhouette IoU in [0, 1]."""

    mesh: Mesh
    threshold: float
    iou: float


@torch.no_grad()
def density_grid(
    density: Callable[[Tensor], Tensor],
    cells: int,
    chunk: int = 262_144,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """`density(x [N, 3]) -> [N]` on the nodes of a grid of `cells` a side over [-1, 1]^3.

    Returns float32 [cells+1, cells+1, cells+1] >= 0 indexed [x, y, z]; non-finite values become 0.
    """
    axis = torch.linspace(-1.0, 1.0, cells + 1, device=device)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    values = torch.cat([density(part).float().reshape(-1) for part in points.split(chunk)])
    grid = torch.nan_to_num(values, 0.0, 0.0, 0.0).clamp_min(0.0)
    return grid.reshape(cells + 1, cells + 1, cells + 1).cpu().numpy()


def marching_cubes(grid: np.ndarray, threshold: float) -> Mesh:
    """The level set of `grid [R, R, R]` >= 0 at `threshold` > 0 as a closed mesh in [-1, 1]^3, outward faces; may be empty."""
    from skimage.measure import marching_cubes as skimage_marching_cubes

    if not grid.max() > threshold:
        return Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64))
    spacing = 2.0 / (grid.shape[0] - 1)
    vertices, faces, _, _ = skimage_marching_cubes(
        np.pad(grid, 1),
        threshold,
        spacing=(spacing,) * 3,
        gradient_direction="ascent",
        allow_degenerate=False,
    )
    vertices = np.clip(vertices - (1.0 + spacing), -1.0, 1.0)
    return Mesh(vertices.astype(np.float32), faces.astype(np.int64))


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


def silhouette(opacity: Tensor) -> Tensor:
    """Where `opacity` (any shape, in [0, 1]) is over half of its largest value: bool, same shape. Not-a-number is 0."""
    opacity = torch.nan_to_num(opacity.detach().float().cpu(), 0.0)
    return opacity > 0.5 * opacity.max().clamp_min(FAINTEST)


def silhouette_iou(mesh: Mesh, cameras: Camera, opacity: Tensor) -> float:
    """IoU in [0, 1] of the mesh's silhouettes and those of the reference `opacity [B, H, W]` in [0, 1], over all views."""
    reference = silhouette(opacity)
    drawn = rasterize(mesh, cameras.to("cpu"), *reference.shape[1:]).face_index >= 0
    union = int((drawn | reference).sum())
    return float((drawn & reference).sum()) / union if union else 0.0


def choose_threshold(grid: np.ndarray, cameras: Camera, opacity: Tensor) -> Surface:
    """The best of several level sets of `grid [R, R, R]` >= 0 by `silhouette_iou` against `opacity [B, H, W]` in [0, 1]."""
    top = float(np.percentile(grid, 99.9))
    top = top if top > 0 else float(grid.max())
    if not top > 0:
        raise _empty(grid)

    def cut(threshold: float) -> Surface:
        mesh = drop_floaters(marching_cubes(grid, threshold))
        return Surface(
            mesh, threshold, silhouette_iou(mesh, cameras, opacity) if len(mesh.faces) else -1.0
        )

    if not bool(silhouette(opacity).any()):
        raise _empty(grid)
    levels = np.geomspace(LOWEST_SHARE * top, HIGHEST_SHARE * top, COARSE_LEVELS)
    best = max((cut(float(level)) for level in levels), key=lambda s: s.iou)
    step = float(levels[1] / levels[0])
    around = best.threshold * np.geomspace(1 / step, step, FINE_LEVELS + 2)[1:-1]
    best = max((best, *(cut(float(level)) for level in around)), key=lambda s: s.iou)
    if best.iou <= 0:
        raise _empty(grid)
    return best


def _empty(grid: np.ndarray) -> EmptyMesh:
    edges = [0.0, 0.01, 0.1, 1.0, 10.0, 100.0, np.inf]
    counts = np.histogram(grid, bins=edges)[0]
    shares = ", ".join(
        f"<{high:g}: {100 * n / grid.size:.1f}%"
        for high, n in zip(edges[1:], counts, strict=True)
        if n
    )
    return EmptyMesh(
        f"the field is empty, there is no surface to export (highest density {grid.max():.3g}; shares by density {shares}); "
        "try another seed or lower loss.sparsity"
    )


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


def smooth(mesh: Mesh, iterations: int) -> Mesh:
    """Taubin smoothing with uniform weights: takes the staircase of the grid off and keeps the volume."""
    if not iterations or not len(mesh.faces):
        return mesh
    a, b = mesh.faces[:, [0, 1, 2]].ravel(), mesh.faces[:, [1, 2, 0]].ravel()
    count = len(mesh.vertices)
    links = coo_matrix(
        (np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, a])), shape=(count, count)
    ).tocsr()
    links.data[:] = 1.0
    degree = np.maximum(np.asarray(links.sum(1)), 1.0)
    vertices = mesh.vertices.astype(np.float64)
    for _ in range(iterations):
        for step in (TAUBIN[0], -TAUBIN[1]):
            vertices = vertices + step * (links @ vertices / degree - vertices)
    return replace(mesh, vertices=np.clip(vertices, -1.0, 1.0).astype(np.float32))


def decimate(mesh: Mesh, faces: int) -> Mesh:
    """At most `faces` triangles by quadric edge collapse (Garland and Heckbert 1997); 0 keeps all."""
    import fast_simplification

    for aggressiveness in (5.0, 7.0, 10.0, 10.0):
        if not 0 < faces < len(mesh.faces):
            break
        vertices, triangles = fast_simplification.simplify(
            mesh.vertices.astype(np.float32),
            mesh.faces.astype(np.int32),
            target_count=faces,
            agg=aggressiveness,
        )
        mesh = Mesh(
            np.clip(vertices, -1.0, 1.0).astype(np.float32), np.asarray(triangles, np.int64)
        )
    return mesh


def reduce(mesh: Mesh, faces: int) -> Mesh:
    """`decimate` and `clean`, still at most `faces` triangles (0 keeps all) after the repair has added some."""
    target = faces
    for _ in range(4):
        made = clean(decimate(mesh, target))
        excess = len(made.faces) - faces
        if not faces or excess <= 0:
            break
        target = max(target - excess, 4)
    return made


def vertex_normals(mesh: Mesh) -> Mesh:
    """The mesh with unit outward vertex normals [V, 3], the angle-weighted mean of the faces around each vertex."""
    normals = np.array(
        trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).vertex_normals, np.float32
    )
    length = np.linalg.norm(normals, axis=1)
    normals[length < 0.5] = (0.0, 0.0, 1.0)
    return replace(mesh, normals=normals)


def extract_surface(
    grid: np.ndarray, cameras: Camera, opacity: Tensor, faces: int = 0, smoothing: int = 4
) -> Surface:
    """The finished surface of `grid [R, R, R]` >= 0: threshold by silhouette against `opacity [B, H, W]` in [0, 1].

    At most `faces` triangles (0 keeps all), watertight, outward, with vertex normals; `iou` is that of the finished mesh.
    """
    raw = choose_threshold(grid, cameras, opacity)
    mesh = drop_floaters(reduce(smooth(clean(raw.mesh), smoothing), faces))
    if not len(mesh.faces):
        raise _empty(grid)
    mesh = vertex_normals(mesh)
    return Surface(mesh, raw.threshold, silhouette_iou(mesh, cameras, opacity))

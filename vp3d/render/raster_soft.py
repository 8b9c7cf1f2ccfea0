"""A differentiable renderer of a textured triangle mesh, on any device and without a compiler.

Visibility has no gradient: the nearest face at each pixel centre comes from the kernel of
vp3d/render/raster.py ("numba", CPU), or from plain torch on any device ("torch"), which is the
readable twin that the other is compared with. From there on, both share one differentiable part:

* Barycentric coordinates are computed from the projected corners, perspective-correct, so that the
  colour of a pixel has a gradient by the vertices; the texture is sampled bilinearly.
* Silhouettes. In a band of `BAND` pixels around the border of the object, the signed distance d of
  the pixel centre to the nearest contour edge decides how much of the pixel is covered:
  3 t^2 - 2 t^3 with t = (1 + d / BAND) / 2, clamped to [0, 1]. It is 0.375 a pixel steep at the
  border, nearly as a sigmoid of width 0.7 pixels, but it reaches 0 and 1 where the band ends, so
  nothing jumps there. A pixel outside the object has the colour of the border of the face that is
  visible nearest to it.
* A contour edge is one between a face that looks at the camera and one that looks away, or an edge
  of one face only. Those parts of it count that are at the border of the object in the picture.

The idea of soft coverage from distances to the silhouette is that of Soft Rasterizer (Liu et al.,
arXiv 1904.01786), hard visibility with a differentiable rest that of nvdiffrast (Laine et al.,
arXiv 2011.03277). A border of the object in front of itself has no gradient.

Conventions: those of vp3d/render/raster.py. Textures here are tensors `[3, S, S]`, row 0 at v = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

from vp3d.render.camera import project
from vp3d.render.raster import EDGE_TOLERANCE, NEAR, fill_triangles
from vp3d.types import Camera

Visibility = Literal["auto", "numba", "torch"]
BAND = 2.0  # half-width of a soft silhouette, pixels
REACH = 3  # pixels from the border within which a pixel can be in the band
CANDIDATES = 3  # contour samples nearest to a pixel whose edges are compared
SAMPLE_STEP = 1.0  # pixels between the samples of a contour edge
MAX_PAIRS = 4_000_000  # of a face and a pixel that the torch twin tests at once
ROWS = 4096  # pixels whose distances to all samples the torch twin computes at once
SMALLEST_AREA = 1.0e-8  # of a projected face, square pixels
EMPTY = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Topology:
    """The fixed part of a mesh whose vertices move.

    Attributes:
        faces: `[F, 3]` int64, vertices of the welded mesh.
        uv: `[F, 3, 2]`, texture coordinates of the corners in [0, 1], v up.
        edges: `[E, 2]` int64, both vertices of each edge.
        sides: `[E, 2]` int64, the faces on both sides of each edge; -1 where there is none.
    """

    faces: Tensor
    uv: Tensor
    edges: Tensor
    sides: Tensor


@dataclass(frozen=True)
class SoftRender:
    """Pictures of a mesh from B cameras.

    Attributes:
        rgb: `[B, 3, S, S]`, colour premultiplied by opacity, in the range of the texture.
        opacity: `[B, 1, S, S]` in [0, 1].
        face_index: `[B, S, S]` int64, the visible face; -1 where there is none.
    """

    rgb: Tensor
    opacity: Tensor
    face_index: Tensor

    def over(self, background: Tensor | float) -> Tensor:
        """The pictures `[B, 3, S, S]` over a grey, or one for each `[B]`, in [0, 1]."""
        grey = torch.as_tensor(background, dtype=self.rgb.dtype, device=self.rgb.device)
        return self.rgb + (1.0 - self.opacity) * grey.reshape(-1, 1, 1, 1)

    def shrunk(self, size: int) -> SoftRender:
        """The mean of equal blocks of pixels, `size` blocks a side; `size` must divide S."""
        block = self.rgb.shape[-1] // size
        if block == 1:
            return self
        pool = F.avg_pool2d
        faces = self.face_index[:, block // 2 :: block, block // 2 :: block]
        return SoftRender(pool(self.rgb, block), pool(self.opacity, block), faces)


def topology_of(faces: np.ndarray, uv: np.ndarray, device: torch.device | str = "cpu") -> Topology:
    """The topology of welded faces `[F, 3]` with texture coordinates `[F, 3, 2]` of the corners."""
    faces = np.ascontiguousarray(faces, np.int64)
    halves = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    edges, number = np.unique(halves, axis=0, return_inverse=True)
    number = number.reshape(-1)
    order = np.argsort(number, kind="stable")
    first = np.searchsorted(number[order], np.arange(len(edges)))
    last = np.append(first[1:], len(number)) - 1
    sides = np.stack([order[first] // 3, order[np.minimum(first + 1, last)] // 3], -1)
    sides[first == last, 1] = -1
    arrays = (faces, np.ascontiguousarray(uv, np.float32), edges, sides)
    return Topology(*(torch.from_numpy(array).to(device) for array in arrays))


def render_soft(
    vertices: Tensor,
    topology: Topology,
    texture: Tensor,
    camera: Camera,
    size: int,
    visibility: Visibility = "auto",
) -> SoftRender:
    """Render a mesh from B cameras, differentiable by its vertices and its texture.

    Args:
        vertices: Positions `[V, 3]`, world units.
        topology: Faces, texture coordinates and edges.
        texture: `[3, T, T]`, any range.
        camera: B cameras on the device of the vertices.
        size: Side of the pictures, pixels.
        visibility: "numba" on a CPU, "torch" anywhere; "auto" takes the faster one.

    Returns:
        The pictures; on a CPU the same bits for the same input.
    """
    compiled = visibility == "numba" or (visibility == "auto" and vertices.device.type == "cpu")
    xy, z = project(camera, vertices, size, size)
    corners, depth = xy[:, topology.faces], z[:, topology.faces]
    visible = visible_faces(corners.detach(), depth.detach(), size, compiled)
    towards, mask = _area(corners.detach()) > 0.0, visible >= 0
    covered = [
        _coverage(xy[b], towards[b], mask[b], topology, compiled) for b in range(len(camera))
    ]
    reached = _spread(visible)
    opacity = torch.stack(covered) * (reached >= 0)
    view, row, column = torch.nonzero(reached >= 0, as_tuple=True)
    face = reached[view, row, column]
    pixel = torch.stack([column, row], -1) + 0.5
    weights = barycentric(corners[view, face], depth[view, face], pixel)
    colors = sample(texture, (weights[..., None] * topology.uv[face]).sum(1))
    rgb = colors.new_zeros(len(camera), size, size, 3)
    rgb = rgb.index_put((view, row, column), colors * opacity[view, row, column][:, None])
    return SoftRender(rgb.permute(0, 3, 1, 2), opacity[:, None], visible)


def visible_faces(corners: Tensor, z: Tensor, size: int, compiled: bool) -> Tensor:
    """The nearest face at each pixel centre, without gradient.

    Args:
        corners: Projected corners `[B, F, 3, 2]`, pixels.
        z: Their depth along the viewing axis `[B, F, 3]`.
        size: Side of the pictures.
        compiled: True for the numba kernel, False for plain torch.

    Returns:
        `[B, size, size]` int64, -1 where there is none.
    """
    if not compiled:
        return _visible_faces_torch(corners.double(), z.double(), size)
    xy, depth = corners.double().cpu().numpy(), z.double().cpu().numpy()
    found = [fill_triangles(xy[b], depth[b], size, size)[0] for b in range(len(xy))]
    return torch.from_numpy(np.stack(found)).to(corners.device)


def _visible_faces_torch(corners: Tensor, z: Tensor, size: int) -> Tensor:
    """`visible_faces` by all pairs of a face and a pixel of its bounding box.

    A pair's key has the depth in its high bits (positive floats order as integers do) and the face
    in its low ones, so that the smallest key of a pixel is its nearest face, and the first of two
    that are equally near.
    """
    views, count = z.shape[:2]
    xy, depth = corners.flatten(0, 1), z.flatten(0, 1)
    low = (xy.amin(1) - 0.5 - EDGE_TOLERANCE).ceil().clamp_min(0.0).long()
    high = (xy.amax(1) - 0.5 + EDGE_TOLERANCE).floor().clamp_max(size - 1.0).long()
    sides = (high - low + 1).clamp_min(0)
    usable = (depth.amin(1) > NEAR) & (_area(xy).abs() >= 1.0e-14)
    pairs = torch.where(usable, sides.prod(-1), 0)
    best = torch.full((views * size * size,), EMPTY, device=z.device)
    for part in _parts(pairs, MAX_PAIRS):
        face = torch.repeat_interleave(part, pairs[part])
        before = torch.cumsum(pairs[part], 0) - pairs[part]
        offset = torch.arange(len(face), device=z.device)
        offset = offset - torch.repeat_interleave(before, pairs[part])
        column = low[face, 0] + offset % sides[face, 0]
        row = low[face, 1] + offset // sides[face, 0]
        e = xy[face] - (torch.stack([column, row], -1) + 0.5)[:, None]
        flat = _opposite(e) / _area(xy)[face, None]
        inside = flat.amin(1) >= -EDGE_TOLERANCE
        inverse = (flat.clamp_min(0.0) / depth[face]).sum(1)
        near = (1.0 / inverse).float().view(torch.int32).long()
        key, pixel = (near << 32) | (face % count), (face // count * size + row) * size + column
        best.scatter_reduce_(0, pixel[inside], key[inside], "amin")
    return torch.where(best == EMPTY, -1, best & 0xFFFFFFFF).view(views, size, size)


def _parts(pairs: Tensor, most: int) -> Iterator[Tensor]:
    """The indices of `pairs [N]` in groups of at most about `most` pairs, without those of none."""
    used = torch.nonzero(pairs).flatten()
    group = torch.cumsum(pairs[used], 0).sub(1).div(most, rounding_mode="floor")
    sizes = torch.bincount(group) if len(group) else group
    return iter(used.split(sizes[sizes > 0].tolist()))


def _area(corners: Tensor) -> Tensor:
    """Twice the signed area `[...]` of triangles `[..., 3, 2]`."""
    (x0, y0), (x1, y1), (x2, y2) = (corner.unbind(-1) for corner in corners.unbind(-2))
    return (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)


def _opposite(e: Tensor) -> Tensor:
    """Twice the signed areas `[N, 3]` opposite to each corner, of corners e `[N, 3, 2]` seen from
    the point.
    """
    a, b = e[:, [1, 2, 0]], e[:, [2, 0, 1]]
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def barycentric(corners: Tensor, z: Tensor, pixel: Tensor) -> Tensor:
    """Perspective-correct barycentric coordinates, differentiable.

    Args:
        corners: Projected corners `[N, 3, 2]`, pixels.
        z: Their depth `[N, 3]`, > 0.
        pixel: The points `[N, 2]`; one outside its triangle is moved to the border of it.

    Returns:
        `[N, 3]` >= 0, sum 1.
    """
    areas = _opposite(corners - pixel[:, None])
    total = areas.sum(1, keepdim=True)
    least = torch.full_like(total, SMALLEST_AREA).copysign(total)
    total = torch.where(total.abs() < SMALLEST_AREA, least, total)
    weights = (areas / total).clamp_min(0.0) / z
    return weights / weights.sum(1, keepdim=True)


def sample(texture: Tensor, uv: Tensor) -> Tensor:
    """Bilinear samples `[N, 3]` of a texture `[3, T, T]` at uv `[N, 2]` (v up), differentiable."""
    grid = torch.stack([2.0 * uv[:, 0] - 1.0, 1.0 - 2.0 * uv[:, 1]], -1)[None, None]
    found = F.grid_sample(texture[None], grid, padding_mode="border", align_corners=False)
    return found[0, :, 0].T


def _spread(visible: Tensor) -> Tensor:
    """`visible [B, S, S]` with each pixel outside the object, up to REACH pixels away, set to the
    face of the nearest pixel inside; -1 elsewhere.
    """
    steps = range(-REACH, REACH + 1)
    offsets = sorted(((i, j) for i in steps for j in steps), key=lambda o: o[0] ** 2 + o[1] ** 2)
    padded = F.pad(visible, (REACH,) * 4, value=-1)
    found, (height, width) = visible, visible.shape[-2:]
    for i, j in offsets[1:]:
        near = padded[:, REACH + i :, REACH + j :][:, :height, :width]
        found = torch.where(found < 0, near, found)
    return found


def _coverage(
    xy: Tensor, towards: Tensor, mask: Tensor, topology: Topology, compiled: bool
) -> Tensor:
    """How much of each pixel of one view is covered, `[S, S]` in [0, 1], differentiable by xy.

    Args:
        xy: Projected vertices `[V, 2]`.
        towards: Sign of the projected area of each face `[F]` bool.
        mask: Where a face is visible `[S, S]` bool.
        topology: Edges.
        compiled: True for a k-d tree, False for plain torch.
    """
    solid = mask.to(xy.dtype)
    near = _dilated(solid, REACH) * _dilated(1.0 - solid, REACH) > 0.0
    edge, at = _contour(xy.detach(), towards, mask, topology)
    row, column = torch.nonzero(near, as_tuple=True)
    if not len(edge) or not len(row):
        return solid
    pixel = torch.stack([column, row], -1) + 0.5
    candidates = edge[_nearest(pixel.to(xy.dtype), at, compiled)]
    ends = xy[topology.edges[candidates]]
    distance = _to_segment(pixel[:, None], ends[..., 0, :], ends[..., 1, :]).amin(1)
    signed = torch.where(mask[row, column], distance, -distance)
    t = (0.5 + 0.5 * signed / BAND).clamp(0.0, 1.0)
    return solid.index_put((row, column), t * t * (3.0 - 2.0 * t))


def _contour(
    xy: Tensor, towards: Tensor, mask: Tensor, topology: Topology
) -> tuple[Tensor, Tensor]:
    """Samples of the contour edges at the border of the object.

    Arguments as for `_coverage`.

    Returns:
        The edge `[N]` and the position `[N, 2]` of each sample.
    """
    first, second = topology.sides.unbind(-1)
    edges = torch.nonzero((second < 0) | (towards[first] != towards[second])).flatten()
    start, end = xy[topology.edges[edges]].unbind(1)
    pieces = ((end - start).norm(dim=-1) / SAMPLE_STEP).ceil().clamp(1, 4 * len(mask)).long()
    owner = torch.repeat_interleave(torch.arange(len(edges), device=xy.device), pieces)
    before = torch.cumsum(pieces, 0) - pieces
    share = torch.arange(len(owner), device=xy.device) - before[owner] + 0.5
    at = torch.lerp(start[owner], end[owner], (share / pieces[owner])[:, None])
    solid = mask.to(xy.dtype)
    border = _dilated(solid, 1) * _dilated(1.0 - solid, 1) > 0.0
    size = len(mask)
    column, row = at.floor().long().unbind(-1)
    inside = (at >= 0.0).all(-1) & (at < size).all(-1)
    kept = inside & border[row.clamp(0, size - 1), column.clamp(0, size - 1)]
    return edges[owner[kept]], at[kept]


def _nearest(points: Tensor, samples: Tensor, compiled: bool) -> Tensor:
    """The up to CANDIDATES samples `[M, 2]` nearest to each of `points [N, 2]`: `[N, K]` int64."""
    count = min(CANDIDATES, len(samples))
    if compiled:
        tree = cKDTree(samples.cpu().numpy())
        found = tree.query(points.cpu().numpy(), k=np.arange(1, count + 1))[1]
        return torch.from_numpy(found.astype(np.int64)).to(points.device)
    parts = [
        torch.cdist(part, samples, compute_mode="donot_use_mm_for_euclid_dist").topk(
            count, dim=1, largest=False
        )[1]
        for part in points.split(ROWS)
    ]
    return torch.cat(parts)


def _to_segment(point: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Distances `[...]` of points to segments, all `[..., 2]`, differentiable."""
    along = end - start
    length = along.square().sum(-1).clamp_min(1.0e-12)
    share = (((point - start) * along).sum(-1) / length).clamp(0.0, 1.0)
    away = point - start - share[..., None] * along
    return (away.square().sum(-1) + 1.0e-12).sqrt()


def _dilated(solid: Tensor, pixels: int) -> Tensor:
    """`solid [S, S]` of 0 and 1, grown by a number of pixels."""
    return F.max_pool2d(solid[None], 2 * pixels + 1, 1, pixels)[0]

"""A z-buffer triangle rasteriser for the CPU: draws previews and silhouettes, and fills textures.

Conventions:

* The centre of the pixel in row i and column j is x = j + 0.5, y = i + 0.5; row 0 is at the top.
* Both sides of a face are drawn. A triangle with a corner behind the near plane is skipped; cameras
  are outside the object.
* Edges are inclusive, and of two equally near faces the first one wins. So a closed mesh has no
  cracks and the result is deterministic.
* Colours are sRGB-encoded, in [0, 1]. A pixel is the mean of `supersample` x `supersample` samples,
  computed on encoded values, as in the volume renderer.

It needs no OpenGL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from vp3d.render.camera import camera_position, camera_rays, project
from vp3d.render.shade import lambert
from vp3d.types import Camera, Mesh

NEAR = 1e-3  # distance of the near plane from the camera, in world units
EDGE_TOLERANCE = 1e-9  # barycentric tolerance on edges, so that rounding leaves no cracks
PLAIN_COLOR = 0.7  # grey of a mesh that has neither texture nor vertex colours


@dataclass(frozen=True)
class Fragments:
    """The visible surface point of each pixel; empty pixels have face_index -1 and zeros elsewhere.

    Attributes:
        face_index: `[B, H, W]` int64.
        barycentric: `[B, H, W, 3]` float32, perspective-correct, >= 0, sum 1.
        depth: `[B, H, W]` float32, distance from the camera along the ray of the pixel.
    """

    face_index: Tensor
    barycentric: Tensor
    depth: Tensor


def _fill(
    corners: np.ndarray,
    z: np.ndarray,
    face_index: np.ndarray,
    barycentric: np.ndarray,
    nearest: np.ndarray,
) -> None:
    """Draw triangles into `face_index`, `barycentric` and `nearest`, the inverse depth, in place.

    corners `[F, 3, 2]` are in pixels, z `[F, 3]` is their depth along the viewing axis.
    """
    height, width = face_index.shape
    for f in range(corners.shape[0]):
        z0, z1, z2 = z[f, 0], z[f, 1], z[f, 2]
        if not (min(z0, min(z1, z2)) > NEAR):
            continue
        x0, y0, x1 = corners[f, 0, 0], corners[f, 0, 1], corners[f, 1, 0]
        y1, x2, y2 = corners[f, 1, 1], corners[f, 2, 0], corners[f, 2, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-14:
            continue
        left = int(max(np.ceil(min(x0, min(x1, x2)) - 0.5 - EDGE_TOLERANCE), 0.0))
        right = int(min(np.floor(max(x0, max(x1, x2)) - 0.5 + EDGE_TOLERANCE), width - 1.0))
        top = int(max(np.ceil(min(y0, min(y1, y2)) - 0.5 - EDGE_TOLERANCE), 0.0))
        bottom = int(min(np.floor(max(y0, max(y1, y2)) - 0.5 + EDGE_TOLERANCE), height - 1.0))
        for i in range(top, bottom + 1):
            for j in range(left, right + 1):
                px, py = j + 0.5, i + 0.5
                b1 = ((px - x0) * (y2 - y0) - (x2 - x0) * (py - y0)) / area
                b2 = ((x1 - x0) * (py - y0) - (px - x0) * (y1 - y0)) / area
                b0 = 1.0 - b1 - b2
                if min(b0, min(b1, b2)) < -EDGE_TOLERANCE:
                    continue
                w0, w1, w2 = max(b0, 0.0) / z0, max(b1, 0.0) / z1, max(b2, 0.0) / z2
                inverse = w0 + w1 + w2
                if inverse > nearest[i, j]:
                    nearest[i, j] = inverse
                    face_index[i, j] = f
                    barycentric[i, j, 0] = w0 / inverse
                    barycentric[i, j, 1] = w1 / inverse
                    barycentric[i, j, 2] = w2 / inverse


@cache
def _compiled_fill() -> Callable[..., None]:
    """`_fill` compiled by numba, cached on disk, or in memory only if no folder is writable."""
    import numba

    no_triangles = np.zeros((0, 3, 2)), np.zeros((0, 3))
    one_pixel = np.zeros((1, 1), np.int64), np.zeros((1, 1, 3), np.float32), np.zeros((1, 1))
    try:
        kernel = numba.njit(cache=True)(_fill)
        kernel(*no_triangles, *one_pixel)  # compiles now, so that a failure is caught here
    except (RuntimeError, OSError):  # there is no cache folder, or the disk is full
        kernel = numba.njit(_fill)
    return kernel


def fill_triangles(
    corners: np.ndarray, z: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw triangles into one image.

    Args:
        corners: Corners `[F, 3, 2]` in pixels.
        z: Depth of the corners along the viewing axis `[F, 3]`, > 0.
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        face_index `[H, W]` int64, -1 where empty, and perspective-correct barycentric `[H, W, 3]`
        float32 in [0, 1].
    """
    face_index = np.full((height, width), -1, np.int64)
    barycentric = np.zeros((height, width, 3), np.float32)
    nearest = np.zeros((height, width), np.float64)
    corners, z = np.ascontiguousarray(corners, np.float64), np.ascontiguousarray(z, np.float64)
    _compiled_fill()(corners, z, face_index, barycentric, nearest)
    return face_index, barycentric


def rasterize(mesh: Mesh, camera: Camera, height: int, width: int) -> Fragments:
    """The visible face of `mesh` at each pixel of B cameras: Fragments `[B, H, W]`."""
    vertices = torch.from_numpy(np.ascontiguousarray(mesh.vertices, np.float32))
    xy, z = (t.double().numpy() for t in project(camera, vertices, height, width))
    positions = camera_position(camera).numpy()
    views = [_view(mesh, xy[b], z[b], positions[b], height, width) for b in range(len(camera))]
    face_index, barycentric, depth = (
        torch.from_numpy(np.stack(parts)) for parts in zip(*views, strict=True)
    )
    return Fragments(face_index, barycentric, depth)


def _view(
    mesh: Mesh, xy: np.ndarray, z: np.ndarray, position: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`rasterize` for one camera at `position [3]`, from vertices `xy [V, 2]` and `z [V]`."""
    face_index, barycentric = fill_triangles(xy[mesh.faces], z[mesh.faces], height, width)
    depth = np.zeros((height, width), np.float32)
    hit = face_index >= 0
    points = interpolate(mesh.vertices, mesh.faces, face_index[hit], barycentric[hit])
    depth[hit] = np.linalg.norm(points - position, axis=-1)
    return face_index, barycentric, depth


def rasterize_reference(mesh: Mesh, camera: Camera, height: int, width: int) -> Fragments:
    """Reference for `rasterize`: intersects each pixel's ray with each face.

    Moeller and Trumbore 1997, "Fast, minimum storage ray-triangle intersection". Slow.
    """
    rays = camera_rays(camera, height, width)
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    count = len(rays)
    face_index, depth = np.full(count, -1, np.int64), np.zeros(count, np.float32)
    barycentric = np.zeros((count, 3), np.float32)
    origins, directions = rays.origins.double().numpy(), rays.directions.double().numpy()
    for n, (origin, direction) in enumerate(zip(origins, directions, strict=True)):
        p = np.cross(direction, edge2)
        determinant = np.einsum("fc,fc->f", edge1, p)
        usable = np.where(np.abs(determinant) < 1e-14, np.inf, determinant)
        s = origin - corners[:, 0]
        q = np.cross(s, edge1)
        b1, b2 = np.einsum("fc,fc->f", s, p) / usable, q @ direction / usable
        t = np.einsum("fc,fc->f", edge2, q) / usable
        distance = np.where((b1 >= 0) & (b2 >= 0) & (b1 + b2 <= 1) & (t > NEAR), t, np.inf)
        best = int(distance.argmin()) if len(distance) else -1
        if best >= 0 and np.isfinite(distance[best]):
            face_index[n], depth[n] = best, distance[best]
            barycentric[n] = 1.0 - b1[best] - b2[best], b1[best], b2[best]
    shape = (len(camera), height, width)
    flat = (torch.from_numpy(face_index), torch.from_numpy(barycentric), torch.from_numpy(depth))
    return Fragments(flat[0].reshape(shape), flat[1].reshape(*shape, 3), flat[2].reshape(shape))


def interpolate(
    values: np.ndarray, faces: np.ndarray, face_index: np.ndarray, barycentric: np.ndarray
) -> np.ndarray:
    """Interpolate vertex values at K surface points.

    Args:
        values: One row a vertex `[V, C]`, any range.
        faces: Vertices of the faces `[F, 3]`.
        face_index: Face of each point `[K]`, >= 0.
        barycentric: Barycentric coordinates of each point `[K, 3]`.

    Returns:
        The values `[K, C]`, in the range of `values`.
    """
    return np.einsum("kj,kjc->kc", barycentric, values[faces[face_index]])


def sample_texture(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear samples of a texture.

    Args:
        texture: `[H, W, 3]` uint8, row 0 at v = 1.
        uv: Texture coordinates `[K, 2]`, v up, clamped to [0, 1].

    Returns:
        Colours `[K, 3]` float32 in [0, 1].
    """
    height, width = texture.shape[:2]
    x = np.clip(uv[:, 0] * width - 0.5, 0, width - 1)
    y = np.clip((1.0 - uv[:, 1]) * height - 0.5, 0, height - 1)
    x0, y0 = x.astype(np.int64), y.astype(np.int64)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    upper = texture[y0, x0] * (1 - fx) + texture[y0, x1] * fx
    lower = texture[y1, x0] * (1 - fx) + texture[y1, x1] * fx
    return ((upper * (1 - fy) + lower * fy) / 255.0).astype(np.float32)


def face_normals(mesh: Mesh) -> np.ndarray:
    """Unit normals `[F, 3]` of the faces by their winding; zero for a degenerate face."""
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)


def base_color(mesh: Mesh, face_index: np.ndarray, barycentric: np.ndarray) -> np.ndarray:
    """sRGB colour `[K, 3]` in [0, 1] of K surface points.

    From the texture if there is one, else from the vertex colours, else `PLAIN_COLOR`.

    Args:
        mesh: The mesh.
        face_index: Face of each point `[K]`, >= 0.
        barycentric: Barycentric coordinates of each point `[K, 3]`.
    """
    if mesh.texture is not None and mesh.uv is not None:
        uv = interpolate(mesh.uv, mesh.faces, face_index, barycentric)
        return sample_texture(mesh.texture, uv)
    if mesh.vertex_colors is not None:
        return interpolate(mesh.vertex_colors, mesh.faces, face_index, barycentric)
    return np.full((len(face_index), 3), PLAIN_COLOR, np.float32)


def surface_normals(mesh: Mesh, face_index: np.ndarray, barycentric: np.ndarray) -> np.ndarray:
    """Unit normals `[K, 3]` of K surface points.

    The vertex normals, interpolated, if the mesh has them, else the normals of the faces.

    Args:
        mesh: The mesh.
        face_index: Face of each point `[K]`, >= 0.
        barycentric: Barycentric coordinates of each point `[K, 3]`.
    """
    if mesh.normals is None:
        return face_normals(mesh)[face_index]
    normals = interpolate(mesh.normals, mesh.faces, face_index, barycentric)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)


def render_mesh(
    mesh: Mesh,
    camera: Camera,
    height: int,
    width: int,
    background: Tensor | float = 1.0,
    shading: str = "flat",
    supersample: int = 2,
) -> tuple[Tensor, Tensor]:
    """Render a mesh from B cameras.

    Args:
        mesh: The mesh; its colour is that of `base_color`.
        camera: B cameras.
        height: Rows of the images.
        width: Columns of the images.
        background: A grey or a colour `[3]`, in [0, 1].
        shading: "flat" for the unlit colour, "lambert" for the light of vp3d.render.shade.
        supersample: Samples along each side of a pixel.

    Returns:
        rgb `[B, 3, H, W]` in [0, 1] and opacity `[B, 1, H, W]` in [0, 1].

    Raises:
        ValueError: The shading is unknown.
    """
    if shading not in ("flat", "lambert"):
        raise ValueError(f'shading is "flat" or "lambert", got {shading!r}')
    visible = rasterize(mesh, camera, height * supersample, width * supersample)
    hit = visible.face_index >= 0
    face_index, barycentric = visible.face_index[hit].numpy(), visible.barycentric[hit].numpy()
    color = torch.from_numpy(np.asarray(base_color(mesh, face_index, barycentric), np.float32))
    if shading == "lambert":
        normals = np.asarray(surface_normals(mesh, face_index, barycentric), np.float32)
        color = lambert(color, torch.from_numpy(normals))
    rgb = torch.zeros(*hit.shape, 3) + torch.as_tensor(background, dtype=torch.float32)
    rgb[hit] = color
    pool = torch.nn.functional.avg_pool2d
    opacity = pool(hit[:, None].float(), supersample)
    return pool(rgb.permute(0, 3, 1, 2), supersample).clamp(0, 1), opacity

"""Ground-truth pictures of toybox scenes: a sphere tracer in numba, one thread for each picture.

The light is that of `vp3d.render.shade` (fixed in the world), the cameras are those of
`vp3d.render.camera`, and the background is a plain neutral grey. Each pixel is the mean of 2 x 2
rays. Signed distances are exact for spheres, boxes, cones, rings and capsules. For an ellipsoid and
a gable roof the sign is exact and the value is a lower bound near the surface (first-order, and the
largest half-plane).
"""

from __future__ import annotations

import math

import numba
import numpy as np

from vp3d.render.shade import AMBIENT, DIFFUSE, LIGHT_DIRECTION
from vp3d.system.compiled import compiled
from vp3d.worlds.toybox.scenes import PATTERN_PERIOD, PRIM_COLUMNS, Scene, Spec, build_scene

GROUNDS = (0.5, 0.7, 0.9)  # grey levels of the background
SLOTS = 5  # see scenes.Scene
_AMBIENT, _DIFFUSE = float(AMBIENT), float(DIFFUSE)
_LX, _LY, _LZ = (float(v) for v in LIGHT_DIRECTION)
_PERIOD = PATTERN_PERIOD


@compiled(inline="always")
def _local(prim: np.ndarray, x: float, y: float, z: float) -> tuple[float, float, float]:
    x, y, z = x - prim[1], y - prim[2], z - prim[3]
    if prim[7] == 0:
        return y, z, x
    if prim[7] == 1:
        return z, x, y
    return x, y, z


@compiled()
def _distance_box(x: float, y: float, z: float, a: float, b: float, c: float) -> float:
    qx, qy, qz = abs(x) - a, abs(y) - b, abs(z) - c
    outside = math.sqrt(max(qx, 0.0) ** 2 + max(qy, 0.0) ** 2 + max(qz, 0.0) ** 2)
    return outside + min(max(qx, max(qy, qz)), 0.0)


@compiled()
def _distance_ellipsoid(x: float, y: float, z: float, a: float, b: float, c: float) -> float:
    if a == b and b == c:
        return math.sqrt(x * x + y * y + z * z) - a
    k0 = math.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    k1 = math.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + (z / c**2) ** 2)
    return k0 * (k0 - 1.0) / k1 if k1 > 1e-9 else -min(a, min(b, c))


@compiled()
def _distance_cone(x: float, y: float, z: float, r0: float, r1: float, h: float) -> float:
    """Capped cone along z, radius r0 at z = -h and r1 at z = h."""
    q = math.sqrt(x * x + y * y)
    rim = r0 if z < 0.0 else r1
    cap_x, cap_z = max(q - rim, 0.0), abs(z) - h
    dx, dz = r1 - r0, 2.0 * h
    t = min(max(((q - r0) * dx + (z + h) * dz) / (dx * dx + dz * dz), 0.0), 1.0)
    side_x, side_z = q - (r0 + dx * t), z + h - dz * t
    inside = side_x < 0.0 and cap_z < 0.0
    d2 = min(cap_x * cap_x + cap_z * cap_z, side_x * side_x + side_z * side_z)
    return -math.sqrt(d2) if inside else math.sqrt(d2)


@compiled()
def _distance_gable(x: float, y: float, z: float, a: float, b: float, c: float) -> float:
    """Triangle with base 2a at z = -c and apex at z = c, extruded to |y| <= b.

    It is upside down for c < 0.
    """
    z, c = (z, c) if c > 0.0 else (-z, -c)
    length = math.sqrt(4.0 * c * c + a * a)
    slope = (2.0 * c * abs(x) + a * (z - c)) / length
    return max(max(slope, -z - c), abs(y) - b)


@compiled()
def prim_distance(prim: np.ndarray, x: float, y: float, z: float) -> float:
    """Signed distance from a world point to one primitive, negative inside.

    Args:
        prim: The primitive, a row of `scenes.PRIM_COLUMNS` numbers.
        x: World coordinate of the point.
        y: World coordinate of the point.
        z: World coordinate of the point.
    """
    kind = int(prim[0])
    lx, ly, lz = _local(prim, x, y, z)
    a, b, c = prim[4], prim[5], prim[6]
    if kind == 0:
        return _distance_ellipsoid(lx, ly, lz, a, b, c)
    if kind == 1:
        return _distance_box(lx, ly, lz, a, b, c)
    if kind == 2:
        return _distance_cone(lx, ly, lz, a, b, c)
    if kind == 3:
        return math.sqrt((math.sqrt(lx * lx + ly * ly) - a) ** 2 + lz * lz) - b
    if kind == 4:
        dz = lz - min(max(lz, -b), b)
        return math.sqrt(lx * lx + ly * ly + dz * dz) - a
    return _distance_gable(lx, ly, lz, a, b, c)


@compiled(parallel=True)
def scene_distance(prims: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances of world points [N, 3] to the union of primitives [P, 9].

    Returns:
        The distances [N], and the index of the nearest primitive [N].
    """
    distance = np.empty(len(points))
    nearest = np.zeros(len(points), dtype=np.int64)
    for n in numba.prange(len(points)):
        best = 1e9
        for p in range(len(prims)):
            d = prim_distance(prims[p], points[n, 0], points[n, 1], points[n, 2])
            if d < best:
                best, nearest[n] = d, p
        distance[n] = best
    return distance, nearest


@compiled()
def _bounding_radius(prim: np.ndarray) -> float:
    a, b, c = prim[4], prim[5], prim[6]
    if prim[0] == 0:
        return max(a, max(b, c))
    if prim[0] == 2:
        return math.sqrt(max(a, b) ** 2 + c * c)
    if prim[0] == 3 or prim[0] == 4:
        return a + b
    return math.sqrt(a * a + b * b + c * c)


@compiled()
def _albedo(material: np.ndarray, x: float, y: float, z: float) -> tuple[float, float, float, int]:
    """sRGB colour of a surface point and the slot it counts for."""
    slot = int(material[11])
    if material[6] == 0:
        return material[0], material[1], material[2], slot
    period = _PERIOD * material[10]
    band = math.floor((z - material[9]) / period)
    if material[6] == 2:
        band += math.floor((x - material[7]) / period) + math.floor((y - material[8]) / period)
    if int(band) % 2 == 0:
        return material[0], material[1], material[2], slot
    return material[3], material[4], material[5], 1


@compiled()
def _trace(
    prims: np.ndarray,
    active: np.ndarray,
    count: int,
    origin: np.ndarray,
    ray: np.ndarray,
    start: float,
    end: float,
) -> tuple[float, int]:
    """Distance along the ray to the first surface, and the primitive there; -1 for no hit."""
    t = start
    for _ in range(80):
        x, y, z = origin[0] + t * ray[0], origin[1] + t * ray[1], origin[2] + t * ray[2]
        best, hit = 1e9, 0
        for k in range(count):
            d = prim_distance(prims[active[k]], x, y, z)
            if d < best:
                best, hit = d, active[k]
        if best < 1e-3:
            return t, hit
        t += best
        if t > end:
            break
    return -1.0, 0


@compiled()
def _gradient(prim: np.ndarray, x: float, y: float, z: float) -> tuple[float, float, float, float]:
    """The outward direction at a surface point, and its length."""
    e = 1e-4
    nx = prim_distance(prim, x + e, y, z) - prim_distance(prim, x - e, y, z)
    ny = prim_distance(prim, x, y + e, z) - prim_distance(prim, x, y - e, z)
    nz = prim_distance(prim, x, y, z + e) - prim_distance(prim, x, y, z - e)
    return nx, ny, nz, math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12


@compiled()
def _shade(prim: np.ndarray, x: float, y: float, z: float) -> float:
    nx, ny, nz, norm = _gradient(prim, x, y, z)
    cosine = (nx * _LX + ny * _LY + nz * _LZ) / norm
    return _AMBIENT + _DIFFUSE * 0.5 * (1.0 + cosine)


@compiled(parallel=True)
def scene_surface(
    prims: np.ndarray, materials: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Colours and normals of the primitives nearest to points [N, 3].

    Returns:
        Unlit sRGB colours [N, 3] in [0, 1], and unit outward normals [N, 3].
    """
    albedo, normals = np.empty((len(points), 3)), np.empty((len(points), 3))
    for n in numba.prange(len(points)):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        best, hit = 1e9, 0
        for p in range(len(prims)):
            d = prim_distance(prims[p], x, y, z)
            if d < best:
                best, hit = d, p
        r, g, b, _ = _albedo(materials[int(prims[hit, 8])], x, y, z)
        nx, ny, nz, norm = _gradient(prims[hit], x, y, z)
        albedo[n, 0], albedo[n, 1], albedo[n, 2] = r, g, b
        normals[n, 0], normals[n, 1], normals[n, 2] = nx / norm, ny / norm, nz / norm
    return albedo, normals


@compiled()
def _ray_color(
    prims: np.ndarray,
    materials: np.ndarray,
    origin: np.ndarray,
    ray: np.ndarray,
    active: np.ndarray,
) -> tuple[float, float, float, int]:
    """Shaded colour along one ray and its slot; slot -1 is the background."""
    count, first, last = 0, 1e9, -1e9
    for p in range(len(prims)):
        ox, oy, oz = prims[p, 1] - origin[0], prims[p, 2] - origin[1], prims[p, 3] - origin[2]
        along = ox * ray[0] + oy * ray[1] + oz * ray[2]
        radius = _bounding_radius(prims[p])
        gap = ox * ox + oy * oy + oz * oz - along * along
        if gap < radius * radius:
            active[count] = p
            count += 1
            half = math.sqrt(radius * radius - gap)
            first, last = min(first, along - half), max(last, along + half)
    if count == 0:
        return 0.0, 0.0, 0.0, -1
    t, hit = _trace(prims, active, count, origin, ray, first, last)
    if t < 0.0:
        return 0.0, 0.0, 0.0, -1
    x, y, z = origin[0] + t * ray[0], origin[1] + t * ray[1], origin[2] + t * ray[2]
    r, g, b, slot = _albedo(materials[int(prims[hit, 8])], x, y, z)
    light = _shade(prims[hit], x, y, z)
    return r * light, g * light, b * light, slot


@compiled()
def _picture(
    prims: np.ndarray,
    materials: np.ndarray,
    view: np.ndarray,
    ground: float,
    image: np.ndarray,
    coverage: np.ndarray,
) -> None:
    """Fill image [S, S, 3] uint8 and coverage [SLOTS] (share of the picture each slot covers)."""
    size, rays = image.shape[0], 2
    origin, right, up, forward, half = view[0:3], view[3:6], view[6:9], view[9:12], view[12]
    active = np.empty(len(prims), dtype=np.int64)
    ray = np.empty(3)
    for i in range(size):
        for j in range(size):
            r, g, b = 0.0, 0.0, 0.0
            for k in range(rays * rays):
                u = ((j + (k % rays + 0.5) / rays) / size * 2.0 - 1.0) * half
                v = (1.0 - (i + (k // rays + 0.5) / rays) / size * 2.0) * half
                norm = 1.0 / math.sqrt(1.0 + u * u + v * v)
                for d in range(3):
                    ray[d] = (forward[d] + u * right[d] + v * up[d]) * norm
                cr, cg, cb, slot = _ray_color(prims, materials, origin, ray, active)
                if slot < 0:
                    cr, cg, cb = ground, ground, ground
                else:
                    coverage[slot] += 1.0 / (size * size * rays * rays)
                r, g, b = r + cr, g + cg, b + cb
            scale = 255.0 / (rays * rays)
            image[i, j, 0] = int(r * scale + 0.5)
            image[i, j, 1] = int(g * scale + 0.5)
            image[i, j, 2] = int(b * scale + 0.5)


@compiled(parallel=True)
def _pictures(
    prims: np.ndarray,
    prim_start: np.ndarray,
    materials: np.ndarray,
    material_start: np.ndarray,
    scene_of: np.ndarray,
    views: np.ndarray,
    grounds: np.ndarray,
    images: np.ndarray,
    coverage: np.ndarray,
) -> None:
    for n in numba.prange(len(views)):
        s = scene_of[n]
        _picture(
            prims[prim_start[s] : prim_start[s + 1]],
            materials[material_start[s] : material_start[s + 1]],
            views[n],
            grounds[n],
            images[n],
            coverage[n],
        )


def view_vectors(
    azimuth_deg: np.ndarray, elevation_deg: np.ndarray, distance: np.ndarray, fov_deg: np.ndarray
) -> np.ndarray:
    """Cameras that look at the origin, as rows of numbers.

    Args:
        azimuth_deg: [N], degrees.
        elevation_deg: [N], degrees above the horizon.
        distance: From the origin [N], world units.
        fov_deg: Field of view [N], degrees.

    Returns:
        [N, 13]: position (3), right, up and forward (3 each, unit vectors in world coordinates),
        tangent of half the field of view.
    """
    azimuth, elevation = np.deg2rad(azimuth_deg), np.deg2rad(elevation_deg)
    outward = np.stack(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ],
        -1,
    )
    right = np.stack([-np.sin(azimuth), np.cos(azimuth), np.zeros_like(azimuth)], -1)
    up = np.cross(right, -outward)
    half = np.tan(np.deg2rad(fov_deg) / 2)[:, None]
    return np.concatenate(
        [outward * np.asarray(distance)[:, None], right, up, -outward, half], -1
    ).astype(np.float64)


def render_scenes(
    scenes: list[Scene],
    scene_of: np.ndarray,
    views: np.ndarray,
    grounds: np.ndarray,
    size: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """Render pictures of scenes.

    Args:
        scenes: The S scenes.
        scene_of: Which scene each of the N pictures shows [N].
        views: The cameras [N, 13] (`view_vectors`).
        grounds: Grey levels of the backgrounds [N] in [0, 1].
        size: Side of a picture, pixels.

    Returns:
        Pictures [N, size, size, 3] uint8 sRGB, and the share of each picture that each slot covers
        [N, SLOTS].
    """
    prim_start = np.cumsum([0, *(len(s.prims) for s in scenes)])
    material_start = np.cumsum([0, *(len(s.materials) for s in scenes)])
    images = np.zeros((len(views), size, size, 3), dtype=np.uint8)
    coverage = np.zeros((len(views), SLOTS))
    prims = np.concatenate([s.prims for s in scenes]).reshape(-1, PRIM_COLUMNS)
    materials = np.concatenate([s.materials for s in scenes])
    _pictures(
        prims,
        prim_start,
        materials,
        material_start,
        scene_of.astype(np.int64),
        views,
        np.asarray(grounds, float),
        images,
        coverage,
    )
    return images, coverage


def render_spec(
    spec: Spec,
    azimuth_deg: list[float],
    elevation_deg: float = 15.0,
    ground: float = 0.7,
    size: int = 64,
) -> np.ndarray:
    """Render views of one caption's scene, at the default distance and field of view.

    Args:
        spec: The caption.
        azimuth_deg: Azimuths of the N views, degrees.
        elevation_deg: Degrees above the horizon.
        ground: Grey level of the background in [0, 1].
        size: Side of a view, pixels.

    Returns:
        [N, size, size, 3] uint8 sRGB.

    Example:
        >>> render_spec(parse_caption("a red cube"), [0.0, 90.0]).shape
        (2, 64, 64, 3)
    """
    azimuth = np.asarray(azimuth_deg, dtype=np.float64)
    full = np.ones_like(azimuth)
    views = view_vectors(azimuth, full * elevation_deg, full * 2.9, full * 40.0)
    return render_scenes([build_scene(spec)], np.zeros(len(azimuth)), views, full * ground, size)[0]

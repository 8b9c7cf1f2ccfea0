"""How far a mesh is from the true scene of its caption: shape and colour, after the best yaw, uniform scale and shift.

Shape. The mesh is moved by `x -> scale * R(yaw) (x - centre) + place`, searched for the greatest volumetric IoU: 36 yaws by
three sizes around equal volume with the centroids on each other (and the mesh as it stands), then Nelder and Mead's simplex
from the six best yaws on a soft IoU, and at the end for size and place on a sharp one. Nothing is random. Shapes with
symmetries fit at many yaws: of all fits within `AS_GOOD` of the best IoU the one with the least mean colour error is taken,
and of equals the one that turns the mesh least.

Units are those of the true scene: it fills the ball of radius 0.85. IoU counts the volumes of mesh and scene. Chamfer is the
mean of the two mean distances, surface to surface; the F-score is the harmonic mean of the shares of either surface that is
within `NEAR` of the other (0.05: 3 % of the object's size, about one cell of the standard grid).

Colour. Each point of the true surface is compared with the nearest point of the mesh, CIEDE2000, and the median is told. Mesh
colours hold the light of the pictures they were made from, so the true colour is lit the same way (`render.shade`). That
light stands still in the frame the mesh was *made* in, where the cameras and their view words are: a mesh that was made
turned by some yaw is lit from the same side as one that was not. So the true normals are turned back by the yaw before they
are lit ("made"). Of a mesh whose making is unknown all `LIGHTS` are tried (also "true": the light was turned along with the
mesh; "none": bare colours), and the one that fits best is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from vp3d.export.marching_cubes import marching_cubes
from vp3d.export.surface import vertex_normals
from vp3d.metrics.colors import ciede2000
from vp3d.metrics.shapes import SurfaceIndex, SurfacePoints, inside_points, moved, surface_points
from vp3d.render.raster import base_color
from vp3d.render.shade import lambert_shade
from vp3d.types import Mesh
from vp3d.worlds.toybox.images import scene_distance, scene_surface
from vp3d.worlds.toybox.scenes import Scene, Spec, build_scene

LIGHTS = ("made", "true", "none")
CELLS = 88  # of the grid over [-1, 1]^3 that the true mesh is taken from
SOFT, SHARP = 0.03, 0.004  # width of the soft inside in the search and at its end, world units
NEAR = 0.05  # distance at which a point counts for the F-score, world units
AS_GOOD, ALIKE = (
    0.01,
    0.1,
)  # loss of IoU, and mean CIEDE2000, that count as none in choosing between yaws
YAWS, SIZES, SIMPLEXES = 36, (0.85, 1.0, 1.18), 6
SEARCH_POINTS, POLISH_POINTS, SURFACE_POINTS, COLOR_POINTS = 1500, 6000, 8000, 1200


@dataclass(frozen=True)
class Truth:
    """The exact scene of a caption, with its volume (world units cubed), centroid [3] and unlit surface `mesh`.

    `points [N, 3]`, `normals [N, 3]` and `albedo [N, 3]` (sRGB in [0, 1], unlit) are even over the visible surface.
    """

    spec: Spec
    scene: Scene
    volume: float
    centroid: np.ndarray
    mesh: Mesh
    points: np.ndarray
    normals: np.ndarray
    albedo: np.ndarray


def true_mesh(spec: Spec, cells: int = CELLS) -> Mesh:
    """The scene's surface by marching cubes, its vertices moved onto the surface; normals, unlit sRGB vertex colours."""
    scene = build_scene(spec)
    grid = scene_distance(scene.prims, _nodes(cells))[0].reshape((cells + 1,) * 3)
    step = 2.0 / cells
    mesh = marching_cubes(np.clip(0.5 - grid / (4.0 * step), 0.0, 1.0), 0.5)
    vertices = _onto_surface(scene, mesh.vertices.astype(np.float64), step)
    albedo, normals = scene_surface(scene.prims, scene.materials, vertices)
    return Mesh(
        vertices.astype(np.float32),
        mesh.faces,
        normals.astype(np.float32),
        albedo.astype(np.float32),
    )


def lit(mesh: Mesh, yaw_deg: float = 0.0) -> Mesh:
    """A mesh of bare vertex colours with the world's light in them, as if it had been made turned by -`yaw_deg`."""
    if mesh.normals is None or mesh.vertex_colors is None:
        raise ValueError("lit needs a mesh with normals and vertex colours")
    shade = shade_of(mesh.normals @ rotation(yaw_deg))[:, None].astype(np.float32)
    return replace(mesh, vertex_colors=mesh.vertex_colors * shade)


def shade_of(normals: np.ndarray) -> np.ndarray:
    """The factor [N] in (0, 1] of the world's light for unit normals [N, 3]."""
    return lambert_shade(torch.from_numpy(np.ascontiguousarray(normals, np.float64))).numpy()


def rotation(yaw_deg: float) -> np.ndarray:
    """Rotation [3, 3] about z by `yaw_deg`, counter-clockwise from above, for column vectors; `v @ rotation(a)` turns back."""
    c, s = np.cos(np.deg2rad(yaw_deg)), np.sin(np.deg2rad(yaw_deg))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _nodes(cells: int) -> np.ndarray:
    axis = np.linspace(-1.0, 1.0, cells + 1)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def _onto_surface(scene: Scene, points: np.ndarray, longest: float) -> np.ndarray:
    """`points [N, 3]` near the surface moved onto it along the normal, no step longer than `longest`."""
    for _ in range(4):
        distance, _ = scene_distance(scene.prims, points)
        normals = scene_surface(scene.prims, scene.materials, points)[1]
        points = points - np.clip(distance, -longest, longest)[:, None] * normals
    return points


@lru_cache(maxsize=4)
def truth_of(spec: Spec) -> Truth:
    """The true scene of a caption with what the comparison needs of it."""
    scene = build_scene(spec)
    mesh = true_mesh(spec)
    inside, volume = inside_points(mesh)
    points = _onto_surface(scene, surface_points(mesh, SURFACE_POINTS).points, 2.0 / CELLS)
    albedo, normals = scene_surface(scene.prims, scene.materials, points)
    return Truth(spec, scene, volume, inside.mean(0), mesh, points, normals, albedo)


@dataclass(frozen=True)
class Pose:
    """How a mesh is moved onto the true scene: `x -> scale * R(yaw_deg) (x - centre) + place`; centre and place [3]."""

    yaw_deg: float
    scale: float
    centre: np.ndarray
    place: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """Rotation times scale [3, 3]."""
        return self.scale * rotation(self.yaw_deg)

    @property
    def shift(self) -> np.ndarray:
        """What is added after `matrix` [3]."""
        return self.place - self.matrix @ self.centre

    def forward(self, points: np.ndarray) -> np.ndarray:
        """Points of the mesh [N, 3] in the frame of the true scene."""
        return points @ self.matrix.T + self.shift

    def backward(self, points: np.ndarray) -> np.ndarray:
        """Points of the true scene [N, 3] in the frame the mesh was made in."""
        return (points - self.shift) @ rotation(self.yaw_deg) / self.scale

    def numbers(self) -> dict[str, Any]:
        """Yaw in degrees in (-180, 180], scale, and shift of the mesh's origin."""
        return {
            "yaw_deg": -((180.0 - self.yaw_deg) % 360.0 - 180.0),
            "scale": self.scale,
            "shift": self.shift.tolist(),
        }


class Fit:
    """The search for the pose of one mesh, given the points inside it and its volume (world units cubed)."""

    def __init__(self, inside: np.ndarray, volume: float, truth: Truth) -> None:
        self.inside, self.volume, self.truth = inside, volume, truth
        self.centre = inside.mean(0)
        self.search = inside[:: max(1, len(inside) // SEARCH_POINTS)]

    def iou(self, pose: Pose, points: np.ndarray, soft: float = 0.0) -> float:
        """Volumetric IoU in [0, 1] estimated from `points [N, 3]` even in the mesh; `soft` > 0 blurs the true surface."""
        distance, _ = scene_distance(self.truth.scene.prims, pose.forward(points))
        within = 0.5 * (1.0 - np.tanh(distance / (2.0 * soft))) if soft else distance < 0.0
        volume = self.volume * pose.scale**3
        common = min(volume * float(within.mean()), self.truth.volume)
        return common / (volume + self.truth.volume - common)

    def pose(self, values: np.ndarray) -> Pose:
        """The pose of (yaw in radians, log of the scale, place - true centroid)."""
        yaw, size = float(np.rad2deg(values[0])), float(np.exp(np.clip(values[1], -4.0, 4.0)))
        return Pose(yaw, size, self.centre, self.truth.centroid + values[2:])

    def starts(self) -> list[np.ndarray]:
        """The best size for each yaw, best first, and the mesh as it stands."""
        equal = np.log(self.truth.volume / self.volume) / 3.0
        found = [
            (self._soft(start := np.array([0.0, 0.0, *(self.centre - self.truth.centroid)])), start)
        ]
        for yaw in np.arange(YAWS) * (2.0 * np.pi / YAWS):
            tried = [np.array([yaw, equal + np.log(size), 0.0, 0.0, 0.0]) for size in SIZES]
            found.append(
                min(((self._soft(values), values) for values in tried), key=lambda pair: pair[0])
            )
        return [values for _, values in sorted(found, key=lambda pair: pair[0])]

    def _soft(self, values: np.ndarray) -> float:
        return -self.iou(self.pose(values), self.search, SOFT)

    def refined(self, start: np.ndarray) -> np.ndarray:
        """The local best from `start`, by a simplex whose first steps are 8 degrees, 8 % and 0.06."""
        return _simplex(self._soft, start, np.array([0.14, 0.08, 0.06, 0.06, 0.06]), 160)

    def polished(self, pose: Pose) -> Pose:
        """`pose` with its size and place from a last search with a sharp surface: a soft one makes meshes a little too large."""
        points = self.inside[:: max(1, len(self.inside) // POLISH_POINTS)]

        def loss(values: np.ndarray) -> float:
            return -self.iou(self.pose(np.array([yaw, *values])), points, SHARP)

        yaw = np.deg2rad(pose.yaw_deg)
        start = np.array([np.log(pose.scale), *(pose.place - self.truth.centroid)])
        found = _simplex(loss, start, np.array([-0.02, 0.01, 0.01, 0.01]), 120)
        return max(self.pose(np.array([yaw, *found])), pose, key=lambda p: self.iou(p, self.inside))

    def candidates(self) -> list[tuple[float, Pose]]:
        """Poses whose IoU is within `AS_GOOD` of the best, with their IoU: refined ones, and the best one at every other yaw."""
        found = [self.refined(start) for start in self.starts()[:SIMPLEXES]]
        best = min(found, key=self._soft)
        turned = [
            np.array([yaw, *best[1:]])
            for yaw in best[0] + np.arange(1, YAWS) * (2.0 * np.pi / YAWS)
        ]
        as_it_stands = np.array([0.0, *best[1:]])
        poses = [self.pose(values) for values in (*found, as_it_stands, *turned)]
        rated = [(self.iou(pose, self.search), pose) for pose in poses]
        return [(iou, pose) for iou, pose in rated if iou >= max(iou for iou, _ in rated) - AS_GOOD]


def _simplex(
    loss: Callable[[np.ndarray], float], start: np.ndarray, steps: np.ndarray, calls: int
) -> np.ndarray:
    simplex = start + np.concatenate([np.zeros((1, len(start))), np.diag(steps)])
    options = {"initial_simplex": simplex, "maxfev": calls, "xatol": 1e-4, "fatol": 1e-4}
    return np.asarray(minimize(loss, start, method="Nelder-Mead", options=options).x)


def color_errors(
    surface: SurfaceIndex, truth: Truth, pose: Pose, light: str, count: int = SURFACE_POINTS
) -> np.ndarray:
    """CIEDE2000 [N] between true surface points and the mesh's colour at the point nearest to each, under `light`."""
    pick = slice(None, None, max(1, len(truth.points) // count))
    _, place = surface.nearest(pose.backward(truth.points[pick]))
    return ciede2000(_colors(surface.mesh, place), true_colors(truth, pose, light)[pick])


def true_colors(truth: Truth, pose: Pose, light: str) -> np.ndarray:
    """sRGB colours [N, 3] in [0, 1] of the true surface points under one of `LIGHTS` for a mesh at `pose`."""
    if light == "none":
        return truth.albedo
    turned = truth.normals @ rotation(pose.yaw_deg) if light == "made" else truth.normals
    return truth.albedo * shade_of(turned)[:, None]


def _colors(mesh: Mesh, place: SurfacePoints) -> np.ndarray:
    return np.asarray(base_color(mesh, place.face_index, place.barycentric))


def best_light(
    surface: SurfaceIndex, truth: Truth, pose: Pose, lights: Sequence[str], count: int
) -> tuple[float, str]:
    """The least median CIEDE2000 over `lights`, and which it is."""
    return min(
        (float(np.median(color_errors(surface, truth, pose, light, count))), light)
        for light in lights
    )


@dataclass(frozen=True)
class Comparison:
    """A mesh beside its true scene: the figures, the pose, the light its colours are read under, and the mesh at that pose."""

    figures: dict[str, Any]
    pose: Pose
    light: str
    mesh: Mesh


def compare(mesh: Mesh, truth: Truth, lights: Sequence[str] = LIGHTS[:1]) -> Comparison | None:
    """Hold `mesh` against the true scene; None when it encloses no volume.

    Figures: iou and fscore in [0, 1], chamfer in world units, color_error (median CIEDE2000; None for a mesh without
    colours), yaw_deg, scale, shift, light, and volume (of the mesh as it came, world units cubed).
    """
    inside, volume = inside_points(mesh)
    if not len(inside):
        return None
    fit, surface = Fit(inside, volume, truth), SurfaceIndex(mesh)
    colored = mesh.vertex_colors is not None or mesh.texture is not None
    pose = fit.polished(chosen_pose(fit.candidates(), surface, truth, lights if colored else ()))
    error, light = (
        best_light(surface, truth, pose, lights, SURFACE_POINTS) if colored else (None, lights[0])
    )
    aligned = moved(
        mesh if mesh.normals is not None else vertex_normals(mesh), pose.matrix, pose.shift
    )
    shape = distances(surface, truth, pose)
    numbers = {"iou": fit.iou(pose, inside), **shape, "color_error": error, **pose.numbers()}
    return Comparison({**numbers, "light": light, "volume": volume}, pose, light, aligned)


def chosen_pose(
    candidates: Sequence[tuple[float, Pose]],
    surface: SurfaceIndex,
    truth: Truth,
    lights: Sequence[str],
) -> Pose:
    """Of equally good fits the one with the least mean colour error, and of those the one that turns the mesh least.

    The mean, not the median that is told: a beak or a nose is few points. Without `lights` the best IoU is taken.
    """
    if not lights:
        return max(candidates, key=lambda pair: pair[0])[1]
    poses = [pose for _, pose in candidates]
    errors = [
        min(color_errors(surface, truth, p, light, COLOR_POINTS).mean() for light in lights)
        for p in poses
    ]
    near = [pose for pose, error in zip(poses, errors, strict=True) if error <= min(errors) + ALIKE]
    return min(near, key=lambda pose: abs(pose.numbers()["yaw_deg"]))


def distances(surface: SurfaceIndex, truth: Truth, pose: Pose) -> dict[str, float]:
    """Chamfer distance and F-score between the mesh at `pose` and the true surface (units and threshold: module's top)."""
    to_mesh = surface.nearest(pose.backward(truth.points))[0] * pose.scale
    own = surface_points(surface.mesh, SURFACE_POINTS).points
    to_truth = _true_surface(truth.spec).nearest(pose.forward(own))[0]
    recall, precision = float((to_mesh < NEAR).mean()), float((to_truth < NEAR).mean())
    fscore = 2.0 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"chamfer": 0.5 * float(to_mesh.mean() + to_truth.mean()), "fscore": fscore}


@lru_cache(maxsize=4)
def _true_surface(spec: Spec) -> SurfaceIndex:
    return SurfaceIndex(truth_of(spec).mesh)

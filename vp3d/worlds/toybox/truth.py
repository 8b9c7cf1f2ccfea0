"""Compare a mesh with the true scene of its caption: shape and colour, after the best alignment.

Shape. The mesh is moved by `x -> scale * R(yaw) (x - centre) + position`. The alignment with the
largest volumetric IoU is searched: 36 yaws by three sizes around equal volume with the centroids on
each other (and the mesh without a move), then Nelder and Mead's simplex from the six best yaws on a
soft IoU, and at the end for size and position on a sharp one. Nothing is random. Symmetric shapes
fit at many yaws: of all alignments within `IOU_TOLERANCE` of the best IoU, the one with the
smallest mean colour error is taken; of equal ones, the one with the smallest yaw.

Units are those of the true scene, which fills the ball of radius 0.85. IoU compares the volumes of
mesh and scene. Chamfer is the mean of the two mean surface-to-surface distances. The F-score is the
harmonic mean of the shares of each surface that are within `FSCORE_DISTANCE` of the other (0.05 is
3 % of the object's size, about one cell of the standard grid).

Colour. Each point of the true surface is compared with the nearest point of the mesh by CIEDE2000;
the figure is the median. The colours of a mesh include the light of the pictures it was optimised
from, so the true colour is lit the same way (`render.shade`). That light is fixed in the frame of
the optimisation, where the cameras and their view words are: a mesh that came out turned by some
yaw is lit from the same side as one that did not. So the true normals are turned back by the yaw
before they are lit ("made"). If the origin of a mesh is unknown, all `LIGHTS` are tried and the
best one is reported: "made", "true" (the light was turned along with the mesh) or "none" (the
colours include no light).
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
# Width of the blurred surface in the search and at its end, world units
SOFT_WIDTH, SHARP_WIDTH = 0.03, 0.004
FSCORE_DISTANCE = 0.05  # largest distance of a point that counts for the F-score, world units
# Differences in IoU and in mean CIEDE2000 below which two yaws are equally good
IOU_TOLERANCE, COLOR_TOLERANCE = 0.01, 0.1
YAWS, SIZES, SIMPLEXES = 36, (0.85, 1.0, 1.18), 6
SEARCH_POINTS, POLISH_POINTS, SURFACE_POINTS, COLOR_POINTS = 1500, 6000, 8000, 1200


@dataclass(frozen=True)
class Truth:
    """The exact scene of a caption.

    Attributes:
        spec: The caption.
        scene: Its primitives.
        volume: World units cubed.
        centroid: [3], world units.
        mesh: The surface with unlit vertex colours.
        points: Points spread evenly over the visible surface [N, 3].
        normals: Their normals [N, 3].
        albedo: Their unlit sRGB colours [N, 3] in [0, 1].
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
    """The scene's surface by marching cubes, with the vertices moved onto the exact surface.

    It has normals and unlit sRGB vertex colours. `cells` is the resolution of the grid.
    """
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
    """A mesh with unlit vertex colours, lit as if it had been optimised turned by -`yaw_deg`."""
    if mesh.normals is None or mesh.vertex_colors is None:
        raise ValueError("lit needs a mesh with normals and vertex colours")
    shade = shade_of(mesh.normals @ rotation(yaw_deg))[:, None].astype(np.float32)
    return replace(mesh, vertex_colors=mesh.vertex_colors * shade)


def shade_of(normals: np.ndarray) -> np.ndarray:
    """The factor [N] in (0, 1] of the world's light for unit normals [N, 3]."""
    return lambert_shade(torch.from_numpy(np.ascontiguousarray(normals, np.float64))).numpy()


def rotation(yaw_deg: float) -> np.ndarray:
    """Rotation [3, 3] about z by `yaw_deg`, counter-clockwise from above, for column vectors.

    `v @ rotation(a)` turns row vectors back.
    """
    c, s = np.cos(np.deg2rad(yaw_deg)), np.sin(np.deg2rad(yaw_deg))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _nodes(cells: int) -> np.ndarray:
    axis = np.linspace(-1.0, 1.0, cells + 1)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def _onto_surface(scene: Scene, points: np.ndarray, longest: float) -> np.ndarray:
    """Move points [N, 3] near the surface onto it, along the normal by at most `longest` a step."""
    for _ in range(4):
        distance, _ = scene_distance(scene.prims, points)
        normals = scene_surface(scene.prims, scene.materials, points)[1]
        points = points - np.clip(distance, -longest, longest)[:, None] * normals
    return points


@lru_cache(maxsize=4)
def truth_of(spec: Spec) -> Truth:
    """The true scene of a caption, prepared for comparisons; the last four are cached."""
    scene = build_scene(spec)
    mesh = true_mesh(spec)
    inside, volume = inside_points(mesh)
    points = _onto_surface(scene, surface_points(mesh, SURFACE_POINTS).points, 2.0 / CELLS)
    albedo, normals = scene_surface(scene.prims, scene.materials, points)
    return Truth(spec, scene, volume, inside.mean(0), mesh, points, normals, albedo)


@dataclass(frozen=True)
class Pose:
    """The alignment of a mesh: `x -> scale * R(yaw_deg) (x - centre) + position`.

    centre and position [3] are in the frames of the mesh and of the true scene, world units.
    """

    yaw_deg: float
    scale: float
    centre: np.ndarray
    position: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """Rotation times scale [3, 3]."""
        return self.scale * rotation(self.yaw_deg)

    @property
    def shift(self) -> np.ndarray:
        """The translation [3] after `matrix`."""
        return self.position - self.matrix @ self.centre

    def forward(self, points: np.ndarray) -> np.ndarray:
        """Points of the mesh [N, 3] in the frame of the true scene."""
        return points @ self.matrix.T + self.shift

    def backward(self, points: np.ndarray) -> np.ndarray:
        """Points of the true scene [N, 3] in the frame of the mesh."""
        return (points - self.shift) @ rotation(self.yaw_deg) / self.scale

    def numbers(self) -> dict[str, Any]:
        """Yaw in degrees in (-180, 180], scale, and shift of the mesh's origin."""
        return {
            "yaw_deg": -((180.0 - self.yaw_deg) % 360.0 - 180.0),
            "scale": self.scale,
            "shift": self.shift.tolist(),
        }


class Fit:
    """The search for the pose of one mesh."""

    def __init__(self, inside: np.ndarray, volume: float, truth: Truth) -> None:
        """Prepare the search.

        Args:
            inside: Points spread evenly inside the mesh [N, 3].
            volume: Of the mesh, world units cubed.
            truth: The true scene.
        """
        self.inside, self.volume, self.truth = inside, volume, truth
        self.centre = inside.mean(0)
        self.search = inside[:: max(1, len(inside) // SEARCH_POINTS)]

    def iou(self, pose: Pose, points: np.ndarray, soft: float = 0.0) -> float:
        """Volumetric IoU in [0, 1] at `pose`, from points [N, 3] spread evenly in the mesh.

        `soft` > 0 blurs the true surface by that width, world units.
        """
        distance, _ = scene_distance(self.truth.scene.prims, pose.forward(points))
        within = 0.5 * (1.0 - np.tanh(distance / (2.0 * soft))) if soft else distance < 0.0
        volume = self.volume * pose.scale**3
        common = min(volume * float(within.mean()), self.truth.volume)
        return common / (volume + self.truth.volume - common)

    def pose(self, values: np.ndarray) -> Pose:
        """The pose of [5] numbers: yaw in radians, log of the scale, position - true centroid."""
        yaw, size = float(np.rad2deg(values[0])), float(np.exp(np.clip(values[1], -4.0, 4.0)))
        return Pose(yaw, size, self.centre, self.truth.centroid + values[2:])

    def starts(self) -> list[np.ndarray]:
        """The best size for each yaw, and the mesh without a move; the best first."""
        equal = np.log(self.truth.volume / self.volume) / 3.0
        unmoved = np.array([0.0, 0.0, *(self.centre - self.truth.centroid)])
        found = [(self._loss(unmoved), unmoved)]
        for yaw in np.arange(YAWS) * (2.0 * np.pi / YAWS):
            tried = [np.array([yaw, equal + np.log(size), 0.0, 0.0, 0.0]) for size in SIZES]
            found.append(
                min(((self._loss(values), values) for values in tried), key=lambda pair: pair[0])
            )
        return [values for _, values in sorted(found, key=lambda pair: pair[0])]

    def _loss(self, values: np.ndarray) -> float:
        return -self.iou(self.pose(values), self.search, SOFT_WIDTH)

    def refined(self, start: np.ndarray) -> np.ndarray:
        """The local optimum from `start`, by a simplex with first steps of 8 degrees, 8 %, 0.06."""
        return _simplex(self._loss, start, np.array([0.14, 0.08, 0.06, 0.06, 0.06]), 160)

    def polished(self, pose: Pose) -> Pose:
        """`pose` with size and position from a last search with a sharp surface.

        A soft surface makes meshes slightly too large.
        """
        points = self.inside[:: max(1, len(self.inside) // POLISH_POINTS)]

        def loss(values: np.ndarray) -> float:
            return -self.iou(self.pose(np.array([yaw, *values])), points, SHARP_WIDTH)

        yaw = np.deg2rad(pose.yaw_deg)
        start = np.array([np.log(pose.scale), *(pose.position - self.truth.centroid)])
        found = _simplex(loss, start, np.array([-0.02, 0.01, 0.01, 0.01]), 120)
        return max(self.pose(np.array([yaw, *found])), pose, key=lambda p: self.iou(p, self.inside))

    def candidates(self) -> list[tuple[float, Pose]]:
        """Poses whose IoU is within `IOU_TOLERANCE` of the best, with their IoU.

        They are the refined poses, and the best of them at every other yaw.
        """
        found = [self.refined(start) for start in self.starts()[:SIMPLEXES]]
        best = min(found, key=self._loss)
        turned = [
            np.array([yaw, *best[1:]])
            for yaw in best[0] + np.arange(1, YAWS) * (2.0 * np.pi / YAWS)
        ]
        without_yaw = np.array([0.0, *best[1:]])
        poses = [self.pose(values) for values in (*found, without_yaw, *turned)]
        rated = [(self.iou(pose, self.search), pose) for pose in poses]
        limit = max(iou for iou, _ in rated) - IOU_TOLERANCE
        return [(iou, pose) for iou, pose in rated if iou >= limit]


def _simplex(
    loss: Callable[[np.ndarray], float], start: np.ndarray, steps: np.ndarray, calls: int
) -> np.ndarray:
    simplex = start + np.concatenate([np.zeros((1, len(start))), np.diag(steps)])
    options = {"initial_simplex": simplex, "maxfev": calls, "xatol": 1e-4, "fatol": 1e-4}
    return np.asarray(minimize(loss, start, method="Nelder-Mead", options=options).x)


def color_errors(
    surface: SurfaceIndex, truth: Truth, pose: Pose, light: str, count: int = SURFACE_POINTS
) -> np.ndarray:
    """Colour errors of the mesh at the points of the true surface.

    Args:
        surface: The mesh.
        truth: The true scene.
        pose: The alignment.
        light: One of `LIGHTS`.
        count: About how many points to compare.

    Returns:
        CIEDE2000 [N] between each true point and the nearest point of the mesh.
    """
    pick = slice(None, None, max(1, len(truth.points) // count))
    _, nearest = surface.nearest(pose.backward(truth.points[pick]))
    return ciede2000(_colors(surface.mesh, nearest), true_colors(truth, pose, light)[pick])


def true_colors(truth: Truth, pose: Pose, light: str) -> np.ndarray:
    """sRGB colours [N, 3] in [0, 1] of the true surface points under `light`, one of `LIGHTS`."""
    if light == "none":
        return truth.albedo
    turned = truth.normals @ rotation(pose.yaw_deg) if light == "made" else truth.normals
    return truth.albedo * shade_of(turned)[:, None]


def _colors(mesh: Mesh, points: SurfacePoints) -> np.ndarray:
    return np.asarray(base_color(mesh, points.face_index, points.barycentric))


def best_light(
    surface: SurfaceIndex, truth: Truth, pose: Pose, lights: Sequence[str], count: int
) -> tuple[float, str]:
    """The light with the smallest median colour error.

    Args:
        surface: The mesh.
        truth: The true scene.
        pose: The alignment.
        lights: Which of `LIGHTS` to try.
        count: About how many points to compare.

    Returns:
        The median CIEDE2000, and the light.
    """
    return min(
        (float(np.median(color_errors(surface, truth, pose, light, count))), light)
        for light in lights
    )


@dataclass(frozen=True)
class Comparison:
    """A mesh compared with its true scene.

    Attributes:
        figures: See `compare`.
        pose: The alignment.
        light: The light in the colours of the mesh, one of `LIGHTS`.
        mesh: The aligned mesh.
    """

    figures: dict[str, Any]
    pose: Pose
    light: str
    mesh: Mesh


def compare(mesh: Mesh, truth: Truth, lights: Sequence[str] = LIGHTS[:1]) -> Comparison | None:
    """Align `mesh` with the true scene and measure the difference.

    Args:
        mesh: The mesh.
        truth: The true scene (`truth_of`).
        lights: Which of `LIGHTS` its colours may include.

    Returns:
        None if the mesh encloses no volume, else the comparison. Its figures: iou and fscore in
        [0, 1], chamfer in world units, color_error (median CIEDE2000; None for a mesh without
        colours), yaw_deg, scale, shift, light, and volume (before the alignment, world units
        cubed).
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
    """The candidate with the smallest mean colour error; of equal ones, with the smallest yaw.

    The mean and not the median of the figure, because a beak or a nose has few points. Without
    `lights` (no colours) the candidate with the best IoU.
    """
    if not lights:
        return max(candidates, key=lambda pair: pair[0])[1]
    poses = [pose for _, pose in candidates]
    errors = [
        min(color_errors(surface, truth, p, light, COLOR_POINTS).mean() for light in lights)
        for p in poses
    ]
    near = [
        pose
        for pose, error in zip(poses, errors, strict=True)
        if error <= min(errors) + COLOR_TOLERANCE
    ]
    return min(near, key=lambda pose: abs(pose.numbers()["yaw_deg"]))


def distances(surface: SurfaceIndex, truth: Truth, pose: Pose) -> dict[str, float]:
    """Chamfer distance and F-score between the mesh at `pose` and the true surface."""
    to_mesh = surface.nearest(pose.backward(truth.points))[0] * pose.scale
    own = surface_points(surface.mesh, SURFACE_POINTS).points
    to_truth = _true_surface(truth.spec).nearest(pose.forward(own))[0]
    recall, precision = (
        float((to_mesh < FSCORE_DISTANCE).mean()),
        float((to_truth < FSCORE_DISTANCE).mean()),
    )
    fscore = 2.0 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"chamfer": 0.5 * float(to_mesh.mean() + to_truth.mean()), "fscore": fscore}


@lru_cache(maxsize=4)
def _true_surface(spec: Spec) -> SurfaceIndex:
    return SurfaceIndex(truth_of(spec).mesh)

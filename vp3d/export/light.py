"""Take the light of the optimised pictures out of the colours of a mesh.

A field optimised from pictures shows the lamp of those pictures in its colours, and a viewer adds
its own lamp. The light is fitted as one distant lamp on displayed (sRGB-encoded) colours:

    colour = albedo(group) * exp(g . n - max(|g|, LEVEL))

n is the outward unit normal and g `[3]` points towards the lamp. How bright the lamp is cannot be
fitted, because a darker lamp on a lighter surface gives the same colours: a face across the light
gets exp(-LEVEL) = 0.78 of it, or less where no side may get more than 1.

Points of similar colour are a group with one unknown albedo each. Groups and g are found in turns:
g by weighted least squares on the logarithm of the luminance, with an offset a group; groups by the
colours without that light (the chromaticity decides first, because light does not change it).

The fit is not used where it explains too little or is too strong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2

from vp3d.export.bake import surface_texels
from vp3d.export.mesh_data import vertex_colors_of, vertex_normals_of
from vp3d.render.raster import interpolate
from vp3d.types import Mesh

GROUPS = 3  # groups of similar colour
ROUNDS = 6  # turns of fitting the light and the groups
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of encoded R, G, B (ITU-R BT.601)
DARKEST = 0.06  # luminance below which a point says nothing about the light
CHROMA_WEIGHT, LUMINANCE_WEIGHT = 3.0, 0.35  # of the features that form the groups
SAME_FEATURE = 1e-6  # squared distance of features below which colours are one group
HUBER = 0.15  # residual of the log luminance from which points count less
STRONGEST = 0.55  # largest |g| used: the far side then has a third of the light
WEAKEST = 0.02  # smallest |g| that is a light: 4 % between both sides
LEVEL = 0.25  # log of the light that a face across it does not get; 0.255 in the embedded world
LEAST_EXPLAINED = 0.08  # share of the variance inside the groups that the light must explain


@dataclass(frozen=True)
class Light:
    """A fitted light, and how well it explains the colours.

    Attributes:
        gradient: g `[3]`: towards the lamp, its length is half the log of brightest by darkest.
        explained: Share of the variance of the log luminance inside the groups, in [0, 1].
        doubt: Why it should not be used; "" if it can be.
    """

    gradient: np.ndarray
    explained: float
    doubt: str = ""

    @property
    def direction(self) -> np.ndarray:
        """Unit vector `[3]` towards the lamp in the world frame."""
        return np.asarray(self.gradient / max(float(np.linalg.norm(self.gradient)), 1e-12))

    @property
    def darkest(self) -> float:
        """Factor of the side away from the lamp, in (0, 1]."""
        return float(np.exp(-np.linalg.norm(self.gradient) - self.level))

    @property
    def level(self) -> float:
        """The log of the light that a face across it does not get, >= 0; 0 without a light."""
        strength = float(np.linalg.norm(self.gradient))
        return max(strength, LEVEL) if strength > 0.0 else 0.0

    def shade(self, normals: np.ndarray) -> np.ndarray:
        """The factor `[N]` in (0, 1] of the light for unit normals `[N, 3]`."""
        return np.asarray(np.exp(normals @ self.gradient - self.level))

    def figures(self) -> dict[str, object]:
        """What events and reports show: direction, darkest factor, share explained, doubt."""
        direction = [round(float(x), 3) for x in self.direction]
        shares = {"darkest": round(self.darkest, 3), "explained": round(self.explained, 3)}
        return {"direction": direction, **shares, "doubt": self.doubt}


def light_of(figures: Mapping[str, Any]) -> Light | None:
    """The light that `Light.figures` describes, to three decimals; None if it is not used."""
    if figures.get("doubt") or not {"direction", "darkest"} <= figures.keys():
        return None
    lost = -float(np.log(np.clip(figures["darkest"], 0.05, 1.0)))
    strength = lost / 2.0 if lost > 2.0 * LEVEL else max(lost - LEVEL, 0.0)
    return Light(np.asarray(figures["direction"], np.float64) * strength, 1.0)


def fit_light(mesh: Mesh) -> Light:
    """The light in the vertex colours (or the texture at the vertices) of a mesh.

    Vertices count by the area of their faces.
    """
    colors = vertex_colors_of(mesh).astype(np.float64)
    return fit(colors, vertex_normals_of(mesh).astype(np.float64), vertex_areas(mesh))


def fit(colors: np.ndarray, normals: np.ndarray, weights: np.ndarray) -> Light:
    """The light of N surface points (see the top of this module).

    Args:
        colors: sRGB `[N, 3]` in [0, 1].
        normals: Outward unit normals `[N, 3]`.
        weights: `[N]` >= 0.
    """
    luminance = colors @ LUMINANCE
    used = (luminance > DARKEST) & (weights > 0)
    if used.sum() < 12:
        return Light(np.zeros(3), 0.0, "too few points are bright enough")
    colors, normals, weights = colors[used], normals[used], weights[used]
    logs, gradient = np.log(luminance[used]), np.zeros(3)
    explained = 0.0
    for _ in range(ROUNDS):
        shade = np.exp(normals @ gradient - np.linalg.norm(gradient))
        groups = color_groups(colors / shade[:, None])
        gradient, explained = _solve(logs, normals, weights, groups)
    if float(np.linalg.norm(gradient)) < WEAKEST:  # there is no light to take out
        return Light(np.zeros(3), explained)
    return Light(gradient, explained, _doubt(gradient, explained))


def _doubt(gradient: np.ndarray, explained: float) -> str:
    strength = float(np.linalg.norm(gradient))
    if strength > STRONGEST:
        return f"the far side would have only {100 * np.exp(-2 * strength):.0f} % of the light"
    if explained < LEAST_EXPLAINED:
        return f"one lamp explains only {100 * explained:.0f} % of the shading"
    return ""


def color_groups(albedo: np.ndarray) -> np.ndarray:
    """The group `[N]` of each colour `[N, 3]` >= 0, by k-means from farthest points."""
    total = albedo.sum(1, keepdims=True)
    features = np.c_[
        CHROMA_WEIGHT * albedo / np.maximum(total, 1e-6), LUMINANCE_WEIGHT * albedo @ LUMINANCE
    ]
    # Dark points have no reliable chromaticity.
    features[:, :3] *= np.minimum(total / 0.5, 1.0)
    start = [features[((features - features.mean(0)) ** 2).sum(1).argmin()]]
    for _ in range(GROUPS - 1):
        apart = np.min([((features - one) ** 2).sum(1) for one in start], 0)
        if apart.max() < SAME_FEATURE:
            break
        start.append(features[apart.argmax()])
    if len(start) == 1:
        return np.zeros(len(features), np.int64)
    labels = kmeans2(features, np.stack(start), minit="matrix", iter=20, missing="warn")[1]
    return np.asarray(labels)


def _solve(
    logs: np.ndarray, normals: np.ndarray, weights: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, float]:
    """g `[3]` and the explained share, by least squares with Huber's weights.

    Args:
        logs: Log of the luminance `[N]`.
        normals: Unit normals `[N, 3]`.
        weights: `[N]` > 0.
        groups: Group of each point `[N]`.
    """
    residual, gradient, count = np.zeros(len(logs)), np.zeros(3), int(groups.max()) + 1
    for _ in range(4):
        robust = weights * np.minimum(1.0, HUBER / np.maximum(np.abs(residual), 1e-9))
        sums = np.maximum(np.bincount(groups, robust, count), 1e-12)
        means = [np.bincount(groups, robust * x, count) / sums for x in (logs, *normals.T)]
        centred = [x - mean[groups] for x, mean in zip((logs, *normals.T), means, strict=True)]
        target, design = centred[0], np.stack(centred[1:], -1)
        normal_matrix = design.T @ (robust[:, None] * design) + 1e-4 * robust.sum() * np.eye(3)
        gradient = np.linalg.solve(normal_matrix, design.T @ (robust * target))
        residual = target - design @ gradient
    before = float((robust * target**2).sum())
    left = float((robust * residual**2).sum())
    return gradient, max(0.0, 1.0 - left / before) if before > 0 else 0.0


def vertex_areas(mesh: Mesh) -> np.ndarray:
    """A third of the area of its faces for each vertex `[V]`, world units squared."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(np.float64) for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 6.0
    return np.bincount(mesh.faces.ravel(), area.repeat(3), len(mesh.vertices))


def without_light(mesh: Mesh, light: Light) -> Mesh:
    """The mesh with its colours divided by the light; values above 1 are clipped."""
    return _scaled(mesh, light, -1.0)


def with_light(mesh: Mesh, light: Light) -> Mesh:
    """The mesh with its colours multiplied by the light: what `without_light` started from."""
    return _scaled(mesh, light, 1.0)


def _scaled(mesh: Mesh, light: Light, power: float) -> Mesh:
    normals = vertex_normals_of(mesh)
    colors, texture = mesh.vertex_colors, mesh.texture
    if colors is not None:
        scaled = colors * light.shade(normals)[:, None] ** power
        colors = np.clip(scaled, 0.0, 1.0).astype(np.float32)
    if texture is not None and mesh.uv is not None:
        covered, at, nearest = surface_texels(mesh, texture.shape[:2])
        unit = interpolate(normals, mesh.faces, *at)
        unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
        factor = np.ones(texture.shape[:2])
        factor[covered] = light.shade(unit) ** power
        factor = factor[nearest][..., None]  # texels between the charts go with the nearest
        texture = np.round(np.clip(texture * factor, 0.0, 255.0)).astype(np.uint8)
    return replace(mesh, vertex_colors=colors, texture=texture)

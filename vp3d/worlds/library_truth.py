"""Compare a mesh with the true meshes of its caption in a library: silhouettes, depth, colours.

A caption of the library does not name one mesh: "an armchair" is right if it looks like any of
them. So a mesh is compared with the nearest one, which is the true mesh of largest silhouette IoU.
Mesh and true mesh are rendered from the same 24 azimuths; the IoU is its mean over them. Most
library meshes are not closed, so there is no volume to compare.

The mesh is compared as it is, and moved and scaled into the ball of radius `BALL_RADIUS`, which the
true meshes fill; it may be turned by steps of 15 degrees, if that is better by more than
`TURN_TOLERANCE`. The depth error is the mean absolute difference of depth, in world units, over the
pixels that both cover; the colour error is their median CIEDE2000, with the light of the pictures
in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab

from vp3d.report.pictures import ELEVATION_DEG
from vp3d.types import Mesh
from vp3d.worlds.library import Library, Row
from vp3d.worlds.library_captions import LibrarySpec, joined
from vp3d.worlds.library_data import scene_of
from vp3d.worlds.mesh_render import Scene, render_depth, render_scene
from vp3d.worlds.toybox.images import view_vectors
from vp3d.worlds.toybox.janus import (
    COUNT,
    DISTANCE,
    FOV_DEG,
    SIZE,
    ViewFeatures,
    view_features,
    view_figures,
)
from vp3d.worlds.toybox.prompt_check import azimuths
from vp3d.worlds.toybox.scenes import BALL_RADIUS

TURN_TOLERANCE = 0.01  # of the IoU, by which a turned mesh must be better
MOST_OF_A_KIND = 3  # meshes of each of two nouns that are combined to true scenes


@dataclass(frozen=True)
class Match:
    """How a mesh fits one true mesh.

    Attributes:
        spec: The true mesh.
        iou: Mean silhouette IoU in [0, 1].
        steps: How many steps of 15 degrees the mesh is turned to fit.
        own: The views of the mesh, not turned.
        true: The views of the true mesh.
    """

    spec: LibrarySpec
    iou: float
    steps: int
    own: ViewFeatures
    true: ViewFeatures

    def figures(self) -> dict[str, Any]:
        """ "iou", "depth_error" and "color_error", and the figures of `janus.view_figures`.

        The errors are None if mesh and true mesh have no pixel in common.
        """
        roll = {k: np.roll(getattr(self.own, k), self.steps, 0) for k in ("hit", "lab", "depth")}
        turned = ViewFeatures(**roll)
        common = turned.hit & self.true.hit
        depth = color = None
        if common.any():
            depth = float(np.abs(turned.depth - self.true.depth)[common].mean())
            color = float(np.median(deltaE_ciede2000(turned.lab[common], self.true.lab[common])))
        views = view_figures(turned, self.true, self.steps * 360.0 / COUNT)
        return {"iou": self.iou, "depth_error": depth, "color_error": color, **views}


def true_specs(library: Library, spec: LibrarySpec) -> list[LibrarySpec]:
    """The captions with meshes that a caption may mean; none if the library has no such noun.

    Meshes that have the material or, painted or not, the colour that the caption names come alone
    if there are any. Two objects are combined from the first `MOST_OF_A_KIND` of each noun.
    """
    first = _meshes_of(library, spec)
    if not spec.relation:
        return first
    second = _meshes_of(library, spec.second)
    return [
        joined(a, spec.relation, b) for a in first[:MOST_OF_A_KIND] for b in second[:MOST_OF_A_KIND]
    ]


def _meshes_of(library: Library, spec: LibrarySpec) -> list[LibrarySpec]:
    rows = [row for row in library.rows if row.noun == spec.noun]

    def described(row: Row, painted: bool) -> LibrarySpec:
        return LibrarySpec(spec.noun, spec.color, spec.material, row.name, painted)

    if spec.material:
        rows = [row for row in rows if row.material == spec.material] or rows
    if spec.color:
        fitting = [row for row in rows if row.paint or row.own == spec.color]
        return [described(row, bool(row.paint)) for row in fitting] or [
            described(row, False) for row in rows
        ]
    return [described(row, False) for row in rows]


def true_pictures(scene: Scene, count: int, ground: float, size: int) -> np.ndarray:
    """Pictures [count, size, size, 3] uint8 of a true scene, from all around."""
    return render_scene(scene, _views(count), np.full(count, ground), size)[0]


def _views(count: int) -> np.ndarray:
    full = np.ones(count)
    return view_vectors(
        np.array(azimuths(count)), full * ELEVATION_DEG, full * DISTANCE, full * FOV_DEG
    )


def scene_features(scene: Scene) -> ViewFeatures:
    """The 24 views of a true scene, as `janus.view_features` has those of a mesh; with light."""
    depth = render_depth(scene, _views(COUNT), SIZE)
    hit = np.isfinite(depth)
    lab = rgb2lab(true_pictures(scene, COUNT, 0.5, SIZE) / 255.0) * hit[..., None]
    ahead = np.where(hit, DISTANCE - depth, 0.0)
    flat = (arrays.reshape(COUNT, SIZE * SIZE, *arrays.shape[3:]) for arrays in (hit, lab, ahead))
    return ViewFeatures(*flat)


def mesh_features(mesh: Mesh) -> list[ViewFeatures]:
    """The views of a mesh as it is, and of the mesh moved and scaled into the ball."""
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    centred = mesh.vertices - (low + high) / 2
    radius = float(np.linalg.norm(centred, axis=1).max())
    fitted = replace(mesh, vertices=centred * np.float32(BALL_RADIUS / max(radius, 1e-6)))
    return [view_features(one, None) for one in (mesh, fitted)]


def silhouette_ious(own: ViewFeatures, true: ViewFeatures) -> np.ndarray:
    """Mean IoU [COUNT] in [0, 1] of the silhouettes, the mesh turned by each number of steps."""
    a, b = own.hit.astype(np.float64), true.hit.astype(np.float64)
    both = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1) - both
    iou = both / np.maximum(union, 1.0)
    view = np.arange(len(iou))
    return np.array([iou[view, (view + steps) % len(iou)].mean() for steps in view])


def match(own: ViewFeatures, true: ViewFeatures, spec: LibrarySpec) -> Match:
    """The best fit of one form of a mesh to one true mesh."""
    ious = silhouette_ious(own, true)
    steps = int(ious.argmax())
    steps = 0 if ious[steps] <= ious[0] + TURN_TOLERANCE else steps
    return Match(spec, float(ious[steps]), steps, own, true)


def nearest(mesh: Mesh, library: Library, specs: Sequence[LibrarySpec]) -> list[Match]:
    """The fits of a mesh to each of `specs`, the best first."""
    forms = mesh_features(mesh)
    found = []
    for spec in specs:
        true = scene_features(scene_of(library, spec))
        found.append(max((match(form, true, spec) for form in forms), key=lambda m: m.iou))
    return sorted(found, key=lambda one: -one.iou)

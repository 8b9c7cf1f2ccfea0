"""The Janus score of a mesh against its true scene: does its back show the front again?

The mesh, moved onto the true scene (`truth.compare`), and the true scene are rendered from the same
24 azimuths. The `similarity` of two views in [0, 1] is the IoU of their silhouettes in which each
common pixel is weighted by how near the two surfaces are in colour (weight 0 from `COLOR_LIMIT` on)
and in depth (0 from `DEPTH_LIMIT` on). Colours are compared without light; otherwise the back of a
chair would differ from its front by shading alone. Depth is needed because front and back can have
the same colour and outline. No network is involved, so optimisation cannot exploit this score.

    janus = 1/2 + mean_k(front(k) - own(k)) / (2 mean_k(1 - f(k))),  clipped to [0, 1]

k are the views within 45 degrees of the back. `front(k)` is the largest similarity of view k of the
mesh to a true view within 45 degrees of the front; `own(k)` is the same around its own azimuth;
`f(k)` is `front(k)` of the true scene itself. The score is 0 if the back is right, 1 if it is a
true front, and 1/2 if it is equally similar to both. The denominator makes objects comparable. An
object whose true back looks like its front (mean of 1 - f(k) below `FRONT_BACK_LIMIT`: a ball, a
table) has no Janus score (None).

A shapeless asset has a score near 1/2 without having a face. So `two_faced` requires a score above
1/2 that also exceeds `front_error`, the same score with front and back exchanged, by
`CLEAR_MARGIN`.

    view_agreement = share of the views whose most similar true view is within 30 degrees of the
    view's azimuth, or looks the same as the true view there (similarity above `SAME_VIEW`)

This figure uses the azimuths of the frame in which the mesh was optimised, so it is low for a good
asset that is turned against its view words. `diffusion/view_classifier.py` has figures of the same
names that are measured with the denoiser instead of the true scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from skimage.color import rgb2lab

from vp3d.render.camera import camera_frame, camera_position, camera_rays, ring
from vp3d.render.raster import base_color, rasterize, surface_normals
from vp3d.report.pictures import ELEVATION_DEG
from vp3d.types import Mesh
from vp3d.worlds.toybox.truth import Comparison, Truth, rotation, shade_of

COUNT, SIZE = 24, 48  # views, pixels of a side
DISTANCE, FOV_DEG = 2.9, 40.0
COLOR_LIMIT, DEPTH_LIMIT = 50.0, 0.4  # CIELAB units (CIE 1976), world units
FRONT_DEG, NEAR_DEG = 45.0, 30.0
FRONT_BACK_LIMIT = 0.08  # objects whose front and back differ less have no Janus score
SAME_VIEW = 0.97  # similarity from which two true views look the same
CLEAR_MARGIN = 0.1


@dataclass(frozen=True)
class ViewFeatures:
    """K rendered views of P pixels each.

    Attributes:
        hit: Where a view shows the object [K, P] bool.
        lab: Its CIELAB colour without light [K, P, 3].
        depth: Distance in front of the origin [K, P], world units.
    """

    hit: np.ndarray
    lab: np.ndarray
    depth: np.ndarray


def view_features(mesh: Mesh, light_yaw_deg: float | None) -> ViewFeatures:
    """Render the `COUNT` views of a mesh with normals.

    Its colours include a light turned by `light_yaw_deg` (None: no light), which is removed.
    """
    cameras = ring(COUNT, ELEVATION_DEG, DISTANCE, FOV_DEG)
    fragments = rasterize(mesh, cameras, SIZE, SIZE)
    hit = (fragments.face_index >= 0).numpy()
    face, barycentric = fragments.face_index.numpy()[hit], fragments.barycentric.numpy()[hit]
    color = np.asarray(base_color(mesh, face, barycentric), np.float64)
    if light_yaw_deg is not None:
        normals = surface_normals(mesh, face, barycentric) @ rotation(light_yaw_deg)
        color = np.clip(color / shade_of(normals)[:, None], 0.0, 1.0)
    lab = np.zeros((*hit.shape, 3))
    lab[hit] = rgb2lab(color)
    rays = camera_rays(cameras, SIZE, SIZE).directions.reshape(COUNT, SIZE, SIZE, 3)
    forward = camera_frame(cameras)[2]
    cosine = (rays * forward[:, None, None]).sum(-1)
    middle = -(camera_position(cameras) * forward).sum(-1)
    depth = (middle[:, None, None] - fragments.depth * cosine).numpy() * hit
    return ViewFeatures(hit.reshape(COUNT, -1), lab.reshape(COUNT, -1, 3), depth.reshape(COUNT, -1))


def similarity(a: ViewFeatures, b: ViewFeatures) -> np.ndarray:
    """Similarity of each view of `a` (row) to each view of `b` [K, K] in [0, 1]; 1 if equal."""
    rows = []
    for hit, lab, depth in zip(a.hit, a.lab, a.depth, strict=True):
        color = 1.0 - np.minimum(np.linalg.norm(b.lab - lab, axis=-1) / COLOR_LIMIT, 1.0)
        near = 1.0 - np.minimum(np.abs(b.depth - depth) / DEPTH_LIMIT, 1.0)
        union = (b.hit | hit).sum(1)
        rows.append(((b.hit & hit) * color * near).sum(1) / np.maximum(union, 1))
    return np.stack(rows)


def angle_between(a_deg: np.ndarray, b_deg: np.ndarray) -> np.ndarray:
    """The angle in [0, 180] between azimuths (broadcast)."""
    return np.abs((a_deg - b_deg + 180.0) % 360.0 - 180.0)


def janus_score(to_truth: np.ndarray, truth_to_truth: np.ndarray) -> float | None:
    """The Janus score in [0, 1] (see the top of this module), or None.

    Args:
        to_truth: Similarity [K, K] of the mesh's views (rows) to the true views.
        truth_to_truth: Similarity [K, K] of the true views to each other.
    """
    azimuth = np.arange(len(to_truth)) * (360.0 / len(to_truth))
    from_front = angle_between(azimuth, np.zeros(1))
    ahead, behind = from_front <= FRONT_DEG, from_front >= 180.0 - FRONT_DEG
    own = angle_between(azimuth[:, None], azimuth[None]) <= FRONT_DEG
    front_back_difference = 1.0 - truth_to_truth[behind][:, ahead].max(1).mean()
    if front_back_difference < FRONT_BACK_LIMIT:
        return None
    front = to_truth[behind][:, ahead].max(1)
    own_best = np.where(own, to_truth, 0.0)[behind].max(1)
    return float(np.clip(0.5 + (front - own_best).mean() / (2.0 * front_back_difference), 0.0, 1.0))


def azimuth_agreement(to_truth: np.ndarray, truth_to_truth: np.ndarray, yaw_deg: float) -> float:
    """The figure `view_agreement` in [0, 1] (see the top of this module).

    Args:
        to_truth: As in `janus_score`.
        truth_to_truth: As in `janus_score`.
        yaw_deg: How far the mesh was turned to fit the true scene, degrees.
    """
    azimuth = np.arange(len(to_truth)) * (360.0 / len(to_truth))
    original = (azimuth - yaw_deg) % 360.0
    best = to_truth.argmax(1)
    expected = np.round(original / (360.0 / len(to_truth))).astype(int) % len(to_truth)
    near = angle_between(azimuth[best], original) <= NEAR_DEG
    return float((near | (truth_to_truth[best, expected] >= SAME_VIEW)).mean())


def janus_figures(found: Comparison, truth: Truth) -> dict[str, Any]:
    """`view_agreement`, `janus`, `front_error` in [0, 1] and `two_faced` (0 or 1) of a mesh.

    The last three are None for an object whose front and back look the same.
    """
    yaw = found.pose.yaw_deg
    light = {"made": yaw, "true": 0.0, "none": None}[found.light]
    own, true = view_features(found.mesh, light), view_features(truth.mesh, None)
    return view_figures(own, true, yaw)


def view_figures(own: ViewFeatures, true: ViewFeatures, yaw_deg: float) -> dict[str, Any]:
    """`janus_figures` of the views of a mesh, turned by `yaw_deg` to fit the true views."""
    to_truth, truth_to_truth = similarity(own, true), similarity(true, true)
    half = COUNT // 2
    janus = janus_score(to_truth, truth_to_truth)
    front = janus_score(np.roll(to_truth, half, (0, 1)), np.roll(truth_to_truth, half, (0, 1)))
    two_faced = None
    if janus is not None and front is not None:
        two_faced = float(janus > 0.5 and janus > front + CLEAR_MARGIN)
    return {
        "janus": janus,
        "front_error": front,
        "two_faced": two_faced,
        "view_agreement": azimuth_agreement(to_truth, truth_to_truth, yaw_deg),
    }

"""Does the front show up again behind? The Janus score of a mesh against its true scene.

The mesh, moved onto the true scene (`truth.compare`), and the true scene are seen from the same 24 azimuths. Two views are
alike by `likeness` in [0, 1]: the IoU of their silhouettes in which each common pixel counts by how near the two surfaces are
in colour (0 from `OTHER_COLOR` CIELAB units on) and in depth (0 from `OTHER_DEPTH` on). Colours are compared without light,
else a chair's back would differ from its front by its shadow alone; depth is needed as both have the same colour and
outline. No network is asked: this score cannot be gamed by what was optimised.

    janus = 1/2 + mean_k(front(k) - proper(k)) / (2 mean_k(1 - f(k))),  cut to [0, 1], k: the views within 45 degrees of the back

`front(k)` is how like view k is to the most alike true view within 45 degrees of the front, `proper(k)` the same around its
own azimuth, `f(k)` what `front(k)` is for the true scene itself. So it is 0 where the back is as it should be, 1 where it is a
true front, and 1/2 where it is as like the one as the other. Dividing by what can be told apart makes objects comparable; one
whose back looks like its front anyway (mean of 1 - f(k) below `TOLD_APART`: a ball, a table) has no Janus score (None).
A shapeless asset is near 1/2 on all sides and has no face at all, so `two_faced` asks for more: a score above 1/2, and above
`front_error`, which is the same score with front and back exchanged, by `CLEARLY`.

    view_agreement = share of the views whose most alike true view is within 30 degrees of the azimuth they were made for, or
    cannot be told from the one there (likeness of the two true views above `SAME_VIEW`)

This one counts azimuths in the frame the mesh was made in: an asset that is whole but turned from its view words loses here.
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
OTHER_COLOR, OTHER_DEPTH = 50.0, 0.4  # CIELAB units (CIE 1976), world units
FRONT_DEG, NEAR_DEG = 45.0, 30.0
TOLD_APART, SAME_VIEW, CLEARLY = 0.08, 0.97, 0.1


@dataclass(frozen=True)
class Looks:
    """What K views show: hit [K, P] bool, lab [K, P, 3] without light, depth [K, P] in front of the middle; P pixels each."""

    hit: np.ndarray
    lab: np.ndarray
    depth: np.ndarray


def looks(mesh: Mesh, light_yaw_deg: float | None) -> Looks:
    """The `COUNT` views of a mesh with normals; its colours hold a light turned by `light_yaw_deg` (None: no light)."""
    cameras = ring(COUNT, ELEVATION_DEG, DISTANCE, FOV_DEG)
    seen = rasterize(mesh, cameras, SIZE, SIZE)
    hit = (seen.face_index >= 0).numpy()
    face, barycentric = seen.face_index.numpy()[hit], seen.barycentric.numpy()[hit]
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
    depth = (middle[:, None, None] - seen.depth * cosine).numpy() * hit
    return Looks(hit.reshape(COUNT, -1), lab.reshape(COUNT, -1, 3), depth.reshape(COUNT, -1))


def likeness(a: Looks, b: Looks) -> np.ndarray:
    """How alike each view of `a` is to each of `b`: [K, K] in [0, 1], 1 for equal views."""
    rows = []
    for hit, lab, depth in zip(a.hit, a.lab, a.depth, strict=True):
        color = 1.0 - np.minimum(np.linalg.norm(b.lab - lab, axis=-1) / OTHER_COLOR, 1.0)
        near = 1.0 - np.minimum(np.abs(b.depth - depth) / OTHER_DEPTH, 1.0)
        union = (b.hit | hit).sum(1)
        rows.append(((b.hit & hit) * color * near).sum(1) / np.maximum(union, 1))
    return np.stack(rows)


def apart(a_deg: np.ndarray, b_deg: np.ndarray) -> np.ndarray:
    """The angle in [0, 180] between azimuths (broadcast)."""
    return np.abs((a_deg - b_deg + 180.0) % 360.0 - 180.0)


def janus_score(alike: np.ndarray, truth_alike: np.ndarray) -> float | None:
    """The score in [0, 1] of the top of this module from likenesses [K, K] of mesh to truth and of truth to itself, or None."""
    azimuth = np.arange(len(alike)) * (360.0 / len(alike))
    from_front = apart(azimuth, np.zeros(1))
    ahead, behind = from_front <= FRONT_DEG, from_front >= 180.0 - FRONT_DEG
    own = apart(azimuth[:, None], azimuth[None]) <= FRONT_DEG
    told_apart = 1.0 - truth_alike[behind][:, ahead].max(1).mean()
    if told_apart < TOLD_APART:
        return None
    front, proper = alike[behind][:, ahead].max(1), np.where(own, alike, 0.0)[behind].max(1)
    return float(np.clip(0.5 + (front - proper).mean() / (2.0 * told_apart), 0.0, 1.0))


def view_agreement(alike: np.ndarray, truth_alike: np.ndarray, yaw_deg: float) -> float:
    """The share in [0, 1] of the top of this module; `yaw_deg` is how far the mesh was turned to fit the true scene."""
    azimuth = np.arange(len(alike)) * (360.0 / len(alike))
    meant = (azimuth - yaw_deg) % 360.0
    best = alike.argmax(1)
    there = np.round(meant / (360.0 / len(alike))).astype(int) % len(alike)
    right = (apart(azimuth[best], meant) <= NEAR_DEG) | (truth_alike[best, there] >= SAME_VIEW)
    return float(right.mean())


def faces(found: Comparison, truth: Truth) -> dict[str, Any]:
    """`view_agreement`, `janus`, `front_error` in [0, 1] and `two_faced` (0 or 1) of a compared mesh.

    The last three are None for an object whose front and back are alike.
    """
    yaw = found.pose.yaw_deg
    light = {"made": yaw, "true": 0.0, "none": None}[found.light]
    own, true = looks(found.mesh, light), looks(truth.mesh, None)
    alike, truth_alike = likeness(own, true), likeness(true, true)
    half = COUNT // 2
    janus = janus_score(alike, truth_alike)
    front = janus_score(np.roll(alike, half, (0, 1)), np.roll(truth_alike, half, (0, 1)))
    two = None if janus is None or front is None else float(janus > 0.5 and janus > front + CLEARLY)
    agreement = view_agreement(alike, truth_alike, yaw)
    return {"janus": janus, "front_error": front, "two_faced": two, "view_agreement": agreement}

"""The protocol of T3Bench (He et al. 2023, arXiv 2310.02977; code THU-LYJ-Lab/T3Bench), for any scorer.

Mesh: centred on the mean of its vertices, the largest absolute coordinate 1; unlit, over black, 512 x 512 pixels.

Quality. The 162 vertices of a twice subdivided icosphere of radius 2.2 are camera positions, each with vertical fields of view
of 60, 45, 36, 30 and 24 degrees; every one of the 810 pictures is scored against the prompt. Per position the maximum over the
fields of view is kept (multi-focal), then three times each position's value is replaced by the plain mean of itself and its
neighbours on the icosphere (regional convolution: one lucky view does not carry an asset), then the maximum is the asset's
score. A missing mesh is scored as black pictures, not left out.

Alignment. One caption for each of 12 views (the icosphere as it is, 60 degrees), which a grader merges and grades from 1 to 5 by
how much of the prompt they recall. The published code applies the radius twice, so its cameras stand at 4.84; so do ours.

Scores here are the smoothed maximum as the scorer maps it (`Scorer.quality`), and 25 (grade - 1) for the alignment: the map of
the published code is not known, 0 to 100 is. T3Bench's 300 prompts are not in this repository: `read_suite` reads one's own copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import trimesh
from torch import Tensor

from vp3d.render.camera import orbit
from vp3d.render.raster import render_mesh
from vp3d.types import Camera, Mesh

RADIUS = 2.2
FOVS_DEG = (60.0, 45.0, 36.0, 30.0, 24.0)
SIZE = 512  # pixels of a side
GROUND = 0.0
PASSES = 3  # of the regional convolution
AT_ONCE = 9  # pictures rendered and scored at a time


class Scorer(Protocol):
    """How well pictures match a prompt; higher is better."""

    def score(self, prompt: str, rgb: Tensor) -> Tensor:
        """Scores [B], any range, of pictures rgb [B, 3, H, H] in [0, 1]."""
        ...

    def quality(self, score: float) -> float:
        """A score on the scale that is told."""
        ...


@dataclass(frozen=True)
class CaptionViews:
    """Where and how a captioner wants to see the asset: distance, degrees, grey in [0, 1], pixels of a side."""

    radius: float = RADIUS * RADIUS
    fov_deg: float = 60.0
    ground: float = GROUND
    size: int = SIZE


class Captioner(Protocol):
    """Tells what a picture shows."""

    views: CaptionViews

    def caption(self, rgb: Tensor) -> list[str]:
        """One caption for each picture of rgb [B, 3, H, H] in [0, 1]."""
        ...


class Grader(Protocol):
    """Merges captions and grades how much of the prompt they recall."""

    def grade(self, prompt: str, captions: Sequence[str]) -> int:
        """1 (nothing) to 5 (all of it); what the captions say beyond the prompt does not count against it."""
        ...


def icosphere(subdivisions: int) -> trimesh.Trimesh:
    """The unit icosphere: 12 vertices, 42 and 162 after one and two subdivisions."""
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=1.0)


def cameras_on(sphere: trimesh.Trimesh, radius: float, fov_deg: float) -> Camera:
    """A camera at each vertex of the sphere times `radius`, looking at the origin, z up; fields [V]."""
    x, y, z = np.asarray(sphere.vertices, np.float64).T
    azimuth, elevation = np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arcsin(np.clip(z, -1.0, 1.0)))
    return orbit(azimuth.tolist(), elevation.tolist(), radius, fov_deg)


def neighbour_mean(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Each of `values [V]` (any range) replaced by the plain mean of itself and its neighbours along `edges [E, 2]`."""
    total, count = values.astype(np.float64).copy(), np.ones(len(values))
    for a, b in (edges.T, edges.T[::-1]):
        np.add.at(total, a, values[b])
        np.add.at(count, a, 1.0)
    return total / count


def regional_score(scores: np.ndarray, sphere: trimesh.Trimesh, passes: int = PASSES) -> float:
    """Scores [V, fields of view] of an asset as one number: maximum over focal lengths, neighbour means, maximum."""
    values = scores.max(1)
    for _ in range(passes):
        values = neighbour_mean(values, np.asarray(sphere.edges_unique))
    return float(values.max())


def normalised(mesh: Mesh) -> Mesh:
    """The mesh centred on the mean of its vertices, its largest absolute coordinate 1."""
    vertices = mesh.vertices.astype(np.float64) - mesh.vertices.astype(np.float64).mean(0)
    return replace(
        mesh, vertices=(vertices / max(float(np.abs(vertices).max()), 1e-12)).astype(np.float32)
    )


@torch.no_grad()
def quality(mesh: Mesh | None, prompt: str, scorer: Scorer, size: int = SIZE) -> dict[str, float]:
    """`quality` as the scorer maps it and `raw` before; None for `mesh` (missing, unreadable) is scored as black pictures."""
    if mesh is None:  # every picture is black, so the maximum of the means is the score of one
        raw = float(scorer.score(prompt, torch.zeros(1, 3, size, size))[0])
        return {"quality": scorer.quality(raw), "raw": raw}
    sphere, whole, columns = icosphere(2), normalised(mesh), []
    for fov in FOVS_DEG:
        cameras = cameras_on(sphere, RADIUS, fov)
        parts = [cameras[i : i + AT_ONCE] for i in range(0, len(cameras), AT_ONCE)]
        rendered = (
            render_mesh(whole, part, size, size, GROUND, supersample=1)[0] for part in parts
        )
        columns.append(
            torch.cat([scorer.score(prompt, rgb).float().cpu() for rgb in rendered]).numpy()
        )
    raw = regional_score(np.stack(columns, 1), sphere)
    return {"quality": scorer.quality(raw), "raw": raw}


@torch.no_grad()
def alignment(
    mesh: Mesh | None, prompt: str, captioner: Captioner, grader: Grader
) -> dict[str, Any]:
    """`alignment` in [0, 100], the `grade` from 1 to 5, and the twelve `captions`; a missing mesh is captioned as black."""
    look = captioner.views
    cameras = cameras_on(icosphere(0), look.radius, look.fov_deg)
    if mesh is None:
        rgb = torch.zeros(len(cameras), 3, look.size, look.size)
    else:
        rgb = render_mesh(
            normalised(mesh), cameras, look.size, look.size, look.ground, supersample=1
        )[0]
    captions = captioner.caption(rgb)
    grade = grader.grade(prompt, captions)
    return {"alignment": 25.0 * (grade - 1), "grade": grade, "captions": captions}

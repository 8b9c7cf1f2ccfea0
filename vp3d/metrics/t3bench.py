"""The protocol of T3Bench (He et al. 2023, arXiv 2310.02977; code THU-LYJ-Lab/T3Bench).

It works with any scorer. The mesh is centred on the mean of its vertices, its largest absolute
coordinate is 1, and it is rendered unlit on black at 512 x 512 pixels.

Quality. The camera positions are the 162 vertices of a twice subdivided icosphere of radius 2.2.
Each has vertical fields of view of 60, 45, 36, 30 and 24 degrees, and each of the 810 pictures is
scored against the prompt. The maximum over the fields of view is kept for each position (multi
focal). Three times, the value of each position is replaced by the mean of itself and its neighbours
on the icosphere (regional convolution), so that one lucky view does not decide. The maximum is the
score of the asset. A missing mesh is scored as black pictures.

Alignment. Each of 12 views (the icosphere without subdivision, 60 degrees) is captioned. A grader
merges the captions and grades from 1 to 5 how much of the prompt they recall. The published code
applies the radius twice, so its cameras are at distance 4.84; so are ours.

The quality is the smoothed maximum as the scorer maps it (`Scorer.quality`), the alignment is
25 (grade - 1). The published code does not state its own map; its range is 0 to 100. The 300
prompts of T3Bench are not part of this repository.
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

RADIUS = 2.2  # distance of the cameras
FOVS_DEG = (60.0, 45.0, 36.0, 30.0, 24.0)
SIZE = 512  # pixels of a side
BACKGROUND = 0.0  # grey in [0, 1]
PASSES = 3  # of the regional convolution
BATCH = 9  # pictures rendered and scored at a time


class Scorer(Protocol):
    """How well pictures match a prompt; higher is better."""

    def score(self, prompt: str, rgb: Tensor) -> Tensor:
        """Scores [B], any range, of pictures rgb [B, 3, H, H] in [0, 1]."""
        ...

    def quality(self, score: float) -> float:
        """The score on the published scale."""
        ...


@dataclass(frozen=True)
class CaptionViews:
    """The views that a captioner expects.

    Attributes:
        radius: distance of the cameras from the origin.
        fov_deg: vertical field of view.
        background: grey in [0, 1].
        size: pixels of a side.
    """

    radius: float = RADIUS * RADIUS
    fov_deg: float = 60.0
    background: float = BACKGROUND
    size: int = SIZE


class Captioner(Protocol):
    """Describes pictures in words."""

    views: CaptionViews

    def caption(self, rgb: Tensor) -> list[str]:
        """One caption for each picture of rgb [B, 3, H, H] in [0, 1]."""
        ...


class Grader(Protocol):
    """Merges captions and grades how much of the prompt they recall."""

    def grade(self, prompt: str, captions: Sequence[str]) -> int:
        """1 (nothing) to 5 (everything); what the captions say beyond the prompt does not count."""
        ...


def icosphere(subdivisions: int) -> trimesh.Trimesh:
    """The unit icosphere: 12 vertices, 42 after one subdivision, 162 after two."""
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=1.0)


def cameras_on(sphere: trimesh.Trimesh, radius: float, fov_deg: float) -> Camera:
    """A camera at each of the V vertices of the sphere times `radius`.

    They look at the origin, z is up. `fov_deg` is the vertical field of view.
    """
    x, y, z = np.asarray(sphere.vertices, np.float64).T
    azimuth, elevation = np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arcsin(np.clip(z, -1.0, 1.0)))
    return orbit(azimuth.tolist(), elevation.tolist(), radius, fov_deg)


def neighbour_mean(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Replaces each of `values [V]` by the mean of itself and its neighbours.

    Args:
        values: `[V]`, any range.
        edges: `[E, 2]`, indices of neighbours, each edge once.

    Returns:
        The means `[V]`, float64.
    """
    total, count = values.astype(np.float64).copy(), np.ones(len(values))
    for a, b in (edges.T, edges.T[::-1]):
        np.add.at(total, a, values[b])
        np.add.at(count, a, 1.0)
    return total / count


def regional_score(scores: np.ndarray, sphere: trimesh.Trimesh, passes: int = PASSES) -> float:
    """The score of an asset: maximum over fields of view, neighbour means, maximum.

    Args:
        scores: `[V, F]`, V positions and F fields of view, any range.
        sphere: the icosphere with the V positions.
        passes: how often the neighbours are averaged.
    """
    values = scores.max(1)
    for _ in range(passes):
        values = neighbour_mean(values, np.asarray(sphere.edges_unique))
    return float(values.max())


def normalised(mesh: Mesh) -> Mesh:
    """The mesh centred on the mean of its vertices, its largest absolute coordinate 1."""
    vertices = mesh.vertices.astype(np.float64) - mesh.vertices.astype(np.float64).mean(0)
    scale = max(float(np.abs(vertices).max()), 1e-12)
    return replace(mesh, vertices=(vertices / scale).astype(np.float32))


@torch.no_grad()
def quality(mesh: Mesh | None, prompt: str, scorer: Scorer, size: int = SIZE) -> dict[str, float]:
    """Scores 810 views of a mesh.

    Args:
        mesh: the mesh; None if it is missing or unreadable, which is scored as black pictures.
        prompt: the prompt.
        scorer: scores a picture against the prompt.
        size: pixels of a side.

    Returns:
        "quality" as the scorer maps it, and "raw" before that.
    """
    if mesh is None:  # every picture is black, so the score of one is the maximum of the means
        raw = float(scorer.score(prompt, torch.zeros(1, 3, size, size))[0])
        return {"quality": scorer.quality(raw), "raw": raw}
    sphere, unit_mesh, columns = icosphere(2), normalised(mesh), []
    for fov in FOVS_DEG:
        cameras = cameras_on(sphere, RADIUS, fov)
        parts = [cameras[i : i + BATCH] for i in range(0, len(cameras), BATCH)]
        scores = []
        for part in parts:
            rgb = render_mesh(unit_mesh, part, size, size, BACKGROUND, supersample=1)[0]
            scores.append(scorer.score(prompt, rgb).float().cpu())
        columns.append(torch.cat(scores).numpy())
    raw = regional_score(np.stack(columns, 1), sphere)
    return {"quality": scorer.quality(raw), "raw": raw}


@torch.no_grad()
def alignment(
    mesh: Mesh | None, prompt: str, captioner: Captioner, grader: Grader
) -> dict[str, Any]:
    """Captions 12 views of a mesh and grades the captions.

    Args:
        mesh: the mesh; None if it is missing or unreadable, which is captioned as black pictures.
        prompt: the prompt.
        captioner: describes each view.
        grader: grades all captions together.

    Returns:
        "alignment" in [0, 100], "grade" from 1 to 5, and the twelve "captions".
    """
    views = captioner.views
    cameras, size = cameras_on(icosphere(0), views.radius, views.fov_deg), views.size
    if mesh is None:
        rgb = torch.zeros(len(cameras), 3, size, size)
    else:
        unit_mesh = normalised(mesh)
        rgb = render_mesh(unit_mesh, cameras, size, size, views.background, supersample=1)[0]
    captions = captioner.caption(rgb)
    grade = grader.grade(prompt, captions)
    return {"alignment": 25.0 * (grade - 1), "grade": grade, "captions": captions}

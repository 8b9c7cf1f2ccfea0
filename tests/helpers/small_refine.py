"""A refine stage that is small in every direction, without any network. For tests only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import trimesh
from torch import Tensor

from vp3d.config.schema import CameraConfig, RefineConfig
from vp3d.export.uv import unwrap_cells
from vp3d.render.raster_soft import SoftRender
from vp3d.train.generators import make_generator
from vp3d.train.redraw import Teacher
from vp3d.train.refine import Judge, Refine, RefineSettings
from vp3d.train.refine_views import RedrawnViews
from vp3d.train.surface_parameters import Start, start_of
from vp3d.types import Camera, Mesh

GREY = 0.5
TOLERANCE = 0.12
SIZE = 32


def small_config(**changes: Any) -> RefineConfig:
    """Two rounds of few steps, with few views of few pixels."""
    settings: dict[str, Any] = {
        "method": "views",
        "texture_size": 128,
        "render_size": 64,
        "strengths": [0.5, 0.2],
        "steps": 4,
        "azimuths": 4,
        "elevations_deg": [15.0],
    }
    return RefineConfig(**{**settings, **changes})


def ball_start(radius: float = 0.6, color: tuple[float, ...] = (0.8, 0.2, 0.1)) -> Start:
    """A ball of one colour with UVs."""
    body = trimesh.creation.icosphere(subdivisions=2, radius=radius)
    atlas = unwrap_cells(np.asarray(body.faces, np.int64), 128)
    paint = np.round(255.0 * np.broadcast_to(np.array(color), (128, 128, 3))).astype(np.uint8)
    vertices = np.asarray(body.vertices, np.float32)[atlas.mapping]
    return start_of(Mesh(vertices, atlas.faces, uv=atlas.uv, texture=paint))


class DiscTeacher:
    """Draws a disc of one colour from everywhere, with a little noise.

    Args:
        radius: As a share of half a side.
        color: sRGB in [0, 1].
    """

    def __init__(self, radius: float, color: tuple[float, ...] = (0.1, 0.3, 0.8)) -> None:
        self.radius, self.color, self.strengths = radius, torch.tensor(color), list[float]()

    def __call__(
        self, rgb: Tensor, camera: Camera, strength: float, generator: torch.Generator
    ) -> Tensor:
        """Pictures of the shape of rgb [B, 3, S, S] in [0, 1]."""
        self.strengths.append(strength)
        side = rgb.shape[-1]
        axis = (torch.arange(side) + 0.5) / side * 2.0 - 1.0
        inside = axis[:, None] ** 2 + axis[None] ** 2 < self.radius**2
        picture = torch.where(inside, self.color[:, None, None], torch.tensor(GREY))
        noise = 0.01 * torch.randn(rgb.shape, generator=generator)
        return (picture + noise).clamp(0.0, 1.0)


def no_figures(drawn: SoftRender, camera: Camera) -> dict[str, float]:
    """A judge without an opinion."""
    return {}


def small_stage(
    config: RefineConfig, teacher: Teacher, judge: Judge = no_figures, seed: int = 0
) -> Refine:
    """A stage on a ball; its events are in `stage.heard`."""
    generators = {name: make_generator(seed, name) for name in ("noise", "camera")}
    camera = CameraConfig()
    objective = RedrawnViews(config, camera, teacher, SIZE, GREY, TOLERANCE, generators)
    heard: list[dict[str, Any]] = []
    identity = {"refine": vars(config)}
    stage = Refine(
        RefineSettings(config, camera, identity),
        ball_start(),
        objective,
        judge,
        event=lambda kind, **data: heard.append({"kind": kind, **data}),
    )
    stage.heard = heard  # type: ignore[attr-defined]
    return stage

"""Fields with an exact shape, and the silhouettes that shape must have by geometry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vp3d.config.schema import ExportConfig
from vp3d.export.build import export_levels
from vp3d.render.camera import camera_rays, ring
from vp3d.types import Camera, Mesh

RED, YELLOW = (0.9, 0.1, 0.1), (0.9, 0.8, 0.1)


class Balls:
    """Solid balls `(centre, radius)`; red where y > 0, yellow elsewhere."""

    def __init__(self, *balls: tuple[tuple[float, float, float], float]) -> None:
        self.balls = balls

    def density(self, x: Tensor) -> Tensor:
        """Half of the inner density exactly on the surface: [N]."""
        distance = torch.stack(
            [(x - torch.tensor(c)).norm(dim=-1) - r for c, r in self.balls]
        ).amin(0)
        return 80.0 * torch.sigmoid(-distance / 0.01)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.density(x), torch.where(x[:, 1:2] > 0, torch.tensor(RED), torch.tensor(YELLOW))

    def opacity(self, cameras: Camera, size: int) -> Tensor:
        """1 where the ray of a pixel meets a ball: `[B, size, size]`."""
        rays = camera_rays(cameras, size, size)
        hit = torch.zeros(len(rays), dtype=torch.bool)
        for centre, radius in self.balls:
            to_centre = torch.tensor(centre) - rays.origins
            along = (to_centre * rays.directions).sum(-1, keepdim=True)
            hit |= (to_centre - along * rays.directions).norm(dim=-1) < radius
        return hit.reshape(len(cameras), size, size).float()


@pytest.fixture(scope="session")
def balls() -> type[Balls]:
    """The class, so that tests can build their own scenes."""
    return Balls


@pytest.fixture(scope="session")
def cameras() -> Camera:
    """Four level views: front (+x), left (+y), back, right."""
    return ring(4, 10.0, 2.9, 40.0)


@pytest.fixture(scope="session")
def export(cameras: Camera) -> Callable[..., Mesh]:
    """Export a scene of balls with a small config; keyword arguments override it."""

    def run(scene: Balls, event: Callable[..., None] | None = None, **settings: float) -> Mesh:
        config = ExportConfig(
            **{
                "grid": 40,
                "faces": 1000,
                "texture_size": 128,
                "unwrap_deadline_s": 60.0,
                **settings,
            }
        )
        opacity = scene.opacity(cameras, 64)
        return export_levels(scene, config, cameras, opacity, event=event)[0]

    return run


@pytest.fixture(scope="session")
def sided(export: Callable[..., Mesh]) -> Mesh:
    """A ball of radius 0.6 at x = 0.15, red on its left half (+y), unwrapped by our own atlas."""
    return export(Balls(((0.15, 0.0, 0.0), 0.6)), unwrap_deadline_s=0.0)

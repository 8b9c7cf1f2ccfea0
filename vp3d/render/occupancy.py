"""The occupancy grid: which cells of the volume a ray need not sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.config.schema import RenderConfig
from vp3d.fields.base import Field
from vp3d.types import Rays

OCCUPANCY_DECAY = 0.5  # what is remembered of a cell's opacity from one update to the next
OCCUPANCY_PASSES = 2  # random points looked at in each cell an update
CELLS_AT_ONCE = 2**18  # cells of an occupancy grid whose density is asked for in one call
LOOKED_THROUGH = 16  # places looked through at once for each sample evaluated at once: about 60 bytes against 0.6 to 2.5 KB


def box_interval(rays: Rays) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave [-1, 1]^3: near, far `[N]`, 0 <= near <= far; equal where a ray misses."""
    direction = rays.directions
    safe = torch.where(direction.abs() < 1e-9, torch.full_like(direction, 1e-9), direction)
    to_low, to_high = (-1.0 - rays.origins) / safe, (1.0 - rays.origins) / safe
    near = torch.minimum(to_low, to_high).amax(-1).clamp_min(0.0)
    far = torch.maximum(to_low, to_high).amin(-1)
    return near, torch.maximum(near, far)


class OccupancyGrid(nn.Module):
    """Which cells of the cube hold matter, so that samples in empty ones can be skipped.

    Buffers: `level [R, R, R]` (z, y, x), the remembered opacity of a typical step in each cell, in [0, 1]; `mask`, bool,
    the cells above the threshold and their 26 neighbours (so thin parts are not lost and matter can grow). Only cells whose
    middle lies within `bound_radius` of the origin are ever occupied, and until the first update all of them are: what
    gathers at the faces of the cube, half out of the pictures, would come out as a roof over the object. The state dict
    is all there is to store.
    """

    def __init__(self, config: RenderConfig) -> None:
        super().__init__()
        side = config.occupancy_resolution
        self.threshold = config.occupancy_threshold
        self.step = 2.0 / config.samples  # a ray straight through the cube
        self.register_buffer("level", torch.zeros(side, side, side))
        middle = (torch.arange(side) + 0.5) * (2.0 / side) - 1.0
        within = (
            middle.square()[:, None, None] + middle.square()[:, None] + middle.square()
            <= config.bound_radius**2
        )
        self.register_buffer("mask", within.clone())
        self.register_buffer("within", within, persistent=False)
        self.level: Tensor
        self.mask: Tensor
        self.within: Tensor

    @torch.no_grad()
    def update(self, field: Field, generator: torch.Generator) -> None:
        """Look at the field's density at random points of every cell; a cell keeps the larger of old (decayed) and new."""
        side, device = self.level.shape[0], self.level.device
        axis = torch.arange(side, device=device, dtype=torch.float32)
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        corner = torch.stack([x, y, z], dim=-1).reshape(-1, 3)
        level = self.level * OCCUPANCY_DECAY
        for _ in range(OCCUPANCY_PASSES):
            inside = torch.rand(corner.shape, generator=generator, device=generator.device).to(
                device
            )
            points = (corner + inside) * (2.0 / side) - 1.0
            sigma = torch.cat([field.density(part) for part in points.split(CELLS_AT_ONCE)])
            level = torch.maximum(level, -torch.expm1(-sigma * self.step).reshape(level.shape))
        self.level.copy_(level)
        full = (level > self.threshold).float()[None, None]
        grown = F.max_pool3d(full, kernel_size=3, stride=1, padding=1)[0, 0] > 0.5
        self.mask.copy_(grown & self.within)

    def contains(self, x: Tensor) -> Tensor:
        """Whether points `[N, 3]` in [-1, 1] lie in occupied cells: bool `[N]`."""
        side = self.mask.shape[0]
        cell = ((x + 1.0) * (0.5 * side)).long().clamp_(0, side - 1)
        return self.mask.reshape(-1)[cell[:, 0] + side * (cell[:, 1] + side * cell[:, 2])]

    def share(self) -> float:
        """The occupied share of the cube, in [0, 1]."""
        return float(self.mask.float().mean())

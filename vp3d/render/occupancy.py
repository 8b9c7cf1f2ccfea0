"""The occupancy grid: the cells of the cube in which rays are sampled.

Conventions: the grid covers [-1, 1]^3 with R cells a side. Buffers are indexed (z, y, x), and a
flat cell number is i + R * (j + R * k) for cell (i, j, k) along (x, y, z).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.config.schema import RenderConfig
from vp3d.fields.base import Field

DECAY = 0.5  # factor on a cell's stored opacity at each update
POINTS_A_CELL = 2  # random points of each cell that an update evaluates
POINTS_A_CALL = 2**18  # points that an update evaluates in one call of the field


class OccupancyGrid(nn.Module):
    """Cells of the cube that contain matter. Samples in other cells are skipped.

    Only cells whose centre is within `bound_radius` of the origin can be occupied, and all of these
    are occupied until the first update. Without this bound, matter would gather at the faces of the
    cube, partly outside the pictures, and form a roof over the object.

    The state dict holds everything that a checkpoint needs.

    Attributes:
        level: Stored opacity of a step of typical length in each cell, `[R, R, R]` in [0, 1].
        mask: Occupied cells, bool `[R, R, R]`: those above the threshold and their 26 neighbours.
            The neighbours keep thin parts and let matter grow.
        within: Cells inside `bound_radius`, bool `[R, R, R]`.
    """

    def __init__(self, config: RenderConfig) -> None:
        super().__init__()
        side = config.occupancy_resolution
        self.threshold = config.occupancy_threshold
        self.step = 2.0 / config.samples  # of a ray that is parallel to an axis of the cube
        self.register_buffer("level", torch.zeros(side, side, side))
        square = ((torch.arange(side) + 0.5) * (2.0 / side) - 1.0).square()
        within = square[:, None, None] + square[:, None] + square <= config.bound_radius**2
        self.register_buffer("mask", within.clone())
        self.register_buffer("within", within, persistent=False)
        self.level: Tensor
        self.mask: Tensor
        self.within: Tensor

    @torch.no_grad()
    def update(self, field: Field, generator: torch.Generator) -> None:
        """Evaluate the density at random points of every cell and renew the mask.

        The new level of a cell is the larger of its decayed old one and the new opacities.

        Args:
            field: The field whose density is evaluated.
            generator: Source of the random points.
        """
        side, device = self.level.shape[0], self.level.device
        axis = torch.arange(side, device=device, dtype=torch.float32)
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        corner = torch.stack([x, y, z], dim=-1).reshape(-1, 3)
        level = self.level * DECAY
        for _ in range(POINTS_A_CELL):
            # Drawn on the generator's device, so that every device gets the same numbers.
            inside = torch.rand(corner.shape, generator=generator, device=generator.device)
            points = (corner + inside.to(device)) * (2.0 / side) - 1.0
            sigma = torch.cat([field.density(part) for part in points.split(POINTS_A_CALL)])
            level = torch.maximum(level, -torch.expm1(-sigma * self.step).reshape(level.shape))
        self.level.copy_(level)
        full = (level > self.threshold).float()[None, None]
        grown = F.max_pool3d(full, kernel_size=3, stride=1, padding=1)[0, 0] > 0.5
        self.mask.copy_(grown & self.within)

    def contains(self, x: Tensor) -> Tensor:
        """Whether points `[N, 3]` in [-1, 1] are in occupied cells: bool `[N]`."""
        side = self.mask.shape[0]
        cell = ((x + 1.0) * (0.5 * side)).long().clamp_(0, side - 1)
        return self.mask.reshape(-1)[cell[:, 0] + side * (cell[:, 1] + side * cell[:, 2])]

    def share(self) -> float:
        """Occupied share of the cube, in [0, 1]."""
        return float(self.mask.float().mean())

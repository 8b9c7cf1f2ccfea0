"""A dense grid radiance field: the default on a CPU.

Raw density and raw albedo stand on R^3 nodes that span [-1, 1]^3 (`align_corners`: the outer nodes lie on the faces), are
interpolated trilinearly and only then made a density and a colour (post-activation, as in DVGO, Sun et al. 2022: it keeps
edges sharper than the grid). Tensors are `[1, C, z, y, x]`. There is one level: coarser levels added to it were measured to
do, under Adam, just what a higher learning rate does (same PSNR with and without noise in the gradient), and cost time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.config.schema import FieldConfig, OptimConfig
from vp3d.fields.base import Field, blob_bias, lattice, total_variation

INITIAL_ALBEDO_NOISE = (
    0.01  # standard deviation of the raw albedo at the start; its mean 0 is mid-grey
)


class GridField(Field):
    """The dense field; starts as the blob of the config in mid-grey.

    Parameters, of any range: `raw_density [1, 1, R, R, R]` before the softplus, `raw_albedo [1, 3, R, R, R]` before the
    sigmoid.
    """

    def __init__(self, config: FieldConfig, generator: torch.Generator) -> None:
        super().__init__()
        side = config.resolution
        self.resolution = side
        blob = blob_bias(lattice(side), config.blob_density, config.blob_radius)
        self.raw_density = nn.Parameter(blob.reshape(1, 1, side, side, side))
        noise = torch.randn(1, 3, side, side, side, generator=generator)
        self.raw_albedo = nn.Parameter(INITIAL_ALBEDO_NOISE * noise)

    def normal_grid(self) -> Tensor:
        """Minus the gradient of the raw density on the nodes, per world unit, components (x, y, z): `[1, 3, R, R, R]`.

        Central differences, one-sided at the faces. softplus is monotone, so this has the direction of minus the gradient
        of the density itself.
        """
        return -torch.stack(
            torch.gradient(self.raw_density[0, 0], spacing=2.0 / (self.resolution - 1))[::-1]
        )[None]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Density `[N]` >= 0 and albedo `[N, 3]` in [0, 1] at points `[N, 3]`, from one fused look-up of four channels."""
        raw = _interpolate(torch.cat([self.raw_density, self.raw_albedo], dim=1), x)
        return F.softplus(raw[0]), torch.sigmoid(raw[1:].T)

    def density(self, x: Tensor) -> Tensor:
        """Density alone at points `[N, 3]`: `[N]` >= 0."""
        return F.softplus(_interpolate(self.raw_density, x)[0])

    def normal(self, x: Tensor) -> Tensor:
        """Outward unit normals `[N, 3]` at points `[N, 3]`: the node gradients interpolated, differentiable, smooth."""
        return F.normalize(_interpolate(self.normal_grid(), x).T, dim=-1, eps=1e-9)

    def parameter_groups(self, config: OptimConfig) -> list[dict[str, Any]]:
        """Density and albedo at their own rates."""
        return [
            {"name": "density", "params": [self.raw_density], "lr": config.lr_density},
            {"name": "albedo", "params": [self.raw_albedo], "lr": config.lr_albedo},
        ]

    def smoothness(self) -> Tensor:
        """Total variation over all neighbouring nodes, a scalar >= 0."""
        return total_variation(
            F.softplus(self.raw_density[0, 0]), torch.sigmoid(self.raw_albedo[0])
        )


def _interpolate(values: Tensor, x: Tensor) -> Tensor:
    """Trilinear values `[C, N]` of a node grid `[1, C, z, y, x]` (any range) at points `[N, 3]` in [-1, 1]."""
    points = x.reshape(1, 1, 1, -1, 3)
    return F.grid_sample(
        values, points, mode="bilinear", padding_mode="border", align_corners=True
    ).reshape(values.shape[1], -1)

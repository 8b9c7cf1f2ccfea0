"""A radiance field on a dense grid: the default on a CPU.

Raw density and raw albedo are stored on R^3 nodes that span [-1, 1]^3 (`align_corners`: the outer
nodes lie on the faces). They are interpolated trilinearly first and activated afterwards. This
post-activation keeps edges sharper than the grid spacing (DVGO, Sun et al. 2022, arXiv 2111.11215).
Tensors are `[1, C, z, y, x]`.

There is one level. Coarser levels added to it had, under Adam, only the effect of a higher learning
rate (the same PSNR, with and without noise in the gradient), and they cost time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.config.schema import FieldConfig, OptimConfig
from vp3d.fields.base import Field, blob_bias, lattice, total_variation

# Standard deviation of the raw albedo at the start. Its mean is 0, which is mid-grey.
INITIAL_ALBEDO_NOISE = 0.01


class GridField(Field):
    """The dense grid field. It starts as the blob of the config, in mid-grey.

    Parameters, of any range: `raw_density [1, 1, R, R, R]` before the softplus,
    `raw_albedo [1, 3, R, R, R]` before the sigmoid.

    Example:
        >>> import torch
        >>> from vp3d.config.schema import FieldConfig
        >>> field = GridField(FieldConfig(resolution=16), torch.Generator().manual_seed(0))
        >>> sigma, albedo = field(torch.zeros(5, 3))
        >>> sigma.shape, albedo.shape
        (torch.Size([5]), torch.Size([5, 3]))
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
        """Negative gradient of the raw density on the nodes: `[1, 3, R, R, R]`.

        Per world unit, components (x, y, z). Central differences, one-sided at the faces. The
        softplus is monotone, so the direction is also that of the density itself.
        """
        spacing = 2.0 / (self.resolution - 1)
        by_z_y_x = torch.gradient(self.raw_density[0, 0], spacing=spacing)
        return -torch.stack(by_z_y_x[::-1])[None]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Density `[N]` >= 0 and albedo `[N, 3]` in [0, 1] at points `[N, 3]`.

        All four channels are read in one interpolation.
        """
        raw = _interpolate(torch.cat([self.raw_density, self.raw_albedo], dim=1), x)
        return F.softplus(raw[0]), torch.sigmoid(raw[1:].T)

    def density(self, x: Tensor) -> Tensor:
        """Density `[N]` >= 0 at points `[N, 3]`, without the albedo."""
        return F.softplus(_interpolate(self.raw_density, x)[0])

    def normal(self, x: Tensor) -> Tensor:
        """Outward unit normals `[N, 3]` at points `[N, 3]`, differentiable.

        The node gradients of `normal_grid`, interpolated and normalised.
        """
        return F.normalize(_interpolate(self.normal_grid(), x).T, dim=-1, eps=1e-9)

    def parameter_groups(self, config: OptimConfig) -> list[dict[str, Any]]:
        """Two groups, "density" at `lr_density` and "albedo" at `lr_albedo`."""
        return [
            {"name": "density", "params": [self.raw_density], "lr": config.lr_density},
            {"name": "albedo", "params": [self.raw_albedo], "lr": config.lr_albedo},
        ]

    def smoothness(self) -> Tensor:
        """Total variation over all neighbouring nodes, a scalar >= 0."""
        sigma, albedo = F.softplus(self.raw_density[0, 0]), torch.sigmoid(self.raw_albedo[0])
        return total_variation(sigma, albedo)


def _interpolate(values: Tensor, x: Tensor) -> Tensor:
    """Trilinear values `[C, N]` of a grid `[1, C, z, y, x]` at points `[N, 3]` in [-1, 1]."""
    points = x.reshape(1, 1, 1, -1, 3)
    found = F.grid_sample(
        values, points, mode="bilinear", padding_mode="border", align_corners=True
    )
    return found.reshape(values.shape[1], -1)

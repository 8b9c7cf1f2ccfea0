"""The contract of a radiance field, and the functions that all fields share.

Conventions:

* Points `x [N, 3]` are in the cube [-1, 1]^3 of the world frame (vp3d/types.py). Outside the cube
  a field has its value at the nearest point of a face.
* Density `sigma [N]` is an extinction coefficient per world unit, >= 0: sigma = softplus(raw).
* Albedo `[N, 3]` is in [0, 1], sRGB-encoded: albedo = sigmoid(raw).
* Normals are unit vectors that point outwards, against the gradient of the density.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.config.schema import OptimConfig


class Field(nn.Module):
    """Base class of the radiance fields.

    A subclass implements `forward`, `parameter_groups` and `smoothness`. It may override `density`
    and `normal` with faster versions.

    Attributes:
        normal_step: Half-width of the central differences in `normal`, in world units.
    """

    normal_step: float = 1.0 / 32.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Density `[N]` >= 0 and albedo `[N, 3]` in [0, 1] at points `[N, 3]`."""
        raise NotImplementedError

    def density(self, x: Tensor) -> Tensor:
        """Density `[N]` >= 0 at points `[N, 3]`, without the albedo."""
        return self(x)[0]

    def normal(self, x: Tensor) -> Tensor:
        """Outward unit normals `[N, 3]` at points `[N, 3]`, differentiable.

        Central differences of the density. Zero where the density is constant.
        """
        offsets = self.normal_step * torch.eye(3, dtype=x.dtype, device=x.device)
        points = torch.cat([x[:, None] + offsets, x[:, None] - offsets], dim=1).reshape(-1, 3)
        ahead, behind = self.density(points).reshape(-1, 2, 3).unbind(1)
        return F.normalize(behind - ahead, dim=-1, eps=1e-9)

    def parameter_groups(self, config: OptimConfig) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimiser, each with a `name` and a learning rate `lr`."""
        raise NotImplementedError

    def smoothness(self) -> Tensor:
        """Total variation of density and albedo, a scalar >= 0 (see `total_variation`)."""
        raise NotImplementedError


def blob_bias(x: Tensor, density: float, radius: float) -> Tensor:
    """Raw density (before the softplus) of the initial blob at points `[N, 3]`: `[N]`.

    A cone as in Magic3D (Lin et al. 2022, arXiv 2211.10440) and threestudio:
    raw = c * (1 - |x| / radius), with c chosen so that softplus(c) = `density`, the density at the
    origin. Beyond 2 * radius the value stays at -c: with a lower one the softplus would pass
    almost no gradient.
    """
    density = max(density, 1e-3)
    peak = math.log(math.expm1(density)) if density < 20.0 else density
    return peak * (1.0 - x.norm(dim=-1) / radius).clamp_min(-1.0)


def lattice(resolution: int, device: torch.device | str = "cpu") -> Tensor:
    """Nodes of a regular grid over [-1, 1]^3: `[R^3, 3]`, x fastest, then y, then z.

    The outer nodes lie on the faces of the cube.

    Example:
        >>> lattice(2)[:3].tolist()
        [[-1.0, -1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]]
    """
    axis = torch.linspace(-1.0, 1.0, resolution, device=device)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


def total_variation(sigma: Tensor, albedo: Tensor) -> Tensor:
    """Total variation of a field that was sampled on a lattice, a scalar >= 0.

    With h the spacing and alpha = 1 - exp(-sigma * h) the opacity of a cell, it is the sum of

    * sum |d alpha| * h^2 / 4: the surface area, measured along the axes, in units of one face of
      the cube. It removes haze and specks. The inside of solid matter is not affected, because
      alpha is saturated there.
    * sum w mean_c |d albedo_c| / sum w / h: the mean change of colour per world unit. The weight w
      is the larger alpha of the two neighbours and carries no gradient, so empty space does not
      count.

    Neither term depends on the resolution R.

    Args:
        sigma: Density `[R, R, R]` >= 0, indexed (z, y, x).
        albedo: Albedo `[3, R, R, R]` in [0, 1].
    """
    spacing = 2.0 / (sigma.shape[0] - 1)
    alpha = -torch.expm1(-sigma * spacing)
    weight = alpha.detach()
    area = alpha.new_zeros(())
    change = alpha.new_zeros(())
    total = alpha.new_zeros(()) + 1e-8
    for axis in range(3):
        neighbours = weight.shape[axis] - 1
        pair = torch.maximum(weight.narrow(axis, 1, neighbours), weight.narrow(axis, 0, neighbours))
        area = area + alpha.diff(dim=axis).abs().sum()
        change = change + (pair * albedo.diff(dim=axis + 1).abs().sum(0)).sum()
        total = total + pair.sum()
    return area * spacing**2 / 4.0 + change / (3.0 * total * spacing)

"""What every radiance field offers, and the pieces they share.

Conventions: points `x [N, 3]` lie in the cube [-1, 1]^3 of the world frame (outside, the value at the nearest face holds);
density `sigma [N]` is an extinction per unit of length, >= 0, sigma = softplus(raw); albedo `[N, 3]` is in [0, 1],
albedo = sigmoid(raw). Normals point outwards, against the gradient of the density.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.config.schema import OptimConfig


class Field(nn.Module):
    """Base of the radiance fields. A field defines `forward`, `parameter_groups` and `smoothness`; the rest may be kept."""

    normal_step: float = (
        1.0 / 32.0
    )  # half-width of the central differences of `normal`, world units

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Density `[N]` >= 0 and albedo `[N, 3]` in [0, 1] at points `[N, 3]`."""
        raise NotImplementedError

    def density(self, x: Tensor) -> Tensor:
        """Density alone at points `[N, 3]`: `[N]` >= 0."""
        return self(x)[0]

    def normal(self, x: Tensor) -> Tensor:
        """Outward unit normals `[N, 3]` at points `[N, 3]`, differentiable by central differences of the density."""
        offsets = self.normal_step * torch.eye(3, dtype=x.dtype, device=x.device)
        points = torch.cat([x[:, None] + offsets, x[:, None] - offsets], dim=1).reshape(-1, 3)
        ahead, behind = self.density(points).reshape(-1, 2, 3).unbind(1)
        return F.normalize(behind - ahead, dim=-1, eps=1e-9)

    def parameter_groups(self, config: OptimConfig) -> list[dict[str, Any]]:
        """Groups for a torch optimiser, each with its `name` and learning rate `lr`."""
        raise NotImplementedError

    def smoothness(self) -> Tensor:
        """Total variation of density and albedo, a scalar >= 0 (see `total_variation`)."""
        raise NotImplementedError


def blob_bias(x: Tensor, density: float, radius: float) -> Tensor:
    """The initial blob as raw (pre-softplus) density `[N]` at points `[N, 3]`.

    Magic3D's cone (Lin et al. 2022, as in threestudio): raw = c * (1 - |x| / radius), with softplus(c) = `density`, so
    `density` is reached at the origin. ReusedEstimate at -c beyond 2 * radius: further down, the softplus would pass no gradient.
    """
    density = max(density, 1e-3)
    peak = math.log(math.expm1(density)) if density < 20.0 else density
    return peak * (1.0 - x.norm(dim=-1) / radius).clamp_min(-1.0)


def lattice(resolution: int, device: torch.device | str = "cpu") -> Tensor:
    """The nodes of a regular grid over [-1, 1]^3, corners included: `[R^3, 3]`, x fastest, then y, then z."""
    axis = torch.linspace(-1.0, 1.0, resolution, device=device)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


def total_variation(sigma: Tensor, albedo: Tensor) -> Tensor:
    """Total variation of a field sampled on a lattice: density `[R, R, R]` >= 0 and albedo `[3, R, R, R]` in [0, 1].

    With h the spacing and alpha = 1 - exp(-sigma * h) the opacity of a cell, the scalar is the sum of
    * sum |d alpha| * h^2 / 4: the (axis-wise) surface area in units of a face of the cube; it cleans up fog and specks,
      and leaves the inside of solid matter alone, where more density no longer changes what is seen;
    * sum w mean_c |d albedo_c| / sum w / h: the mean colour change per unit of length, where w, without gradient, is the larger
      alpha of the pair, so that empty space has no say.
    Both are independent of R.
    """
    spacing = 2.0 / (sigma.shape[0] - 1)
    alpha = -torch.expm1(-sigma * spacing)
    weight = alpha.detach()
    area = alpha.new_zeros(())
    change = alpha.new_zeros(())
    total = alpha.new_zeros(()) + 1e-8
    for axis in range(3):
        pair = torch.maximum(
            weight.narrow(axis, 1, weight.shape[axis] - 1),
            weight.narrow(axis, 0, weight.shape[axis] - 1),
        )
        area = area + alpha.diff(dim=axis).abs().sum()
        change = change + (pair * albedo.diff(dim=axis + 1).abs().sum(0)).sum()
        total = total + pair.sum()
    return area * spacing**2 / 4.0 + change / (3.0 * total * spacing)

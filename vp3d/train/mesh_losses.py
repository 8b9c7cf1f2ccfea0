"""Regularisers of a mesh that is optimised: pure functions, each returns one unweighted scalar.

Conventions: every loss is a mean, so that weights do not depend on the number of vertices, edges or
texels. The Laplacian of a value at a vertex is the mean of its neighbours' values minus its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def laplacian(values: Tensor, edges: Tensor) -> Tensor:
    """The uniform Laplacian `[V, C]` of `values [V, C]` by `edges [E, 2]`; 0 without neighbours."""
    start, end = edges.unbind(-1)
    total = torch.zeros_like(values)
    total = total.index_add(0, start, values[end]).index_add(0, end, values[start])
    count = torch.bincount(edges.reshape(-1), minlength=len(values)).to(values.dtype)
    mean = total / count.clamp_min(1.0)[:, None]
    return torch.where(count[:, None] > 0.0, mean - values, torch.zeros_like(values))


def roughness(values: Tensor, edges: Tensor) -> Tensor:
    """Mean squared length of the Laplacian of `values [V, C]` by `edges [E, 2]`; a scalar >= 0.

    Of positions it makes a surface smooth; of offsets it makes neighbours move together (Sorkine
    et al. 2004, "Laplacian surface editing").
    """
    return laplacian(values, edges).square().sum(-1).mean()


def total_variation(texture: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring texels of `[C, H, W]`; a scalar >= 0.

    Rudin, Osher and Fatemi 1992, with the absolute differences along both axes added.
    """
    down = (texture[:, 1:] - texture[:, :-1]).abs().mean()
    across = (texture[:, :, 1:] - texture[:, :, :-1]).abs().mean()
    return down + across


def unit_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals `[F, 3]` of `faces [F, 3]` of `vertices [V, 3]`, by their winding.

    A face without area has a shorter one.
    """
    a, b, c = vertices[faces].unbind(1)
    return F.normalize(torch.linalg.cross(b - a, c - a), dim=-1, eps=1.0e-12)


def normal_consistency(vertices: Tensor, faces: Tensor, sides: Tensor) -> Tensor:
    """Mean of 1 - n1 . n2 over the edges between two faces; a scalar in [0, 2].

    Args:
        vertices: `[V, 3]`.
        faces: `[F, 3]`.
        sides: The faces on both sides of each edge `[E, 2]`; -1 where there is none.
    """
    normals = unit_normals(vertices, faces)
    first, second = sides[sides[:, 1] >= 0].unbind(-1)
    return (1.0 - (normals[first] * normals[second]).sum(-1)).mean()

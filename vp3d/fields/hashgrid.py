"""Multi-resolution hash grid and a small network, in plain torch: slow, clear, correct.

After Instant-NGP (Mueller et al. 2022, arXiv 2201.05989): level l is a grid of N_l cells a side whose nodes carry
`features` numbers; a point's features are interpolated trilinearly in every level, concatenated, and read by a network.
A level whose (N_l + 1)^3 nodes fit the table is indexed directly; a finer one by the spatial hash of its eq. 4.
Faster look-ups of the same table for a GPU are in `hashgrid_cuda.py`; this file is what they are tested against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.config.schema import FieldConfig, OptimConfig
from vp3d.fields.base import Field, blob_bias, lattice, total_variation

BASE_RESOLUTION = 16  # cells a side of the coarsest level
PRIMES = (1, 2_654_435_761, 805_459_861)  # of the hash, eq. 4
HIDDEN = 32  # width of the network's one hidden layer
INITIAL_FEATURE = 1e-4  # table entries start uniform in +- this, section 4
TABLE_RATE, NETWORK_RATE = 0.2, 0.1  # learning rates as shares of lr_density and lr_albedo
SMOOTHNESS_NODES = 24  # nodes a side of the lattice on which `smoothness` looks

Lookup = Callable[
    [Tensor, Tensor], Tensor
]  # (points [N, 3], tables [levels, rows, features]) -> [N, levels * features]


def level_resolutions(levels: int, finest: int) -> list[int]:
    """Cells a side of each level, in geometric progression from BASE_RESOLUTION to `finest` (eq. 2 and 3)."""
    base = min(BASE_RESOLUTION, finest)
    growth = (finest / base) ** (1.0 / max(levels - 1, 1))
    return [int(base * growth**level + 1e-6) for level in range(levels)]


def table_index(cell: Tensor, resolution: int, table_size: int) -> Tensor:
    """Rows `[...]` in [0, table_size) of the grid nodes `cell [..., 3]` (int64 in [0, resolution])."""
    side = resolution + 1
    if side**3 <= table_size:
        return cell[..., 0] + side * (cell[..., 1] + side * cell[..., 2])
    x, y, z = (cell[..., axis] * PRIMES[axis] for axis in range(3))
    return (x ^ y ^ z) & (table_size - 1)


class HashGridField(Field):
    """The hash-grid field; raw density starts at the blob of the config plus next to nothing.

    `lookup`, where one is set, encodes in the place of `encode_torch`, with the same numbers; parameters and their names do
    not depend on it, so a checkpoint opens with any.
    """

    def __init__(self, config: FieldConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.blob = (config.blob_density, config.blob_radius)
        self.resolutions = level_resolutions(config.levels, config.resolution)
        self.table_size = 2**config.log2_table
        self.normal_step = 1.0 / config.resolution
        initial = torch.rand(config.levels, self.table_size, config.features, generator=generator)
        self.tables = nn.Parameter((2.0 * initial - 1.0) * INITIAL_FEATURE)
        width = config.levels * config.features
        self.hidden_weight = nn.Parameter(
            torch.randn(HIDDEN, width, generator=generator) * (2.0 / width) ** 0.5
        )
        self.hidden_bias = nn.Parameter(torch.zeros(HIDDEN))
        self.out_weight = nn.Parameter(
            torch.randn(4, HIDDEN, generator=generator) * (1.0 / HIDDEN) ** 0.5
        )
        self.out_bias = nn.Parameter(torch.zeros(4))
        corners = torch.tensor([[k & 1, k >> 1 & 1, k >> 2] for k in range(8)])
        self.register_buffer("corners", corners, persistent=False)
        self.lookup: Lookup | None = None

    def encode(self, x: Tensor) -> Tensor:
        """Interpolated features `[N, levels * features]` (any range) of points `[N, 3]` in [-1, 1], by the field's `lookup`."""
        return (self.lookup or self.encode_torch)(x, self.tables)

    def encode_torch(self, x: Tensor, tables: Tensor) -> Tensor:
        """The `Lookup` in plain torch, the reference: features `[N, levels * features]` of points `[N, 3]` in [-1, 1]."""
        unit = (0.5 * (x + 1.0)).clamp(0.0, 1.0)
        corners: Tensor = self.get_buffer("corners")
        features = []
        for table, resolution in zip(tables, self.resolutions, strict=True):
            position = unit * resolution
            cell = position.detach().floor().clamp(0, resolution - 1)
            inside = (position - cell)[:, None, :]
            weight = torch.where(corners.bool(), inside, 1.0 - inside).prod(-1)
            row = table_index(cell.long()[:, None, :] + corners, resolution, self.table_size)
            found = F.embedding(
                row, table
            )  # table[row] adds up its gradient in the order in which threads come
            features.append((weight[..., None] * found).sum(1))
        return torch.cat(features, dim=-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Density `[N]` >= 0 and albedo `[N, 3]` in [0, 1] at points `[N, 3]`."""
        hidden = F.relu(F.linear(self.encode(x), self.hidden_weight, self.hidden_bias))
        raw = F.linear(hidden, self.out_weight, self.out_bias)
        return F.softplus(raw[:, 0] + blob_bias(x, *self.blob)), torch.sigmoid(raw[:, 1:])

    def parameter_groups(self, config: OptimConfig) -> list[dict[str, Any]]:
        """Tables at TABLE_RATE of the density rate, the network at NETWORK_RATE of the albedo rate."""
        network = [self.hidden_weight, self.hidden_bias, self.out_weight, self.out_bias]
        return [
            {"name": "tables", "params": [self.tables], "lr": TABLE_RATE * config.lr_density},
            {"name": "network", "params": network, "lr": NETWORK_RATE * config.lr_albedo},
        ]

    def smoothness(self) -> Tensor:
        """Total variation on a fixed lattice of SMOOTHNESS_NODES^3 points, a scalar >= 0."""
        side = SMOOTHNESS_NODES
        sigma, albedo = self(lattice(side, self.tables.device))
        return total_variation(
            sigma.reshape(side, side, side), albedo.T.reshape(3, side, side, side)
        )

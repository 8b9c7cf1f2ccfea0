"""Multi-resolution hash grid with a small network, in plain torch: the reference implementation.

After Instant-NGP (Mueller et al. 2022, arXiv 2201.05989). Level l is a grid with N_l cells a side
whose nodes carry `features` numbers each. The features of a point are interpolated trilinearly in
every level, concatenated, and decoded by a network with one hidden layer. A level whose
(N_l + 1)^3 nodes fit into the table is indexed directly, a finer one by the spatial hash of eq. 4.

Faster encoders of the same table for a GPU are in `hashgrid_cuda.py`. They are tested against this
module.
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
PRIMES = (1, 2_654_435_761, 805_459_861)  # of the spatial hash, eq. 4
HIDDEN = 32  # width of the hidden layer
INITIAL_FEATURE = 1e-4  # table entries are initialised uniformly in +- this value, section 4
TABLE_RATE, NETWORK_RATE = 0.2, 0.1  # learning rates as shares of lr_density and lr_albedo
SMOOTHNESS_NODES = 24  # nodes a side of the lattice on which `smoothness` is measured

# (points [N, 3], tables [levels, rows, features]) -> features [N, levels * features]
Lookup = Callable[[Tensor, Tensor], Tensor]


def level_resolutions(levels: int, finest: int) -> list[int]:
    """Cells a side of each level, in geometric progression (eq. 2 and 3).

    From BASE_RESOLUTION, or from `finest` where that is smaller, up to `finest`.

    Example:
        >>> level_resolutions(4, 128)
        [16, 32, 64, 128]
    """
    base = min(BASE_RESOLUTION, finest)
    growth = (finest / base) ** (1.0 / max(levels - 1, 1))
    return [int(base * growth**level + 1e-6) for level in range(levels)]


def table_index(cell: Tensor, resolution: int, table_size: int) -> Tensor:
    """Table rows `[...]` in [0, table_size) of grid nodes.

    Args:
        cell: Node coordinates `[..., 3]`, int64 in [0, resolution].
        resolution: Cells a side of the level.
        table_size: Rows of the table, a power of two.
    """
    side = resolution + 1
    if side**3 <= table_size:
        return cell[..., 0] + side * (cell[..., 1] + side * cell[..., 2])
    x, y, z = (cell[..., axis] * PRIMES[axis] for axis in range(3))
    return (x ^ y ^ z) & (table_size - 1)


class HashGridField(Field):
    """The hash-grid field. Its raw density starts as the blob of the config plus small noise.

    Attributes:
        lookup: Encoder that is used instead of `encode_torch` if it is set. It must return the
            same numbers. Parameters and their names do not depend on it, so a checkpoint loads
            with any encoder.
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
        hidden_weight = torch.randn(HIDDEN, width, generator=generator) * (2.0 / width) ** 0.5
        self.hidden_weight = nn.Parameter(hidden_weight)
        self.hidden_bias = nn.Parameter(torch.zeros(HIDDEN))
        out_weight = torch.randn(4, HIDDEN, generator=generator) * (1.0 / HIDDEN) ** 0.5
        self.out_weight = nn.Parameter(out_weight)
        self.out_bias = nn.Parameter(torch.zeros(4))
        corners = torch.tensor([[k & 1, k >> 1 & 1, k >> 2] for k in range(8)])
        self.register_buffer("corners", corners, persistent=False)
        self.lookup: Lookup | None = None

    def encode(self, x: Tensor) -> Tensor:
        """Features `[N, levels * features]` of points `[N, 3]` in [-1, 1], by `lookup` if set."""
        return (self.lookup or self.encode_torch)(x, self.tables)

    def encode_torch(self, x: Tensor, tables: Tensor) -> Tensor:
        """The reference `Lookup` in plain torch.

        Args:
            x: Points `[N, 3]` in [-1, 1].
            tables: Features of the nodes `[levels, rows, features]`, any range.

        Returns:
            Interpolated features `[N, levels * features]`, any range.
        """
        unit = (0.5 * (x + 1.0)).clamp(0.0, 1.0)
        corners: Tensor = self.get_buffer("corners")
        features = []
        for table, resolution in zip(tables, self.resolutions, strict=True):
            position = unit * resolution
            cell = position.detach().floor().clamp(0, resolution - 1)
            inside = (position - cell)[:, None, :]
            weight = torch.where(corners.bool(), inside, 1.0 - inside).prod(-1)
            row = table_index(cell.long()[:, None, :] + corners, resolution, self.table_size)
            # F.embedding rather than table[row]: the gradient of the latter is summed in the order
            # in which threads arrive, so its last bits would differ from run to run.
            found = F.embedding(row, table)
            features.append((weight[..., None] * found).sum(1))
        return torch.cat(features, dim=-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Density `[N]` >= 0 and albedo `[N, 3]` in [0, 1] at points `[N, 3]`."""
        hidden = F.relu(F.linear(self.encode(x), self.hidden_weight, self.hidden_bias))
        raw = F.linear(hidden, self.out_weight, self.out_bias)
        return F.softplus(raw[:, 0] + blob_bias(x, *self.blob)), torch.sigmoid(raw[:, 1:])

    def parameter_groups(self, config: OptimConfig) -> list[dict[str, Any]]:
        """Tables at TABLE_RATE of the density rate, network at NETWORK_RATE of the albedo rate."""
        network = [self.hidden_weight, self.hidden_bias, self.out_weight, self.out_bias]
        return [
            {"name": "tables", "params": [self.tables], "lr": TABLE_RATE * config.lr_density},
            {"name": "network", "params": network, "lr": NETWORK_RATE * config.lr_albedo},
        ]

    def smoothness(self) -> Tensor:
        """Total variation on a fixed lattice of SMOOTHNESS_NODES^3 points, a scalar >= 0."""
        shape = (SMOOTHNESS_NODES,) * 3
        sigma, albedo = self(lattice(SMOOTHNESS_NODES, self.tables.device))
        return total_variation(sigma.reshape(shape), albedo.T.reshape(3, *shape))

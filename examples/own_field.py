"""Optimise a field of your own, without a change in VP3D: one with mirror symmetry.

Run `python examples/own_field.py`. Left and right of the asset are equal, because both read the
same half of a dense grid. The front faces +x, so left and right are the two signs of y.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vp3d import generate, load_config, load_models
from vp3d.config.schema import FieldConfig, OptimConfig
from vp3d.fields.base import Field
from vp3d.fields.grid import GridField


class MirrorField(Field):
    """A dense grid that is read at `(x, |y|, z)`."""

    def __init__(self, config: FieldConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.grid = GridField(config, generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Density `[N]` >= 0 and albedo `[N, 3]` in [0, 1] at points `[N, 3]` in [-1, 1]."""
        return self.grid(torch.stack([x[:, 0], x[:, 1].abs(), x[:, 2]], dim=1))

    def parameter_groups(self, config: OptimConfig) -> list[dict[str, Any]]:
        """Density and albedo at the learning rates of the grid."""
        return self.grid.parameter_groups(config)

    def smoothness(self) -> Tensor:
        """Total variation of the grid, a scalar >= 0."""
        return self.grid.smoothness()


config = load_config("draft", prompt="a yellow duck")
models = replace(load_models(config), new_field=MirrorField)
asset = generate(config, models=models)
print(asset.path("glb"))

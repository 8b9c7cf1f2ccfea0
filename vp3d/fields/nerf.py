"""Builds the radiance field of a run from its config, and re-exports the contract `Field`."""

from __future__ import annotations

import torch

from vp3d.config.schema import FieldConfig
from vp3d.errors import UserError
from vp3d.fields.base import Field
from vp3d.fields.grid import GridField
from vp3d.fields.hashgrid import HashGridField

__all__ = ["Field", "build_field"]


def build_field(config: FieldConfig, generator: torch.Generator) -> Field:
    """The field that `config.kind` names, initialised as a blob.

    Args:
        config: Kind, resolution and blob of the field.
        generator: Source of every random number of the initial parameters.

    Raises:
        UserError: The kind is unknown.
    """
    if config.kind == "grid":
        return GridField(config, generator)
    if config.kind == "hashgrid":
        return HashGridField(config, generator)
    raise UserError(
        f'unknown field.kind "{config.kind}": choose "grid" (dense, for CPUs) or "hashgrid"'
    )

"""Building a field: the right class, one clear error, and the contract every field keeps."""

from __future__ import annotations

import pytest
import torch

from vp3d.config.schema import FieldConfig, OptimConfig
from vp3d.errors import UserError
from vp3d.fields.grid import GridField
from vp3d.fields.hashgrid import HashGridField
from vp3d.fields.nerf import Field, build_field

CONFIGS = [
    FieldConfig(kind="grid", resolution=12),
    FieldConfig(kind="hashgrid", resolution=20, levels=2, log2_table=10),
]


def build(config: FieldConfig) -> Field:
    return build_field(config, torch.Generator().manual_seed(0))


def test_kinds() -> None:
    assert isinstance(build(CONFIGS[0]), GridField) and isinstance(build(CONFIGS[1]), HashGridField)
    config = FieldConfig()
    config.kind = "voxels"  # type: ignore[assignment]
    with pytest.raises(UserError, match='unknown field.kind "voxels".*"grid".*"hashgrid"'):
        build(config)


@pytest.mark.parametrize("config", CONFIGS, ids=["grid", "hashgrid"])
def test_contract(config: FieldConfig) -> None:
    field = build(config)
    x = torch.rand(11, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    sigma, albedo = field(x)
    normal = field.normal(x)
    assert sigma.shape == (11,) and albedo.shape == (11, 3) and normal.shape == (11, 3)
    assert torch.allclose(field.density(x), sigma, atol=1e-6)
    length = normal.norm(dim=-1)
    assert (((length - 1).abs() < 1e-4) | (length < 1e-4)).all()
    smoothness = field.smoothness()
    assert smoothness.ndim == 0 and smoothness >= 0
    (sigma.sum() + albedo.sum() + smoothness).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in field.parameters())
    torch.optim.Adam(field.parameter_groups(OptimConfig())).step()
    assert field(x)[0].isfinite().all()


@pytest.mark.parametrize("config", CONFIGS, ids=["grid", "hashgrid"])
def test_state_dict_restores_the_field(config: FieldConfig) -> None:
    field, other = build(config), build_field(config, torch.Generator().manual_seed(9))
    other.load_state_dict(field.state_dict())
    x = torch.rand(5, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(field(x)[1], other(x)[1])

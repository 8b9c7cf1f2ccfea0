"""The hash grid against a naive implementation in plain Python: values, levels, gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vp3d.config.schema import FieldConfig, OptimConfig
from vp3d.fields.hashgrid import HashGridField, level_resolutions, table_index

CONFIG = FieldConfig(kind="hashgrid", resolution=40, levels=3, features=2, log2_table=13)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, generator=seeded(seed)) * 2 - 1


def rough_field() -> HashGridField:
    field = HashGridField(CONFIG, seeded())
    with torch.no_grad():
        field.tables.copy_(torch.randn(field.tables.shape, generator=seeded(1)))
    return field


def naive_features(field: HashGridField, p: list[float]) -> list[float]:
    """Features of one point with Python integers and the hash as it is printed in the paper."""
    size, out = field.table_size, []
    for table, resolution in zip(field.tables, field.resolutions, strict=True):
        position = [(c + 1) / 2 * resolution for c in p]
        low = [min(int(u), resolution - 1) for u in position]
        total = [0.0, 0.0]
        for k in range(8):
            node = [low[a] + (k >> a & 1) for a in range(3)]
            weight = math.prod(1 - abs(position[a] - node[a]) for a in range(3))
            if (resolution + 1) ** 3 <= size:
                row = node[0] + (resolution + 1) * node[1] + (resolution + 1) ** 2 * node[2]
            else:
                row = (node[0] ^ (node[1] * 2654435761) ^ (node[2] * 805459861)) % size
            total = [t + weight * v for t, v in zip(total, table[row].tolist(), strict=True)]
        out += total
    return out


def test_encoding_against_the_naive_version() -> None:
    field = rough_field()
    x = torch.cat([points(8), torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]])])
    # The first level is direct, the last is hashed.
    assert field.resolutions[0] == 16 and field.resolutions[-1] == 40
    encoded = field.encode(x)
    for i in range(len(x)):
        assert torch.allclose(
            encoded[i], torch.tensor(naive_features(field, x[i].tolist())), atol=1e-4
        )


def test_level_resolutions() -> None:
    assert level_resolutions(8, 128)[0] == 16 and level_resolutions(8, 128)[-1] == 128
    assert level_resolutions(1, 64) == [16] and level_resolutions(3, 8) == [8, 8, 8]
    assert level_resolutions(6, 512) == sorted(level_resolutions(6, 512))


def test_direct_levels_have_no_collisions_and_hashed_rows_stay_in_the_table() -> None:
    axis = torch.arange(5)
    cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    assert table_index(cells, 4, 128).unique().numel() == 125
    rows = table_index(torch.randint(0, 400, (500, 3), generator=seeded()), 400, 128)
    assert rows.min() >= 0 and rows.max() < 128 and rows.unique().numel() > 110


def test_ranges_and_initial_blob() -> None:
    field = HashGridField(CONFIG, seeded())
    sigma, albedo = field(points(100))
    assert (sigma >= 0).all() and (albedo >= 0).all() and (albedo <= 1).all()
    assert field.density(torch.zeros(1, 3)).item() == pytest.approx(CONFIG.blob_density, abs=0.05)
    assert field.density(torch.ones(1, 3)).item() < 0.01


def test_normals_point_outwards_and_carry_gradient() -> None:
    field = HashGridField(CONFIG, seeded())
    x = F.normalize(points(30), dim=-1) * 0.4
    normal = field.normal(x)
    assert ((normal * F.normalize(x, dim=-1)).sum(-1) > 0.98).all()
    normal[:, 0].sum().backward()
    assert field.tables.grad.isfinite().all() and field.tables.grad.abs().sum() > 0


def test_gradient_of_tables_and_network_against_finite_differences() -> None:
    field, x = rough_field().double(), points(16).double()

    def loss() -> torch.Tensor:
        sigma, albedo = field(x)
        return sigma.sum() + (albedo**2).sum() + field.smoothness()

    loss().backward()
    for parameter in field.parameters():
        flat, gradient, step = parameter.data.view(-1), parameter.grad.view(-1), 1e-6
        at = int(gradient.abs().argmax())
        flat[at] += step
        up = loss()
        flat[at] -= 2 * step
        down = loss()
        flat[at] += step
        # The opacity weights in smoothness carry no gradient (see total_variation), so the values
        # agree to a few per cent only.
        assert gradient[at].item() == pytest.approx(((up - down) / (2 * step)).item(), rel=0.05)


def test_gradient_is_the_same_bytes_with_two_threads() -> None:
    x = 2.0 * torch.rand(20_000, 3, generator=seeded(2)) - 1.0
    field, threads = HashGridField(CONFIG, seeded(5)), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [
            torch.autograd.grad(sum(v.square().mean() for v in field(x)), field.tables)[0]
            for _ in range(4)
        ]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_parameter_groups_cover_everything_and_seed_repeats() -> None:
    field, again = HashGridField(CONFIG, seeded(5)), HashGridField(CONFIG, seeded(5))
    assert all(
        torch.equal(a, b) for a, b in zip(field.parameters(), again.parameters(), strict=True)
    )
    groups = field.parameter_groups(OptimConfig(lr_density=0.05, lr_albedo=0.02))
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in field.parameters()}
    assert [g["lr"] for g in groups] == pytest.approx([0.01, 0.002])

"""The Triton kernels against the torch reference, values and gradients.

On a GPU, or in Triton's interpreter on a CPU: without a GPU these tests are skipped here, and
`test_hashgrid_cuda.py` runs this file in a second process under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.gpu_guard import kernel_device_here
from vp3d.config.schema import CudaConfig, FieldConfig
from vp3d.fields.hashgrid import HashGridField

DEVICE, REASON = kernel_device_here()
pytestmark = pytest.mark.skipif(not DEVICE, reason=REASON)

# One level is direct, one hashed.
CONFIG = FieldConfig(kind="hashgrid", resolution=24, levels=2, features=2, log2_table=13)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rough_field(config: FieldConfig = CONFIG) -> HashGridField:
    """A field with a random table of unit size."""
    field = HashGridField(config, seeded())
    with torch.no_grad():
        field.tables.copy_(torch.randn(field.tables.shape, generator=seeded(1)))
    return field.to(DEVICE)


def awkward_points() -> Tensor:
    """Points `[N, 3]`: random, some outside the cube; nodes, faces, edges, corners, the centre."""
    random = torch.rand(40, 3, generator=seeded(2)) * 2.4 - 1.2
    nodes = torch.randint(0, 17, (20, 3), generator=seeded(3)) / 8.0 - 1.0
    faces = torch.tensor(
        [[1.0, 0.3, -0.2], [-1, 0.1, 0.9], [1, -1, 0.5], [1, 1, 1], [-1, -1, -1], [0, 0, 0]]
    )
    return torch.cat([random, nodes, faces]).to(DEVICE)


def results(field: HashGridField, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Encoding and its gradients by the points and by the table, for one random direction."""
    leaf = x.clone().requires_grad_()
    encoded = field.encode(leaf)
    weight = torch.randn(encoded.shape, generator=seeded(4)).to(DEVICE)
    by_x, by_table = torch.autograd.grad((encoded * weight).sum(), [leaf, field.tables])
    return encoded.detach(), by_x, by_table


def with_kernels(field: HashGridField, dtype: torch.dtype) -> HashGridField:
    from vp3d.fields.hashgrid_cuda import build_triton

    field.lookup = build_triton(field, dtype)
    return field


@pytest.mark.parametrize("features", [1, 2, 3])
def test_values_and_gradients_are_the_reference(features: int) -> None:
    config = FieldConfig(kind="hashgrid", resolution=24, levels=2, features=features, log2_table=13)
    field, x = rough_field(config), awkward_points()
    assert (field.resolutions[0] + 1) ** 3 <= field.table_size < (field.resolutions[1] + 1) ** 3
    expected = results(field, x)
    for ours, theirs in zip(results(with_kernels(field, torch.float32), x), expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_a_half_table_is_rounded_once_and_its_gradient_is_not() -> None:
    field, x = rough_field(), awkward_points()
    expected = results(field, x)
    rounded = rough_field()
    with torch.no_grad():
        rounded.tables.copy_(rounded.tables.half())
    values, by_x, by_table = results(with_kernels(field, torch.float16), x)
    torch.testing.assert_close(values, results(rounded, x)[0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(by_x, results(rounded, x)[1], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(by_table, expected[2], atol=2e-4, rtol=1e-4)
    assert field.tables.dtype == by_table.dtype == torch.float32 and not torch.equal(
        values, expected[0]
    )


def test_no_points_and_a_table_beyond_half_range() -> None:
    field = with_kernels(rough_field(), torch.float16)
    empty = field.encode(torch.zeros(0, 3, device=DEVICE))
    assert empty.shape == (0, 4)
    (gradient,) = torch.autograd.grad(empty.sum(), field.tables)
    assert gradient.shape == field.tables.shape and not gradient.any()
    with torch.no_grad():
        field.tables.fill_(1.0e5)
    # The training loop's check for finite values reports this.
    assert not field(torch.zeros(1, 3, device=DEVICE))[0].isfinite().all()


def test_the_field_is_the_same_with_a_checkpoint_from_the_other_backend() -> None:
    plain, fast = (
        rough_field(),
        with_kernels(HashGridField(CONFIG, seeded(9)).to(DEVICE), torch.float32),
    )
    assert fast.state_dict().keys() == plain.state_dict().keys()
    fast.load_state_dict(plain.state_dict())
    x = awkward_points()[:8].clamp(-1, 1)
    for ours, theirs in zip(fast(x), plain(x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_check_at_start_accepts_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from vp3d.fields import hashgrid_cuda

    monkeypatch.setattr(hashgrid_cuda, "CHECK_POINTS", 40)
    field = rough_field()
    assert hashgrid_cuda.accelerate(field, CudaConfig()) == "hash grid by triton, float16 table"
    assert field.lookup is not None

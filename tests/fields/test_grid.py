"""The dense grid field against hand values and a naive trilinear implementation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vp3d.config.schema import FieldConfig, OptimConfig
from vp3d.fields.base import blob_bias, lattice, total_variation
from vp3d.fields.grid import GridField


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rough_field(side: int = 7) -> GridField:
    """A field with every parameter random."""
    field, generator = GridField(FieldConfig(resolution=side), seeded()), seeded(1)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return field


def points(n: int = 20, seed: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, generator=seeded(seed)) * 2 - 1


def naive_trilinear(values: torch.Tensor, p: list[float]) -> torch.Tensor:
    """Value [C] of a grid [C, z, y, x] at one point, corner by corner."""
    side = values.shape[1]
    total = torch.zeros(values.shape[0])
    for k in range(side):
        for j in range(side):
            for i in range(side):
                position = [(c + 1) / 2 * (side - 1) for c in p]
                weight = math.prod(
                    max(0.0, 1 - abs(u - n)) for u, n in zip(position, (i, j, k), strict=True)
                )
                total = total + weight * values[:, k, j, i]
    return total


def test_values_against_naive_trilinear_interpolation() -> None:
    field, x = rough_field(5), points(6)
    sigma, albedo = field(x)
    raw = torch.cat([field.raw_density, field.raw_albedo], dim=1)[0].detach()
    for i in range(len(x)):
        expected = naive_trilinear(raw, x[i].tolist())
        assert sigma[i].item() == pytest.approx(F.softplus(expected[0]).item(), abs=1e-5)
        assert torch.allclose(albedo[i], torch.sigmoid(expected[1:]), atol=1e-5)


def test_axes_are_z_y_x() -> None:
    field = GridField(FieldConfig(resolution=8), seeded())
    with torch.no_grad():
        field.raw_density.zero_()
        field.raw_density[0, 0, -1, 0, 0] = 2.0  # the node at x = -1, y = -1, z = 1
        field.raw_albedo.zero_()
        field.raw_albedo[0, 1, 0, 0, -1] = 3.0  # green at x = 1, y = -1, z = -1
    sigma, albedo = field(torch.tensor([[-1.0, -1, 1], [1, -1, -1]]))
    assert torch.allclose(sigma, F.softplus(torch.tensor([2.0, 0.0])), atol=1e-6)
    assert torch.allclose(albedo[1], torch.sigmoid(torch.tensor([0.0, 3.0, 0.0])), atol=1e-6)


def test_density_agrees_with_forward_and_ranges_hold() -> None:
    field, x = rough_field(), points(50)
    sigma, albedo = field(x)
    assert torch.allclose(field.density(x), sigma, atol=1e-6)
    assert sigma.shape == (50,) and albedo.shape == (50, 3)
    assert (sigma >= 0).all() and (albedo >= 0).all() and (albedo <= 1).all()


def test_outside_the_cube_the_face_holds() -> None:
    field = rough_field()
    assert torch.allclose(
        field.density(torch.tensor([[1.3, 0.1, 0.2]])),
        field.density(torch.tensor([[1.0, 0.1, 0.2]])),
    )


def test_initial_blob() -> None:
    field = GridField(FieldConfig(resolution=33, blob_density=6.0, blob_radius=0.5), seeded())
    sigma = field.density(torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [1, 1, 1]]))
    assert sigma[0].item() == pytest.approx(6.0, abs=1e-3)
    assert sigma[1].item() == pytest.approx(math.log(2), abs=2e-2)  # softplus(0) on the radius
    assert 0 < sigma[2].item() < 0.01
    assert blob_bias(torch.ones(1, 3), 0.0, 0.5).isfinite().all()
    assert F.softplus(blob_bias(torch.zeros(1, 3), 30.0, 0.5)).item() == pytest.approx(
        30.0, abs=1e-3
    )


def test_normals_of_the_blob_point_outwards() -> None:
    field = GridField(FieldConfig(resolution=25), seeded())
    x = F.normalize(points(40), dim=-1) * 0.45
    assert ((field.normal(x) * F.normalize(x, dim=-1)).sum(-1) > 0.98).all()


def test_normals_of_a_plane_are_exact() -> None:
    field = GridField(FieldConfig(resolution=6), seeded())
    direction = torch.tensor([0.6, 0.0, -0.8])
    with torch.no_grad():
        field.raw_density.copy_(-(lattice(6) @ direction).reshape(1, 1, 6, 6, 6))
    assert torch.allclose(field.normal(points()), direction.expand(20, 3), atol=1e-5)


def test_normal_in_constant_density_is_zero_with_finite_gradient() -> None:
    field = GridField(FieldConfig(resolution=6), seeded())
    with torch.no_grad():
        field.raw_density.zero_()
    normal = field.normal(points())
    normal.sum().backward()
    assert (normal == 0).all() and field.raw_density.grad.isfinite().all()


@pytest.mark.parametrize("output", ["sigma", "albedo", "normal", "smoothness"])
def test_gradients_against_finite_differences(output: str) -> None:
    field, x = rough_field(4).double(), points(5).double()

    def read(*parameters: torch.Tensor) -> torch.Tensor:
        names = [name for name, _ in field.named_parameters()]
        values = dict(zip(names, parameters, strict=True))
        if output in ("normal", "smoothness"):
            with torch.nn.utils.stateless._reparametrize_module(field, values):
                return field.normal(x) if output == "normal" else field.smoothness()
        return torch.func.functional_call(field, values, (x,))[("sigma", "albedo").index(output)]

    if output == "smoothness":
        # The opacity weights of its second term carry no gradient, so only albedo is compared.
        return _check_smoothness_gradient(field)
    assert torch.autograd.gradcheck(
        read, tuple(p.detach().requires_grad_() for p in field.parameters()), atol=1e-5
    )
    return None


def _check_smoothness_gradient(field: GridField) -> None:
    field.smoothness().backward()
    step, node = 1e-6, (0, 1, 2, 1, 3)
    with torch.no_grad():
        field.raw_albedo[node] += step
        up = field.smoothness()
        field.raw_albedo[node] -= 2 * step
        down = field.smoothness()
    assert field.raw_albedo.grad[node].item() == pytest.approx(
        ((up - down) / (2 * step)).item(), rel=1e-4
    )


def test_total_variation_by_hand() -> None:
    side = 5  # spacing 0.5
    # A half space of solid matter at x < 0: its surface is the cross-section of the cube.
    solid = torch.zeros(side, side, side)
    solid[:, :, :2] = 1e6
    albedo = torch.zeros(3, side, side, side)
    area = side * side * 0.25 / 4
    assert total_variation(solid, albedo).item() == pytest.approx(area)
    albedo[0, :, :, 3:] = 1.0  # a colour edge in empty space does not count
    assert total_variation(solid, albedo).item() == pytest.approx(area)
    albedo[0, :, :, 1:] = 1.0  # one between solid nodes does
    assert total_variation(solid, albedo).item() > area + 0.1
    assert total_variation(torch.zeros(side, side, side), albedo).item() == pytest.approx(
        0.0, abs=1e-4
    )


def test_total_variation_of_a_sphere_does_not_depend_on_the_resolution() -> None:
    def value(side: int) -> float:
        x = lattice(side)
        shape = (side, side, side)
        ball = (1e5 * (0.6 - x.norm(dim=-1))).clamp_min(0).reshape(shape)
        return total_variation(ball, (x.T * 0.5 + 0.5).reshape(3, *shape)).item()

    # Area along the axes 6 pi r^2 over a face of 4; along each axis one of three colours changes
    # by half a unit.
    assert value(33) == pytest.approx(6 * math.pi * 0.36 / 4 + 0.5 / 3, rel=0.03)
    assert value(65) == pytest.approx(value(33), rel=0.03)


def test_parameter_groups_and_seed() -> None:
    field = GridField(FieldConfig(resolution=8), seeded(5))
    groups = field.parameter_groups(OptimConfig(lr_density=0.3, lr_albedo=0.2))
    assert [(g["name"], g["lr"]) for g in groups] == [("density", 0.3), ("albedo", 0.2)]
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in field.parameters()}
    again = GridField(FieldConfig(resolution=8), seeded(5))
    assert all(
        torch.equal(a, b) for a, b in zip(field.parameters(), again.parameters(), strict=True)
    )

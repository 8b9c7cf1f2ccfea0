"""Volume rendering: closed forms, the three implementations compared, determinism, memory."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from vp3d.config.schema import FieldConfig, RenderConfig
from vp3d.errors import UserError
from vp3d.fields.base import Field, lattice
from vp3d.fields.grid import GridField
from vp3d.fields.hashgrid import HashGridField
from vp3d.fields.nerf import build_field
from vp3d.render.camera import camera_rays, orbit, ring
from vp3d.render.occupancy import OccupancyGrid
from vp3d.render.shade import lambert
from vp3d.render.volume import (
    box_interval,
    dense_exclusive_sum,
    occupied_samples,
    ray_bins,
    render_rays,
    render_rays_reference,
    render_rays_torch,
)
from vp3d.render.volume_numba import render_grid
from vp3d.types import Rays, Render

SAMPLES = 24
CONFIG = RenderConfig(samples=SAMPLES, occupancy_resolution=8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Formula(Field):
    """Density and albedo given by a function, without parameters."""

    def __init__(self, sigma: float, radius: float = math.inf) -> None:
        super().__init__()
        self.sigma, self.radius = sigma, radius

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.sigma * (x.norm(dim=-1) < self.radius).float(), torch.tensor(
            [0.2, 0.5, 0.8]
        ).expand(len(x), 3)


def rough_field(side: int = 7, level: float = 0.0) -> GridField:
    """A field with every node random; raw density around `level`."""
    field, generator = GridField(FieldConfig(resolution=side), seeded()), seeded(1)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        field.raw_density.add_(level)
    return field


def mixed_rays() -> Rays:
    """Rays of two views, wide enough that many miss the cube, and some awkward ones by hand."""
    rays = camera_rays(orbit([20.0, 200.0], [10.0, -40.0], 2.9, 70.0), 7, 9)
    origins = torch.tensor([[0.0, 0, 0], [3, 0, 0], [3, 0, 0], [1, 1, 3], [0, 5, 0.0]])
    directions = torch.tensor([[0.0, 0, 1], [1, 0, 0], [-1, 0, 0], [0, 0, -1], [0, 0, 1]])
    return Rays(torch.cat([rays.origins, origins]), torch.cat([rays.directions, directions]))


def outputs(render: Render) -> list[Tensor]:
    return [v for v in (render.rgb, render.opacity, render.depth, render.normal) if v is not None]


def loss_of(render: Render) -> Tensor:
    """A scalar in which every output of every ray has its own weight."""
    generator = seeded(7)
    return sum(
        ((v * torch.randn(v.shape, generator=generator)).sum() for v in outputs(render)),
        torch.zeros(()),
    )


def gradients(field: Field, render: Render) -> list[Tensor]:
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    return list(torch.autograd.grad(loss_of(render), list(field.parameters()), **options))


def assert_same(field: Field, a: Render, b: Render, atol: float = 2e-5) -> None:
    assert all(torch.allclose(x, y, atol=atol) for x, y in zip(outputs(a), outputs(b), strict=True))
    for x, y in zip(gradients(field, a), gradients(field, b), strict=True):
        assert torch.allclose(x, y, atol=5 * atol * max(1.0, float(x.abs().max())))


def test_box_interval_by_hand() -> None:
    origins = torch.tensor([[3.0, 0, 0], [0, 0, 0], [3, 0, 0], [3, 2, 0], [1, -4, 0]])
    directions = torch.tensor([[-1.0, 0, 0], [0, 0, 1], [1, 0, 0], [-1, 0, 0], [0, 1, 0]])
    near, far = box_interval(Rays(origins, directions))
    assert near[:2].tolist() == [2, 0] and far[:2].tolist() == [4, 1]
    assert (far - near)[2:4].tolist() == [0, 0]  # looks away; passes by
    # The last ray is inside a face of the cube.
    assert torch.isfinite(near).all() and torch.isfinite(far).all() and (far >= near).all()


def test_box_interval_against_sampled_points() -> None:
    rays = mixed_rays()
    near, far = box_interval(rays)
    t = torch.linspace(0, 8, 4001)
    inside = (
        (rays.origins[:, None] + t[:, None] * rays.directions[:, None]).abs() <= 1 - 1e-4
    ).all(-1)
    for i in range(len(rays)):
        if inside[i].any():
            assert near[i].item() == pytest.approx(t[inside[i]].min().item(), abs=0.02)
            assert far[i].item() == pytest.approx(t[inside[i]].max().item(), abs=0.02)


def test_samples_stay_in_their_bins() -> None:
    rays = mixed_rays()
    near, far = box_interval(rays)
    middle, step = ray_bins(rays, SAMPLES, None)
    assert torch.allclose(middle, near + 0.5 * step) and torch.allclose(
        step * SAMPLES, far - near, atol=1e-5
    )
    start, _ = ray_bins(rays, SAMPLES, seeded())
    assert (start >= near).all() and (start <= near + step).all() and start.unique().numel() > 30
    assert torch.equal(start, ray_bins(rays, SAMPLES, seeded())[0])


@pytest.mark.parametrize("sigma", [0.0, 0.3, 5.0, 1e4])
def test_constant_density_has_the_closed_form(sigma: float) -> None:
    rays = mixed_rays()
    near, far = box_interval(rays)
    start, step = ray_bins(rays, SAMPLES, seeded())
    render = render_rays_torch(Formula(sigma), rays, start, step, CONFIG)
    expected = 1 - torch.exp(-sigma * (far - near))
    assert torch.allclose(render.opacity, expected, atol=1e-5)
    assert torch.allclose(render.rgb, expected[:, None] * torch.tensor([0.2, 0.5, 0.8]), atol=1e-5)


def test_light_that_reaches_each_sample_by_hand() -> None:
    tau = torch.tensor([math.log(2), math.log(4), 50.0, 1.0, 3.0])
    flat = torch.tensor([0, 1, 3, 4, 6])  # ray 0 lacks its sample 2, ray 1 has its sample 1 alone
    transmittance = torch.exp(-dense_exclusive_sum(tau, flat, torch.tensor([4, 1]), 5))
    assert torch.allclose(transmittance, torch.tensor([1.0, 0.5, 0.125, 0.0, 1.0]), atol=1e-6)


def test_opaque_sphere_has_its_analytic_depth() -> None:
    rays = camera_rays(orbit(30.0, 20.0, 3.0, 40.0), 9, 9)
    config = RenderConfig(samples=600)
    render = render_rays_torch(Formula(1e5, radius=0.6), rays, *ray_bins(rays, 600, None), config)
    along = -(rays.origins * rays.directions).sum(-1)
    square = 0.36 - ((rays.origins**2).sum(-1) - along**2)
    hit = square > 0.01
    assert hit.sum() > 8 and torch.allclose(
        render.opacity[hit], torch.ones(int(hit.sum())), atol=1e-5
    )
    assert torch.allclose(render.depth[hit], (along - square.clamp_min(0).sqrt())[hit], atol=0.01)
    assert (render.opacity[square < -0.01] == 0).all()


@pytest.mark.parametrize("level", [-2.0, 1.0, 40.0], ids=["thin", "soft", "opaque"])
def test_every_route_gives_the_same_values_and_gradients(level: float) -> None:
    field, rays = rough_field(level=level), mixed_rays()
    start, step = ray_bins(rays, SAMPLES, seeded(3))
    reference = render_rays_reference(field, rays, start, step, SAMPLES, want_normal=True)
    assert_same(field, reference, render_rays_torch(field, rays, start, step, CONFIG, None, True))
    # The kernels skip everything behind an opacity of 99.99 %.
    compiled = render_grid(field, rays, start, step, SAMPLES, None, True)
    assert_same(field, reference, compiled, atol=1e-3 if level > 0 else 2e-5)


def test_routes_agree_with_skipping_and_without_normals() -> None:
    field, rays = GridField(FieldConfig(resolution=12, blob_radius=0.3), seeded()), mixed_rays()
    occupancy = OccupancyGrid(CONFIG)
    occupancy.update(field, seeded(2))
    assert 0.05 < occupancy.share() < 0.6
    start, step = ray_bins(rays, SAMPLES, seeded(3))
    a = render_rays_torch(field, rays, start, step, CONFIG, occupancy)
    assert a.normal is None
    assert_same(field, a, render_grid(field, rays, start, step, SAMPLES, occupancy, False))
    full = render_rays_reference(field, rays, start, step, SAMPLES)
    assert (full.opacity - a.opacity).abs().max() < SAMPLES * CONFIG.occupancy_threshold


def test_hashgrid_goes_the_torch_route_and_agrees_with_the_reference() -> None:
    field = HashGridField(
        FieldConfig(kind="hashgrid", resolution=20, levels=2, log2_table=9), seeded()
    )
    rays = mixed_rays()[::5]
    fast = render_rays(field, rays, CONFIG, generator=seeded(3), want_normal=True)
    reference = render_rays_reference(
        field, rays, *ray_bins(rays, SAMPLES, seeded(3)), SAMPLES, want_normal=True
    )
    assert_same(field, reference, fast, atol=1e-4)


def test_compiled_gradient_against_finite_differences() -> None:
    field, rays = rough_field(4, level=1.0), mixed_rays()

    def loss() -> Tensor:
        return loss_of(
            render_rays(field, rays, RenderConfig(samples=6), generator=seeded(3), want_normal=True)
        )

    for parameter, gradient in zip(
        field.parameters(), torch.autograd.grad(loss(), list(field.parameters())), strict=True
    ):
        with torch.no_grad():
            direction, step = gradient / gradient.norm(), 1e-2
            parameter.add_(step * direction)
            up = loss()
            parameter.sub_(2 * step * direction)
            down = loss()
            parameter.add_(step * direction)
        assert ((up - down) / (2 * step)).item() == pytest.approx(gradient.norm().item(), rel=0.02)


@pytest.mark.parametrize("kind", ["grid", "hashgrid"])
@pytest.mark.parametrize("case", ["misses", "nothing occupied", "no rays"])
def test_edges_render_nothing_and_still_differentiate(kind: str, case: str) -> None:
    field = build_field(FieldConfig(kind=kind, resolution=16, levels=1, log2_table=8), seeded())
    occupancy = OccupancyGrid(CONFIG)
    rays = mixed_rays()
    if case == "misses":
        rays = Rays(
            torch.tensor([[3.0, 0, 0]]).expand(5, 3), torch.tensor([[1.0, 0, 0]]).expand(5, 3)
        )
    elif case == "nothing occupied":
        occupancy.mask.fill_(False)
    else:
        rays = rays[:0]
    render = render_rays(field, rays, CONFIG, occupancy, want_normal=True)
    assert [v.shape[0] for v in outputs(render)] == [len(rays)] * 4
    assert all((v == 0).all() for v in outputs(render)[:2])
    if len(rays):
        assert all(g.isfinite().all() and (g == 0).all() for g in gradients(field, render))


def test_occupancy_keeps_what_is_there_with_a_margin_and_forgets() -> None:
    field = GridField(FieldConfig(resolution=24), seeded())
    with torch.no_grad():
        field.raw_density.copy_(
            (400 * (0.3 - lattice(24).norm(dim=-1))).clamp(-15, 60).reshape(1, 1, 24, 24, 24)
        )
    occupancy = OccupancyGrid(RenderConfig(occupancy_resolution=16))
    # Before the first update, the ball of bound_radius is occupied.
    assert occupancy.share() == pytest.approx(4 / 3 * math.pi * 0.9**3 / 8, rel=0.03)
    occupancy.update(field, seeded())
    x = lattice(40)
    near, kept = x.norm(dim=-1) < 0.35, occupancy.contains(x)
    assert kept[near].all() and 0.02 < occupancy.share() < 0.2
    with torch.no_grad():
        field.raw_density.fill_(-15.0)
    for seed in range(10):
        occupancy.update(field, seeded(seed))
    assert occupancy.share() == 0.0
    assert set(occupancy.state_dict()) == {"level", "mask"}


def test_nothing_is_occupied_beyond_the_bound() -> None:
    field = GridField(FieldConfig(resolution=8), seeded())
    with torch.no_grad():
        field.raw_density.fill_(5.0)  # matter everywhere
    occupancy = OccupancyGrid(RenderConfig(occupancy_resolution=32, bound_radius=0.5))
    x = 2.0 * torch.rand(4000, 3, generator=seeded(1)) - 1.0
    for _ in range(2):
        cell = 2.0 * math.sqrt(3.0) / 32
        assert occupancy.contains(x[x.norm(dim=-1) < 0.5 - cell]).all()
        assert not occupancy.contains(x[x.norm(dim=-1) > 0.5 + cell]).any()
        occupancy.update(field, seeded(2))
    everywhere = OccupancyGrid(RenderConfig(occupancy_resolution=32, bound_radius=2.0))
    assert everywhere.share() == 1.0  # the cube's corners are at 1.73


def test_occupancy_knows_its_axes() -> None:
    occupancy = OccupancyGrid(CONFIG)
    occupancy.mask.fill_(False)
    occupancy.mask[7, 0, 3] = True  # z at the top, y at the right side, x in the middle
    inside = occupancy.contains(
        torch.tensor([[-0.1, -0.9, 0.9], [0.9, -0.9, -0.1], [-0.1, -1.0, 1.0]])
    )
    assert inside.tolist() == [True, False, True]


@pytest.mark.parametrize("compiled", [True, False])
def test_two_runs_and_any_number_of_threads_give_the_same_bytes(compiled: bool) -> None:
    field, rays, found = (
        rough_field(9, level=1.0),
        camera_rays(ring(2, 15.0, 2.9, 40.0), 24, 24),
        [],
    )
    start, step = ray_bins(rays, SAMPLES, seeded(3))
    threads = torch.get_num_threads()
    for count in (1, 2, 1):
        torch.set_num_threads(count)
        render = (
            render_grid(field, rays, start, step, SAMPLES, None, True)
            if compiled
            else render_rays_torch(field, rays, start, step, CONFIG, None, True)
        )
        found.append([*outputs(render), *gradients(field, render)])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))
    if compiled:
        assert all(torch.equal(a, b) for a, b in zip(found[0][:4], found[1][:4], strict=True))


def test_lambert_shading_is_deferred_and_brings_normals() -> None:
    field, rays = rough_field(level=3.0), mixed_rays()
    plain = render_rays(field, rays, CONFIG, want_normal=True)
    lit = render_rays(field, rays, RenderConfig(samples=SAMPLES, shading="lambert"))
    assert lit.normal is not None
    expected = lambert(plain.rgb, torch.nn.functional.normalize(plain.normal, dim=-1, eps=1e-6))
    assert torch.allclose(lit.rgb, expected, atol=1e-6) and not torch.allclose(
        lit.rgb, plain.rgb, atol=1e-2
    )


class OutOfMemoryAbove(Formula):
    """A field that runs out of memory on more than `most` points."""

    def __init__(self, most: int, message: str) -> None:
        super().__init__(2.0)
        self.most, self.message = most, message

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) > self.most:
            raise RuntimeError(self.message)
        return super().forward(x)


def test_chunks_do_not_change_the_picture_and_shrink_when_memory_runs_out() -> None:
    rays, chunks = mixed_rays(), []
    whole = render_rays(Formula(2.0), rays, CONFIG)
    small = render_rays(Formula(2.0), rays, RenderConfig(samples=SAMPLES, chunk=SAMPLES))
    field = OutOfMemoryAbove(20 * SAMPLES, "CUDA out of memory. Tried to allocate 2 GiB")
    shrunk = render_rays(
        field, rays, RenderConfig(samples=SAMPLES, chunk=100 * SAMPLES), on_oom=chunks.append
    )
    for other in (small, shrunk):
        assert all(
            torch.allclose(a, b, atol=1e-6)
            for a, b in zip(outputs(whole), outputs(other), strict=True)
        )
    # Rays that miss the cube have no samples.
    used = SAMPLES * int((ray_bins(rays, SAMPLES, None)[1] > 0).sum())
    assert 40 * SAMPLES < used < 100 * SAMPLES
    # Each chunk is half of the samples that were tried, in complete rays.
    assert chunks == [used // 2, used // 2 // SAMPLES * SAMPLES // 2]


def test_only_samples_in_occupied_cells_count_for_a_chunk() -> None:
    rays, occupancy, asked = mixed_rays(), OccupancyGrid(CONFIG), []
    occupancy.mask.fill_(False)
    occupancy.mask[2:6, 2:6, 2:6] = True
    field = rough_hash_field()
    look = field.encode_torch
    field.lookup = lambda x, tables: (asked.append(len(x)), look(x, tables))[1]
    worth = len(occupied_samples(rays, *ray_bins(rays, SAMPLES, None), SAMPLES, occupancy))
    assert 60 < worth < 0.2 * len(rays) * SAMPLES

    def shown(chunk: int) -> list[Tensor]:
        asked.clear()
        render = render_rays(field, rays, RenderConfig(samples=SAMPLES, chunk=chunk), occupancy)
        return [render.rgb, *gradients(field, render)]

    whole = shown(worth)
    assert asked == [worth]  # once, forward alone: nothing is evaluated again in the backward pass
    parts = shown(worth // 3)
    assert len(asked) > 6 and max(asked) <= worth // 3 and sum(asked) == 2 * worth
    assert all(
        torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(whole, parts, strict=True)
    )


@pytest.mark.parametrize("occupied", [False, True])
def test_chunks_have_the_same_gradient_and_keep_next_to_nothing_for_it(occupied: bool) -> None:
    field, rays, kept = rough_hash_field(), mixed_rays(), []
    occupancy = OccupancyGrid(CONFIG) if occupied else None
    if occupancy is not None:
        occupancy.mask.copy_(torch.rand(8, 8, 8, generator=seeded(4)) > 0.5)

    def chunked(chunk: int) -> tuple[Render, list[Tensor]]:
        held: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: (held.append(x.numel()), x)[1], lambda x: x
        ):
            render = render_rays(
                field, rays, RenderConfig(samples=SAMPLES, chunk=chunk), occupancy, want_normal=True
            )
        kept.append(sum(held))
        return render, gradients(field, render)

    (whole, expected), (parts, found) = chunked(10**6), chunked(16 * SAMPLES)
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(outputs(whole), outputs(parts), strict=True)
    )
    assert all(
        torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(expected, found, strict=True)
    )
    assert kept[1] < 0.02 * kept[0]


def rough_hash_field() -> HashGridField:
    """A small hash grid with a random table."""
    field = HashGridField(
        FieldConfig(kind="hashgrid", resolution=20, levels=2, log2_table=9), seeded()
    )
    with torch.no_grad():
        field.tables.copy_(torch.randn(field.tables.shape, generator=seeded(1)))
    return field


def test_errors_that_are_not_about_memory_and_hopeless_ones_are_raised() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        render_rays(OutOfMemoryAbove(10, "shapes do not match"), mixed_rays(), CONFIG)
    with pytest.raises(RuntimeError, match="allocate"):
        render_rays(
            OutOfMemoryAbove(0, "DefaultCPUAllocator: can't allocate memory"), mixed_rays(), CONFIG
        )


def test_bad_settings_are_one_clear_line() -> None:
    config = RenderConfig()
    config.samples = 0
    with pytest.raises(UserError, match="samples >= 1"):
        render_rays(Formula(1.0), mixed_rays(), config)


@pytest.mark.parametrize("occupied", [False, True])
def test_evaluated_samples_are_counted_where_the_field_was_asked(occupied: bool) -> None:
    """Not the samples on all rays: empty cells, rays that miss, and what is behind do not count."""
    rays = mixed_rays()
    occupancy = None
    thin = rough_field(level=-6.0)  # no ray ends early
    if occupied:
        occupancy = OccupancyGrid(CONFIG)
        occupancy.mask[:] = False
        occupancy.mask.reshape(-1)[::3] = True
    start, step = ray_bins(rays, SAMPLES, None)
    expected = len(occupied_samples(rays, start, step, SAMPLES, occupancy))
    assert 0 < expected < len(rays) * SAMPLES
    for chunk in (1024, 1_048_576):
        config = dataclasses.replace(CONFIG, chunk=chunk)
        found = render_rays_torch(thin, rays, start, step, config, occupancy)
        assert found.evaluated == expected
    assert render_grid(thin, rays, start, step, SAMPLES, occupancy, False).evaluated == expected
    assert render_rays(thin, rays, CONFIG, occupancy).evaluated == expected
    lit = dataclasses.replace(CONFIG, shading="lambert")
    assert render_rays(thin, rays, lit, occupancy).evaluated == expected
    dense = render_grid(rough_field(level=60.0), rays, start, step, SAMPLES, occupancy, False)
    hit = int((dense.opacity > 0.999).sum())
    assert 0 < dense.evaluated < expected and dense.evaluated >= hit

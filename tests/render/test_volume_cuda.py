"""nerfacc as a March: our rays against a slow traversal, its scan against ours, both on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.gpu_guard import cuda_package_here, installed
from vp3d.config.schema import FieldConfig, RenderConfig
from vp3d.errors import UserError
from vp3d.fields.nerf import build_field
from vp3d.render import volume_cuda
from vp3d.render.camera import camera_rays, orbit
from vp3d.render.occupancy import OccupancyGrid
from vp3d.render.volume import (
    DENSE,
    March,
    dense_exclusive_sum,
    occupied_samples,
    ray_bins,
    render_rays,
)
from vp3d.types import Rays

SAMPLES = 20
CONFIG = RenderConfig(samples=SAMPLES, occupancy_resolution=8)
CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_rays() -> Rays:
    """Two views with many rays beside the cube, one ray from inside it, one along an axis."""
    rays = camera_rays(orbit([20.0, 200.0], [10.0, -40.0], 2.9, 70.0), 6, 6)
    more = torch.tensor([[0.1, 0.2, 0.3], [3.0, 0.05, -0.3]])
    towards = torch.nn.functional.normalize(torch.tensor([[0.3, -0.5, 1.0], [-1.0, 0, 0]]), dim=-1)
    return Rays(torch.cat([rays.origins, more]), torch.cat([rays.directions, towards]))


def half_empty() -> OccupancyGrid:
    occupancy = OccupancyGrid(CONFIG)
    occupancy.mask.copy_(torch.rand(8, 8, 8, generator=seeded(5)) > 0.6)
    return occupancy


def slow_traverse(
    origins: Tensor, directions: Tensor, cells: Tensor, near: Tensor, far: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """What nerfacc's traversal is documented to return, step by step."""
    rays, middles = [], []
    for ray in range(len(origins)):
        count = 0
        while float(near[ray]) + (count + 0.5) * step < float(far[ray]):
            middle = float(near[ray]) + (count + 0.5) * step
            x = origins[ray] + middle * directions[ray]
            i, j, k = ((x + 1.0) * 0.5 * torch.tensor(cells.shape)).long().clamp(0, 7).tolist()
            if (x.abs() <= 1.0 + 1e-5).all() and cells[i, j, k]:
                rays.append(ray)
                middles.append(middle)
            count += 1
    return torch.tensor(rays, dtype=torch.long), torch.tensor(middles)


def slow_exclusive_sum(values: Tensor, packed_info: Tensor) -> Tensor:
    """The packed scan as it is documented, ray by ray."""
    parts = [values[a : a + n].cumsum(0) - values[a : a + n] for a, n in packed_info.tolist()]
    return torch.cat(parts) if parts else values


SLOW = March(
    volume_cuda.occupied_by(slow_traverse), volume_cuda.packed_exclusive_sum(slow_exclusive_sum)
)


@pytest.mark.parametrize("jittered", [False, True])
def test_rays_are_handed_over_so_that_the_samples_are_ours(jittered: bool) -> None:
    rays, occupancy = some_rays(), half_empty()
    start, step = ray_bins(rays, SAMPLES, seeded(3) if jittered else None)
    ours = occupied_samples(rays, start, step, SAMPLES, occupancy)
    theirs = SLOW.occupied(rays, start, step, SAMPLES, occupancy)
    assert len(ours) > 100 and (theirs.diff() > 0).all()
    different = torch.tensor(sorted(set(ours.tolist()) ^ set(theirs.tolist())), dtype=torch.long)
    ray = different // SAMPLES
    x = (
        rays.origins[ray]
        + (start[ray] + (different % SAMPLES) * step[ray])[:, None] * rays.directions[ray]
    )
    cells = (x + 1.0) * 4.0
    # Only samples on a cell's border may differ.
    assert ((cells - cells.round()).abs().amin(-1) < 1e-4).all()
    assert len(different) < 0.02 * len(ours)


def check_edges(march: March, device: torch.device) -> None:
    """Samples, picture and gradients for rays that miss, an empty grid, no grid, and no rays."""
    miss = Rays(torch.tensor([[3.0, 0, 0]]).expand(4, 3), torch.tensor([[1.0, 0, 0]]).expand(4, 3))
    nothing = OccupancyGrid(CONFIG)
    nothing.mask.fill_(False)
    for rays, occupancy in (
        (miss, half_empty()),
        (some_rays(), nothing),
        (some_rays(), None),
        (some_rays()[:0], half_empty()),
    ):
        rays = Rays(rays.origins.to(device), rays.directions.to(device))
        occupancy = None if occupancy is None else occupancy.to(device)
        start, step = ray_bins(rays, SAMPLES, None)
        if len(rays):
            ours, theirs = (
                m.occupied(rays, start, step, SAMPLES, occupancy) for m in (DENSE, march)
            )
            assert torch.equal(ours, theirs)
        field = build_field(
            FieldConfig(kind="hashgrid", resolution=16, levels=1, log2_table=8), seeded()
        ).to(device)
        a, b = (render_rays(field, rays, CONFIG, occupancy, march=m) for m in (DENSE, march))
        torch.testing.assert_close(a.rgb, b.rgb, atol=1e-6, rtol=1e-5)
        if len(rays):
            b.rgb.sum().backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in field.parameters())


def test_edges_empty_rays_nothing_occupied_and_no_grid() -> None:
    check_edges(SLOW, CPU)


def test_packed_sums_are_the_dense_ones_with_their_gradient() -> None:
    flat = torch.tensor([0, 3, 4, 11, 12, 13, 24])
    counts = torch.bincount(flat // 5, minlength=6)  # rays 1 and 3 have no sample
    found = []
    for exclusive_sum in (dense_exclusive_sum, SLOW.exclusive_sum):
        tau = torch.rand(7, generator=seeded(1)).requires_grad_()
        values = exclusive_sum(tau, flat, counts, 5)
        (gradient,) = torch.autograd.grad((values * torch.arange(7.0)).sum(), tau)
        found.append((values.detach(), gradient))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert found[0][0][0] == 0.0 and found[0][0][3] == 0.0


def test_the_check_accepts_what_agrees_and_names_what_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(volume_cuda, "CHECK_SIZE", 6)
    assert volume_cuda.check_march(SLOW, CPU) == ""
    late = March(
        SLOW.occupied,
        lambda tau, flat, counts, samples: dense_exclusive_sum(tau, flat, counts, samples) + tau,
    )
    assert volume_cuda.check_march(late, CPU).startswith("its picture differs")
    deaf = March(SLOW.occupied, lambda *arguments: dense_exclusive_sum(*arguments).detach())
    assert volume_cuda.check_march(deaf, CPU).startswith("its gradient differs")
    mirrored = March(
        volume_cuda.occupied_by(
            lambda o, d, cells, *rest: slow_traverse(o, d, cells.flip(0), *rest)
        ),
        SLOW.exclusive_sum,
    )
    assert volume_cuda.check_march(mirrored, CPU).startswith("its picture differs")


def test_without_a_gpu_nerfacc_is_not_touched() -> None:
    with pytest.raises(UserError, match="needs a CUDA device; use cuda.compositor=torch"):
        volume_cuda.nerfacc_march(CPU)


@pytest.mark.skipif(
    installed("nerfacc"), reason="nerfacc is installed, and importing it may start a build"
)
def test_nerfacc_that_is_asked_for_and_not_there_is_one_line() -> None:
    with pytest.raises(
        UserError,
        match="cuda.compositor=nerfacc does not work here .*nerfacc.*; use cuda.compositor=torch$",
    ):
        volume_cuda.nerfacc_march(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(
    bool(cuda_package_here("nerfacc")), reason=cuda_package_here("nerfacc") or "it is there"
)
def test_nerfacc_gives_our_pictures_and_gradients() -> None:
    march = volume_cuda.nerfacc_march(torch.device("cuda"))
    assert volume_cuda.check_march(march, torch.device("cuda")) == ""
    check_edges(march, torch.device("cuda"))

"""nerfacc as the `March` of volume.py: its grid traversal finds samples, its scan sums along rays.

nerfacc (Li et al. 2023, arXiv 2305.04966) is optional and compiles its kernels on the user's
machine. It is imported only if `cuda.compositor` is "nerfacc". The samples are at the positions of
volume.py, so both give the same picture, except for samples within rounding of a cell's border.
The gain is memory: there is no tensor over all pairs of rays and samples.

nerfacc marches all rays at one step, while each of our rays has its own. So a ray is passed to it
from the point where it enters the cube, with a direction that is stretched until its own step has
the length `unit`. Sample i then has its middle at (offset + i) * unit, where offset in [0, 1) is
the position of the first sample inside the first bin.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import torch
from torch import Tensor

from vp3d.config.schema import FieldConfig, RenderConfig
from vp3d.errors import UserError
from vp3d.fields.grid import GridField
from vp3d.render.camera import camera_rays, ring
from vp3d.render.occupancy import OccupancyGrid
from vp3d.render.volume import (
    DENSE,
    March,
    box_interval,
    occupied_samples,
    ray_bins,
    render_rays_torch,
)
from vp3d.types import Rays

# (origins [N, 3], directions [N, 3], cells [X, Y, Z] bool over the cube, near [N], far [N], step)
# -> ray [M] and middle [M]: the intervals of length `step` from `near` on, in units of the
# direction, whose middle is in an occupied cell, in ray order.
Traverse = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]

CHECK_SIZE = 12  # pixels of a side of the views that `check_march` compares
CHECK_SAMPLES = 24  # samples of a ray in these views
# Largest relative difference of their means. Samples on a cell's border may fall to either side.
TOLERANCE = 2.0e-3
FAILURES = (
    RuntimeError,
    ImportError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    subprocess.SubprocessError,
)


def nerfacc_march(device: torch.device) -> March:
    """The `March` by nerfacc, after a comparison with ours on `device`.

    Raises:
        UserError: nerfacc is not installed, does not work on this device, or differs from ours.
    """
    if device.type != "cuda":
        raise UserError("cuda.compositor=nerfacc needs a CUDA device; use cuda.compositor=torch")
    try:
        import nerfacc

        march = March(occupied_by(nerfacc_traverse), packed_exclusive_sum(nerfacc.exclusive_sum))
        problem = check_march(march, device)
    except FAILURES as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if problem:
        raise UserError(
            f"cuda.compositor=nerfacc does not work here ({problem}); use cuda.compositor=torch"
        )
    return march


def nerfacc_traverse(
    origins: Tensor, directions: Tensor, cells: Tensor, near: Tensor, far: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """`Traverse` by `nerfacc.traverse_grids`.

    Args:
        origins: Origins of the rays `[N, 3]`.
        directions: Their directions `[N, 3]`, of any length.
        cells: Occupied cells of the cube `[X, Y, Z]`, bool.
        near: Where each ray starts `[N]`, in units of its direction.
        far: Where it ends `[N]`.
        step: Length of an interval, in units of the direction.

    Returns:
        Ray `[M]` and middle `[M]` of the intervals in occupied cells.
    """
    import nerfacc

    box = torch.tensor([[-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]], device=origins.device)
    found = nerfacc.traverse_grids(origins, directions, cells[None], box, near, far, step_size=step)
    intervals, samples = found[0], found[1]
    middle = 0.5 * (intervals.vals[intervals.is_left] + intervals.vals[intervals.is_right])
    return samples.ray_indices.long(), middle


def occupied_by(
    traverse: Traverse,
) -> Callable[[Rays, Tensor, Tensor, int, OccupancyGrid | None], Tensor]:
    """`March.occupied` by a `traverse`; without an occupancy grid it returns every sample."""

    def occupied(
        rays: Rays, start: Tensor, step: Tensor, samples: int, occupancy: OccupancyGrid | None
    ) -> Tensor:
        """See `vp3d.render.volume.occupied_samples`.

        Args:
            rays: N rays.
            start: First sample of each ray `[N]` >= 0.
            step: Spacing on each ray `[N]` >= 0.
            samples: Samples of a ray, S.
            occupancy: Cells that contain matter; None for all.

        Returns:
            Flat numbers `[M]` of the samples in occupied cells, ascending.
        """
        hit = torch.nonzero(step > 0).squeeze(1)
        if occupancy is None or not len(hit):
            return occupied_samples(rays, start, step, samples, occupancy)
        rays, start, step = rays[hit], start.index_select(0, hit), step.index_select(0, hit)
        near, _ = box_interval(rays)
        unit = 2.0 / samples
        offset = (start - near) / step
        entry = rays.origins + near[:, None] * rays.directions
        stretched = rays.directions * (step / unit)[:, None]
        first = (offset - 0.5) * unit
        cells = occupancy.mask.permute(2, 1, 0)
        ray, middle = traverse(entry, stretched, cells, first, first + samples * unit, unit)
        number = (middle / unit - offset.index_select(0, ray)).round().long().clamp(0, samples - 1)
        flat = hit.index_select(0, ray) * samples + number
        return flat.unique()

    return occupied


def packed_exclusive_sum(
    scan: Callable[..., Tensor],
) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """`March.exclusive_sum` by a packed scan.

    `scan(values [M], packed_info=[N, 2] (first, count) int64)` returns the exclusive sums `[M]`.
    """

    def exclusive_sum(tau: Tensor, flat: Tensor, counts: Tensor, samples: int) -> Tensor:
        """Sum of `tau [M]` >= 0 over the samples before each one on its ray: `[M]` >= 0."""
        packed = torch.stack([counts.cumsum(0) - counts, counts], dim=-1)
        return scan(tau.contiguous(), packed_info=packed)

    return exclusive_sum


def check_march(march: March, device: torch.device) -> str:
    """Compare `march` with `DENSE` on two views of a random field with half of its cells empty.

    Returns:
        "" if pictures and gradients agree; otherwise the difference in words.
    """
    generator = torch.Generator().manual_seed(0)
    field = GridField(FieldConfig(resolution=16), generator)
    with torch.no_grad():
        field.raw_density.copy_(2.0 * torch.randn(field.raw_density.shape, generator=generator))
    config = RenderConfig(samples=CHECK_SAMPLES, occupancy_resolution=8)
    occupancy = OccupancyGrid(config)
    occupancy.mask.copy_(torch.rand(occupancy.mask.shape, generator=generator) > 0.5)
    field, occupancy = field.to(device), occupancy.to(device)
    rays = camera_rays(ring(2, 20.0, 2.9, 60.0).to(device), CHECK_SIZE, CHECK_SIZE)
    start, step = ray_bins(rays, CHECK_SAMPLES, generator)
    color_weight = torch.tensor([1.0, 2.0, 3.0], device=device)
    found = []
    for candidate in (march, DENSE):
        render = render_rays_torch(field, rays, start, step, config, occupancy, march=candidate)
        total = (render.rgb * color_weight).sum() + render.depth.sum()
        (gradient,) = torch.autograd.grad(total, field.raw_density)
        values = [render.rgb, render.opacity[:, None], render.depth[:, None]]
        found.append((torch.cat(values, dim=-1).detach(), gradient))
    for name, ours, theirs in zip(("picture", "gradient"), *found, strict=True):
        error = float((ours - theirs).abs().mean() / theirs.abs().mean())
        if not error <= TOLERANCE:  # also true for NaN
            return f"its {name} differs from ours by {error:.1e}"
    return ""

"""nerfacc behind the torch route of `volume.py`: its grid traversal finds the samples, its packed scan sums along the rays.

nerfacc (Li et al. 2023, arXiv 2305.04966) is optional and compiles its kernels on the user's machine; it is imported when
`cuda.compositor` asks for it and nowhere else. Samples stand where `volume.py` puts them, so both give the same picture but
for samples within rounding of a cell's border. What it saves is memory: no tensor of all (rays, samples) is made.

nerfacc marches all rays at one step, ours each have their own. So a ray is handed over from where it enters the cube, with a
direction stretched such that its own step is `unit` long: sample i then has its middle at (place + i) * unit, where place in
[0, 1) says how far into the first bin the first sample lies.
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
from vp3d.render.occupancy import OccupancyGrid, box_interval
from vp3d.render.volume import DENSE, March, occupied_samples, ray_bins, render_rays_torch
from vp3d.types import Rays

# (origins [N, 3], directions [N, 3], cells [X, Y, Z] bool over the cube, near [N], far [N], step) -> ray [M], middle [M]:
# the steps near + (k + 1/2) * step, in units of the direction, whose middle lies in an occupied cell, in order of rays
Traverse = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
CHECK_SIZE, CHECK_SAMPLES = (
    12,
    24,
)  # pixels of a side, and samples a ray, of the views that `check_march` compares
TOLERANCE = (
    2.0e-3  # ... and how far their means may be apart; a sample on a border may fall to either side
)
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
    """The `March` by nerfacc, compared with ours on `device` first; UserError in one line where it cannot be used."""
    if device.type != "cuda":
        raise UserError("cuda.compositor=nerfacc needs a CUDA device; use cuda.compositor=torch")
    try:
        import nerfacc

        march = March(occupied_by(nerfacc_traverse), packed_ahead(nerfacc.exclusive_sum))
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
    """`Traverse` by `nerfacc.traverse_grids`: rays `[N, 3]`, cells `[X, Y, Z]` -> ray `[M]` and middle `[M]` of samples."""
    import nerfacc

    box = torch.tensor([[-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]], device=origins.device)
    found = nerfacc.traverse_grids(origins, directions, cells[None], box, near, far, step_size=step)
    intervals, samples = found[0], found[1]
    middle = 0.5 * (intervals.vals[intervals.is_left] + intervals.vals[intervals.is_right])
    return samples.ray_indices.long(), middle


def occupied_by(
    traverse: Traverse,
) -> Callable[[Rays, Tensor, Tensor, int, OccupancyGrid | None], Tensor]:
    """`March.occupied` by a `traverse`; without an occupancy grid every sample is taken."""

    def occupied(
        rays: Rays, start: Tensor, step: Tensor, samples: int, occupancy: OccupancyGrid | None
    ) -> Tensor:
        """Flat numbers `[M]` of the samples of rays [N] that lie in occupied cells; start and step `[N]` >= 0."""
        hit = torch.nonzero(step > 0).squeeze(1)
        if occupancy is None or not len(hit):
            return occupied_samples(rays, start, step, samples, occupancy)
        rays, start, step = rays[hit], start.index_select(0, hit), step.index_select(0, hit)
        near, _ = box_interval(rays)
        unit = 2.0 / samples
        place = (start - near) / step
        entry = rays.origins + near[:, None] * rays.directions
        stretched = rays.directions * (step / unit)[:, None]
        first = (place - 0.5) * unit
        cells = occupancy.mask.permute(2, 1, 0)
        ray, middle = traverse(entry, stretched, cells, first, first + samples * unit, unit)
        number = (middle / unit - place.index_select(0, ray)).round().long().clamp(0, samples - 1)
        flat = hit.index_select(0, ray) * samples + number
        return flat.unique()

    return occupied


def packed_ahead(
    exclusive_sum: Callable[..., Tensor],
) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """`March.ahead` by a packed scan: exclusive_sum(values [M], packed_info=[N, 2] (first, count) int64) -> [M]."""

    def ahead(tau: Tensor, flat: Tensor, counts: Tensor, samples: int) -> Tensor:
        """Thickness `[M]` >= 0 before each sample on its ray, from tau `[M]` >= 0 and counts `[N]`."""
        packed = torch.stack([counts.cumsum(0) - counts, counts], dim=-1)
        return exclusive_sum(tau.contiguous(), packed_info=packed)

    return ahead


def check_march(march: March, device: torch.device) -> str:
    """Compare `march` with ours on two views of a random field, half of it empty: "" or what differs."""
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
    found = []
    for route in (march, DENSE):
        render = render_rays_torch(field, rays, start, step, config, occupancy, march=route)
        total = (
            render.rgb * torch.tensor([1.0, 2.0, 3.0], device=device)
        ).sum() + render.depth.sum()
        (gradient,) = torch.autograd.grad(total, field.raw_density)
        found.append(
            (
                torch.cat(
                    [render.rgb, render.opacity[:, None], render.depth[:, None]], dim=-1
                ).detach(),
                gradient,
            )
        )
    for name, ours, theirs in zip(("picture", "gradient"), *found, strict=True):
        error = float((ours - theirs).abs().mean() / theirs.abs().mean())
        if not error <= TOLERANCE:
            return f"its {name} differs from ours by {error:.1e}"
    return ""

"""Volume rendering of a field inside the cube [-1, 1]^3.

Conventions: a ray is cut where it enters and leaves the cube, and the part between into S equal bins of length `step`.
Sample i lies at t_i = start + i * step, with `start` a uniformly random place in the first bin (one random number a ray, so
samples stay equally spaced) or its middle when no generator is given. The quadrature (Max 1995; NeRF, eq. 3) is

    tau_i = sigma_i * step,   T_i = exp(-sum_{j<i} tau_j),   w_i = T_i * (1 - exp(-tau_i)),   out = sum_i w_i * value_i

which is exact for constant density. Results are premultiplied by opacity (see vp3d.types.Render).

Three routes give the same numbers and gradients: `render_rays_reference` (a loop over samples; slow and clear), the torch
route of `render_rays` (skips empty space, any field, any device) and, for a GridField on a CPU, compiled kernels
(volume_numba.py), which the torch route is tested against. The torch route first finds the samples worth evaluating, then
evaluates them in chunks of whole rays that hold at most `RenderConfig.chunk` of them; more than one chunk is evaluated again
in the backward pass (Chen et al. 2016, arXiv 1604.06174), so that the graph of one chunk is all that is held at a time. What
finds the samples and sums along the rays is a `March`; another is in volume_cuda.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vp3d.config.schema import RenderConfig
from vp3d.errors import UserError
from vp3d.fields.base import Field
from vp3d.fields.grid import GridField
from vp3d.render.occupancy import LOOKED_THROUGH, OccupancyGrid, box_interval
from vp3d.render.shade import shade_render
from vp3d.system.out_of_memory import attempt
from vp3d.types import Rays, Render


def ray_bins(rays: Rays, samples: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """First sample and spacing on each ray: start `[N]` >= 0 and step `[N]` >= 0 (0 where the ray misses the cube)."""
    near, far = box_interval(rays)
    step = (far - near) / samples
    if generator is None:
        return near + 0.5 * step, step
    jitter = torch.rand(len(rays), generator=generator, device=generator.device).to(near.device)
    return near + jitter * step, step


@dataclass(frozen=True)
class March:
    """How the torch route walks along rays; samples are numbered flat, ray * S + i.

    occupied: (rays [N], start [N], step [N], S, occupancy or None) -> ascending flat numbers [M], int64, of the samples worth
        evaluating.
    ahead: (tau [M] >= 0, flat [M], counts [N], S) -> [M] >= 0, for each sample the sum of the thicknesses before it on its
        ray, differentiable; `counts` holds how many samples each ray has.
    """

    occupied: Callable[[Rays, Tensor, Tensor, int, OccupancyGrid | None], Tensor]
    ahead: Callable[[Tensor, Tensor, Tensor, int], Tensor]


def occupied_samples(
    rays: Rays, start: Tensor, step: Tensor, samples: int, occupancy: OccupancyGrid | None
) -> Tensor:
    """`March.occupied` by looking at every sample: rays [N], start and step `[N]` >= 0 -> `[M]`."""
    i = torch.arange(samples, device=start.device)
    keep = (step > 0)[:, None].expand(-1, samples)
    if occupancy is not None:
        t = start[:, None] + i * step[:, None]
        x = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
        keep = keep & occupancy.contains(x.reshape(-1, 3)).reshape(keep.shape)
    return torch.nonzero(keep.reshape(-1)).squeeze(1)


def dense_ahead(tau: Tensor, flat: Tensor, counts: Tensor, samples: int) -> Tensor:
    """`March.ahead` by a cumulative sum over `[N, S]`: tau `[M]` >= 0 -> `[M]` >= 0."""
    dense = torch.zeros(len(counts) * samples, dtype=tau.dtype, device=tau.device).scatter(
        0, flat, tau
    )
    dense = dense.reshape(-1, samples)
    return (dense.cumsum(-1) - dense).reshape(-1).index_select(0, flat)


DENSE = March(occupied_samples, dense_ahead)


def render_rays(
    field: Field,
    rays: Rays,
    config: RenderConfig,
    occupancy: OccupancyGrid | None = None,
    generator: torch.Generator | None = None,
    want_normal: bool = False,
    on_oom: Callable[[int], None] | None = None,
    march: March = DENSE,
) -> Render:
    """What `rays [N]` see of `field`: rgb `[N, 3]`, opacity `[N]` in [0, 1], depth `[N]` >= 0, normal `[N, 3]` or None.

    Differentiable in the field's parameters. `generator` jitters the samples; without one they sit in the middle of their
    bins. With `config.shading` "lambert" the rgb is lit (deferred, see vp3d.render.shade) and normals come along. When
    memory runs out the chunk (`config.chunk` samples) is halved and work goes on; `on_oom` is told the new chunk, so that
    the caller can log it and keep it.
    """
    if config.samples < 1 or config.shading not in ("albedo", "lambert"):
        raise UserError(
            f'render needs samples >= 1 and shading "albedo" or "lambert", got {config.samples}, "{config.shading}"'
        )
    lit = config.shading == "lambert"
    start, step = ray_bins(rays, config.samples, generator)
    if isinstance(field, GridField) and start.device.type == "cpu" and not start.requires_grad:
        from vp3d.render.volume_numba import render_grid  # compiled code: imported only when used

        render = render_grid(
            field, rays, start, step, config.samples, occupancy, want_normal or lit
        )
    else:
        render = render_rays_torch(
            field, rays, start, step, config, occupancy, want_normal or lit, on_oom, march
        )
    return shade_render(render) if lit else render


def render_rays_torch(
    field: Field,
    rays: Rays,
    start: Tensor,
    step: Tensor,
    config: RenderConfig,
    occupancy: OccupancyGrid | None = None,
    want_normal: bool = False,
    on_oom: Callable[[int], None] | None = None,
    march: March = DENSE,
) -> Render:
    """The torch route of `render_rays` (unlit), for samples at start + i * step (`[N]` each), in chunks of whole rays."""
    chunk, found = config.chunk, None
    while found is None and len(rays):
        found = attempt(
            partial(_find, rays, start, step, config.samples, occupancy, march, chunk), chunk > 1
        )
        if found is None:
            chunk = _less(chunk, len(rays) * config.samples // LOOKED_THROUGH, on_oom)
    if found is None:
        none = rays.origins.new_zeros(0)
        return Render(none.reshape(0, 3), none, none, none.reshape(0, 3) if want_normal else None)
    flat, counts = found
    ends, parts, first, done = counts.cumsum(0), [], 0, 0
    while first < len(rays):
        last = max(int(torch.searchsorted(ends, done + chunk, right=True)), first + 1)
        piece, until = slice(first, last), int(ends[last - 1])
        ours = flat[done:until] - first * config.samples
        arguments = (
            field,
            rays[piece],
            start[piece],
            step[piece],
            config.samples,
            ours,
            counts[piece],
            want_normal,
            march,
        )
        again = len(ours) < len(flat) and torch.is_grad_enabled()
        part = attempt(
            partial(_composite_again if again else _composite, *arguments), last - first > 1
        )
        if part is None:
            chunk = _less(chunk, len(ours), on_oom)
            continue
        parts.append(part)
        first, done = last, until
    return _concatenate(parts, want_normal)


def render_rays_reference(
    field: Field, rays: Rays, start: Tensor, step: Tensor, samples: int, want_normal: bool = False
) -> Render:
    """The quadrature as it is written at the top of this module, sample by sample, nothing skipped (unlit)."""
    transmittance = torch.ones_like(step)
    rgb, normal = torch.zeros_like(rays.origins), torch.zeros_like(rays.origins)
    opacity, depth = torch.zeros_like(step), torch.zeros_like(step)
    for i in range(samples):
        t = start + i * step
        x = rays.origins + t[:, None] * rays.directions
        sigma, albedo = field(x)
        alpha = 1.0 - torch.exp(-sigma * step)
        weight = transmittance * alpha
        rgb = rgb + weight[:, None] * albedo
        opacity = opacity + weight
        depth = depth + weight * t
        if want_normal:
            normal = normal + weight[:, None] * field.normal(x)
        transmittance = transmittance * (1.0 - alpha)
    return Render(rgb, opacity, depth, normal if want_normal else None)


def _find(
    rays: Rays,
    start: Tensor,
    step: Tensor,
    samples: int,
    occupancy: OccupancyGrid | None,
    march: March,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The flat numbers `[M]` of the samples worth evaluating and how many each ray has `[N]`; N >= 1.

    Where there is none, one stands in, so that the result still hangs on the field: M >= 1.
    """
    rays_at_once = max(LOOKED_THROUGH * chunk // samples, 1)
    found = []
    with torch.no_grad():
        for first in range(0, len(rays), rays_at_once):
            piece = slice(first, first + rays_at_once)
            found.append(
                march.occupied(rays[piece], start[piece], step[piece], samples, occupancy)
                + first * samples
            )
        flat = torch.cat(found)
        flat = flat if len(flat) else flat.new_zeros(1)
        return flat, torch.bincount(flat // samples, minlength=len(rays))


def _composite(
    field: Field,
    rays: Rays,
    start: Tensor,
    step: Tensor,
    samples: int,
    flat: Tensor,
    counts: Tensor,
    want_normal: bool,
    march: March,
) -> Render:
    """One chunk: evaluate the field on the flat list of M samples, `counts` of each ray, and composite per ray.

    Colours stay flat and are summed per ray by segments (the list is in ray order), which is faster than index_add and has
    one fixed order of summation.
    """
    ray = flat // samples
    spacing = step.index_select(0, ray)
    t = start.index_select(0, ray) + (flat % samples) * spacing
    x = rays.origins.index_select(0, ray) + t[:, None] * rays.directions.index_select(0, ray)
    sigma, albedo = field(x)
    tau = sigma * spacing
    weight = -torch.exp(-march.ahead(tau, flat, counts, samples)) * torch.expm1(-tau)
    values = [albedo, torch.ones_like(t)[:, None], t[:, None]] + (
        [field.normal(x)] if want_normal else []
    )
    weighted = weight[:, None] * torch.cat(values, dim=-1)
    out = torch.segment_reduce(weighted, "sum", lengths=counts, axis=0)
    return Render(out[:, :3], out[:, 3], out[:, 4], out[:, 5:8] if want_normal else None)


def _composite_again(*arguments: Any) -> Render:
    """`_composite` that keeps nothing for the backward pass and is evaluated again there; nothing in it draws by chance."""
    render: Render = checkpoint(
        _composite, *arguments, use_reentrant=False, preserve_rng_state=False
    )
    return render


def _less(chunk: int, used: int, on_oom: Callable[[int], None] | None) -> int:
    """The samples at once after `used` of at most `chunk` were too many; `on_oom` is told."""
    chunk = max(min(chunk, used) // 2, 1)
    if on_oom is not None:
        on_oom(chunk)
    return chunk


def _concatenate(parts: list[Render], want_normal: bool) -> Render:
    """Chunks of rays put end to end."""
    normals = [part.normal for part in parts if part.normal is not None]
    return Render(
        torch.cat([part.rgb for part in parts]),
        torch.cat([part.opacity for part in parts]),
        torch.cat([part.depth for part in parts]),
        torch.cat(normals) if want_normal else None,
    )

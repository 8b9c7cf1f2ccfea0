"""Volume rendering of a field inside the cube [-1, 1]^3.

Conventions: the part of a ray inside the cube is divided into S equal bins of length `step`. Sample
i is at t_i = start + i * step. With a generator, `start` is uniformly random in the first bin (one
random number a ray, so samples stay equally spaced); without one it is the middle of that bin. The
quadrature (Max 1995; NeRF, Mildenhall et al. 2020, eq. 3) is

    tau_i = sigma_i * step                     optical thickness of a bin
    T_i   = exp(-sum_{j<i} tau_j)              transmittance before it
    w_i   = T_i * (1 - exp(-tau_i))            weight
    out   = sum_i w_i * value_i

It is exact for constant density. Results are premultiplied by opacity (see `vp3d.types.Render`).

Three implementations give the same numbers and gradients:

* `render_rays_reference`: a loop over samples, slow and clear;
* `render_rays_torch`: skips empty space; any field, any device;
* `volume_numba.render_grid`: compiled kernels for a GridField on a CPU.

`render_rays` chooses between the last two. The torch implementation first finds the samples in
occupied cells. It then evaluates them in chunks of complete rays, at most `RenderConfig.chunk`
samples each. If there is more than one chunk, each is evaluated again in the backward pass
(Chen et al. 2016, arXiv 1604.06174), so only the graph of one chunk is in memory at a time. A
`March` finds the samples and sums along the rays; volume_cuda.py has one for nerfacc.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vp3d.config.schema import RenderConfig
from vp3d.errors import UserError
from vp3d.fields.base import Field
from vp3d.fields.grid import GridField
from vp3d.render.occupancy import OccupancyGrid
from vp3d.render.shade import shade_render
from vp3d.system.out_of_memory import attempt
from vp3d.types import Rays, Render

# Finding a sample takes about 60 bytes, evaluating one 0.6 to 2.5 KB. So for each sample that is
# evaluated at once, this many are tested at once.
TESTED_PER_EVALUATED = 16


def box_interval(rays: Rays) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave [-1, 1]^3.

    Returns:
        near and far `[N]`, 0 <= near <= far. They are equal for a ray that misses the cube.
    """
    direction = rays.directions
    safe = torch.where(direction.abs() < 1e-9, torch.full_like(direction, 1e-9), direction)
    to_low, to_high = (-1.0 - rays.origins) / safe, (1.0 - rays.origins) / safe
    near = torch.minimum(to_low, to_high).amax(-1).clamp_min(0.0)
    far = torch.maximum(to_low, to_high).amin(-1)
    return near, torch.maximum(near, far)


def ray_bins(rays: Rays, samples: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """First sample and spacing on each ray.

    Args:
        rays: N rays.
        samples: Samples of a ray, S.
        generator: Source of the jitter; None puts the samples into the middle of their bins.

    Returns:
        start `[N]` >= 0 and step `[N]` >= 0; step is 0 for a ray that misses the cube.
    """
    near, far = box_interval(rays)
    step = (far - near) / samples
    if generator is None:
        return near + 0.5 * step, step
    jitter = torch.rand(len(rays), generator=generator, device=generator.device).to(near.device)
    return near + jitter * step, step


@dataclass(frozen=True)
class March:
    """Two operations of the torch implementation. Samples are numbered flat, ray * S + i.

    Attributes:
        occupied: (rays [N], start [N], step [N], S, occupancy or None) -> `[M]` int64, ascending:
            the flat numbers of the samples to evaluate.
        exclusive_sum: (tau [M] >= 0, flat [M], counts [N], S) -> `[M]` >= 0, differentiable: for
            each sample the sum of tau over the samples before it on its ray. `counts` holds the
            number of samples of each ray.
    """

    occupied: Callable[[Rays, Tensor, Tensor, int, OccupancyGrid | None], Tensor]
    exclusive_sum: Callable[[Tensor, Tensor, Tensor, int], Tensor]


def occupied_samples(
    rays: Rays, start: Tensor, step: Tensor, samples: int, occupancy: OccupancyGrid | None
) -> Tensor:
    """`March.occupied` that tests every sample.

    Args:
        rays: N rays.
        start: First sample of each ray `[N]` >= 0.
        step: Spacing on each ray `[N]` >= 0.
        samples: Samples of a ray, S.
        occupancy: Cells that contain matter; None for all.

    Returns:
        Flat numbers `[M]` of the samples in occupied cells, ascending.
    """
    i = torch.arange(samples, device=start.device)
    keep = (step > 0)[:, None].expand(-1, samples)
    if occupancy is not None:
        t = start[:, None] + i * step[:, None]
        x = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
        keep = keep & occupancy.contains(x.reshape(-1, 3)).reshape(keep.shape)
    return torch.nonzero(keep.reshape(-1)).squeeze(1)


def dense_exclusive_sum(tau: Tensor, flat: Tensor, counts: Tensor, samples: int) -> Tensor:
    """`March.exclusive_sum` by a cumulative sum over a dense tensor `[N, S]`."""
    zeros = torch.zeros(len(counts) * samples, dtype=tau.dtype, device=tau.device)
    dense = zeros.scatter(0, flat, tau).reshape(-1, samples)
    return (dense.cumsum(-1) - dense).reshape(-1).index_select(0, flat)


DENSE = March(occupied_samples, dense_exclusive_sum)


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
    """Render a field along rays; differentiable in the parameters of the field.

    Args:
        field: The field, on the device of the rays.
        rays: N rays.
        config: Samples a ray, chunk and shading. With shading "lambert" the colour is lit
            (deferred, see vp3d.render.shade) and normals are returned too.
        occupancy: Cells that contain matter; samples elsewhere are skipped. None for all.
        generator: Source of the jitter of the samples; None puts them into the middle of the bins.
        want_normal: Whether to compute normals.
        on_oom: Called with the new chunk size each time the chunk is halved because memory ran
            out, so that the caller can log and keep it.
        march: How the torch implementation finds samples and sums along rays.

    Returns:
        rgb `[N, 3]`, opacity `[N]` in [0, 1], depth `[N]` >= 0, normal `[N, 3]` or None.

    Raises:
        UserError: The number of samples or the shading is invalid.

    Example:
        >>> import torch
        >>> from vp3d.config.schema import FieldConfig
        >>> from vp3d.render.camera import camera_rays, ring
        >>> field = GridField(FieldConfig(resolution=16), torch.Generator().manual_seed(0))
        >>> rays = camera_rays(ring(2, 20.0, 2.9, 40.0), 8, 8)
        >>> render_rays(field, rays, RenderConfig()).rgb.shape
        torch.Size([128, 3])
    """
    if config.samples < 1 or config.shading not in ("albedo", "lambert"):
        raise UserError(
            'rendering needs samples >= 1 and shading "albedo" or "lambert", '
            f'got {config.samples} and "{config.shading}"'
        )
    lit = config.shading == "lambert"
    normals = want_normal or lit
    start, step = ray_bins(rays, config.samples, generator)
    if isinstance(field, GridField) and start.device.type == "cpu" and not start.requires_grad:
        from vp3d.render.volume_numba import render_grid  # compiled code: imported only when used

        render = render_grid(field, rays, start, step, config.samples, occupancy, normals)
    else:
        render = render_rays_torch(
            field, rays, start, step, config, occupancy, normals, on_oom, march
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
    """The torch implementation of `render_rays`, unlit.

    Args:
        field: The field, on the device of the rays.
        rays: N rays.
        start: First sample of each ray `[N]`.
        step: Spacing on each ray `[N]`.
        config: Samples a ray, and samples evaluated at once (`chunk`).
        occupancy: Cells that contain matter; None for all.
        want_normal: Whether to compute normals.
        on_oom: Called with the new chunk size when memory ran out.
        march: How to find samples and sum along rays.

    Returns:
        The Render of the N rays.
    """
    chunk, found = config.chunk, None
    while found is None and len(rays):
        find = partial(_find_samples, rays, start, step, config.samples, occupancy, march, chunk)
        found = attempt(find, chunk > 1)
        if found is None:
            tested = len(rays) * config.samples // TESTED_PER_EVALUATED
            chunk = _smaller_chunk(chunk, tested, on_oom)
    if found is None:
        none = rays.origins.new_zeros(0)
        return Render(none.reshape(0, 3), none, none, none.reshape(0, 3) if want_normal else None)
    flat, counts = found
    ends = counts.cumsum(0)  # number of samples up to the end of each ray
    parts, first, done = [], 0, 0
    while first < len(rays):
        last = max(int(torch.searchsorted(ends, done + chunk, right=True)), first + 1)
        piece, end = slice(first, last), int(ends[last - 1])
        numbers = flat[done:end] - first * config.samples
        recompute = len(numbers) < len(flat) and torch.is_grad_enabled()
        composite = partial(
            _composite_checkpointed if recompute else _composite,
            field,
            rays[piece],
            start[piece],
            step[piece],
            config.samples,
            numbers,
            counts[piece],
            want_normal,
            march,
        )
        part = attempt(composite, last - first > 1)
        if part is None:
            chunk = _smaller_chunk(chunk, len(numbers), on_oom)
            continue
        parts.append(part)
        first, done = last, end
    return replace(_concatenate(parts, want_normal), evaluated=len(flat))


def render_rays_reference(
    field: Field, rays: Rays, start: Tensor, step: Tensor, samples: int, want_normal: bool = False
) -> Render:
    """The quadrature at the top of this module, sample by sample, unlit; nothing is skipped.

    Args:
        field: The field, on the device of the rays.
        rays: N rays.
        start: First sample of each ray `[N]`.
        step: Spacing on each ray `[N]`.
        samples: Samples of a ray, S.
        want_normal: Whether to compute normals.

    Returns:
        The Render of the N rays.
    """
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


def _find_samples(
    rays: Rays,
    start: Tensor,
    step: Tensor,
    samples: int,
    occupancy: OccupancyGrid | None,
    march: March,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Flat numbers `[M]` of the samples to evaluate, and the count of each ray `[N]`; N >= 1.

    M is at least 1: if no sample is in an occupied cell, the first sample of the first ray is
    returned, so that the result still depends on the field and can be differentiated.
    """
    rays_at_once = max(TESTED_PER_EVALUATED * chunk // samples, 1)
    found = []
    with torch.no_grad():
        for first in range(0, len(rays), rays_at_once):
            piece = slice(first, first + rays_at_once)
            numbers = march.occupied(rays[piece], start[piece], step[piece], samples, occupancy)
            found.append(numbers + first * samples)
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
    """Evaluate the field on one chunk of M samples, `counts [N]` of each ray, and composite.

    Values stay flat and are summed in segments, one for each ray, as the samples are in ray order.
    This is faster than index_add and has one fixed order of summation.
    """
    ray = flat // samples
    spacing = step.index_select(0, ray)
    t = start.index_select(0, ray) + (flat % samples) * spacing
    x = rays.origins.index_select(0, ray) + t[:, None] * rays.directions.index_select(0, ray)
    sigma, albedo = field(x)
    tau = sigma * spacing
    weight = -torch.exp(-march.exclusive_sum(tau, flat, counts, samples)) * torch.expm1(-tau)
    values = [albedo, torch.ones_like(t)[:, None], t[:, None]]
    if want_normal:
        values.append(field.normal(x))
    weighted = weight[:, None] * torch.cat(values, dim=-1)
    out = torch.segment_reduce(weighted, "sum", lengths=counts, axis=0)
    return Render(out[:, :3], out[:, 3], out[:, 4], out[:, 5:8] if want_normal else None)


def _composite_checkpointed(*arguments: Any) -> Render:
    """`_composite` that stores nothing for the backward pass and is evaluated again in it.

    It draws no random numbers, so their state need not be restored.
    """
    render: Render = checkpoint(
        _composite, *arguments, use_reentrant=False, preserve_rng_state=False
    )
    return render


def _smaller_chunk(chunk: int, used: int, on_oom: Callable[[int], None] | None) -> int:
    """The next chunk size after memory ran out on `used` samples of a chunk of at most `chunk`."""
    chunk = max(min(chunk, used) // 2, 1)
    if on_oom is not None:
        on_oom(chunk)
    return chunk


def _concatenate(parts: list[Render], want_normal: bool) -> Render:
    """The Renders of consecutive rays as one."""
    normals = [part.normal for part in parts if part.normal is not None]
    return Render(
        torch.cat([part.rgb for part in parts]),
        torch.cat([part.opacity for part in parts]),
        torch.cat([part.depth for part in parts]),
        torch.cat(normals) if want_normal else None,
    )

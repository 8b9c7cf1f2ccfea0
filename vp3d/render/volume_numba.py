"""Compiled CPU kernels that render a GridField: one forward pass, one backward pass.

Conventions: the quadrature and its symbols (t_i, tau_i, T_i, w_i) are those of
vp3d/render/volume.py. A ray ends where T falls below MIN_TRANSMITTANCE. Node tables are
`[R^3, 4]` float32, nodes in the order x fastest, then y, then z: `nodes` holds raw density and raw
albedo, `slopes` the negative gradient of the raw density and one unused channel. Results are rows
`[N, 8]`: rgb, opacity, depth, normal.

Backward, with g the gradient of a ray's row and c_i = (albedo_i, 1, t_i, n_i) the values that
sample i adds per unit of weight:

    dL/dw_i     = g . c_i
    dL/dsigma_i = step * (T_{i+1} g . c_i - sum_{j>i} w_j g . c_j)

The last sum is g . row minus its terms up to i, so nothing is stored between the two passes.

The bytes of a result do not depend on the number of threads: rays are divided into BLOCKS fixed
blocks, each block adds into its own gradient table in ray order, and the tables are summed in block
order. Threads are plain Python threads, as many as torch may use; the kernels release the
interpreter lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vp3d.fields.grid import GridField
from vp3d.render.occupancy import OccupancyGrid
from vp3d.system.compiled import compiled
from vp3d.types import Rays, Render

BLOCKS = 4
MIN_TRANSMITTANCE = 1e-4
# float32 constants: a Python float would turn the kernels' arithmetic into float64.
ZERO, HALF, ONE, TWENTY, TINY = (np.float32(v) for v in (0.0, 0.5, 1.0, 20.0, 1e-9))
Array = np.ndarray[Any, Any]
Scalar = Any  # a float32 inside the kernels, a Python float outside
_compile = compiled(nogil=True, fastmath={"contract", "reassoc", "arcp", "nsz"})


@_compile
def _softplus(raw: Scalar) -> Scalar:
    """log(1 + exp(raw)), >= 0."""
    return raw if raw > TWENTY else math.log1p(math.exp(raw))


@_compile
def _sigmoid(raw: Scalar) -> Scalar:
    """1 / (1 + exp(-raw)), in [0, 1]."""
    return ONE / (ONE + math.exp(-raw))


@_compile
def _cell(p: Scalar, side: int) -> tuple[int, Scalar]:
    """Lower node, and position inside its cell in [0, 1], of p in [-1, 1] among `side` nodes."""
    last = np.float32(side - 1)
    u = min(max((p + ONE) * HALF * last, ZERO), last)
    node = min(int(u), side - 2)
    return node, u - np.float32(node)


@_compile
def _corners(x: Scalar, y: Scalar, z: Scalar, side: int, weight: Array, row: Array) -> None:
    """Write trilinear weights `[8]` (sum 1) and table rows `[8]` of the nodes around a point."""
    i, fx = _cell(x, side)
    j, fy = _cell(y, side)
    k, fz = _cell(z, side)
    base = i + side * (j + side * k)
    for c in range(8):
        dx, dy, dz = c & 1, (c >> 1) & 1, c >> 2
        row[c] = base + dx + side * (dy + side * dz)
        weight[c] = (fx if dx else ONE - fx) * (fy if dy else ONE - fy) * (fz if dz else ONE - fz)


@_compile
def _gather(table: Array, weight: Array, row: Array) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """Four channels of the sum over the 8 corners of weight * table[row]."""
    a, b, c, d = ZERO, ZERO, ZERO, ZERO
    for k in range(8):
        w, r = weight[k], row[k]
        a += w * table[r, 0]
        b += w * table[r, 1]
        c += w * table[r, 2]
        d += w * table[r, 3]
    return a, b, c, d


@_compile
def _scatter(
    table: Array, weight: Array, row: Array, a: Scalar, b: Scalar, c: Scalar, d: Scalar
) -> None:
    """table[row] += weight * (a, b, c, d): the transpose of `_gather`."""
    for k in range(8):
        w, r = weight[k], row[k]
        table[r, 0] += w * a
        table[r, 1] += w * b
        table[r, 2] += w * c
        table[r, 3] += w * d


@_compile
def _occupied(x: Scalar, y: Scalar, z: Scalar, mask: Array, side: int) -> bool:
    """Whether a point is in an occupied cell of the flat mask `[side^3]`; always if side is 0."""
    if side == 0:
        return True
    half = HALF * np.float32(side)
    i = min(max(int((x + ONE) * half), 0), side - 1)
    j = min(max(int((y + ONE) * half), 0), side - 1)
    k = min(max(int((z + ONE) * half), 0), side - 1)
    return mask[np.uint64(i + side * (j + side * k))]


@_compile
def _unit(x: Scalar, y: Scalar, z: Scalar) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """Unit vector and inverse length of a vector; both are 0 if its length is at most TINY."""
    length = math.sqrt(x * x + y * y + z * z)
    inverse = ONE / length if length > TINY else ZERO
    return x * inverse, y * inverse, z * inverse, inverse


@_compile
def _forward(
    nodes: Array,
    slopes: Array,
    side: int,
    mask: Array,
    mask_side: int,
    rays: Array,
    samples: int,
    first: int,
    last: int,
    out: Array,
) -> int:
    """Write rows first to last - 1 of out `[N, 8]`; returns the number of evaluated samples.

    rays `[N, 8]` hold origin, direction, start and step. Without rows in slopes there are no
    normals.
    """
    weight, row = np.empty(8, np.float32), np.empty(8, np.uint64)
    evaluated = 0
    for r in range(first, last):
        ox, oy, oz, dx, dy, dz, start, step = rays[r]
        transmittance = ONE
        for s in range(samples if step > ZERO else 0):
            t = start + np.float32(s) * step
            x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
            if not _occupied(x, y, z, mask, mask_side):
                continue
            _corners(x, y, z, side, weight, row)
            raw, red, green, blue = _gather(nodes, weight, row)
            evaluated += 1
            behind = transmittance * math.exp(-_softplus(raw) * step)
            w = transmittance - behind
            out[r, 0] += w * _sigmoid(red)
            out[r, 1] += w * _sigmoid(green)
            out[r, 2] += w * _sigmoid(blue)
            out[r, 3] += w
            out[r, 4] += w * t
            if slopes.shape[0] > 0:
                gx, gy, gz, _ = _gather(slopes, weight, row)
                nx, ny, nz, _ = _unit(gx, gy, gz)
                out[r, 5] += w * nx
                out[r, 6] += w * ny
                out[r, 7] += w * nz
            transmittance = behind
            if transmittance < MIN_TRANSMITTANCE:
                break
    return evaluated


@_compile
def _normal_backward(
    slopes: Array, g: Array, w: Scalar, weight: Array, row: Array, d_slopes: Array
) -> Scalar:
    """g . n of a sample with weight w and unit normal n.

    Adds w * (g - n (g . n)) / length, the gradient of the normalisation, to d_slopes.
    """
    gx, gy, gz, _ = _gather(slopes, weight, row)
    nx, ny, nz, inverse = _unit(gx, gy, gz)
    along = g[5] * nx + g[6] * ny + g[7] * nz
    scale = w * inverse
    dx, dy, dz = (
        scale * (g[5] - nx * along),
        scale * (g[6] - ny * along),
        scale * (g[7] - nz * along),
    )
    _scatter(d_slopes, weight, row, dx, dy, dz, ZERO)
    return along


@_compile
def _backward(
    nodes: Array,
    slopes: Array,
    side: int,
    mask: Array,
    mask_side: int,
    rays: Array,
    samples: int,
    first: int,
    last: int,
    out: Array,
    grad: Array,
    d_nodes: Array,
    d_slopes: Array,
) -> None:
    """Add the gradients of rows first to last - 1 to d_nodes and d_slopes `[R^3, 4]`.

    grad `[N, 8]` is the gradient of out `[N, 8]`; the other arrays are those of `_forward`.
    """
    weight, row = np.empty(8, np.float32), np.empty(8, np.uint64)
    for r in range(first, last):
        ox, oy, oz, dx, dy, dz, start, step = rays[r]
        g = grad[r]
        remaining = 0.0  # sum over the samples not yet passed of w_j g . c_j
        for c in range(8):
            remaining += g[c] * out[r, c]
        transmittance = ONE
        for s in range(samples if step > ZERO else 0):
            t = start + np.float32(s) * step
            x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
            if not _occupied(x, y, z, mask, mask_side):
                continue
            _corners(x, y, z, side, weight, row)
            raw, red, green, blue = _gather(nodes, weight, row)
            red, green, blue = _sigmoid(red), _sigmoid(green), _sigmoid(blue)
            behind = transmittance * math.exp(-_softplus(raw) * step)
            w = transmittance - behind
            gain = g[0] * red + g[1] * green + g[2] * blue + g[3] + g[4] * t
            if slopes.shape[0] > 0:
                gain += _normal_backward(slopes, g, w, weight, row, d_slopes)
            remaining -= w * gain
            d_raw = step * (behind * gain - np.float32(remaining)) * _sigmoid(raw)
            red, green, blue = red * (ONE - red), green * (ONE - green), blue * (ONE - blue)
            _scatter(d_nodes, weight, row, d_raw, w * g[0] * red, w * g[1] * green, w * g[2] * blue)
            transmittance = behind
            if transmittance < MIN_TRANSMITTANCE:
                break


class _MarchGrid(torch.autograd.Function):
    """Rows `[N, 8]` of rays through node tables; differentiable in the tables only."""

    @staticmethod
    def forward(
        ctx: Any, nodes: Tensor, slopes: Tensor, side: int, mask: Tensor, rays: Tensor, samples: int
    ) -> tuple[Tensor, Tensor]:
        """Rows `[N, 8]`, and the number of evaluated samples in each block `[BLOCKS]` int64.

        Args:
            ctx: Context of torch.autograd.
            nodes: Raw density and albedo of the nodes `[R^3, 4]`.
            slopes: Negative density gradients of the nodes `[R^3, 4]`, or `[0, 4]` for no normals.
            side: Nodes of a side, R.
            mask: Occupied cells, flat bool `[side^3]`; `[0]` for all.
            rays: Origin, direction, start and step of each ray `[N, 8]`.
            samples: Samples of a ray.
        """
        out = torch.zeros(len(rays), 8)
        ctx.save_for_backward(nodes, slopes, mask, rays, out)
        ctx.sizes = (side, samples)
        tables = _kernel_inputs(nodes, slopes, side, mask, rays, samples)
        rows, evaluated = out.numpy(), torch.zeros(BLOCKS, dtype=torch.int64)

        def work(block: int, first: int, last: int) -> None:
            evaluated[block] = _forward(*tables, first, last, rows)

        _run_blocks(len(rays), work)
        ctx.mark_non_differentiable(evaluated)
        return out, evaluated

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of nodes and slopes `[R^3, 4]`; None for the other arguments."""
        nodes, slopes, mask, rays, out = ctx.saved_tensors
        side, samples = ctx.sizes
        tables = _kernel_inputs(nodes, slopes, side, mask, rays, samples)
        rows, grad = out.detach().numpy(), grad_outputs[0].detach().contiguous().numpy()
        d_nodes, d_slopes = torch.zeros(BLOCKS, *nodes.shape), torch.zeros(BLOCKS, *slopes.shape)
        to_nodes, to_slopes = d_nodes.numpy(), d_slopes.numpy()

        def work(block: int, first: int, last: int) -> None:
            _backward(*tables, first, last, rows, grad, to_nodes[block], to_slopes[block])

        _run_blocks(len(rays), work)
        return d_nodes.sum(0), d_slopes.sum(0), None, None, None, None


def _kernel_inputs(
    nodes: Tensor, slopes: Tensor, side: int, mask: Tensor, rays: Tensor, samples: int
) -> tuple[Any, ...]:
    """The first arguments of both kernels, as numpy arrays that share memory with the tensors."""
    arrays = [tensor.detach().numpy() for tensor in (nodes, slopes, mask, rays)]
    return arrays[0], arrays[1], side, arrays[2], _mask_side(mask), arrays[3], samples


def _mask_side(mask: Tensor) -> int:
    """Cells a side of a flat occupancy mask `[side^3]`."""
    return round(len(mask) ** (1.0 / 3.0))


def _run_blocks(rays: int, work: Callable[[int, int, int], None]) -> None:
    """Call work(block, first ray, end ray) for each block, on as many threads as torch may use."""
    edges = [rays * block // BLOCKS for block in range(BLOCKS + 1)]
    jobs = [(block, edges[block], edges[block + 1]) for block in range(BLOCKS)]
    threads = min(torch.get_num_threads(), BLOCKS)
    if threads == 1:
        for job in jobs:
            work(*job)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, *job) for job in jobs]:
            done.result()


def _node_table(values: Tensor) -> Tensor:
    """A node grid `[1, C, R, R, R]` with C <= 4 as a table `[R^3, 4]`; missing channels are 0."""
    table = values[0].flatten(1).T
    return torch.nn.functional.pad(table, (0, 4 - table.shape[1])).contiguous()


def render_grid(
    field: GridField,
    rays: Rays,
    start: Tensor,
    step: Tensor,
    samples: int,
    occupancy: OccupancyGrid | None,
    want_normal: bool,
) -> Render:
    """Render a GridField on the CPU, unlit; differentiable in its parameters.

    Args:
        field: The field.
        rays: N rays.
        start: First sample of each ray `[N]`.
        step: Spacing on each ray `[N]`; 0 for a ray that misses the cube.
        samples: Samples of a ray.
        occupancy: Cells that contain matter; None for all.
        want_normal: Whether to compute normals.

    Returns:
        The Render of the N rays.
    """
    nodes = _node_table(torch.cat([field.raw_density, field.raw_albedo], dim=1))
    slopes = _node_table(field.normal_grid()) if want_normal else nodes.new_zeros(0, 4)
    mask = torch.zeros(0, dtype=torch.bool) if occupancy is None else occupancy.mask.reshape(-1)
    parts = [rays.origins, rays.directions, start[:, None], step[:, None]]
    packed = torch.cat(parts, dim=1).detach().contiguous()
    out, evaluated = _MarchGrid.apply(nodes, slopes, field.resolution, mask, packed, samples)
    normal = out[:, 5:] if want_normal else None
    return Render(out[:, :3], out[:, 3], out[:, 4], normal, int(evaluated.sum()))

"""The encoding of `HashGridField` as two Triton kernels: forward and backward.

Nodes, rows, weights and layout are those of `hashgrid.py`, the reference. One program handles
`BLOCK` points of one level. The table may be float16 or float32. Positions, weights, sums and all
gradients are float32, so the gradient of the optimised float32 table is never rounded. The gradient
of the table is summed by atomic additions: on a GPU their order, and so the last bits, may differ
between two runs.

Triton compiles the kernels at run time. It contains a GPU compiler, but it builds a small launcher
with the C compiler of the machine (or the one that `CC` names). Without a C compiler,
`vp3d.fields.hashgrid_cuda` uses torch instead. Under TRITON_INTERPRET=1 the same kernels run slowly
on CPU tensors; the tests use this on machines without a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.errors import TritonError

from vp3d.fields.hashgrid import PRIMES

BLOCK = 256  # points of one program
PRIME_Y, PRIME_Z = tl.constexpr(PRIMES[1]), tl.constexpr(PRIMES[2])


@triton.jit
def _axis(
    x_ptr: tl.tensor, point: tl.tensor, alive: tl.tensor, resolution: tl.tensor, AXIS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Position of the program's points along one axis.

    Returns the cell (int32), the position inside it in [0, 1], and the derivative of the clamp:
    1 for a point in the cube, 0 outside.
    """
    unit = 0.5 * (tl.load(x_ptr + 3 * point + AXIS, mask=alive, other=0.0) + 1.0)
    position = tl.minimum(tl.maximum(unit, 0.0), 1.0) * resolution
    cell = tl.minimum(tl.maximum(tl.floor(position), 0.0), resolution - 1.0)
    free = ((unit >= 0.0) & (unit <= 1.0)).to(tl.float32)
    return cell.to(tl.int32), position - cell, free


@triton.jit
def _row(
    x: tl.tensor, y: tl.tensor, z: tl.tensor, resolution: tl.tensor, SIZE: tl.constexpr
) -> tl.tensor:
    """Row of a node in its level's table: direct if all nodes fit, else the spatial hash."""
    side = resolution + 1
    direct = x + side * (y + side * z)
    hashed = x.to(tl.uint32) ^ (y.to(tl.uint32) * PRIME_Y) ^ (z.to(tl.uint32) * PRIME_Z)
    return tl.where(side * side * side <= SIZE, direct, (hashed & (SIZE - 1)).to(tl.int32))


@triton.jit
def _points(count: tl.tensor, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """This program's level, the indices of its points (int64), and which of them exist."""
    point = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return tl.program_id(1), point, point < count


@triton.jit
def _corner(
    x: tl.tensor,
    y: tl.tensor,
    z: tl.tensor,
    u: tl.tensor,
    v: tl.tensor,
    w: tl.tensor,
    resolution: tl.tensor,
    CORNER: tl.constexpr,
    SIZE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Row and weights of one corner of the cell (x, y, z); bit 0 of CORNER is x.

    Returns the table row and the linear weight along each axis for the position (u, v, w) in
    [0, 1] inside the cell.
    """
    row = _row(x + (CORNER & 1), y + ((CORNER >> 1) & 1), z + (CORNER >> 2), resolution, SIZE)
    return (
        row,
        u if CORNER & 1 else 1.0 - u,
        v if (CORNER >> 1) & 1 else 1.0 - v,
        w if CORNER >> 2 else 1.0 - w,
    )


@triton.jit
def _forward(
    x_ptr: tl.tensor,
    table_ptr: tl.tensor,
    resolution_ptr: tl.tensor,
    out_ptr: tl.tensor,
    count: tl.tensor,
    SIZE: tl.constexpr,
    FEATURES: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out[point, level, f] = sum over the 8 corners of weight * table[level, row, f].

    One load reads COLUMNS features.
    """
    level, point, alive = _points(count, BLOCK)
    resolution = tl.load(resolution_ptr + level)
    x, u, _ = _axis(x_ptr, point, alive, resolution, 0)
    y, v, _ = _axis(x_ptr, point, alive, resolution, 1)
    z, w, _ = _axis(x_ptr, point, alive, resolution, 2)
    table = table_ptr + level.to(tl.int64) * SIZE * FEATURES
    for first in tl.static_range(0, FEATURES, COLUMNS):
        feature = first + tl.arange(0, COLUMNS)[None, :]
        total = tl.zeros([BLOCK, COLUMNS], dtype=tl.float32)
        for corner in tl.static_range(8):
            row, a, b, c = _corner(x, y, z, u, v, w, resolution, corner, SIZE)
            entry = table + row[:, None] * FEATURES + feature
            found = tl.load(entry, mask=alive[:, None], other=0.0).to(tl.float32)
            total += (a * b * c)[:, None] * found
        target = out_ptr + (point * LEVELS + level)[:, None] * FEATURES + feature
        tl.store(target, total, mask=alive[:, None])


@triton.jit
def _backward(
    x_ptr: tl.tensor,
    table_ptr: tl.tensor,
    resolution_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    grad_table_ptr: tl.tensor,
    grad_x_ptr: tl.tensor,
    count: tl.tensor,
    SIZE: tl.constexpr,
    FEATURES: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
    WANT_X: tl.constexpr,
) -> None:
    """Add weight * grad to the rows of grad_table; with WANT_X also the point's gradient to grad_x.

    One atomic addition adds COLUMNS features.
    """
    level, point, alive = _points(count, BLOCK)
    resolution = tl.load(resolution_ptr + level)
    x, u, free_x = _axis(x_ptr, point, alive, resolution, 0)
    y, v, free_y = _axis(x_ptr, point, alive, resolution, 1)
    z, w, free_z = _axis(x_ptr, point, alive, resolution, 2)
    offset = level.to(tl.int64) * SIZE * FEATURES
    by_x = tl.zeros([BLOCK], dtype=tl.float32)
    by_y = tl.zeros([BLOCK], dtype=tl.float32)
    by_z = tl.zeros([BLOCK], dtype=tl.float32)
    for first in tl.static_range(0, FEATURES, COLUMNS):
        feature = first + tl.arange(0, COLUMNS)[None, :]
        source = grad_ptr + (point * LEVELS + level)[:, None] * FEATURES + feature
        grad = tl.load(source, mask=alive[:, None], other=0.0)
        for corner in tl.static_range(8):
            row, a, b, c = _corner(x, y, z, u, v, w, resolution, corner, SIZE)
            entry = offset + row[:, None] * FEATURES + feature
            share = (a * b * c)[:, None] * grad
            tl.atomic_add(grad_table_ptr + entry, share, mask=alive[:, None], sem="relaxed")
            if WANT_X:
                found = tl.load(table_ptr + entry, mask=alive[:, None], other=0.0).to(tl.float32)
                value = tl.sum(grad * found, axis=1)
                by_x += (2 * (corner & 1) - 1) * b * c * value
                by_y += (2 * ((corner >> 1) & 1) - 1) * a * c * value
                by_z += (2 * (corner >> 2) - 1) * a * b * value
    if WANT_X:
        scale = 0.5 * resolution
        tl.atomic_add(grad_x_ptr + 3 * point, scale * free_x * by_x, mask=alive, sem="relaxed")
        tl.atomic_add(grad_x_ptr + 3 * point + 1, scale * free_y * by_y, mask=alive, sem="relaxed")
        tl.atomic_add(grad_x_ptr + 3 * point + 2, scale * free_z * by_z, mask=alive, sem="relaxed")


def load_width(features: int) -> int:
    """Features of a row that one load reads: the largest power of two up to 4 that divides them."""
    return next(count for count in (4, 2, 1) if features % count == 0)


def atomic_width(features: int, device: torch.device) -> int:
    """Features of a row that one atomic addition adds: 2 from compute capability 9.0 on, else 1.

    For older processors Triton would exchange the addends of a pair through shared memory and
    still issue two additions. Triton's interpreter (a device other than CUDA) supports pairs.
    """
    pairs = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)
    return 2 if pairs and features % 2 == 0 else 1


def _launch(kernel: Any, grid: tuple[int, int], *arguments: Any) -> None:
    """Run a kernel; a failure of Triton becomes a RuntimeError, as torch's own failures are."""
    try:
        kernel[grid](*arguments)
    except TritonError as error:
        raise RuntimeError(f"Triton: {error}") from error


class Encode(torch.autograd.Function):
    """`encode` with its gradients by table and points; it has no second derivative."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tables: Tensor, resolutions: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Features of points; see `encode` for shapes and ranges.

        Args:
            ctx: Context of torch.autograd.
            x: Points `[N, 3]`.
            tables: Features of the nodes `[levels, 2^k, features]`.
            resolutions: Cells a side of each level `[levels]`.
            dtype: Type in which the kernels read the table.

        Returns:
            Features `[N, levels * features]` float32.
        """
        x, read = x.contiguous(), tables.to(dtype).contiguous()
        levels, size, features = tables.shape
        out = torch.empty(len(x), levels * features, dtype=torch.float32, device=x.device)
        if len(x):
            grid = (triton.cdiv(len(x), BLOCK), levels)
            sizes = (len(x), size, features, load_width(features), levels, BLOCK)
            _launch(_forward, grid, x, read, resolutions, out, *sizes)
        ctx.save_for_backward(x, read, resolutions)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of the points `[N, 3]` and of the table `[levels, rows, features]`, float32.

        Each is None if it is not needed.
        """
        x, read, resolutions = ctx.saved_tensors
        levels, size, features = read.shape
        want_x = ctx.needs_input_grad[0]
        grad_table = torch.zeros(read.shape, dtype=torch.float32, device=x.device)
        grad_x = torch.zeros_like(x)
        if len(x):
            grid = (triton.cdiv(len(x), BLOCK), levels)
            tensors = (x, read, resolutions, grad.contiguous(), grad_table, grad_x)
            sizes = (len(x), size, features, atomic_width(features, x.device), levels, BLOCK)
            _launch(_backward, grid, *tensors, *sizes, want_x)
        by_x = grad_x if want_x else None
        by_table = grad_table if ctx.needs_input_grad[1] else None
        return by_x, by_table, None, None


def encode(
    x: Tensor, tables: Tensor, resolutions: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Features of points, as `HashGridField.encode` (Mueller et al. 2022, eq. 2 to 4).

    The gradient is that of the float32 table. With float16 the table is rounded before it is read,
    and an entry beyond 65504 becomes infinite; the training loop's check for finite values reports
    it.

    Args:
        x: Points `[N, 3]` float32 in [-1, 1], any N.
        tables: Features of the nodes `[levels, 2^k, features]` float32, any range.
        resolutions: Cells a side of each level `[levels]` int32.
        dtype: Type in which the kernels read the table.

    Returns:
        Features `[N, levels * features]` float32.
    """
    features: Tensor = Encode.apply(x, tables, resolutions, dtype)
    return features

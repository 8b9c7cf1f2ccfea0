"""The encoding of `HashGridField` as two Triton kernels: look-up and its gradient.

Same nodes, rows, weights and layout as `hashgrid.py`, which stays the reference. One program handles `BLOCK` points of one
level. The table may be float16 or float32; positions, weights, sums and every gradient are float32, so the float32 table
that is optimised never meets a rounded gradient. The gradient of the table is summed by atomic additions: on a GPU their
order, and with it the last bits, may differ between two runs.

Triton compiles the kernels at run time. It brings its own GPU compiler, but builds a small launcher with the C compiler of the
machine (or the one `CC` names); where there is none, `vp3d.fields.hashgrid_cuda` finds that out and takes torch instead.
Under TRITON_INTERPRET=1 the same kernels run on CPU tensors, slowly: that is how they are tested without a GPU.
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

BLOCK = 256  # points a program
PRIME_Y, PRIME_Z = tl.constexpr(PRIMES[1]), tl.constexpr(PRIMES[2])


@triton.jit
def _axis(
    x_ptr: tl.tensor, point: tl.tensor, alive: tl.tensor, resolution: tl.tensor, AXIS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Cell (int32) and place inside it in [0, 1] along one axis, and 1 where a point in the cube may move, else 0."""
    unit = 0.5 * (tl.load(x_ptr + 3 * point + AXIS, mask=alive, other=0.0) + 1.0)
    position = tl.minimum(tl.maximum(unit, 0.0), 1.0) * resolution
    cell = tl.minimum(tl.maximum(tl.floor(position), 0.0), resolution - 1.0)
    free = ((unit >= 0.0) & (unit <= 1.0)).to(tl.float32)
    return cell.to(tl.int32), position - cell, free


@triton.jit
def _row(
    x: tl.tensor, y: tl.tensor, z: tl.tensor, resolution: tl.tensor, SIZE: tl.constexpr
) -> tl.tensor:
    """Row of a node in its level's table: direct where all nodes fit, else the spatial hash."""
    side = resolution + 1
    direct = x + side * (y + side * z)
    hashed = x.to(tl.uint32) ^ (y.to(tl.uint32) * PRIME_Y) ^ (z.to(tl.uint32) * PRIME_Z)
    return tl.where(side * side * side <= SIZE, direct, (hashed & (SIZE - 1)).to(tl.int32))


@triton.jit
def _points(count: tl.tensor, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """This program's level, the numbers of its points (int64), and which of them there are."""
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
    """Row of corner CORNER (bit 0 is x) of cell x, y, z, and its linear weights along each axis for places u, v, w in [0, 1]."""
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
    """out[point, level, f] = sum over the 8 corners of weight * table[level, row, f]; COLUMNS features are read at once."""
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
            found = tl.load(
                table + row[:, None] * FEATURES + feature, mask=alive[:, None], other=0.0
            ).to(tl.float32)
            total += (a * b * c)[:, None] * found
        tl.store(
            out_ptr + (point * LEVELS + level)[:, None] * FEATURES + feature,
            total,
            mask=alive[:, None],
        )


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
    """Adds weight * grad to the rows of grad_table, and with WANT_X the derivative by the point to grad_x.

    COLUMNS features are added at once.
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
        grad = tl.load(
            grad_ptr + (point * LEVELS + level)[:, None] * FEATURES + feature,
            mask=alive[:, None],
            other=0.0,
        )
        for corner in tl.static_range(8):
            row, a, b, c = _corner(x, y, z, u, v, w, resolution, corner, SIZE)
            entry = offset + row[:, None] * FEATURES + feature
            tl.atomic_add(
                grad_table_ptr + entry,
                (a * b * c)[:, None] * grad,
                mask=alive[:, None],
                sem="relaxed",
            )
            if WANT_X:
                value = tl.sum(
                    grad
                    * tl.load(table_ptr + entry, mask=alive[:, None], other=0.0).to(tl.float32),
                    axis=1,
                )
                by_x += (2 * (corner & 1) - 1) * b * c * value
                by_y += (2 * ((corner >> 1) & 1) - 1) * a * c * value
                by_z += (2 * (corner >> 2) - 1) * a * b * value
    if WANT_X:
        scale = 0.5 * resolution
        tl.atomic_add(grad_x_ptr + 3 * point, scale * free_x * by_x, mask=alive, sem="relaxed")
        tl.atomic_add(grad_x_ptr + 3 * point + 1, scale * free_y * by_y, mask=alive, sem="relaxed")
        tl.atomic_add(grad_x_ptr + 3 * point + 2, scale * free_z * by_z, mask=alive, sem="relaxed")


def read_at_once(features: int) -> int:
    """How many of a row's features one load takes: the largest power of two, up to four, that they are a multiple of."""
    return next(count for count in (4, 2, 1) if features % count == 0)


def added_at_once(features: int, device: torch.device) -> int:
    """How many of a row's features one atomic addition takes: a pair from compute capability 9.0 on, else one.

    Asked for a pair, Triton shuffles the addends of older processors through shared memory and saves no addition there.
    """
    wide = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (
        9,
        0,
    )  # not CUDA: Triton's interpreter
    return 2 if wide and features % 2 == 0 else 1


def _launch(kernel: Any, grid: tuple[int, int], *arguments: Any) -> None:
    """Run a kernel; what Triton cannot compile or launch is a RuntimeError, as torch's own failures are."""
    try:
        kernel[grid](*arguments)
    except TritonError as error:
        raise RuntimeError(f"Triton: {error}") from error


class Encode(torch.autograd.Function):
    """`encode` with its gradient by table and points; there is no second derivative."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tables: Tensor, resolutions: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Features `[N, levels * features]` float32; see `encode`."""
        x, read = x.contiguous(), tables.to(dtype).contiguous()
        levels, size, features = tables.shape
        out = torch.empty(len(x), levels * features, dtype=torch.float32, device=x.device)
        if len(x):
            grid = (triton.cdiv(len(x), BLOCK), levels)
            _launch(
                _forward,
                grid,
                x,
                read,
                resolutions,
                out,
                len(x),
                size,
                features,
                read_at_once(features),
                levels,
                BLOCK,
            )
        ctx.save_for_backward(x, read, resolutions)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of points `[N, 3]` and of the table `[levels, rows, features]`, float32; None for what is not asked."""
        x, read, resolutions = ctx.saved_tensors
        levels, size, features = read.shape
        want_x = ctx.needs_input_grad[0]
        grad_table = torch.zeros(read.shape, dtype=torch.float32, device=x.device)
        grad_x = torch.zeros_like(x)
        if len(x):
            grid = (triton.cdiv(len(x), BLOCK), levels)
            arguments = (x, read, resolutions, grad.contiguous(), grad_table, grad_x, len(x))
            _launch(
                _backward,
                grid,
                *arguments,
                size,
                features,
                added_at_once(features, x.device),
                levels,
                BLOCK,
                want_x,
            )
        return (
            grad_x if want_x else None,
            grad_table if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


def encode(
    x: Tensor, tables: Tensor, resolutions: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Features `[N, levels * features]` float32 of points `[N, 3]` float32 in [-1, 1], any N, as `HashGridField.encode`.

    tables `[levels, 2^k, features]` float32, any range; resolutions `[levels]` int32, cells a side. `dtype` is what the
    look-ups read: with float16 the table is rounded first, and an entry beyond 65504 becomes infinite, which the finite
    check of the loop answers. The gradient is that of the float32 table. Mueller et al. 2022, eq. 2 to 4.
    """
    features: Tensor = Encode.apply(x, tables, resolutions, dtype)
    return features

"""Fast encoders for `HashGridField` on a CUDA device, and the choice among them.

* triton: the kernels of `hashgrid_triton.py`. They need the `triton` package, which comes with
  torch's CUDA build, and a C compiler for Triton's launcher.
* tinycudann: the grid encoding of tiny-cuda-nn, which the user builds from source. Its nodes are
  at other positions than ours: it scales a point by (base - 1) and shifts it by half a cell, and
  its finer levels do not have a whole number of cells. One encoding for each level with base N + 1,
  evaluated at x - 0.5 / N, puts its nodes where ours are, and its direct and hashed rows are then
  ours too (see `tcnn_options`). One call for each level costs kernel launches, so `auto` does not
  choose it.
* torch: `HashGridField.encode_torch`, the reference.

`check` compares an encoder with the reference on the device, values and gradients, before it is
used. Neither Triton nor tiny-cuda-nn is imported earlier.
"""

from __future__ import annotations

import importlib.util
import subprocess

import torch
from torch import Tensor

from vp3d.config.schema import CudaConfig
from vp3d.errors import UserError
from vp3d.fields.hashgrid import HashGridField, Lookup

ENCODERS = {"triton": "triton", "tinycudann": "tinycudann"}  # cuda.encoder -> the package it needs
AUTO = ("triton",)  # encoders that `auto` tries, in this order, before torch
CHECK_POINTS = 512
# Largest difference that `check` accepts, relative to the largest number, by type of the table.
TOLERANCE = {torch.float32: 2.0e-4, torch.float16: 4.0e-3}
FAILURES = (
    RuntimeError,
    ImportError,
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    subprocess.SubprocessError,
)


def accelerate(field: HashGridField, config: CudaConfig) -> str:
    """Set `field.lookup` to the encoder that `cuda.encoder` names, on the field's device.

    With "auto" an encoder that is missing or differs from the reference is skipped; torch is
    always left.

    Returns:
        One line for the log: the encoder in use, and why others were skipped.

    Raises:
        UserError: The config names an encoder, and it does not work on this machine.
    """
    names = () if config.encoder == "torch" else (config.encoder,)
    skipped = []
    for name in AUTO if config.encoder == "auto" else names:
        reason = attach(field, name, getattr(torch, config.table_dtype))
        if not reason:
            return f"hash grid by {name}, {config.table_dtype} table"
        if config.encoder != "auto":
            raise UserError(
                f"cuda.encoder={name} does not work here ({reason}); use cuda.encoder=auto"
            )
        skipped.append(f"{name}: {reason}")
    field.lookup = None
    return "hash grid by torch" + (f" ({'; '.join(skipped)})" if skipped else "")


def attach(field: HashGridField, name: str, dtype: torch.dtype) -> str:
    """Set `field.lookup` to the encoder `name` if it works on the field's device.

    Returns:
        "" if it works; otherwise the reason, and the field is unchanged.
    """
    if importlib.util.find_spec(ENCODERS[name]) is None:
        return f"{ENCODERS[name]} is not installed"
    before = field.lookup
    try:
        lookup = build_triton(field, dtype) if name == "triton" else build_tcnn(field, dtype)
        field.lookup = lookup
        problem = check(field, TOLERANCE[dtype])
    except FAILURES as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if problem:
        field.lookup = before
    return problem


def check(field: HashGridField, tolerance: float) -> str:
    """Compare `field.lookup` with the reference: values and the gradient of the table.

    The points are random, on cell borders of the coarsest level, and on corners of the cube. The
    table is random with entries in [-1, 1]; the field's own table does not change.

    Args:
        field: The field whose encoder is checked.
        tolerance: Largest accepted difference, relative to the largest number.

    Returns:
        "" if they agree; otherwise the difference in words.
    """
    device = field.tables.device
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(CHECK_POINTS, 3, generator=generator) * 2.0 - 1.0
    cells = field.resolutions[0]
    nodes = torch.randint(0, cells + 1, (CHECK_POINTS, 3), generator=generator)
    borders = nodes * (2.0 / cells) - 1.0
    x = torch.cat([inside, borders, inside.sign()]).to(device)
    tables = (torch.rand(field.tables.shape, generator=generator) * 2.0 - 1.0).to(device)
    weight = torch.rand(len(x), tables.shape[0] * tables.shape[2], generator=generator).to(device)
    found = []
    for lookup in (field.lookup or field.encode_torch, field.encode_torch):
        leaf = tables.clone().requires_grad_()
        values = lookup(x, leaf)
        (gradient,) = torch.autograd.grad((values.float() * weight).sum(), leaf)
        found.append((values.detach().float(), gradient))
    for name, ours, theirs in zip(("values", "gradients"), *found, strict=True):
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        if not error <= tolerance:  # also true for NaN
            return f"its {name} differ from the reference by {error:.1e}"
    return ""


def build_triton(field: HashGridField, dtype: torch.dtype) -> Lookup:
    """The encoder by Triton kernels, which are compiled at its first call.

    `dtype` is the type in which the kernels read the table.
    """
    from vp3d.fields.hashgrid_triton import encode  # imports triton

    resolutions = torch.tensor(field.resolutions, dtype=torch.int32, device=field.tables.device)

    def lookup(x: Tensor, tables: Tensor) -> Tensor:
        """Features `[N, levels * features]` float32 of points `[N, 3]` in [-1, 1]."""
        return encode(x.float(), tables, resolutions, dtype)

    return lookup


def build_tcnn(field: HashGridField, dtype: torch.dtype) -> Lookup:
    """The encoder by tiny-cuda-nn, one of its encodings for each level.

    Written after its sources and documentation; the measurements are in docs/results/gpu.md.
    """
    import tinycudann

    levels, size, features = field.tables.shape
    encodings = [
        tinycudann.Encoding(3, tcnn_options(resolution, features, size), dtype=dtype)
        for resolution in field.resolutions
    ]

    def lookup(x: Tensor, tables: Tensor) -> Tensor:
        """Features `[N, levels * features]` float32 of points `[N, 3]` in [-1, 1]."""
        if not len(x):
            return tables.new_zeros(0, levels * features) + 0.0 * tables.sum()
        unit = (0.5 * (x.float() + 1.0)).clamp(0.0, 1.0)
        parts = []
        for level, encoding in enumerate(encodings):
            resolution = field.resolutions[level]
            rows = tables[level, : tcnn_rows(resolution, size)].reshape(-1)
            points = tcnn_points(unit, resolution)
            part = torch.func.functional_call(encoding, {"params": rows}, (points,))
            parts.append(part.float())
        return torch.cat(parts, dim=-1)

    return lookup


def tcnn_options(resolution: int, features: int, size: int) -> dict[str, str | int | float]:
    """Options of tiny-cuda-nn's "HashGrid" for one of our levels.

    Its level has scale = base - 1 and base nodes a side (DOCUMENTATION.md; `grid_scale` and
    `grid_resolution` in its sources), so base is N + 1. Rows are direct where base^3 <= size, and
    otherwise hashed by the same primes as ours, modulo `size`.

    Args:
        resolution: Cells a side of the level, N.
        features: Features of a node.
        size: Rows of the table, a power of two.
    """
    return {
        "otype": "HashGrid",
        "n_levels": 1,
        "n_features_per_level": features,
        "log2_hashmap_size": size.bit_length() - 1,
        "base_resolution": resolution + 1,
        "per_level_scale": 1.0,
        "interpolation": "Linear",
    }


def tcnn_rows(resolution: int, size: int) -> int:
    """Rows that tiny-cuda-nn stores for a level: its nodes rounded up to 8, at most `size`."""
    return min(-(-((resolution + 1) ** 3) // 8) * 8, size)


def tcnn_points(unit: Tensor, resolution: int) -> Tensor:
    """Points at which to evaluate tiny-cuda-nn for our points `unit [N, 3]` in [0, 1].

    It interpolates at scale * x + 0.5, which for the returned points is unit * N, in [0, N].
    """
    return unit - 0.5 / resolution

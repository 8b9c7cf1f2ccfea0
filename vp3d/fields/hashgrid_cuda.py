"""Fast look-ups for `HashGridField` on a CUDA device, and the choice among them.

* triton: the kernels of `hashgrid_triton.py`. They need the `triton` package, which comes with torch's CUDA build, and a C
  compiler for Triton's launcher.
* tinycudann: the grid encoding of tiny-cuda-nn, which is built from source by the user. Its own layout differs from ours in
  where nodes stand: it scales a point by (base - 1) and shifts it by half a cell, and its finer levels are not whole numbers
  of cells. One encoding for each level with base N + 1, fed x - 0.5 / N, puts its nodes where ours are, and its direct and
  hashed rows are then the same as ours (see `tcnn_options`). One call a level costs launches, so `auto` does not take it.
* torch: `HashGridField.encode_torch`, the reference.

No look-up is trusted unseen: `check` compares it on the device with the reference, values and gradients, before it is used.
Neither Triton nor tiny-cuda-nn is imported until then.
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
AUTO = ("triton",)  # what `auto` tries, in this order, before torch
CHECK_POINTS = 512
TOLERANCE = {
    torch.float32: 2.0e-4,
    torch.float16: 4.0e-3,
}  # of `check`, relative to the largest number
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
    """Set `field.lookup` as `cuda.encoder` says, on the field's device; returns in one line what encodes, and why not others.

    `auto` never fails: what is missing or does not agree with the reference here is passed over. An encoder that is asked
    for by name and does not work is a UserError.
    """
    passed_over = []
    wanted = (
        AUTO if config.encoder == "auto" else () if config.encoder == "torch" else (config.encoder,)
    )
    for name in wanted:
        reason = attach(field, name, getattr(torch, config.table_dtype))
        if not reason:
            return f"hash grid by {name}, {config.table_dtype} table"
        if config.encoder != "auto":
            raise UserError(
                f"cuda.encoder={name} does not work here ({reason}); use cuda.encoder=auto"
            )
        passed_over.append(f"{name}: {reason}")
    field.lookup = None
    return "hash grid by torch" + (f" ({'; '.join(passed_over)})" if passed_over else "")


def attach(field: HashGridField, name: str, dtype: torch.dtype) -> str:
    """Give `field` the look-up `name` if it works on the field's device: "" then, else why not, with the field unchanged."""
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
    """Compare `field.lookup` with the reference on points inside, on cell borders and on faces: "" or what differs.

    Values and the gradient of the table are compared, on a random table of unit size, relative to the largest number. The
    field's own table is left as it is.
    """
    device = field.tables.device
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(CHECK_POINTS, 3, generator=generator) * 2.0 - 1.0
    cells = field.resolutions[0]
    borders = (
        torch.randint(0, cells + 1, (CHECK_POINTS, 3), generator=generator) * (2.0 / cells) - 1.0
    )
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
        if not error <= tolerance:
            return f"its {name} differ from the reference by {error:.1e}"
    return ""


def build_triton(field: HashGridField, dtype: torch.dtype) -> Lookup:
    """The look-up by Triton kernels; they are compiled at its first call."""
    from vp3d.fields.hashgrid_triton import encode  # imports triton

    resolutions = torch.tensor(field.resolutions, dtype=torch.int32, device=field.tables.device)

    def lookup(x: Tensor, tables: Tensor) -> Tensor:
        """Features `[N, levels * features]` float32, any range, of points `[N, 3]` in [-1, 1]."""
        return encode(x.float(), tables, resolutions, dtype)

    return lookup


def build_tcnn(field: HashGridField, dtype: torch.dtype) -> Lookup:
    """The look-up by tiny-cuda-nn, one encoding a level; written after its sources and documentation, not yet run."""
    import tinycudann

    levels, size, features = field.tables.shape
    encodings = [
        tinycudann.Encoding(3, tcnn_options(resolution, features, size), dtype=dtype)
        for resolution in field.resolutions
    ]

    def lookup(x: Tensor, tables: Tensor) -> Tensor:
        """Features `[N, levels * features]` float32, any range, of points `[N, 3]` in [-1, 1]."""
        if not len(x):
            return tables.new_zeros(0, levels * features) + 0.0 * tables.sum()
        unit = (0.5 * (x.float() + 1.0)).clamp(0.0, 1.0)
        parts = []
        for level, (encoding, resolution) in enumerate(
            zip(encodings, field.resolutions, strict=True)
        ):
            rows = tables[level, : tcnn_rows(resolution, size)].reshape(-1)
            parts.append(
                torch.func.functional_call(
                    encoding, {"params": rows}, (tcnn_points(unit, resolution),)
                ).float()
            )
        return torch.cat(parts, dim=-1)

    return lookup


def tcnn_options(resolution: int, features: int, size: int) -> dict[str, str | int | float]:
    """The "HashGrid" options of tiny-cuda-nn for one of our levels: N cells a side, 2^k = `size` rows.

    Its level has scale = base - 1 and base nodes a side (DOCUMENTATION.md and `grid_scale`, `grid_resolution`), so base is
    N + 1; rows are direct where base^3 <= size and else by the same primes as ours, modulo `size`.
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
    """Rows that tiny-cuda-nn keeps for a level: its nodes rounded up to a multiple of 8, at most `size`."""
    return min(-(-((resolution + 1) ** 3) // 8) * 8, size)


def tcnn_points(unit: Tensor, resolution: int) -> Tensor:
    """Where to ask tiny-cuda-nn: it looks at scale * x + 0.5, which for these points `[N, 3]` is unit * N, in [0, N]."""
    return unit - 0.5 / resolution

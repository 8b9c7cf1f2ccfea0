"""What a field costs by number of points: `python -m benchmarks.encodings [--points 4096 65536]`.

Each row is a backend. It maps the same random points of the cube to density and albedo: forward
alone (without a graph), and forward with backward. The compiled march (dense grid, CPU) takes rays
and not points. It gets as many samples on rays, and its time includes their compositing. The
backends are

    grid             the dense grid by torch's grid_sample
    grid, compiled   the same by the numba kernels (CPU)
    hash grid        the product's hash grid in torch
    textbook         a hash grid and MLP as a textbook has them (benchmarks/textbook.py)

and on a GPU also the hash grid with each encoder of vp3d.fields.hashgrid_cuda, and tiny-cuda-nn's
own grid and network. Backends that cannot run on this machine are listed below the table with the
reason. All have the size of the default field (dense grid 48, hash grid 8 levels x 2 features,
tables of 2^14), unless --resolution, --levels, --features and --log2-table change it.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.textbook import TextbookField
from benchmarks.timing import Bench, Table, ms, multiple, new_parser, positive, prepare, report
from vp3d.config.schema import CameraConfig, FieldConfig
from vp3d.fields.base import Field
from vp3d.fields.grid import GridField
from vp3d.fields.hashgrid import HashGridField, level_resolutions
from vp3d.render.camera import camera_rays, sample_cameras
from vp3d.render.volume import ray_bins
from vp3d.render.volume_numba import render_grid
from vp3d.system.console import run_program

ENCODERS_MODULE = "vp3d.fields.hashgrid_cuda"  # faster encoders of the same table; GPU only
SAMPLES = 64  # on each ray of the compiled march
Pass = Callable[[], Tensor]  # one forward pass; returns the sum of its results


def total(sigma: Tensor, albedo: Tensor) -> Tensor:
    """Sum of density and albedo (any shape and range)."""
    return sigma.sum() + albedo.sum()


def query_pass(field: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Pass:
    """A pass of a field over points `[N, 3]` in [-1, 1]."""
    return lambda: total(*field(x))


def march_pass(field: GridField, count: int, generator: torch.Generator) -> Pass:
    """A pass of the compiled kernels over about `count` samples; nothing is skipped.

    The samples are on a square image of rays with `SAMPLES` samples each.
    """
    side = int((max(count // SAMPLES, 1)) ** 0.5)
    rays = camera_rays(sample_cameras(1, CameraConfig(), generator), side, side)
    start, step = ray_bins(rays, SAMPLES, generator)

    def forward() -> Tensor:
        found = render_grid(field, rays, start, step, SAMPLES, None, False)
        return total(found.opacity, found.rgb)

    return forward


def cuda_fields(config: FieldConfig, device: torch.device) -> tuple[dict[str, Field], list[str]]:
    """The product's hash grid with each encoder of `hashgrid_cuda.py`.

    Returns:
        Name -> field, for the encoders that work on this device; and why the others do not.
    """
    if device.type != "cuda":
        return {}, [f"{ENCODERS_MODULE} is left out: no GPU here"]
    try:
        fast = importlib.import_module(ENCODERS_MODULE)
    except ImportError as error:
        return {}, [f"{ENCODERS_MODULE} is left out: {error}"]
    found: dict[str, Field] = {}
    notes = []
    for name, dtype in itertools.product(fast.ENCODERS, (torch.float16, torch.float32)):
        field = HashGridField(config, torch.Generator().manual_seed(0)).to(device)
        label = f"hash grid, {name} {dtype}".replace("torch.", "")
        problem = fast.attach(field, name, dtype)
        if problem:
            notes.append(f"{label} is left out: {problem}")
        else:
            found[label] = field
    return found, notes


def tiny_cuda_nn(
    config: FieldConfig, device: torch.device
) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]] | None, str]:
    """tiny-cuda-nn's hash grid and network of the same size.

    Returns:
        A function like a field, and ""; or None and the reason.
    """
    if device.type != "cuda":
        return None, "tiny-cuda-nn is left out: no GPU here"
    try:
        tinycudann = importlib.import_module("tinycudann")
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"tiny-cuda-nn is left out: {' '.join(str(error).split())}"
    resolutions = level_resolutions(config.levels, config.resolution)
    growth = (resolutions[-1] / resolutions[0]) ** (1.0 / max(config.levels - 1, 1))
    encoding = {
        "otype": "HashGrid",
        "n_levels": config.levels,
        "n_features_per_level": config.features,
        "log2_hashmap_size": config.log2_table,
        "base_resolution": resolutions[0],
        "per_level_scale": growth,
    }
    network = {
        "otype": "FullyFusedMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": 64,
        "n_hidden_layers": 1,
    }
    both = tinycudann.NetworkWithInputEncoding(3, 4, encoding, network)

    def field(x: Tensor) -> tuple[Tensor, Tensor]:
        raw = both(0.5 * (x + 1.0)).float()
        return torch.nn.functional.softplus(raw[:, 0]), torch.sigmoid(raw[:, 1:])

    return field, ""


def backends(
    config: FieldConfig, device: torch.device
) -> tuple[dict[str, Callable[[Tensor], Pass]], list[str]]:
    """The backends.

    Returns:
        Name -> a function from points `[N, 3]` to a pass over them, for the backends that run on
        this device; and why the others do not.
    """
    fields: dict[str, Any] = {
        "grid": GridField(config, torch.Generator().manual_seed(0)),
        "hash grid": HashGridField(config, torch.Generator().manual_seed(0)),
        "textbook": TextbookField(config, torch.Generator().manual_seed(0)),
    }
    found, notes = cuda_fields(config, device)
    fields |= found
    tiny, missing = tiny_cuda_nn(config, device)
    notes += [missing] if missing else []
    for field in fields.values():
        field.to(device)
    if tiny is not None:
        fields["tiny-cuda-nn"] = tiny
    passes = {name: (lambda x, field=field: query_pass(field, x)) for name, field in fields.items()}
    if device.type == "cpu":
        grid = fields["grid"]
        passes["grid, compiled"] = lambda x: march_pass(
            grid, len(x), torch.Generator().manual_seed(0)
        )
    else:
        notes.append("the compiled march is left out: it runs on CPUs")
    return passes, notes


def measure(options: argparse.Namespace, bench: Bench) -> tuple[list[dict[str, Any]], list[str]]:
    """A record for each number of points and backend, and why backends were left out."""
    config = FieldConfig(
        "hashgrid",
        options.resolution,
        levels=options.levels,
        features=options.features,
        log2_table=options.log2_table,
    )
    passes, notes = backends(config, bench.device)
    records = []
    for points in options.points:
        x = 2.0 * torch.rand(points, 3, generator=torch.Generator().manual_seed(1)) - 1.0
        x = x.to(bench.device)
        for name, build in passes.items():
            records.append({"points": points, "backend": name, **bench.passes(build(x))})
    return records, notes


def main(argv: list[str] | None = None) -> None:
    """Times every backend at every size, prints the table, writes the JSON."""
    size, parser = FieldConfig(), new_parser("encodings", __doc__ or "")
    number = {"type": positive, "metavar": "N"}
    add, points = parser.add_argument, [4096, 32768, 131072]
    add("--points", **number, nargs="+", default=points, help="points of a call")
    add("--resolution", **number, default=size.resolution, help="finest cells of a side")
    add("--levels", **number, default=size.levels, help="levels of the hash grids")
    add("--features", **number, default=size.features, help="features of a level")
    add("--log2-table", **number, default=size.log2_table, help="log2 of the entries of a level")
    options = parser.parse_args(argv)
    bench = prepare(options)
    records, notes = measure(options, bench)
    base = {record["points"]: record["both"] for record in records if record["backend"] == "grid"}
    rows = [
        [
            record["backend"],
            f"{record['points']:,}",
            ms(record["forward"]),
            ms(record["both"]),
            multiple(record["both"], base[record["points"]]),
            f"{1e-6 * record['points'] / record['both']:.2f}",
        ]
        for record in records
    ]
    header = ["backend", "points", "forward, ms", "forward + backward, ms"]
    header += ["by the grid", "million points/s"]
    table = Table("Fields by number of points", header, rows, notes)
    report(options, bench, "encodings", table, records)


if __name__ == "__main__":
    run_program("encodings", main)

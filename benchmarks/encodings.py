"""What our fields cost by number of points: `python -m benchmarks.encodings [--points 4096 65536]`.

Each row is a backend: points to density and albedo, forward alone (no graph) and forward with backward, on the same random
points of the cube. The compiled march (dense grid, CPU) has no call for points: it is given as many samples on rays, and does
their compositing too. Backends that cannot run here stand below the table with the reason:

    grid             dense grid, torch's grid_sample
    grid, compiled   the same through the numba kernels (CPU)
    hash grid        the product's hash grid in torch
    textbook         a hash grid and MLP as a textbook has them (benchmarks/textbook.py)
    on a GPU also the hash grid with each look-up of vp3d.fields.hashgrid_cuda, and tiny-cuda-nn's own grid and network

All have the size of the default field (dense grid 48, hash grid 8 levels x 2 features, tables of 2^14); --resolution, --levels,
--features and --log2-table change it.
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
from benchmarks.timing import Bench, ms, new_parser, positive, prepare, tell, times
from vp3d.config.schema import CameraConfig, FieldConfig
from vp3d.fields.base import Field
from vp3d.fields.grid import GridField
from vp3d.fields.hashgrid import HashGridField, level_resolutions
from vp3d.render.camera import camera_rays, sample_cameras
from vp3d.render.volume import ray_bins
from vp3d.render.volume_numba import render_grid
from vp3d.system.console import run_program

FAST = "vp3d.fields.hashgrid_cuda"  # faster look-ups of the same table; looked for, as only a GPU has them
SAMPLES = 64  # on each ray of the compiled march
Pass = Callable[[], Tensor]  # one forward pass; the sum of what comes out


def total(sigma: Tensor, albedo: Tensor) -> Tensor:
    """Density and albedo (any shape and range) added up."""
    return sigma.sum() + albedo.sum()


def look_up(field: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Pass:
    """A pass of a field over points `[N, 3]` in [-1, 1]."""
    return lambda: total(*field(x))


def march(field: GridField, count: int, generator: torch.Generator) -> Pass:
    """A pass of the compiled kernels over `count` samples (rounded down to whole rays), nothing skipped."""
    side = int((max(count // SAMPLES, 1)) ** 0.5)
    rays = camera_rays(sample_cameras(1, CameraConfig(), generator), side, side)
    start, step = ray_bins(rays, SAMPLES, generator)

    def forward() -> Tensor:
        found = render_grid(field, rays, start, step, SAMPLES, None, False)
        return total(found.opacity, found.rgb)

    return forward


def cuda_fields(config: FieldConfig, device: torch.device) -> tuple[dict[str, Field], list[str]]:
    """The product's hash grid with each look-up of `hashgrid_cuda.py` that works here, by name, and why the others do not."""
    if device.type != "cuda":
        return {}, [f"{FAST} is left out: no GPU here"]
    try:
        fast = importlib.import_module(FAST)
    except ImportError as error:
        return {}, [f"{FAST} is left out: {error}"]
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
    """tiny-cuda-nn's hash grid and network of the same size, called like a field, and "", or None and why."""
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
    }
    encoding |= {
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
    """For each backend that runs here, from points `[N, 3]` to a pass over them; and why the others do not."""
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
    passes = {name: (lambda x, field=field: look_up(field, x)) for name, field in fields.items()}
    if device.type == "cpu":
        grid = fields["grid"]
        passes["grid, compiled"] = lambda x: march(grid, len(x), torch.Generator().manual_seed(0))
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
        x = (2.0 * torch.rand(points, 3, generator=torch.Generator().manual_seed(1)) - 1.0).to(
            bench.device
        )
        for name, build in passes.items():
            records.append({"points": points, "backend": name, **bench.passes(build(x))})
    return records, notes


def main(argv: list[str] | None = None) -> None:
    """Time every backend at every size, print the table, write the JSON."""
    size = FieldConfig()
    parser = new_parser("encodings", __doc__ or "")
    parser.add_argument(
        "--points",
        type=positive,
        nargs="+",
        default=[4096, 32768, 131072],
        metavar="N",
        help="points a call",
    )
    parser.add_argument(
        "--resolution",
        type=positive,
        default=size.resolution,
        metavar="N",
        help="finest cells a side",
    )
    parser.add_argument(
        "--levels", type=positive, default=size.levels, metavar="N", help="of the hash grids"
    )
    parser.add_argument(
        "--features", type=positive, default=size.features, metavar="N", help="a level"
    )
    parser.add_argument(
        "--log2-table", type=positive, default=size.log2_table, metavar="N", help="entries a level"
    )
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
            times(record["both"], base[record["points"]]),
            f"{1e-6 * record['points'] / record['both']:.2f}",
        ]
        for record in records
    ]
    header = [
        "backend",
        "points",
        "forward, ms",
        "forward + backward, ms",
        "by the grid",
        "million points/s",
    ]
    tell(options, bench, "encodings", "Fields by number of points", header, rows, records, notes)


if __name__ == "__main__":
    run_program("encodings", main)

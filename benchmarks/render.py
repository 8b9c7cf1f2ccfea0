"""Our compositors against nerfacc's: `python -m benchmarks.render [--views 4] [--size 64] [--samples 48] [--normals]`.

The same rays of random views of a solid ball that fills about 15 % of the cube, held by the product's dense grid (and, on a GPU,
by its hash grid), with the same places of the samples; forward alone (no graph) and forward with backward:

    product           `render_rays`, whatever route it takes here, with the occupancy grid
    torch             its torch route, with the occupancy grid
    torch, all        the torch route, nothing skipped
    product, nerfacc  the torch route with nerfacc's functions in it (GPU; `cuda.compositor=nerfacc`)
    textbook          dense tensors, nothing skipped (benchmarks/textbook.py)
    nerfacc           nerfacc's batched `rendering`, nothing skipped
    nerfacc, packed   nerfacc's occupancy-grid sampling and packed `rendering` (GPU), steps of the same mean length

Those of nerfacc are left out where it does not import, and the table says so.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.textbook import composite, composite_nerfacc
from benchmarks.timing import Bench, find_nerfacc, ms, new_parser, positive, prepare, tell, times
from vp3d.config.schema import CameraConfig, FieldConfig, RenderConfig
from vp3d.errors import UserError
from vp3d.fields.base import Field, lattice
from vp3d.fields.grid import GridField
from vp3d.fields.hashgrid import HashGridField
from vp3d.render.camera import camera_rays, sample_cameras
from vp3d.render.occupancy import OccupancyGrid
from vp3d.render.volume import box_interval, ray_bins, render_rays, render_rays_torch
from vp3d.system.console import run_program
from vp3d.types import Rays, Render

BALL_RADIUS = 0.66  # 15 % of the cube's volume
GROUND = 0.7
FAST = "vp3d.render.volume_cuda"  # nerfacc behind the torch route; looked for, as only a GPU has it
NO_KERNELS = (
    RuntimeError,
    ImportError,
    OSError,
    TypeError,
    AttributeError,
    subprocess.SubprocessError,
)  # of nerfacc's build
Pass = Callable[[], Tensor]


class BallField(HashGridField):
    """A hash grid whose answer is multiplied into a solid ball: the cost of the one, the empty space of the other."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Density `[N]` >= 0 and albedo `[N, 3]` in [0, 1] at points `[N, 3]`."""
        sigma, albedo = super().forward(x)
        return 60.0 * sigma * torch.sigmoid(300.0 * (BALL_RADIUS - x.norm(dim=-1))), albedo


def ball_grid(config: FieldConfig, generator: torch.Generator) -> GridField:
    """A dense grid that holds a solid ball."""
    field = GridField(config, generator)
    with torch.no_grad():
        distance = BALL_RADIUS - lattice(config.resolution).norm(dim=-1)
        field.raw_density.copy_(
            (300.0 * distance).clamp(-10.0, 60.0).reshape(field.raw_density.shape)
        )
    return field


def added_up(render: Render) -> Tensor:
    """Everything in a Render as one scalar."""
    found = (render.rgb, render.opacity, render.depth, render.normal)
    return torch.stack([value.sum() for value in found if value is not None]).sum()


def ours(
    field: Field, rays: Rays, config: RenderConfig, occupancy: OccupancyGrid, normals: bool
) -> dict[str, Pass]:
    """A pass for each of our ways; samples in the middle of their bins."""
    start, step = ray_bins(rays, config.samples, None)
    return {
        "product": lambda: added_up(render_rays(field, rays, config, occupancy, None, normals)),
        "torch": lambda: added_up(
            render_rays_torch(field, rays, start, step, config, occupancy, normals)
        ),
        "torch, all": lambda: added_up(
            render_rays_torch(field, rays, start, step, config, None, normals)
        ),
    }


def ours_on_cuda(
    field: Field, rays: Rays, config: RenderConfig, occupancy: OccupancyGrid, normals: bool
) -> tuple[dict[str, Pass], list[str]]:
    """The torch route with the march of `vp3d.render.volume_cuda`, where there is one that works here; else why not."""
    if rays.origins.device.type != "cuda":
        return {}, [f"{FAST} is left out: no GPU here"]
    try:
        march = importlib.import_module(FAST).nerfacc_march(rays.origins.device)
    except (ImportError, UserError) as error:
        return {}, [f"{FAST} is left out: {error}"]
    passes = {
        "product, nerfacc": lambda: added_up(
            render_rays(field, rays, config, occupancy, None, normals, march=march)
        )
    }
    return passes, []


def peers(
    field: Field, rays: Rays, config: RenderConfig, occupancy: OccupancyGrid
) -> tuple[dict[str, Pass], list[str]]:
    """A pass for each of the others that runs here, and why the rest do not. They have colours alone, no normals."""
    start, step = ray_bins(rays, config.samples, None)
    passes: dict[str, Pass] = {
        "textbook": lambda: composite(field, rays, start, step, config.samples, GROUND).sum()
    }
    nerfacc, missing = find_nerfacc()
    if nerfacc is None:
        return passes, [missing]
    passes["nerfacc"] = lambda: composite_nerfacc(
        nerfacc, field, rays, start, step, config.samples, GROUND
    ).sum()
    if rays.origins.device.type != "cuda":
        return passes, ["nerfacc, packed is left out: its sampler needs a GPU"]
    try:
        work = packed(nerfacc, field, rays, config, occupancy)
        work()
    except NO_KERNELS as error:
        return passes, [
            f"nerfacc, packed is left out: {' '.join(f'{type(error).__name__}: {error}'.split())[:200]}"
        ]
    return passes | {"nerfacc, packed": work}, []


def packed(
    nerfacc: Any, field: Field, rays: Rays, config: RenderConfig, occupancy: OccupancyGrid
) -> Pass:
    """nerfacc's occupancy grid, filled with ours, its sampler, and its packed rendering."""
    cube = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
    estimator = nerfacc.OccGridEstimator(cube, resolution=config.occupancy_resolution, levels=1).to(
        rays.origins.device
    )
    estimator.binaries.copy_(occupancy.mask.permute(2, 1, 0)[None])  # ours is z, y, x
    near, far = box_interval(rays)
    length = float(((far - near) / config.samples).mean())
    ground = torch.full((3,), GROUND, device=rays.origins.device)

    def forward() -> Tensor:
        index, begins, ends = estimator.sampling(
            rays.origins, rays.directions, render_step_size=length
        )

        def look(starts: Tensor, stops: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
            sigma, albedo = field(
                rays.origins[ray] + 0.5 * (starts + stops)[:, None] * rays.directions[ray]
            )
            return albedo, sigma

        found = nerfacc.rendering(
            begins, ends, index, n_rays=len(rays), rgb_sigma_fn=look, render_bkgd=ground
        )
        return found[0].sum()

    return forward


def measure(
    options: argparse.Namespace, bench: Bench
) -> tuple[list[dict[str, Any]], list[str], float]:
    """A record for each field and way to render it, why some were left out, and the occupied share of the cube."""
    chance = torch.Generator().manual_seed(0)
    config, size = RenderConfig(samples=options.samples), FieldConfig(resolution=options.resolution)
    fields: dict[str, Field] = {"grid": ball_grid(size, chance)}
    if bench.device.type == "cuda":
        fields["hash grid"] = BallField(size, chance)
    rays = camera_rays(
        sample_cameras(options.views, CameraConfig(), chance).to(bench.device),
        options.size,
        options.size,
    )
    records, notes, share = [], [], 0.0
    for name, field in fields.items():
        field.to(bench.device)
        occupancy = OccupancyGrid(config).to(bench.device)
        occupancy.update(field, chance)
        share = occupancy.share()
        passes = ours(field, rays, config, occupancy, options.normals)
        fast, notes = ours_on_cuda(field, rays, config, occupancy, options.normals)
        others, missing = ({}, []) if options.normals else peers(field, rays, config, occupancy)
        passes, notes = passes | fast | others, notes + missing
        records += [
            {"field": name, "way": way, **bench.passes(work)} for way, work in passes.items()
        ]
    return records, notes, share


def main(argv: list[str] | None = None) -> None:
    """Time every way to render, print the table, write the JSON."""
    parser = new_parser("render", __doc__ or "")
    parser.add_argument("--views", type=positive, default=4, metavar="N", help="cameras a step (4)")
    parser.add_argument(
        "--size", type=positive, default=64, metavar="N", help="pixels of a side (64)"
    )
    parser.add_argument(
        "--samples", type=positive, default=48, metavar="N", help="samples a ray (48)"
    )
    parser.add_argument(
        "--resolution", type=positive, default=48, metavar="N", help="of the field (48)"
    )
    parser.add_argument(
        "--normals", action="store_true", help="normals too; then our own ways alone"
    )
    options = parser.parse_args(argv)
    bench = prepare(options)
    records, notes, share = measure(options, bench)
    base = {record["field"]: record["both"] for record in records if record["way"] == "product"}
    rows = [
        [
            f"{record['field']}: {record['way']}",
            ms(record["forward"]),
            ms(record["both"]),
            times(record["both"], base[record["field"]]),
        ]
        for record in records
    ]
    title = f"{options.views} views of {options.size}^2 x {options.samples} samples, {100.0 * share:.0f} % of the cube occupied"
    header = ["field: way", "forward, ms", "forward + backward, ms", "by the product"]
    tell(options, bench, "render", title, header, rows, records, notes)


if __name__ == "__main__":
    run_program("render", main)

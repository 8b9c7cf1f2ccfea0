"""Our compositors against nerfacc's: `python -m benchmarks.render [--views 4] [--normals]`.

The scene is a solid ball that fills about 15 % of the cube. It is held by the product's dense grid
and, on a GPU, also by its hash grid. All renderers get the same rays of random views with the same
samples: forward alone (without a graph), and forward with backward. The renderers are

    product           `render_rays` by the route it takes on this device, with the occupancy grid
    torch             its torch route, with the occupancy grid
    torch, all        the torch route, nothing skipped
    product, nerfacc  the torch route with nerfacc's functions (GPU; `cuda.compositor=nerfacc`)
    textbook          dense tensors, nothing skipped (benchmarks/textbook.py)
    nerfacc           nerfacc's batched `rendering`, nothing skipped
    nerfacc, packed   nerfacc's occupancy grid and packed `rendering` (GPU), equally long steps

If nerfacc does not import, its renderers are left out, and a line below the table says so.
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
from benchmarks.timing import (
    Bench,
    Table,
    find_nerfacc,
    ms,
    multiple,
    new_parser,
    positive,
    prepare,
    report,
)
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
BACKGROUND = 0.7  # grey in [0, 1]
MARCH_MODULE = "vp3d.render.volume_cuda"  # nerfacc in the torch route; GPU only
Pass = Callable[[], Tensor]  # one forward pass; returns a scalar

# What nerfacc raises if it cannot build its kernels.
NO_KERNELS = (
    RuntimeError,
    ImportError,
    OSError,
    TypeError,
    AttributeError,
    subprocess.SubprocessError,
)


class BallField(HashGridField):
    """A hash grid multiplied by a solid ball: the cost of the grid, the empty space of the ball."""

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


def sum_of(render: Render) -> Tensor:
    """Sum of all values of a Render, a scalar."""
    found = (render.rgb, render.opacity, render.depth, render.normal)
    return torch.stack([value.sum() for value in found if value is not None]).sum()


def own_passes(
    field: Field, rays: Rays, config: RenderConfig, occupancy: OccupancyGrid, normals: bool
) -> dict[str, Pass]:
    """A pass for each route of ours, samples in the middle of their bins.

    Args:
        field: the scene.
        rays: the rays of all views.
        config: the number of samples.
        occupancy: the occupancy grid of the field.
        normals: whether normals are rendered too.

    Returns:
        Name -> pass.
    """
    start, step = ray_bins(rays, config.samples, None)

    def by_torch(grid: OccupancyGrid | None) -> Tensor:
        return sum_of(render_rays_torch(field, rays, start, step, config, grid, normals))

    return {
        "product": lambda: sum_of(render_rays(field, rays, config, occupancy, None, normals)),
        "torch": lambda: by_torch(occupancy),
        "torch, all": lambda: by_torch(None),
    }


def own_passes_on_cuda(
    field: Field, rays: Rays, config: RenderConfig, occupancy: OccupancyGrid, normals: bool
) -> tuple[dict[str, Pass], list[str]]:
    """The torch route with the march of `vp3d.render.volume_cuda`.

    Args:
        field: the scene.
        rays: the rays of all views.
        config: the number of samples.
        occupancy: the occupancy grid of the field.
        normals: whether normals are rendered too.

    Returns:
        Name -> pass, empty if it does not work on this device; and why not.
    """
    if rays.origins.device.type != "cuda":
        return {}, [f"{MARCH_MODULE} is left out: no GPU here"]
    try:
        march = importlib.import_module(MARCH_MODULE).nerfacc_march(rays.origins.device)
    except (ImportError, UserError) as error:
        return {}, [f"{MARCH_MODULE} is left out: {error}"]

    def forward() -> Tensor:
        return sum_of(render_rays(field, rays, config, occupancy, None, normals, march=march))

    return {"product, nerfacc": forward}, []


def peer_passes(
    field: Field, rays: Rays, config: RenderConfig, occupancy: OccupancyGrid
) -> tuple[dict[str, Pass], list[str]]:
    """The renderers that are not ours. They render colours only.

    Returns:
        Name -> pass, for those that run on this device; and why the others do not.
    """
    start, step = ray_bins(rays, config.samples, None)
    given = (field, rays, start, step, config.samples, BACKGROUND)
    passes: dict[str, Pass] = {"textbook": lambda: composite(*given).sum()}
    nerfacc, missing = find_nerfacc()
    if nerfacc is None:
        return passes, [missing]
    passes["nerfacc"] = lambda: composite_nerfacc(nerfacc, *given).sum()
    if rays.origins.device.type != "cuda":
        return passes, ["nerfacc, packed is left out: its sampler needs a GPU"]
    try:
        work = packed_pass(nerfacc, field, rays, config, occupancy)
        work()
    except NO_KERNELS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return passes, [f"nerfacc, packed is left out: {reason}"]
    return passes | {"nerfacc, packed": work}, []


def packed_pass(
    nerfacc: Any, field: Field, rays: Rays, config: RenderConfig, occupancy: OccupancyGrid
) -> Pass:
    """nerfacc's sampler and packed rendering, with its occupancy grid filled from ours.

    Args:
        nerfacc: the module.
        field: the scene.
        rays: the rays of all views.
        config: the number of samples and the resolution of the occupancy grid.
        occupancy: our occupancy grid.

    Returns:
        The pass.
    """
    device = rays.origins.device
    cube = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
    estimator = nerfacc.OccGridEstimator(cube, resolution=config.occupancy_resolution, levels=1)
    estimator = estimator.to(device)
    estimator.binaries.copy_(occupancy.mask.permute(2, 1, 0)[None])  # ours is z, y, x
    near, far = box_interval(rays)
    length = float(((far - near) / config.samples).mean())
    grey = torch.full((3,), BACKGROUND, device=device)

    def query(starts: Tensor, stops: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
        middle = 0.5 * (starts + stops)[:, None]
        sigma, albedo = field(rays.origins[ray] + middle * rays.directions[ray])
        return albedo, sigma

    def forward() -> Tensor:
        index, starts, stops = estimator.sampling(
            rays.origins, rays.directions, render_step_size=length
        )
        found = nerfacc.rendering(
            starts, stops, index, n_rays=len(rays), rgb_sigma_fn=query, render_bkgd=grey
        )
        return found[0].sum()

    return forward


def measure(
    options: argparse.Namespace, bench: Bench
) -> tuple[list[dict[str, Any]], list[str], float]:
    """Times every renderer.

    Returns:
        A record for each field and renderer; why some were left out; and the occupied share of the
        cube in [0, 1].
    """
    generator = torch.Generator().manual_seed(0)
    config, size = RenderConfig(samples=options.samples), FieldConfig(resolution=options.resolution)
    fields: dict[str, Field] = {"grid": ball_grid(size, generator)}
    if bench.device.type == "cuda":
        fields["hash grid"] = BallField(size, generator)
    cameras = sample_cameras(options.views, CameraConfig(), generator).to(bench.device)
    rays = camera_rays(cameras, options.size, options.size)
    records, notes, share = [], [], 0.0
    for name, field in fields.items():
        field.to(bench.device)
        occupancy = OccupancyGrid(config).to(bench.device)
        occupancy.update(field, generator)
        share = occupancy.share()
        passes = own_passes(field, rays, config, occupancy, options.normals)
        fast, notes = own_passes_on_cuda(field, rays, config, occupancy, options.normals)
        passes |= fast
        if not options.normals:
            others, missing = peer_passes(field, rays, config, occupancy)
            passes, notes = passes | others, notes + missing
        records += [
            {"field": name, "way": way, **bench.passes(work)} for way, work in passes.items()
        ]
    return records, notes, share


def main(argv: list[str] | None = None) -> None:
    """Times every renderer, prints the table, writes the JSON."""
    parser = new_parser("render", __doc__ or "")
    add, number = parser.add_argument, {"type": positive, "metavar": "N"}
    add("--views", **number, default=4, help="cameras of a step (4)")
    add("--size", **number, default=64, help="pixels of a side (64)")
    add("--samples", **number, default=48, help="samples of a ray (48)")
    add("--resolution", **number, default=48, help="resolution of the field (48)")
    add("--normals", action="store_true", help="render normals too; then only our own renderers")
    options = parser.parse_args(argv)
    bench = prepare(options)
    records, notes, share = measure(options, bench)
    base = {record["field"]: record["both"] for record in records if record["way"] == "product"}
    rows = [
        [
            f"{record['field']}: {record['way']}",
            ms(record["forward"]),
            ms(record["both"]),
            multiple(record["both"], base[record["field"]]),
        ]
        for record in records
    ]
    size = f"{options.views} views of {options.size}^2 x {options.samples} samples"
    title = f"{size}, {100.0 * share:.0f} % of the cube occupied"
    header = ["field: way", "forward, ms", "forward + backward, ms", "by the product"]
    report(options, bench, "render", Table(title, header, rows, notes), records)


if __name__ == "__main__":
    run_program("render", main)

"""What a rendering step costs: fields and compositing, forward and backward, on this machine.

    python benchmarks/step_render.py [--views 4] [--size 64] [--samples 48] [--threads 1] [--repeats 5]

Prints two tables of milliseconds (the least of `repeats` calls): our fields against a textbook hash grid with an MLP on a
list of points; and a whole step of views by the torch route, by the compiled route, and by the textbook way without
skipping. `--clock cpu` counts processor time instead of the wall's, for machines that are busy with something else (use it
with one thread). The scene is a solid ball that fills about 15 % of the cube.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vp3d.config import CameraConfig, FieldConfig, RenderConfig
from vp3d.fields.base import Field, lattice
from vp3d.fields.grid import GridField
from vp3d.fields.hashgrid import HashGridField
from vp3d.render.camera import camera_rays, sample_cameras
from vp3d.render.volume import OccupancyGrid, ray_bins, render_rays_torch
from vp3d.render.volume_numba import render_grid
from vp3d.types import Rays, Render

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
BALL_RADIUS = 0.66  # 15 % of the cube's volume


class TextbookHash(Field):
    """A torch hash grid (8 levels x 2, every level hashed, eight look-ups) and a 64-wide MLP, as tutorials write it."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.resolutions = [int(16 * 1.2**level) for level in range(8)]
        self.tables = nn.Parameter(torch.rand(8, 2**14, 2, generator=generator) * 2e-4 - 1e-4)
        self.mlp = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.cat([self._level(x, level) for level in range(8)], dim=-1)
        raw = self.mlp(features)
        return nn.functional.softplus(raw[:, 0]), torch.sigmoid(raw[:, 1:])

    def _level(self, x: Tensor, level: int) -> Tensor:
        u = (x + 1) / 2 * self.resolutions[level]
        low, total = u.floor().long(), torch.zeros(len(x), 2)
        for k in range(8):
            offset = torch.tensor([k & 1, k >> 1 & 1, k >> 2])
            corner = low + offset
            weight = (1 - (u - corner).abs()).prod(-1, keepdim=True)
            row = (corner[:, 0] ^ (corner[:, 1] * 2654435761) ^ (corner[:, 2] * 805459861)) % 2**14
            total = total + weight * self.tables[level][row]
        return total


def least_ms(work: Callable[[], object], repeats: int, clock: str) -> float:
    """Milliseconds of the quickest of `repeats` calls, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        begin = CLOCKS[clock]()
        work()
        times.append(CLOCKS[clock]() - begin)
    return 1e3 * min(times)


def report(name: str, forward: Callable[[], Tensor], repeats: int, clock: str) -> None:
    """One row: forward alone (no graph), then forward and backward of the scalar."""
    with torch.no_grad():
        alone = least_ms(forward, repeats, clock)
    both = least_ms(lambda: forward().backward(), repeats, clock)
    print(f"{name:<44}{alone:>10.1f}{both:>16.1f}")


def header(title: str) -> None:
    """Title row of a table."""
    print(f"\n{title:<44}{'forward':>10}{'fwd + bwd':>16}   ms")


def ball(side: int, generator: torch.Generator) -> GridField:
    """A dense field that holds a solid ball."""
    field = GridField(FieldConfig(resolution=side), generator)
    with torch.no_grad():
        distance = BALL_RADIUS - lattice(side).norm(dim=-1)
        field.raw_density.copy_((300 * distance).clamp(-10, 60).reshape(field.raw_density.shape))
    return field


def bench_fields(args: argparse.Namespace, generator: torch.Generator) -> None:
    """The fields on 65 536 random points."""
    x = torch.rand(65_536, 3, generator=generator) * 2 - 1
    header("65 536 points")
    rows: list[tuple[str, Field]] = [
        ("dense grid 48, grid_sample", GridField(FieldConfig(), generator)),
        ("our hash grid 8 x 2, table 2^14", HashGridField(FieldConfig(kind="hashgrid"), generator)),
        ("textbook hash grid + MLP", TextbookHash(generator)),
    ]
    for name, field in rows:
        report(name, lambda field=field: sum_of(*field(x)), args.repeats, args.clock)
    report("smoothness of the dense grid", rows[0][1].smoothness, args.repeats, args.clock)


def bench_steps(args: argparse.Namespace, generator: torch.Generator) -> None:
    """A whole step of views of the ball."""
    config = RenderConfig(samples=args.samples)
    field, textbook = ball(args.grid, generator), TextbookHash(generator)
    rays: Rays = camera_rays(sample_cameras(args.views, CameraConfig(), generator), args.size, args.size)
    start, step = ray_bins(rays, args.samples, generator)
    occupancy = OccupancyGrid(config)
    occupancy.update(field, generator)
    header(f"{args.views} views {args.size}^2 x {args.samples}, {100 * occupancy.share():.0f} % occupied")
    for normal in (False, True):
        with_normals = ", normals" if normal else ""
        report(
            f"compiled{with_normals}",
            lambda n=normal: render_sum(render_grid(field, rays, start, step, args.samples, occupancy, n)),
            args.repeats,
            args.clock,
        )
        report(
            f"torch, skipping{with_normals}",
            lambda n=normal: render_sum(render_rays_torch(field, rays, start, step, config, occupancy, n)),
            args.repeats,
            args.clock,
        )
    report(
        "torch, nothing skipped",
        lambda: render_sum(render_rays_torch(field, rays, start, step, config)),
        args.repeats,
        args.clock,
    )
    few = slice(0, len(rays), 8)
    report(
        "textbook hash, no skipping, 1/8 of the rays",
        lambda: render_sum(render_rays_torch(textbook, rays[few], start[few], step[few], config)),
        1,
        args.clock,
    )


def sum_of(*values: Tensor) -> Tensor:
    """Everything added up to a scalar."""
    return torch.stack([value.sum() for value in values]).sum()


def render_sum(render: Render) -> Tensor:
    """The outputs of a Render added up."""
    return sum_of(*(v for v in (render.rgb, render.opacity, render.depth, render.normal) if v is not None))


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=4, help="cameras a step")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("--samples", type=int, default=48, help="samples a ray")
    parser.add_argument("--grid", type=int, default=48, help="nodes of a side of the dense field")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s)")
    bench_fields(args, torch.Generator().manual_seed(0))
    bench_steps(args, torch.Generator().manual_seed(0))


if __name__ == "__main__":
    main()

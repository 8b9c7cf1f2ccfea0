"""Ours against its peers on a CPU: `python -m benchmarks.peers [CAPTION]`.

One toybox scene, its exact views as targets. Every arm sees the same random rays, with the same places of the samples, under Adam
with the product's fall of the rates, for the same number of steps or (--seconds) the same time, and is judged by PSNR on views
that were held out:

    ours              the product's field, sampler and compositor: dense grid, empty space skipped, one compiled pass
    hashgrid          the product's hash grid through its torch route, empty space skipped
    textbook          a hash grid and MLP in plain torch, nothing skipped (benchmarks/textbook.py)
    textbook-nerfacc  the same field through nerfacc's batched `rendering`
    grid-nerfacc      our dense grid through nerfacc's batched `rendering`

Those of nerfacc are left out, and the table says so, where it does not import. The peers' fields have the size of ours: the
finest level is as fine as our grid. Time is that of the steps alone: neither drawing rays nor judging counts. "To target" is the
time of the steps until the held-out PSNR first reached --target; without it, the best that every arm reached.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.textbook import TextbookField, composite, composite_nerfacc, squared_error
from benchmarks.timing import Bench, find_nerfacc, ms, new_parser, positive, prepare, tell, times
from vp3d.config.schema import CameraConfig, FieldConfig, OptimConfig, RenderConfig
from vp3d.errors import UserError
from vp3d.export.verify import psnr
from vp3d.fields.nerf import Field, build_field
from vp3d.render.camera import camera_rays, orbit
from vp3d.render.occupancy import OccupancyGrid
from vp3d.render.volume import ray_bins, render_rays
from vp3d.system.console import run_program
from vp3d.types import Rays
from vp3d.worlds.toybox.images import render_scenes, view_vectors
from vp3d.worlds.toybox.scenes import build_scene, parse_caption

ARMS = ("ours", "hashgrid", "textbook", "textbook-nerfacc", "grid-nerfacc")
CAPTION = "a red mushroom with a white stem"
GROUND = 0.7  # grey behind the scene
TURN_DEG = 137.508  # golden angle: azimuths of any number of views are spread evenly
HELD_OUT_DEG = 31.0  # offset of the held-out azimuths
Draw = Callable[[Rays, torch.Generator | None], Tensor]  # rays -> colours [N, 3] over the ground


@dataclass(frozen=True)
class Views:
    """Rays [N] of whole views and what they should show: rgb [N, 3] in [0, 1]."""

    rays: Rays
    rgb: Tensor


@dataclass(frozen=True)
class Curve:
    """How an arm went: seconds of each step; PSNR in dB of the held-out views after so many steps."""

    step_s: list[float]
    psnr: list[tuple[int, float]]

    def seconds_to(self, target: float) -> float | None:
        """Seconds of steps until the PSNR first was `target` dB; None where it never was."""
        done = next((steps for steps, psnr in self.psnr if psnr >= target), None)
        return None if done is None else sum(self.step_s[:done])


def take_views(
    caption: str, count: int, size: int, first_azimuth_deg: float, config: CameraConfig
) -> Views:
    """`count` exact views of a caption's scene, `size` pixels a side, spread over azimuth and the config's elevations."""
    turn = first_azimuth_deg + TURN_DEG * np.arange(count)
    share = (np.arange(count) + 0.5) / count
    elevation = (
        config.elevation_min_deg + (config.elevation_max_deg - config.elevation_min_deg) * share
    )
    camera = orbit((turn % 360.0).tolist(), elevation.tolist(), config.distance, config.fov_deg)
    full = np.ones(count)
    vectors = view_vectors(turn % 360.0, elevation, full * config.distance, full * config.fov_deg)
    pictures, _ = render_scenes(
        [build_scene(parse_caption(caption))], np.zeros(count), vectors, full * GROUND, size
    )
    return Views(
        camera_rays(camera, size, size),
        torch.from_numpy(pictures).float().div(255.0).reshape(-1, 3),
    )


def held_out_psnr(draw: Draw, views: Views, chunk: int) -> float:
    """PSNR in dB over all pixels of the views, drawn `chunk` rays at a time without chance."""
    with torch.no_grad():
        parts = [draw(views.rays[i : i + chunk], None) for i in range(0, len(views.rays), chunk)]
    return psnr(torch.cat(parts), views.rgb)


@dataclass(frozen=True)
class Arm:
    """A field with its way to draw rays, and what is due before step i."""

    field: Field
    draw: Draw
    before: Callable[[int], None]


def build_arm(name: str, options: argparse.Namespace) -> tuple[Arm | None, str]:
    """The arm called `name` and "", or None and why it cannot run here."""
    chance, jitter = (
        torch.Generator().manual_seed(options.seed),
        torch.Generator().manual_seed(options.seed),
    )
    config = RenderConfig(samples=options.samples)
    size = FieldConfig(resolution=options.resolution)
    textbook = name.startswith("textbook")
    kind = dataclasses.replace(size, kind="hashgrid" if name == "hashgrid" else "grid")
    field = TextbookField(size, chance) if textbook else build_field(kind, chance)
    if name in ("ours", "hashgrid"):
        occupancy = OccupancyGrid(config)

        def ours(rays: Rays, generator: torch.Generator | None) -> Tensor:
            return render_rays(field, rays, config, occupancy, generator).over(
                torch.full((3,), GROUND)
            )

        def look_again(i: int) -> None:
            if i % config.occupancy_every == 0:
                occupancy.update(field, jitter)

        return Arm(field, ours, look_again), ""
    through = composite
    if name.endswith("nerfacc"):
        nerfacc, missing = find_nerfacc()
        if nerfacc is None:
            return None, f"{name} is left out: {missing}"
        through = partial(composite_nerfacc, nerfacc)

    def peer(rays: Rays, generator: torch.Generator | None) -> Tensor:
        return through(
            field, rays, *ray_bins(rays, options.samples, generator), options.samples, GROUND
        )

    return Arm(field, peer, lambda i: None), ""


def optimise(
    arm: Arm, train: Views, held_out: Views, bench: Bench, options: argparse.Namespace
) -> Curve:
    """Fit the arm's field to the training views by mean squared error; random rays and samples depend on the seed alone."""
    optim = OptimConfig()
    optimizer = torch.optim.Adam(arm.field.parameter_groups(optim), eps=1.0e-15)
    base = [group["lr"] for group in optimizer.param_groups]
    rays, places = (torch.Generator().manual_seed(options.seed + n) for n in (1, 2))
    curve, progress, looks = (
        Curve([], [(0, held_out_psnr(arm.draw, held_out, options.rays))]),
        0.0,
        1,
    )
    while progress < 1.0:
        i = len(curve.step_s)
        seen = torch.randint(len(train.rays), (options.rays,), generator=rays)
        batch, target = train.rays[seen], train.rgb[seen]
        fall = optim.lr_final + (1.0 - optim.lr_final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        begin = bench.now()
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * fall
        arm.before(i)
        optimizer.zero_grad(set_to_none=True)
        squared_error(arm.draw(batch, places), target).backward()
        optimizer.step()
        curve.step_s.append(bench.now() - begin)
        progress = (
            sum(curve.step_s) / options.seconds if options.seconds else (i + 1) / options.steps
        )
        if progress >= min(looks / options.looks, 1.0) - 1.0e-9:
            looks = int(progress * options.looks + 1.0e-9) + 1
            curve.psnr.append((i + 1, held_out_psnr(arm.draw, held_out, options.rays)))
    return curve


def summarise(curves: dict[str, Curve], target: float | None) -> dict[str, dict[str, float | None]]:
    """For each arm: median seconds a step, PSNR at the end, the target, seconds to it; both times by those of the first arm."""
    if target is None:
        target = min(max(value for _, value in curve.psnr) for curve in curves.values())
    told: dict[str, dict[str, float | None]] = {}
    for name, curve in curves.items():
        told[name] = {"step_s": statistics.median(curve.step_s), "psnr": curve.psnr[-1][1]}
        told[name] |= {"target": target, "to_target_s": curve.seconds_to(target)}
    first = next(iter(told.values()))
    for found in told.values():
        for key in ("step_s", "to_target_s"):
            mine, base = found[key], first[key]
            found[f"{key}_ratio"] = None if mine is None or not base else mine / base
    return told


def new_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser("peers", __doc__ or "", repeats=300, warmup=1, count="steps")
    parser.add_argument("caption", nargs="?", default=CAPTION, help=f'the scene ("{CAPTION}")')
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=ARMS,
        default=list(ARMS),
        help="which, the first is the measure (all)",
    )
    parser.add_argument(
        "--rays", type=positive, default=4096, metavar="N", help="rays a step (4096)"
    )
    parser.add_argument(
        "--samples",
        type=positive,
        default=RenderConfig().samples,
        metavar="N",
        help="samples a ray (48)",
    )
    parser.add_argument(
        "--resolution",
        type=positive,
        default=FieldConfig().resolution,
        metavar="N",
        help="of the fields (48)",
    )
    parser.add_argument("--views", type=positive, default=24, metavar="N", help="views to fit (24)")
    parser.add_argument(
        "--held-out", type=positive, default=6, metavar="N", help="views to judge by (6)"
    )
    parser.add_argument(
        "--size", type=positive, default=64, metavar="N", help="pixels of a side (64)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="so much time for each arm, in the place of --steps",
    )
    parser.add_argument(
        "--looks",
        type=positive,
        default=20,
        metavar="N",
        help="judgements on the way, evenly spread (20)",
    )
    parser.add_argument(
        "--target", type=float, metavar="DB", help="PSNR to reach (the best that all reached)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of fields, rays and samples (0)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Fit every arm, print the table, write the JSON."""
    options = new_options(argv)
    options.steps = options.repeats
    if options.seconds is not None and not options.seconds > 0.0:
        raise UserError(f"--seconds {options.seconds:g}: give more than 0")
    bench = prepare(options)
    if bench.device.type != "cpu":
        if options.device == "cuda":
            raise UserError(
                "benchmarks.peers compares on a CPU: leave --device out; benchmarks.render knows the GPU"
            )
        bench = dataclasses.replace(bench, device=torch.device("cpu"))
    try:
        parse_caption(options.caption)
    except ValueError as error:
        raise UserError(str(error)) from error
    config = CameraConfig()
    train = take_views(options.caption, options.views, options.size, 0.0, config)
    held_out = take_views(options.caption, options.held_out, options.size, HELD_OUT_DEG, config)
    curves, notes = {}, []
    for name in options.arms:
        arm, missing = build_arm(name, options)
        if arm is None:
            notes.append(missing)
            continue
        warm_up(name, train, held_out, bench, options)
        curves[name] = optimise(arm, train, held_out, bench, options)
    if not curves:
        raise UserError("; ".join(notes))
    told = summarise(curves, options.target)
    rows = [
        row_of(name, len(curves[name].step_s), found, told[next(iter(told))])
        for name, found in told.items()
    ]
    target = told[next(iter(told))]["target"]
    if target is not None and any(curve.psnr[0][1] >= target for curve in curves.values()):
        notes.append(
            f"{target:.1f} dB are there before the first step, so times to it say nothing: give more, or --target"
        )
    length = f"{options.seconds:g} s" if options.seconds else f"{options.steps} steps"
    title = f"{options.caption}: {length}, {options.rays} rays x {options.samples} samples a step"
    header = [
        "arm",
        "steps",
        "ms a step (median)",
        "by the first",
        "held-out PSNR, dB",
        f"s to {target:.1f} dB",
        "by the first",
    ]
    results = {name: {**told[name], **dataclasses.asdict(curve)} for name, curve in curves.items()}
    tell(options, bench, "peers", title, header, rows, results, notes)


def warm_up(
    name: str, train: Views, held_out: Views, bench: Bench, options: argparse.Namespace
) -> None:
    """A few steps of an arm that is then thrown away: compiled code is loaded, the allocator has its blocks."""
    arm, _ = build_arm(name, options)
    if arm is not None and bench.warmup:
        few = argparse.Namespace(
            **{**vars(options), "steps": bench.warmup, "seconds": None, "looks": 1}
        )
        one = slice(0, options.rays)
        optimise(arm, train, Views(held_out.rays[one], held_out.rgb[one]), bench, few)


def row_of(
    name: str, steps: int, found: dict[str, float | None], first: dict[str, float | None]
) -> list[str]:
    """A row of the table."""
    step, to_target = found["step_s"], found["to_target_s"]
    shown = "not reached" if to_target is None else f"{to_target:.2f}"
    cells = [ms(step or 0.0), times(step, first["step_s"]), f"{found['psnr']:.1f}"]
    return [name, f"{steps}", *cells, shown, times(to_target, first["to_target_s"])]


if __name__ == "__main__":
    run_program("peers", main)

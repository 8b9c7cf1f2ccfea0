"""Ours against its peers on a CPU: `python -m benchmarks.peers [CAPTION]`.

The targets are exact views of one toybox scene. Every arm gets the same random rays with the same
samples and is optimised by Adam with the product's learning rate schedule, for the same number of
steps or (--seconds) the same time. It is judged by the PSNR on held-out views. The arms are

    ours              the product's field, sampler and compositor: dense grid, empty space skipped,
                      one compiled pass
    hashgrid          the product's hash grid by its torch route, empty space skipped
    textbook          a hash grid and MLP in plain torch, nothing skipped (benchmarks/textbook.py)
    textbook-nerfacc  the same field by nerfacc's batched `rendering`
    grid-nerfacc      our dense grid by nerfacc's batched `rendering`

If nerfacc does not import, its arms are left out, and a line below the table says so. The fields of
the peers have the size of ours: their finest level is as fine as our grid. The time is that of the
steps only: drawing rays and judging do not count.

The time to a target is that of the steps until the held-out PSNR first reached --target dB. An arm
is judged from the first step on at a fixed number of steps for each doubling of their number, so
the time is resolved by the same share for a fast arm and for a slow one. It is interpolated between
the judgements around it. An arm that misses the target is named, with its best PSNR.
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
TARGET_DB = 20.0  # held-out PSNR to reach: the rough shape and its colours
BACKGROUND = 0.7  # grey in [0, 1] behind the scene
TURN_DEG = 137.508  # golden angle: azimuths of any number of views are spread evenly
HELD_OUT_DEG = 31.0  # offset of the held-out azimuths
ADAM_EPSILON = 1.0e-15

# Rays and the generator of the samples (None: in the middle of their bins) -> colours [N, 3].
Draw = Callable[[Rays, torch.Generator | None], Tensor]


@dataclass(frozen=True)
class Views:
    """Complete views.

    Attributes:
        rays: N rays.
        rgb: `[N, 3]` in [0, 1], what they show.
    """

    rays: Rays
    rgb: Tensor


@dataclass(frozen=True)
class Curve:
    """The course of an arm.

    Attributes:
        step_s: seconds of each step.
        psnr: (steps, PSNR in dB of the held-out views after them).
    """

    step_s: list[float]
    psnr: list[tuple[int, float]]

    @property
    def best(self) -> float:
        """The best PSNR of all judgements."""
        return max(psnr for _, psnr in self.psnr)

    def seconds_to(self, target: float) -> float | None:
        """Seconds of steps until the PSNR first was `target` dB; None if it never was.

        Between the last judgement below the target and the first one at it, PSNR is taken to rise
        evenly with time.
        """
        bracket = self.bracket(target)
        if bracket is None:
            return None
        (before, low), (after, high) = bracket
        start, end = sum(self.step_s[:before]), sum(self.step_s[:after])
        return end if high <= low else start + (end - start) * (target - low) / (high - low)

    def bracket(self, target: float) -> tuple[tuple[int, float], tuple[int, float]] | None:
        """The judgements around the first time at `target` dB; None if it was never reached.

        Both are the first judgement if the target was reached before the first step.
        """
        reached = next((n for n, (_, psnr) in enumerate(self.psnr) if psnr >= target), None)
        return None if reached is None else (self.psnr[max(reached - 1, 0)], self.psnr[reached])


@dataclass(frozen=True)
class Arm:
    """A field and its renderer.

    Attributes:
        field: the field.
        draw: renders it.
        before: is called with the number of each step before it.
    """

    field: Field
    draw: Draw
    before: Callable[[int], None]


def take_views(
    caption: str, count: int, size: int, first_azimuth_deg: float, config: CameraConfig
) -> Views:
    """Exact views of a caption's scene.

    Args:
        caption: a caption of the toybox.
        count: the number of views, spread over azimuth and the elevations of the config.
        size: pixels of a side.
        first_azimuth_deg: azimuth of the first view.
        config: distance, field of view and elevations.

    Returns:
        The views.
    """
    turn = first_azimuth_deg + TURN_DEG * np.arange(count)
    share = (np.arange(count) + 0.5) / count
    spread_deg = config.elevation_max_deg - config.elevation_min_deg
    elevation = config.elevation_min_deg + spread_deg * share
    camera = orbit((turn % 360.0).tolist(), elevation.tolist(), config.distance, config.fov_deg)
    full = np.ones(count)
    vectors = view_vectors(turn % 360.0, elevation, full * config.distance, full * config.fov_deg)
    scene, background = build_scene(parse_caption(caption)), full * BACKGROUND
    pictures, _ = render_scenes([scene], np.zeros(count), vectors, background, size)
    rgb = torch.from_numpy(pictures).float().div(255.0).reshape(-1, 3)
    return Views(camera_rays(camera, size, size), rgb)


def psnr_of(draw: Draw, views: Views, chunk: int) -> float:
    """PSNR in dB over all pixels of the views, `chunk` rays at a time, without random samples."""
    with torch.no_grad():
        parts = [draw(views.rays[i : i + chunk], None) for i in range(0, len(views.rays), chunk)]
    return psnr(torch.cat(parts), views.rgb)


def build_arm(name: str, options: argparse.Namespace) -> tuple[Arm | None, str]:
    """The arm called `name`, one of `ARMS`.

    Returns:
        The arm and "", or None and why it cannot run on this machine.
    """
    generator = torch.Generator().manual_seed(options.seed)
    jitter = torch.Generator().manual_seed(options.seed)
    config = RenderConfig(samples=options.samples)
    size = FieldConfig(resolution=options.resolution)
    kind = dataclasses.replace(size, kind="hashgrid" if name == "hashgrid" else "grid")
    is_textbook = name.startswith("textbook")
    field = TextbookField(size, generator) if is_textbook else build_field(kind, generator)
    if name in ("ours", "hashgrid"):
        return own_arm(field, config, jitter), ""
    render = composite
    if name.endswith("nerfacc"):
        nerfacc, missing = find_nerfacc()
        if nerfacc is None:
            return None, f"{name} is left out: {missing}"
        render = partial(composite_nerfacc, nerfacc)

    def draw(rays: Rays, generator: torch.Generator | None) -> Tensor:
        start, step = ray_bins(rays, options.samples, generator)
        return render(field, rays, start, step, options.samples, BACKGROUND)

    return Arm(field, draw, lambda i: None), ""


def own_arm(field: Field, config: RenderConfig, jitter: torch.Generator) -> Arm:
    """The arm of the product's renderer, whose occupancy grid is updated with `jitter`."""
    occupancy = OccupancyGrid(config)

    def draw(rays: Rays, generator: torch.Generator | None) -> Tensor:
        rendered = render_rays(field, rays, config, occupancy, generator)
        return rendered.over(torch.full((3,), BACKGROUND))

    def update_occupancy(i: int) -> None:
        if i % config.occupancy_every == 0:
            occupancy.update(field, jitter)

    return Arm(field, draw, update_occupancy)


def optimise(
    arm: Arm, train: Views, held_out: Views, bench: Bench, options: argparse.Namespace
) -> Curve:
    """Fits the arm's field to the training views by mean squared error.

    Args:
        arm: the field and its renderer.
        train: the training views.
        held_out: the views to judge by.
        bench: the clock.
        options: steps or seconds, rays of a step, judgements for each doubling of the steps, and
            the seed, on which rays and samples depend.

    Returns:
        The seconds of the steps, and the PSNR in between.
    """
    optim = OptimConfig()
    optimizer = torch.optim.Adam(arm.field.parameter_groups(optim), eps=ADAM_EPSILON)
    base = [group["lr"] for group in optimizer.param_groups]
    ray_generator, sample_generator = (
        torch.Generator().manual_seed(options.seed + n) for n in (1, 2)
    )
    curve = Curve([], [(0, psnr_of(arm.draw, held_out, options.rays))])
    progress, due = 0.0, 1  # due: the number of steps of the next judgement
    while progress < 1.0:
        i = len(curve.step_s)
        chosen = torch.randint(len(train.rays), (options.rays,), generator=ray_generator)
        batch, target = train.rays[chosen], train.rgb[chosen]
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        factor = optim.lr_final + (1.0 - optim.lr_final) * cosine
        start = bench.now()
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor
        arm.before(i)
        optimizer.zero_grad(set_to_none=True)
        squared_error(arm.draw(batch, sample_generator), target).backward()
        optimizer.step()
        curve.step_s.append(bench.now() - start)
        done = sum(curve.step_s) if options.seconds else i + 1
        progress = done / (options.seconds or options.steps)
        if i + 1 >= due or progress >= 1.0:
            due = next_judgement(i + 1, options.looks)
            curve.psnr.append((i + 1, psnr_of(arm.draw, held_out, options.rays)))
    return curve


def next_judgement(steps: int, per_doubling: int) -> int:
    """The number of steps of the judgement after the one at `steps`: at least one step later."""
    return max(steps + 1, math.floor(steps * 2.0 ** (1.0 / per_doubling)))


def summarise(curves: dict[str, Curve], target: float) -> dict[str, dict[str, float | None]]:
    """The figures of each arm.

    Args:
        curves: arm -> its course.
        target: PSNR in dB.

    Returns:
        For each arm: "step_s" (median seconds), "psnr" (at the end), "target", "to_target_s" (None
            if it was never reached), and
        "step_s_ratio" and "to_target_s_ratio" to the first arm.
    """
    summary: dict[str, dict[str, float | None]] = {}
    for name, curve in curves.items():
        summary[name] = {
            "step_s": statistics.median(curve.step_s),
            "psnr": curve.psnr[-1][1],
            "target": target,
            "to_target_s": curve.seconds_to(target),
        }
    first = next(iter(summary.values()))
    for found in summary.values():
        for key in ("step_s", "to_target_s"):
            own, base = found[key], first[key]
            found[f"{key}_ratio"] = None if own is None or not base else own / base
    return summary


def new_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser("peers", __doc__ or "", repeats=300, warmup=1, count="steps")
    samples, resolution = RenderConfig().samples, FieldConfig().resolution
    add, number = parser.add_argument, {"type": positive, "metavar": "N"}
    add("caption", nargs="?", default=CAPTION, help=f'the scene ("{CAPTION}")')
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="the first is the base (all)")
    add("--rays", **number, default=4096, help="rays of a step (4096)")
    add("--samples", **number, default=samples, help=f"samples of a ray ({samples})")
    add("--resolution", **number, default=resolution, help=f"of the fields ({resolution})")
    add("--views", **number, default=24, help="views to fit (24)")
    add("--held-out", **number, default=6, help="views to judge by (6)")
    add("--size", **number, default=64, help="pixels of a side (64)")
    add("--seconds", type=float, metavar="S", help="this time for each arm, instead of --steps")
    add("--looks", **number, default=8, help="judgements for each doubling of the steps (8)")
    add(
        "--target",
        type=float,
        default=TARGET_DB,
        metavar="DB",
        help=f"PSNR to reach ({TARGET_DB:g})",
    )
    add("--seed", type=int, default=0, help="of fields, rays and samples (0)")
    return parser.parse_args(argv)


def check_options(options: argparse.Namespace) -> Bench:
    """The Bench of the command line, on a CPU.

    Raises:
        UserError: an option is wrong.
    """
    options.steps = options.repeats
    if options.seconds is not None and not options.seconds > 0.0:
        raise UserError(f"--seconds {options.seconds:g}: give more than 0")
    bench = prepare(options)
    if bench.device.type != "cpu":
        if options.device == "cuda":
            raise UserError(
                "benchmarks.peers compares on a CPU; leave --device out, "
                "or use benchmarks.render on a GPU"
            )
        bench = dataclasses.replace(bench, device=torch.device("cpu"))
    try:
        parse_caption(options.caption)
    except ValueError as error:
        raise UserError(str(error)) from error
    return bench


def main(argv: list[str] | None = None) -> None:
    """Fits every arm, prints the table, writes the JSON."""
    options = new_options(argv)
    bench = check_options(options)
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
    summary = summarise(curves, options.target)
    table = table_of(summary, curves, options, notes)
    results = {
        name: {**summary[name], **dataclasses.asdict(curve)} for name, curve in curves.items()
    }
    report(options, bench, "peers", table, results)


def warm_up(
    name: str, train: Views, held_out: Views, bench: Bench, options: argparse.Namespace
) -> None:
    """Runs a few steps of an arm: compiled code is loaded, the allocator has its blocks.

    Args:
        name: the arm; it is built again and discarded.
        train: the training views.
        held_out: the views to judge by.
        bench: the number of steps.
        options: the command line.
    """
    arm, _ = build_arm(name, options)
    if arm is not None and bench.warmup:
        changes = {"steps": bench.warmup, "seconds": None, "looks": 1}
        few = argparse.Namespace(**{**vars(options), **changes})
        one = slice(0, options.rays)
        optimise(arm, train, Views(held_out.rays[one], held_out.rgb[one]), bench, few)


def table_of(
    summary: dict[str, dict[str, float | None]],
    curves: dict[str, Curve],
    options: argparse.Namespace,
    notes: list[str],
) -> Table:
    """The table of all arms.

    Args:
        summary: what `summarise` returned.
        curves: arm -> its course.
        options: the command line.
        notes: lines to print below the table.
    """
    first = next(iter(summary.values()))
    rows = [row_of(name, len(curves[name].step_s), found, first) for name, found in summary.items()]
    target = options.target
    notes = [*notes, *target_notes(curves, target)]
    length = f"{options.seconds:g} s" if options.seconds else f"{options.steps} steps"
    size = f"{options.rays} rays x {options.samples} samples a step"
    header = ["arm", "steps", "ms a step (median)", "by the first", "held-out PSNR, dB"]
    header += [f"s to {target:.1f} dB", "by the first"]
    return Table(f"{options.caption}: {length}, {size}", header, rows, notes)


def target_notes(curves: dict[str, Curve], target: float) -> list[str]:
    """Lines on arms whose time to the target is missing or not resolved.

    Args:
        curves: arm -> its course.
        target: PSNR in dB.
    """
    notes = []
    for name, curve in curves.items():
        bracket = curve.bracket(target)
        if bracket is None:
            notes.append(
                f"{name} missed {target:.1f} dB in its {sum(curve.step_s):.1f} s; its best was "
                f"{curve.best:.1f} dB: give more steps or a lower --target"
            )
        elif bracket[1][0] <= 1:
            when = "before" if bracket[1][0] == 0 else "within"
            notes.append(
                f"{name} reached {target:.1f} dB {when} the first step, so its time to it means "
                "nothing; give a higher --target"
            )
    return notes


def row_of(
    name: str, steps: int, found: dict[str, float | None], first: dict[str, float | None]
) -> list[str]:
    """A row of the table.

    Args:
        name: the arm.
        steps: its number of steps.
        found: its figures.
        first: those of the first arm.
    """
    step, to_target = found["step_s"], found["to_target_s"]
    reached = "not reached" if to_target is None else f"{to_target:.2f}"
    cells = [ms(step or 0.0), multiple(step, first["step_s"]), f"{found['psnr']:.1f}"]
    return [name, f"{steps}", *cells, reached, multiple(to_target, first["to_target_s"])]


if __name__ == "__main__":
    run_program("peers", main)

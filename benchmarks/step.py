"""Where each second of an optimisation step goes: `python -m benchmarks.step [--preset standard] [key=value ...]`.

Runs the product's own loop (`vp3d.train.loop.run`) with the embedded models and a picture of the true object as the visual
prompt, and tells apart, in every step,

    sampling     cameras, rays, places of the samples, the occupancy grid
    field        looking the field up. The compiled route (dense grid on a CPU) does that inside compositing; what is left here
                 are its node tables. `field.kind=hashgrid` shows the route of every other field.
    compositing  from samples to pixels
    encoder      from pixels to latents, and back where guidance.space is pixels
    denoiser     every branch of the guidance
    rewards      text-image and image-image, with their pictures; before its window a reward is only looked at
    regularisers opacity, sparsity, smoothness, orientation
    optimiser    zeroing, clipping, Adam, the finite checks
    log          events, live preview (every optim.preview_every steps), checkpoint, the copy that a bad step rolls back to
    rest         everything else: guidance outside its networks, putting views on their ground, adding up the loss

Nothing of the loop is copied: clocks are put around the functions it calls, and each node of the backward pass counts for the
part whose forward pass made it. The parts add up to the step. `--steps` steps go once through the whole schedule, so each reward
is on for the share of them that it is on in a run.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import tempfile
import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import Tensor

from benchmarks.timing import Bench, ms, new_parser, prepare, tell
from vp3d import build, checks, pipeline
from vp3d.config.loader import PRESETS, load_config
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.render import volume, volume_numba
from vp3d.runs.folder import RunFolder
from vp3d.system.console import run_program
from vp3d.train import coarse, loop
from vp3d.train.coarse import Coarse
from vp3d.worlds.toybox.images import render_spec
from vp3d.worlds.toybox.scenes import parse_caption

PROMPT = "a red mushroom with a white stem"
PARTS = (
    "sampling",
    "field",
    "compositing",
    "encoder",
    "denoiser",
    "rewards",
    "regularisers",
    "optimiser",
    "log",
    "rest",
)
REST = "rest"
ACCUMULATES = (
    2**63
)  # nodes numbered beyond this add up a parameter's gradient; no forward pass made them
Step = dict[str, dict[str, float]]  # part -> {"forward": seconds, "backward": seconds}


class PartClock:
    """Tells each moment of a step to one part, the innermost that is under way; forward and backward apart."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.open = [REST]
        self.sealed = False  # inside a part that is not divided further
        self.direction = "forward"
        self.spent: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.steps: list[Step] = []
        self.numbers: list[
            int
        ] = []  # where a part began or went on, by the number of the next node of the graph ...
        self.makers: list[str] = []  # ... and which part that was
        self.last = now()

    @contextmanager
    def part(self, name: str, sealed: bool = False) -> Iterator[None]:
        """What happens inside counts for `name`; `sealed`: also what would be another part's."""
        if self.sealed:
            yield
            return
        self._turn(lambda: self.open.append(name))
        self.sealed = sealed
        try:
            yield
        finally:
            self.sealed = False
            self._turn(self.open.pop)

    def next_step(self) -> None:
        """A step is over."""
        self._count()
        self.steps.append(
            {
                part: {way: self.spent[part, way] for way in ("forward", "backward")}
                for part in PARTS
            }
        )
        self.spent.clear()
        self.numbers.clear()
        self.makers.clear()
        self._mark()

    def backward(self, loss: Tensor, real: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """`real(loss, ...)`, a backward pass, each node of which counts for the part that made it."""
        self._count()
        for node in graph_of(loss):
            node.register_prehook(functools.partial(self._enter, self.maker(node)))
        self.last, self.direction = self.now(), "backward"
        here = self.open[-1]
        try:
            real(loss, *args, **kwargs)
        finally:
            self._count()
            self.open[-1], self.direction = here, "forward"

    def maker(self, node: Any) -> str:
        """The part whose forward pass made a node of the graph; a parameter's own gradient is the field's."""
        number = node._sequence_nr()
        return (
            "field"
            if number >= ACCUMULATES
            else self.makers[bisect_right(self.numbers, number) - 1]
        )

    def _enter(self, part: str, _gradients: object) -> None:
        if part != self.open[-1]:
            self._count()
            self.open[-1] = part

    def _turn(self, change: Callable[[], object]) -> None:
        self._count()
        change()
        self._mark()

    def _count(self) -> None:
        now = self.now()
        self.spent[self.open[-1], self.direction] += now - self.last
        self.last = now

    def _mark(self) -> None:
        self.numbers.append(torch.autograd._get_sequence_nr())
        self.makers.append(self.open[-1])


def graph_of(value: Tensor) -> list[Any]:
    """Every node of the graph that made `value`."""
    found, ahead = set(), [value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in found:
            found.add(node)
            ahead += [next_node for next_node, _ in node.next_functions]
    return list(found)


@contextmanager
def seams(clock: PartClock, stage: Coarse, prior: Any) -> Iterator[None]:
    """Clocks around the functions that the loop calls, for as long as this is open."""
    places: list[tuple[Any, str, str, bool]] = [
        *((loop, name, "optimiser", False) for name in ("differentiate", "apply")),
        (loop, "report", "log", True),
        (loop, "keep", "log", True),
        (coarse, "sample_cameras", "sampling", True),
        (coarse, "camera_rays", "sampling", True),
        (stage.occupancy, "update", "sampling", True),
        (volume, "ray_bins", "sampling", True),
        (coarse, "render_rays", "compositing", False),
        (volume_numba, "_node_table", "field", True),
        *((stage.field, name, "field", True) for name in ("forward", "normal", "density")),
        (prior, "encode_images", "encoder", True),
        (prior, "decode", "encoder", True),
        (prior, "predict_branches", "denoiser", True),
        (stage, "_rewards", "rewards", True),
        (stage, "_regularisers", "regularisers", True),
    ]
    real_backward = Tensor.backward

    def watched(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        clock.backward(loss, real_backward, *args, **kwargs)

    with ExitStack() as stack:
        for owner, name, part, sealed in places:
            stack.enter_context(
                mock.patch.object(owner, name, clocked(clock, getattr(owner, name), part, sealed))
            )
        stack.enter_context(mock.patch.object(Tensor, "backward", watched))
        skips = dataclasses.replace(
            stage.march, occupied=clocked(clock, stage.march.occupied, "sampling", True)
        )
        stack.enter_context(mock.patch.object(stage, "march", skips))
        yield


def clocked(
    clock: PartClock, function: Callable[..., Any], part: str, sealed: bool
) -> Callable[..., Any]:
    """`function`, its time counted for `part`."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with clock.part(part, sealed):
            return function(*args, **kwargs)

    return wrapper


def measure(config: Config, bench: Bench, steps: int) -> list[Step]:
    """Seconds of each part in each of `steps` steps, after the Bench's warm-up; the schedule goes through all of them."""
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir, config.optim.steps = str(Path(folder) / "runs"), bench.warmup + steps
        if not config.image:
            config.image = str(Path(folder) / "true.png")
            Image.fromarray(render_spec(parse_caption(config.prompt), [20.0], size=256)[0]).save(
                config.image
            )
        checks.check_request(config, new=True)
        config = build.fit_to_device(config, bench.device)
        models = build.load_models(config, bench.device)
        folder_of_run = RunFolder.create(config)
        visual_prompt = pipeline.find_visual_prompt(config, models, folder_of_run, bench.device)
        stage = build.build_coarse(config, models, visual_prompt, folder_of_run, bench.device)
        clock = PartClock(bench.now)
        with seams(clock, stage, models.prior):
            clock.next_step()  # what came before the first
            loop.run(
                stage,
                config,
                folder_of_run,
                threading.Event(),
                show=lambda numbers: clock.next_step(),
            )
    return clock.steps[1 + bench.warmup :]


def per_estimate(steps: list[Step], every: int) -> list[Step]:
    """Means over each `every` steps in a row, the steps of one estimate wherever they begin; what is over is left out."""
    rows = [steps[i : i + every] for i in range(0, len(steps) - every + 1, every)]
    return [
        {
            part: {
                way: statistics.fmean(step[part][way] for step in row)
                for way in ("forward", "backward")
            }
            for part in PARTS
        }
        for row in rows
    ]


def summarise(steps: list[Step]) -> dict[str, dict[str, float]]:
    """For each part, and "step" for all of them: median seconds forward, backward and both, and the share of all time."""
    whole = sum(seconds for step in steps for ways in step.values() for seconds in ways.values())
    told = {}
    for name, parts in (*((part, (part,)) for part in PARTS), ("step", PARTS)):
        ways = {
            way: [sum(step[part][way] for part in parts) for step in steps]
            for way in ("forward", "backward")
        }
        both = [there + back for there, back in zip(ways["forward"], ways["backward"], strict=True)]
        told[name] = {way: statistics.median(values) for way, values in ways.items()}
        told[name] |= {
            "both": statistics.median(both),
            "mean": statistics.fmean(both),
            "share": sum(both) / whole,
        }
    return told


def main(argv: list[str] | None = None) -> None:
    """Run the loop, print the table, write the JSON."""
    parser = new_parser("step", __doc__ or "", repeats=30, warmup=3, count="steps")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the run")
    parser.add_argument(
        "--preset", choices=PRESETS, default="standard", help="size of the run (standard)"
    )
    parser.add_argument(
        "--config", type=Path, action="append", default=[], help="YAML settings, repeatable"
    )
    options = parser.parse_intermixed_args(argv)
    bench = prepare(options)
    config = load_config(options.preset, options.config, options.overrides)
    config.prompt = config.prompt or PROMPT
    planned, steps = config.optim.steps, options.repeats
    every = config.guidance.estimate_every
    if steps < every:
        raise UserError(
            f"--steps {steps} is less than guidance.estimate_every={every}: an estimate is not seen in every step"
        )
    found = per_estimate(measure(config, bench, steps), every)
    told = summarise(found)
    rows = [
        [
            name,
            *(ms(part[way]) for way in ("forward", "backward", "both")),
            f"{100.0 * part['share']:.1f} %",
        ]
        for name, part in told.items()
    ]
    minutes = planned * told["step"]["mean"] / 60.0
    notes = [
        *(
            [f"An estimate serves {every} steps: each figure is the mean over as many."]
            if every > 1
            else []
        ),
        f"The mean step takes {told['step']['mean']:.3f} s, so the {planned} of {options.preset} take {minutes:.1f} min.",
        "Medians of single columns do not add up; shares are of all time and do.",
    ]
    size = f"{config.optim.views} views of {config.render.resolution}^2 x {config.render.samples} samples"
    title = f"{options.preset}: {size}, {steps} steps"
    header = ["part", "forward, ms", "backward, ms", "both, ms (median)", "share"]
    tell(options, bench, "step", title, header, rows, {"parts": told, "steps": found}, notes)


if __name__ == "__main__":
    run_program("step", main)

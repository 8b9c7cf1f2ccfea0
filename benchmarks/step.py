"""The time of each part of an optimisation step: `python -m benchmarks.step [--preset standard]`.

Runs the product's own loop (`vp3d.train.loop.run`) with the embedded models, and a picture of the
true object as the visual prompt. Every step is divided into

    sampling     cameras, rays, sample positions, the occupancy grid
    field        queries of the field. The compiled route (dense grid on a CPU) does them as a part
                 of compositing; only its node tables count here. `field.kind=hashgrid` shows the
                 route of all other fields.
    compositing  from samples to pixels
    encoder      from pixels to latents, and back if guidance.space is pixels
    denoiser     every branch of the guidance
    rewards      text-image and image-image, with their pictures; a reward costs little before its
                 first step
    regularisers opacity, sparsity, smoothness, orientation
    optimiser    zeroing, clipping, Adam, the finite checks
    log          events, live preview (every optim.preview_every steps), checkpoint, the copy that a
                 bad step rolls back to
    rest         everything else: guidance outside its networks, backgrounds, the sum of the loss

No code of the loop is copied. Clocks are put around the functions that it calls, and each node of
the backward pass counts for the part whose forward pass created it. The parts add up to the step.
`--steps` steps go through the complete schedule, so each reward is on for the same share of steps
as in a run. key=value words change the settings of the run.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import tempfile
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

from benchmarks.timing import Bench, Table, ms, new_parser, prepare, report
from vp3d import build, checks
from vp3d.config.loader import PRESETS, load_config
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.render import volume, volume_numba
from vp3d.runs import events
from vp3d.runs.events import Event, Watch
from vp3d.runs.folder import RunFolder
from vp3d.runs.journal import Journal
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
DIRECTIONS = ("forward", "backward")
Step = dict[str, dict[str, float]]  # part -> {"forward": seconds, "backward": seconds}

# Nodes from this number on add up a parameter's gradient; no forward pass created them.
FIRST_ACCUMULATOR = 2**63


class PartClock:
    """Assigns each moment of a step to the innermost active part, forward and backward apart.

    Args:
        now: returns seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.open = [REST]
        self.sealed = False  # inside a part that is not divided further
        self.direction = "forward"
        self.spent: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.steps: list[Step] = []
        # The active part changed before node numbers[i] of the graph was created, to makers[i].
        self.numbers: list[int] = []
        self.makers: list[str] = []
        self.last = now()

    @contextmanager
    def part(self, name: str, sealed: bool = False) -> Iterator[None]:
        """Counts the time inside for `name`; if `sealed`, that of the parts in it too."""
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
        """Ends a step."""
        self._count()
        spent = {part: {way: self.spent[part, way] for way in DIRECTIONS} for part in PARTS}
        self.steps.append(spent)
        self.spent.clear()
        self.numbers.clear()
        self.makers.clear()
        self._mark()

    def backward(self, loss: Tensor, real: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Runs `real(loss, ...)`, a backward pass; each node counts for the part that made it."""
        self._count()
        for node in graph_of(loss):
            node.register_prehook(functools.partial(self._enter, self.maker(node)))
        self.last, self.direction = self.now(), "backward"
        caller = self.open[-1]
        try:
            real(loss, *args, **kwargs)
        finally:
            self._count()
            self.open[-1], self.direction = caller, "forward"

    def maker(self, node: Any) -> str:
        """The part whose forward pass created a node; a parameter's own gradient is the field's."""
        number = node._sequence_nr()
        if number >= FIRST_ACCUMULATOR:
            return "field"
        return self.makers[bisect_right(self.numbers, number) - 1]

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
    """All nodes of the graph of `value`."""
    found, queue = set(), [value.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in found:
            found.add(node)
            queue += [next_node for next_node, _ in node.next_functions]
    return list(found)


@contextmanager
def clocks(clock: PartClock, stage: Coarse, prior: Any) -> Iterator[None]:
    """Puts clocks around the functions that the loop calls, inside this context."""
    functions: list[tuple[Any, str, str, bool]] = [
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
        for owner, name, part, sealed in functions:
            function = clocked(clock, getattr(owner, name), part, sealed)
            stack.enter_context(mock.patch.object(owner, name, function))
        stack.enter_context(mock.patch.object(Tensor, "backward", watched))
        occupied = clocked(clock, stage.march.occupied, "sampling", True)
        march = dataclasses.replace(stage.march, occupied=occupied)
        stack.enter_context(mock.patch.object(stage, "march", march))
        yield


def clocked(
    clock: PartClock, function: Callable[..., Any], part: str, sealed: bool
) -> Callable[..., Any]:
    """`function`, with its time counted for `part`.

    Args:
        clock: where it is counted.
        function: the function.
        part: a name of `PARTS`.
        sealed: whether the parts inside count for `part` too.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with clock.part(part, sealed):
            return function(*args, **kwargs)

    return wrapper


def measure(config: Config, bench: Bench, steps: int) -> list[Step]:
    """Seconds of each part in each of `steps` steps, after the warm-up of `bench`.

    The schedule goes through all of them. Folder, steps and picture of `config` are changed.
    """
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir, config.optim.steps = str(Path(folder) / "runs"), bench.warmup + steps
        if not config.image:
            config.image = str(Path(folder) / "true.png")
            picture = render_spec(parse_caption(config.prompt), [20.0], size=256)[0]
            Image.fromarray(picture).save(config.image)
        checks.check_request(config, new=True)
        fitted = build.fit_to_device(config, bench.device)
        models = build.load_models(config)
        clock = PartClock(bench.now)

        def listen(event: Event) -> None:
            if isinstance(event, events.Step):
                clock.next_step()

        journal = Journal(RunFolder.create(config), Watch(listen))
        visual_prompt = build.find_visual_prompt(config, fitted, models, journal)
        stage = build.build_coarse(config, fitted, models, visual_prompt, journal)
        with clocks(clock, stage, models.prior):
            clock.next_step()  # the time before the first step
            loop.run(stage, config.optim, config.camera, journal)
    return clock.steps[1 + bench.warmup :]


def per_estimate(steps: list[Step], every: int) -> list[Step]:
    """Means over each `every` consecutive steps, those of one estimate.

    Steps that do not fill a group are left out.
    """
    groups = [steps[i : i + every] for i in range(0, len(steps) - every + 1, every)]
    return [
        {
            part: {way: statistics.fmean(step[part][way] for step in group) for way in DIRECTIONS}
            for part in PARTS
        }
        for group in groups
    ]


def summarise(steps: list[Step]) -> dict[str, dict[str, float]]:
    """The figures of each part, and of "step", which is all of them.

    Returns:
        Median seconds "forward", "backward" and "both", the "mean" of both, and the "share" of all
        time in [0, 1].
    """
    total = sum(seconds for step in steps for ways in step.values() for seconds in ways.values())
    summary = {}
    for name, parts in (*((part, (part,)) for part in PARTS), ("step", PARTS)):
        ways = {
            way: [sum(step[part][way] for part in parts) for step in steps] for way in DIRECTIONS
        }
        both = [there + back for there, back in zip(*ways.values(), strict=True)]
        summary[name] = {way: statistics.median(values) for way, values in ways.items()}
        summary[name] |= {
            "both": statistics.median(both),
            "mean": statistics.fmean(both),
            "share": sum(both) / total,
        }
    return summary


def main(argv: list[str] | None = None) -> None:
    """Runs the loop, prints the table, writes the JSON."""
    parser = new_parser("step", __doc__ or "", repeats=30, warmup=3, count="steps")
    add = parser.add_argument
    add("overrides", nargs="*", metavar="key=value", help="settings of the run")
    add("--preset", choices=PRESETS, default="standard", help="preset of the run (standard)")
    add("--config", type=Path, action="append", default=[], help="YAML settings, repeatable")
    options = parser.parse_intermixed_args(argv)
    bench = prepare(options)
    config = load_config(options.preset, options.config, options.overrides)
    config.prompt = config.prompt or PROMPT
    planned, steps = config.optim.steps, options.repeats
    every = config.guidance.estimate_every
    if steps < every:
        raise UserError(
            f"--steps {steps} is less than guidance.estimate_every={every}; "
            "give at least as many steps, as not every step has an estimate"
        )
    found = per_estimate(measure(config, bench, steps), every)
    summary = summarise(found)
    rows = []
    for name, part in summary.items():
        cells = [ms(part[way]) for way in (*DIRECTIONS, "both")]
        rows.append([name, *cells, f"{100.0 * part['share']:.1f} %"])
    mean = summary["step"]["mean"]
    notes = [
        f"The mean step takes {mean:.3f} s, so the {planned} of {options.preset} take "
        f"{planned * mean / 60.0:.1f} min.",
        "Medians of single columns do not add up; shares are of all time and do.",
    ]
    if every > 1:
        notes.insert(0, f"An estimate serves {every} steps: each figure is the mean over as many.")
    size = f"{config.optim.views} views of {config.render.resolution}^2"
    title = f"{options.preset}: {size} x {config.render.samples} samples, {steps} steps"
    header = ["part", "forward, ms", "backward, ms", "both, ms (median)", "share"]
    results = {"parts": summary, "steps": found}
    report(options, bench, "step", Table(title, header, rows, notes), results)


if __name__ == "__main__":
    run_program("step", main)

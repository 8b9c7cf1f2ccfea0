"""The optimisation loop: one function that reads top to bottom, for any stage.

Conventions: `step` counts optimisation steps in [0, steps) and `iteration` counts every pass through the loop; only a
restart of the watchdog makes them differ. `progress = step / steps`. Everything a decision depends on (the stage's tensors,
its generators, `LoopState`) is in a checkpoint, so a resumed run goes on bit for bit on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from vp3d.config.schema import CameraConfig, Config
from vp3d.errors import DivergedError, UserError
from vp3d.render.camera import ring
from vp3d.runs.folder import RunFolder
from vp3d.system.files import atomic_write
from vp3d.system.out_of_memory import attempt, report_out_of_memory
from vp3d.train import checkpoint
from vp3d.train.watchdog import Watchdog
from vp3d.types import Camera, Render, to_images, to_uint8

SNAPSHOT_EVERY = 10  # steps between the in-memory copies a bad step rolls back to
LOG_EVERY = 5  # steps between "step" events
PREVIEW_SIZE = 96  # pixels of a side of each of the live preview's views
PREVIEW_VIEWS = 4
PREVIEW_ELEVATION_DEG = 15.0
WORTH = {
    "empty": "nothing at all",
    "solid": "a solid block",
}  # what a collapsed field is exported as
PREVIEW_GROUND = 1.0  # grey behind the live preview, [0, 1]

Result_co = TypeVar("Result_co", covariant=True)
Show = Callable[[dict[str, float]], None]  # told the numbers of every step
Say = Callable[[str], None]  # told in one line what the user should know


def silent(what: object) -> None:
    """Shows nothing: what `run` is told to use where nobody watches."""


class StopFlag(Protocol):
    """Anything with `is_set`, such as a threading.Event."""

    def is_set(self) -> bool:
        """Whether the run has been asked to stop."""
        ...


class Stage(Protocol[Result_co]):
    """What the loop asks of a stage."""

    optimizer: torch.optim.Optimizer
    generators: dict[str, torch.Generator]

    def step(self, i: int) -> dict[str, Tensor]:
        """Scalars of step `i`, any range: "loss" carries the graph, "opacity" in [0, 1] feeds the watchdog, the rest is told."""
        ...

    def preview(self, camera: Camera, size: int) -> Render:
        """What the cameras see, `size` pixels a side, rays in row-major order."""
        ...

    def finish(self) -> Result_co:
        """The input of the next stage."""
        ...

    def set_rates(self, i: int, scale: float) -> None:
        """Set the learning rates of step `i` times `scale`."""
        ...

    def restart(self, regulariser_scale: float) -> None:
        """Back to the initial parameters, with regularisers that collapse scenes scaled down."""
        ...

    def shrink(self) -> None:
        """Memory ran out in `step` or its gradient: need less from now on, and be as before that step; UserError at the end."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that changes while training (any shape and range), live."""
        ...

    def load_tensors(self, tensors: dict[str, Tensor], regulariser_scale: float) -> None:
        """Inverse of `tensors` (any shape and range)."""
        ...


@dataclass
class LoopState:
    """Where a run is; its JSON form is in every checkpoint."""

    step: int = 0
    iteration: int = 0
    watchdog: Watchdog = field(default_factory=Watchdog)


class Pace:
    """Seconds a step as a running mean, and what it says about the rest."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.mean = 0.0

    def tick(self, steps_left: int, samples: float) -> dict[str, float]:
        """After one more step, of `samples` field samples: seconds a step, seconds left, samples a second."""
        now = time.monotonic()
        taken, self.last = now - self.last, now
        self.mean = taken if self.mean == 0.0 else 0.9 * self.mean + 0.1 * taken
        return {
            "seconds_a_step": self.mean,
            "eta_s": steps_left * self.mean,
            "samples_per_s": samples / max(taken, 1.0e-9),
        }


@dataclass
class Loop:
    """A run in progress: what is optimised, where it is written, and the last good snapshot of its tensors."""

    stage: Stage[Any]
    config: Config
    run_folder: RunFolder
    show: Show
    say: Say
    state: LoopState
    snapshot: dict[str, Tensor]
    pace: Pace


@dataclass(frozen=True)
class Outcome(Generic[Result_co]):
    """What `run` hands on: the finished stage's result, and whether the user stopped it early."""

    result: Result_co
    steps: int
    stopped: bool


def run(
    stage: Stage[Result_co],
    config: Config,
    run_folder: RunFolder,
    stop_flag: StopFlag,
    show: Show = silent,
    say: Say = silent,
) -> Outcome[Result_co]:
    """Optimise `stage` for `config.optim.steps` steps, going on from the run's newest checkpoint if it has one."""
    steps = config.optim.steps
    state = resume(stage, config, run_folder, say)
    loop = Loop(stage, config, run_folder, show, say, state, clone(stage.tensors()), Pace())
    while state.step < steps and not stop_flag.is_set():
        stage.set_rates(state.step, state.watchdog.rate_scale)
        numbers, problem = advance(loop)
        if problem:
            roll_back(loop, problem)
        else:
            watch(loop, numbers["opacity"])
        report(loop, numbers)
        keep(loop)
    stopped = state.step < steps
    if stopped:
        save(loop)
        run_folder.event("stopped", step=state.step, steps=steps)
    return Outcome(stage.finish(), state.step, stopped)


def advance(loop: Loop) -> tuple[dict[str, float], str]:
    """One step: its numbers, and "" or what was not finite, in which case nothing was updated.

    When memory runs out, forward or backward, the stage shrinks and the step is done once more from the same random
    numbers, for as long as it can shrink. Nothing of the failed attempt is left: its graph goes with `attempt`'s frame.
    """
    stage, step, grad_clip = loop.stage, loop.state.step, loop.config.optim.grad_clip
    chance = {name: generator.get_state() for name, generator in stage.generators.items()}
    while (
        done := attempt(lambda: differentiate(stage, stage.step(step), grad_clip), may_shrink=True)
    ) is None:
        stage.shrink()
        for name, generator in stage.generators.items():
            generator.set_state(chance[name])
    numbers, problem = done
    return numbers, problem or apply(stage)


def differentiate(
    stage: Stage[Any], terms: dict[str, Tensor], grad_clip: float
) -> tuple[dict[str, float], str]:
    """Leave the clipped gradient of `terms["loss"]` in the parameters: the terms (scalars, any range); "" or what is wrong."""
    values = torch.stack(
        [value.detach().float() for value in terms.values()]
    ).tolist()  # asks the device once
    numbers = dict(zip(terms, values, strict=True))
    if not all(map(math.isfinite, values)):
        return numbers, "the loss: " + ", ".join(
            name for name, value in numbers.items() if not math.isfinite(value)
        )
    stage.optimizer.zero_grad(set_to_none=True)
    terms["loss"].backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters_of(stage), grad_clip or torch.inf)
    return numbers, "" if bool(torch.isfinite(norm)) else "the gradient"


@report_out_of_memory(
    "updating the field", "free memory on the device, or lower field.resolution or field.log2_table"
)
def apply(stage: Stage[Any]) -> str:
    """Step the optimiser; "" or what was not finite afterwards."""
    stage.optimizer.step()
    largest = torch.nn.utils.get_total_norm([p.detach() for p in parameters_of(stage)], torch.inf)
    return "" if bool(torch.isfinite(largest)) else "the parameters"


def parameters_of(stage: Stage[Any]) -> list[Tensor]:
    """All that the optimiser changes (any shape and range)."""
    return [p for group in stage.optimizer.param_groups for p in group["params"]]


def roll_back(loop: Loop, problem: str) -> None:
    """Skip a bad step: back to the last good snapshot with lower rates, or stop with a diagnosis after too many in a row."""
    state = loop.state
    loop.run_folder.event(
        "bad_step", step=state.step, what=problem, in_a_row=state.watchdog.bad_in_row + 1
    )
    try:
        state.watchdog.bad(loop.config.optim.bad_steps, f"{problem}, at step {state.step}")
    except DivergedError as diagnosis:
        loop.run_folder.event("failed", step=state.step, message=str(diagnosis))
        raise
    loop.stage.load_tensors(clone(loop.snapshot), state.watchdog.regulariser_scale)
    loop.run_folder.event("rollback", step=state.step, rate_scale=state.watchdog.rate_scale)
    loop.say(
        f"step {state.step} was not finite ({problem}): rolled back, rates times {state.watchdog.rate_scale:g}"
    )
    state.step += 1
    state.iteration += 1


def watch(loop: Loop, opacity: float) -> None:
    """After a good step: when the mean opacity in [0, 1] tells of a collapse, start once more from step 0, softer, or say so."""
    state, steps = loop.state, loop.config.optim.steps
    state.watchdog.good()
    kind = state.watchdog.collapse(opacity, state.step, steps)
    again = state.watchdog.may_restart(state.step, steps)
    state.step += 1
    state.iteration += 1
    if kind and not again:
        why = "again, after a restart" if state.watchdog.restarts else "too late to start again"
        message = f"the field became {kind} at step {state.step} of {steps}, {why}: the asset may be {WORTH[kind]}"
        message += "; try another seed=N"
        loop.run_folder.event("warning", step=state.step, message=message, opacity=opacity)
        loop.say(f"warning: {message}")
    elif kind:
        loop.say(
            f"the field became {kind} at step {state.step}: starting again with lower rates and weaker regularisers"
        )
        loop.run_folder.event("restart", step=state.step, reason=kind, opacity=opacity)
        state.watchdog.restarted()
        loop.stage.restart(state.watchdog.regulariser_scale)
        loop.snapshot = clone(loop.stage.tensors())
        state.step = 0


def report(loop: Loop, numbers: dict[str, float]) -> None:
    """Log the step, refresh the progress display, and now and then the live preview."""
    step, optim = loop.state.step, loop.config.optim
    pace = loop.pace.tick(optim.steps - step, numbers.get("samples", 0.0))
    numbers = {
        "step": step,
        "steps": optim.steps,
        **numbers,
        "rate_scale": loop.state.watchdog.rate_scale,
        **pace,
    }
    loop.show(numbers)
    if step % LOG_EVERY == 0 or step == optim.steps:
        loop.run_folder.event("step", **numbers)
    if step % optim.preview_every == 0:
        write_preview(loop.stage, loop.config.camera, loop.run_folder.path / "preview.png")


def keep(loop: Loop) -> None:
    """Checkpoint and snapshot at their intervals. A checkpoint always brings a snapshot: a resumed run starts with the same."""
    step, optim = loop.state.step, loop.config.optim
    due = step > 0 and (step % optim.checkpoint_every == 0 or step == optim.steps)
    if due:
        save(loop)
    if due or step % SNAPSHOT_EVERY == 0:
        loop.snapshot = clone(loop.stage.tensors())


def save(loop: Loop) -> None:
    """Write a checkpoint: the stage's tensors, every generator's state, and the loop's."""
    generators = {
        f"generator.{name}": generator.get_state()
        for name, generator in loop.stage.generators.items()
    }
    meta = {"config_hash": checkpoint.config_hash(loop.config), "loop": asdict(loop.state)}
    tensors = {**loop.stage.tensors(), **generators}
    path = checkpoint.save(loop.run_folder.checkpoints, loop.state.iteration, tensors, meta)
    loop.run_folder.event("checkpoint", step=loop.state.step, file=path.name)


def resume(
    stage: Stage[Any], config: Config, run_folder: RunFolder, say: Say = silent
) -> LoopState:
    """Bring the stage to the run's newest whole checkpoint; a fresh state where there is none."""
    found = load_checkpoint(run_folder, say)
    if found is None:
        return LoopState()
    check_same_config(found, config, run_folder)
    saved = found.meta["loop"]
    state = LoopState(saved["step"], saved["iteration"], Watchdog(**saved["watchdog"]))
    stage.load_tensors(found.tensors, state.watchdog.regulariser_scale)
    for name, generator in stage.generators.items():
        generator.set_state(found.tensors[f"generator.{name}"])
    run_folder.event("resume", step=state.step, file=found.path.name)
    say(f"going on from step {state.step}")
    return state


def check_same_config(found: checkpoint.Checkpoint, config: Config, run_folder: RunFolder) -> None:
    """Refuse a checkpoint that was made with other settings of the optimisation."""
    if found.meta["config_hash"] != checkpoint.config_hash(config):
        raise UserError(
            f"{run_folder.path / 'config.yaml'} is not the one the checkpoint {found.path.name} was made with; "
            "undo the change, start a new run with the new settings, or, if nobody changed it, use the VP3D that made it"
        )


def load_checkpoint(run_folder: RunFolder, say: Say = silent) -> checkpoint.Checkpoint | None:
    """The newest whole checkpoint of a run; each damaged one that is passed over leaves a warning event."""

    def warn(path: Path, reason: str) -> None:
        message = f"checkpoint {path.name} is damaged ({reason}); using the one before"
        run_folder.event("warning", message=message)
        say(message)

    return checkpoint.load_latest(run_folder.checkpoints, warn)


def write_preview(stage: Stage[Any], config: CameraConfig, path: Path) -> None:
    """The live preview: front, left, back and right view in a row, over a light ground."""
    camera = ring(PREVIEW_VIEWS, PREVIEW_ELEVATION_DEG, config.distance, config.fov_deg)
    with torch.no_grad():
        render = stage.preview(camera, PREVIEW_SIZE)
        flat = render.over(torch.full((3,), PREVIEW_GROUND, device=render.rgb.device))
    images = to_images(flat, len(camera), PREVIEW_SIZE, PREVIEW_SIZE)
    strip = to_uint8(torch.cat(list(images), dim=-1))
    with atomic_write(path) as temporary:
        Image.fromarray(strip).save(temporary)


def clone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors of any shape and range, cut off from the graph."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}

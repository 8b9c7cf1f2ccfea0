"""The optimisation loop: one function that reads top to bottom, for any stage.

Conventions: `step` counts optimisation steps in [0, steps) and `iteration` counts every pass
through the loop; only a restart by the watchdog makes them differ. `progress = step / steps`.
Everything that a decision depends on (the stage's tensors, its generators, `LoopState`) is in a
checkpoint, so a resumed run continues bit for bit on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from vp3d.config.identity import changed_settings, settings_hash
from vp3d.config.migrations import CONFIG_VERSION, migrate
from vp3d.config.schema import CameraConfig, OptimConfig
from vp3d.errors import DivergedError, UserError
from vp3d.render.camera import ring
from vp3d.runs.events import Preview, Step
from vp3d.runs.folder import RunFolder
from vp3d.runs.journal import Journal
from vp3d.system.files import atomic_write
from vp3d.system.out_of_memory import attempt, report_out_of_memory
from vp3d.train import checkpoint
from vp3d.train.watchdog import Watchdog
from vp3d.types import Camera, Render, to_images, to_uint8

SNAPSHOT_EVERY = 10  # steps between the in-memory copies that a bad step is rolled back to
LOG_EVERY = 5  # steps between "step" entries in the log
PREVIEW_SIZE = 96  # pixels of a side of each view of the live preview
PREVIEW_VIEWS = 4
PREVIEW_ELEVATION_DEG = 15.0
PREVIEW_BACKGROUND = 1.0  # grey behind the live preview, [0, 1]
EXPORT_OF_COLLAPSED = {"empty": "nothing at all", "solid": "a solid block"}

Result_co = TypeVar("Result_co", covariant=True)


class Stage(Protocol[Result_co]):
    """What the loop needs from a stage."""

    name: str  # of its folder of checkpoints, for example "coarse"
    identity: Mapping[str, Any]  # the settings its result depends on (config/identity.py)
    optimizer: torch.optim.Optimizer
    generators: dict[str, torch.Generator]
    update: tuple[str, str]  # what an optimiser step does; what to do if it runs out of memory

    def step(self, i: int) -> dict[str, Tensor]:
        """Scalars of step `i`, any range: "loss" carries the graph, the rest is shown."""
        ...

    def health(self, numbers: Mapping[str, float]) -> float | None:
        """The mean ray opacity in [0, 1] for the watchdog; None if the stage has none."""
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
        """Return to the initial parameters, with regularisers that collapse scenes scaled down."""
        ...

    def shrink(self) -> None:
        """After memory ran out: return to the state before the step and need less from now on.

        Raises OutOfMemoryError when nothing is left to make smaller.
        """
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
    """Seconds a step as a running mean, and the time left that follows from it."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.mean = 0.0

    def tick(self, steps_left: int, samples: float) -> dict[str, float]:
        """The pace after one more step of `samples` field samples.

        Returns `seconds_a_step`, `eta_s` (seconds left) and `samples_per_s`.
        """
        now = time.monotonic()
        taken, self.last = now - self.last, now
        self.mean = taken if self.mean == 0.0 else 0.9 * self.mean + 0.1 * taken
        return {
            "seconds_a_step": self.mean,
            "eta_s": steps_left * self.mean,
            "samples_per_s": samples / max(taken, 1.0e-9),
        }


def show_nothing(stage: Stage[Any]) -> None:
    """No live view in 3D."""


@dataclass
class Loop:
    """A run in progress: its stage, its journal, and the last good copy of its tensors."""

    stage: Stage[Any]
    optim: OptimConfig
    camera: CameraConfig
    journal: Journal
    state: LoopState
    snapshot: dict[str, Tensor]
    pace: Pace
    live: Callable[[Stage[Any]], None] = show_nothing  # called after each step, for a 3D view


@dataclass(frozen=True)
class Outcome(Generic[Result_co]):
    """What `run` returns: the stage's result, how far it came, and whether it was stopped early."""

    result: Result_co
    stage: str
    steps: int
    total_steps: int
    stopped: bool


def run(
    stage: Stage[Result_co],
    optim: OptimConfig,
    camera: CameraConfig,
    journal: Journal,
    live: Callable[[Stage[Any]], None] = show_nothing,
) -> Outcome[Result_co]:
    """Optimise `stage` for `optim.steps` steps, from the run's newest checkpoint if it has one.

    `journal.watch.stop` ends it after the current step.

    Args:
        stage: what is optimised.
        optim: steps, intervals and limits.
        camera: where the preview looks from.
        journal: the run's log and listener.
        live: called after each step that was reported; it may read the stage but not change it.

    Returns:
        The result of the stage.

    Raises:
        DivergedError: after `optim.bad_steps` steps in a row that were not finite.
    """
    state = resume(stage, journal)
    loop = Loop(stage, optim, camera, journal, state, clone(stage.tensors()), Pace(), live)
    while state.step < optim.steps and not journal.watch.stop.is_set():
        stage.set_rates(state.step, state.watchdog.rate_scale)
        numbers, problem = advance(loop)
        if problem:
            roll_back(loop, problem)
        else:
            judge_health(loop, stage.health(numbers))
        report(loop, numbers)
        keep(loop)
    stopped = state.step < optim.steps
    if stopped:
        save(loop)
        log(loop, "stopped", step=state.step, steps=optim.steps)
    return Outcome(stage.finish(), stage.name, state.step, optim.steps, stopped)


def advance(loop: Loop) -> tuple[dict[str, float], str]:
    """One step: its numbers, and "" or what was not finite, in which case nothing was updated.

    When memory runs out, forward or backward, the stage shrinks and the step is repeated with the
    same random numbers, as long as the stage can shrink. Nothing of the failed attempt is kept:
    its graph is freed with `attempt`'s frame.
    """
    stage, step, grad_clip = loop.stage, loop.state.step, loop.optim.grad_clip
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
    """Put the clipped gradient of `terms["loss"]` into the parameters.

    Returns the terms (scalars, any range) as floats, and "" or what is not finite.
    """
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


def apply(stage: Stage[Any]) -> str:
    """Step the optimiser; "" or what was not finite afterwards."""
    with report_out_of_memory(*stage.update):
        stage.optimizer.step()
        values = [p.detach() for p in parameters_of(stage)]
        largest = torch.nn.utils.get_total_norm(values, torch.inf)
    return "" if bool(torch.isfinite(largest)) else "the parameters"


def parameters_of(stage: Stage[Any]) -> list[Tensor]:
    """All that the optimiser changes (any shape and range)."""
    return [p for group in stage.optimizer.param_groups for p in group["params"]]


def roll_back(loop: Loop, problem: str) -> None:
    """Skip a bad step: return to the last good snapshot with lower rates.

    Raises DivergedError with a diagnosis after too many in a row.
    """
    state, journal = loop.state, loop.journal
    in_a_row = state.watchdog.bad_in_row + 1
    log(loop, "bad_step", step=state.step, what=problem, in_a_row=in_a_row)
    try:
        state.watchdog.bad(loop.optim.bad_steps, f"{problem}, at step {state.step}")
    except DivergedError as diagnosis:
        log(loop, "failed", step=state.step, message=str(diagnosis))
        raise
    loop.stage.load_tensors(clone(loop.snapshot), state.watchdog.regulariser_scale)
    log(loop, "rollback", step=state.step, rate_scale=state.watchdog.rate_scale)
    journal.note(
        f"step {state.step} was not finite ({problem}): rolled back, "
        f"rates times {state.watchdog.rate_scale:g}"
    )
    state.step += 1
    state.iteration += 1


def judge_health(loop: Loop, opacity: float | None) -> None:
    """After a good step: restart once, with weaker regularisers, if the field collapsed.

    A collapse that comes too late for a restart, or after one, is a warning. opacity is in [0, 1].
    """
    state, steps, journal = loop.state, loop.optim.steps, loop.journal
    state.watchdog.good()
    kind = "" if opacity is None else state.watchdog.collapse(opacity, state.step, steps)
    may_restart = state.watchdog.may_restart(state.step, steps)
    state.step += 1
    state.iteration += 1
    if kind and not may_restart:
        why = "again, after a restart" if state.watchdog.restarts else "too late to restart"
        message = (
            f"the field became {kind} at step {state.step} of {steps}, {why}: the asset may be "
            f"{EXPORT_OF_COLLAPSED[kind]}; try another seed=N"
        )
        journal.warn(message, step=state.step, opacity=opacity)
    elif kind:
        journal.note(
            f"the field became {kind} at step {state.step}: "
            "restarting with lower rates and weaker regularisers"
        )
        log(loop, "restart", step=state.step, reason=kind, opacity=opacity)
        state.watchdog.restarted()
        loop.stage.restart(state.watchdog.regulariser_scale)
        loop.snapshot = clone(loop.stage.tensors())
        state.step = 0


def report(loop: Loop, numbers: dict[str, float]) -> None:
    """Log the step, show it, and write the live preview at its interval."""
    step, optim, journal = loop.state.step, loop.optim, loop.journal
    pace = loop.pace.tick(optim.steps - step, numbers.get("samples", 0.0))
    numbers = {**numbers, "rate_scale": loop.state.watchdog.rate_scale, **pace}
    journal.show(Step(loop.stage.name, step, optim.steps, numbers))
    if step % LOG_EVERY == 0 or step == optim.steps:
        log(loop, "step", step=step, steps=optim.steps, **numbers)
    if step % optim.preview_every == 0:
        path = journal.run.preview_file
        write_preview(loop.stage, loop.camera, path)
        journal.show(Preview(loop.stage.name, path))
    loop.live(loop.stage)


def keep(loop: Loop) -> None:
    """Checkpoint and snapshot at their intervals.

    A checkpoint always comes with a snapshot, because a resumed run starts from one.
    """
    step, optim = loop.state.step, loop.optim
    due = step > 0 and (step % optim.checkpoint_every == 0 or step == optim.steps)
    if due:
        save(loop)
    if due or step % SNAPSHOT_EVERY == 0:
        loop.snapshot = clone(loop.stage.tensors())


def log(loop: Loop, kind: str, **data: object) -> None:
    """Append an event of the loop's stage to the run's log."""
    loop.journal.log_of(loop.stage.name, kind, **data)


def save(loop: Loop) -> None:
    """Write a checkpoint: the stage's tensors and settings, and all states."""
    stage, journal = loop.stage, loop.journal
    generators = {f"generator.{name}": g.get_state() for name, g in stage.generators.items()}
    meta = {
        "stage": stage.name,
        "config_version": CONFIG_VERSION,
        "settings": dict(stage.identity),
        "settings_hash": settings_hash(stage.identity),
        "loop": asdict(loop.state),
    }
    folder = journal.run.checkpoints(stage.name)
    path = checkpoint.save(folder, loop.state.iteration, {**stage.tensors(), **generators}, meta)
    log(loop, "checkpoint", step=loop.state.step, file=path.name)


def resume(stage: Stage[Any], journal: Journal) -> LoopState:
    """Bring the stage to the run's newest intact checkpoint; a fresh state where there is none."""
    found = load_checkpoint(journal, stage.name)
    if found is None:
        return LoopState()
    check_same_settings(journal.run, found.path, found.meta, stage.identity)
    saved = found.meta["loop"]
    state = LoopState(saved["step"], saved["iteration"], Watchdog(**saved["watchdog"]))
    stage.load_tensors(found.tensors, state.watchdog.regulariser_scale)
    for name, generator in stage.generators.items():
        generator.set_state(found.tensors[f"generator.{name}"])
    journal.log_of(stage.name, "resume", step=state.step, file=found.path.name)
    journal.note(f"resuming from step {state.step}")
    return state


def check_same_settings(
    run_folder: RunFolder,
    path: Path,
    meta: Mapping[str, Any],
    current: Mapping[str, Any],
    default: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a checkpoint that was made with other settings of its stage; the error names the keys.

    Args:
        run_folder: the run of the checkpoint.
        path: the checkpoint's file, for the message.
        meta: its JSON part.
        current: the settings its stage depends on, from the config at hand.
        default: the same of a default config, for keys that the checkpoint's version did not have.
    """
    stored = run_folder.path / "config.yaml"
    advice = "undo the change to resume this run, or start a new run with the new settings"
    if "settings" not in meta:  # format 2: a hash of the whole config.yaml is all that there is
        if meta.get("config_hash") != run_folder.version_1_hash():
            raise UserError(
                f"{stored} was changed after the checkpoint {path.name} was made; {advice}"
            )
        return
    settings = migrate(dict(meta["settings"]), meta.get("config_version", 2))  # 2 was not noted
    changed = changed_settings(settings, current, default or current)
    if changed:
        raise UserError(
            f"{stored} has other settings than the checkpoint {path.name} was made with: "
            f"{', '.join(changed)}; {advice}"
        )


def load_checkpoint(journal: Journal, stage: str) -> checkpoint.Checkpoint | None:
    """The newest intact checkpoint of a stage.

    Each damaged one that is skipped leaves a warning.
    """

    def warn(path: Path, reason: str) -> None:
        journal.warn(f"checkpoint {path.name} is damaged ({reason}); using the one before")

    return checkpoint.load_latest(journal.run.checkpoints(stage), warn)


def write_preview(stage: Stage[Any], config: CameraConfig, path: Path) -> None:
    """The live preview: front, left, back and right view in a row, over a light ground."""
    camera = ring(PREVIEW_VIEWS, PREVIEW_ELEVATION_DEG, config.distance, config.fov_deg)
    with torch.no_grad():
        render = stage.preview(camera, PREVIEW_SIZE)
        flat = render.over(torch.full((3,), PREVIEW_BACKGROUND, device=render.rgb.device))
    images = to_images(flat, len(camera), PREVIEW_SIZE, PREVIEW_SIZE)
    strip = to_uint8(torch.cat(list(images), dim=-1))
    with atomic_write(path) as temporary:
        Image.fromarray(strip).save(temporary)


def clone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors of any shape and range, cut off from the graph."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}

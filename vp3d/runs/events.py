"""What a caller of `generate` hears while it works, and how the caller stops it.

Events are frozen dataclasses. They are delivered in order, in the thread that called `generate`;
an exception that a listener raises ends the run. The terminal display, and a service's progress,
are listeners like any other. The log `events.jsonl` of a run is written whether anyone listens
or not. It names the events of the second stage refine_step, refine_checkpoint, refine_stopped,
refine_resume, refine_bad_step, refine_rollback, refine_restart and refine_failed, because each
stage counts its own steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Stage:
    """A part of the work starts."""

    name: str  # load, visual_prompt, coarse, refine, export, views or report
    text: str  # the same in words, for people
    steps: int = 0  # how many `Step` events will follow; 0 if none


@dataclass(frozen=True)
class Step:
    """One optimisation step is done.

    `values` holds the losses (unweighted) and rewards by name, `opacity` in [0, 1],
    `samples_per_s`, `seconds_a_step` and `eta_s` (seconds left).
    """

    stage: str  # the name of the stage
    step: int  # from 1 to `steps`; a restart by the watchdog sets it back
    steps: int  # steps of the stage
    values: Mapping[str, float]  # what the step measured


@dataclass(frozen=True)
class Candidates:
    """The visual prompt was chosen among the candidates."""

    sheet: Path  # contact sheet of all candidates
    scores: tuple[float | None, ...]  # their rewards; None without a usable cut-out
    chosen: int  # index of the candidate that is used


@dataclass(frozen=True)
class Preview:
    """The live preview of a stage was written."""

    stage: str  # the name of the stage
    path: Path  # a PNG of four views, or with `live_mesh` a GLB; overwritten by the next preview


@dataclass(frozen=True)
class Warning:
    """Something may spoil the result; the run continues."""

    message: str  # one line


@dataclass(frozen=True)
class Note:
    """Something worth a line: a resumed step, a memory profile, a backend that was chosen."""

    message: str  # one line


@dataclass(frozen=True)
class Artifact:
    """A file that the user asked for was written."""

    kind: str  # a mesh format such as glb, lod1, lod2, ..., preview, turntable, report
    path: Path  # the file


@dataclass(frozen=True)
class Done:
    """The asset is complete, or was stopped early and exported as it was."""

    run_dir: Path  # the run folder
    steps: int  # steps that were done
    total_steps: int  # steps that were asked for
    stopped: bool  # stopped early; `resume` continues the run
    figures: Mapping[str, float]  # those of `Asset.figures`
    stage: str = "coarse"  # the stage that the steps are of: the last one that ran


NO_FIGURES = frozenset(("time", "kind", "stage", "steps", "total_steps", "stopped"))


def figures_of(logged: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an event "done" of the log; empty for an empty one."""
    return {key: value for key, value in logged.items() if key not in NO_FIGURES}


Event = Stage | Step | Candidates | Preview | Warning | Note | Artifact | Done
Listener = Callable[[Event], None]


class StopRequest(Protocol):
    """Anything with `is_set`, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """Whether the run should stop after the current step and export what there is."""
        ...


def ignore(event: Event) -> None:
    """The listener of a run that nobody watches."""


@dataclass(frozen=True)
class Watch:
    """Who listens to a run and who may stop it.

    `stop.set()` from any thread ends the optimisation after the current step; the mesh is exported
    as it is then, and the run can be resumed.

    Example:
        >>> watch = Watch(on_event=print)
        >>> watch.stop.is_set()
        False
    """

    on_event: Listener = ignore  # called with each event
    stop: StopRequest = field(default_factory=threading.Event)  # asked before each step
    # when the process that makes this one run started, seconds since 1970; None for a process with
    # other work, where a run takes from the call of `generate` on
    process_started: float | None = None
    live_mesh: bool = False  # write preview.glb, a rough mesh, while a stage is optimised

"""What a caller of `generate` hears while it works, and how the caller stops it.

Events are frozen dataclasses. They are delivered in order, in the thread that called `generate`;
an exception that a listener raises ends the run. The terminal display, and a service's progress,
are listeners like any other. The log `events.jsonl` of a run is written whether anyone listens
or not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Stage:
    """A part of the work starts.

    `name` is one of load, visual_prompt, coarse, export, views, report; `text` says it in words;
    `steps` is the number of steps that will be reported, 0 if none are.
    """

    name: str
    text: str
    steps: int = 0


@dataclass(frozen=True)
class Step:
    """One optimisation step is done.

    `step` counts from 1 to `steps`; `values` holds losses (unweighted), rewards, `opacity` in
    [0, 1], `samples_per_s`, `seconds_a_step` and `eta_s` (seconds left).
    """

    stage: str
    step: int
    steps: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Candidates:
    """The visual prompt was chosen among the candidates.

    `sheet` is the contact sheet; `scores` are the rewards of the candidates, None for one whose
    object could not be cut out; `chosen` is the index of the candidate that is used.
    """

    sheet: Path
    scores: tuple[float | None, ...]
    chosen: int


@dataclass(frozen=True)
class Preview:
    """The live preview of a stage was written to `path`."""

    stage: str
    path: Path


@dataclass(frozen=True)
class Warning:
    """Something may spoil the result; the run continues."""

    message: str


@dataclass(frozen=True)
class Note:
    """Something worth a line: a resumed step, a memory profile, a backend that was chosen."""

    message: str


@dataclass(frozen=True)
class Artifact:
    """A file that the user asked for was written.

    `kind` is a mesh format (glb, obj, ply, stl), or preview, turntable, report.
    """

    kind: str
    path: Path


@dataclass(frozen=True)
class Done:
    """The asset is complete, or was stopped early and exported as it was.

    `steps` of `total_steps` were done; `figures` are those of `Asset.figures`.
    """

    run_dir: Path
    steps: int
    total_steps: int
    stopped: bool
    figures: Mapping[str, float]


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

    on_event: Listener = ignore
    stop: StopRequest = field(default_factory=threading.Event)

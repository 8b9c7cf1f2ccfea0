"""One claimed job: listens to its run, writes its log, and stops it when somebody asks."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from vp3d.jobs import log
from vp3d.jobs.artifacts import describe
from vp3d.jobs.estimate import STAGES, Estimate, typical
from vp3d.jobs.store import Claim, Job, Store
from vp3d.jobs.views import Summary
from vp3d.runs.events import (
    Artifact,
    Candidates,
    Done,
    Event,
    Note,
    Preview,
    Stage,
    Step,
    Warning,
    Watch,
)
from vp3d.system.files import plain

STEP_EVENTS_S = 0.5  # shortest time between two step events of a job
WANT_EVERY_S = 0.2  # time between two looks at what the owner of the job wants
CANCEL_S = 4.0  # a cancelled job that has not stopped by then ends with its process
SHOWN_VALUES = ("opacity", "loss", "seconds_a_step")
EXIT_CANCELLED = 75
# Of a stage with steps, how far a job is that begins it; more than the stage before has steps.
FIRST_MARK = {"coarse": 1, "refine": 1_000_000_000}


class Leaving(BaseException):
    """The process was asked to leave: the checkpoint is written, another worker continues."""


class Cancelled(BaseException):
    """The job was cancelled."""


class AwaitingChoice(BaseException):
    """The pictures are drawn, and the owner of the job wants to choose."""


class Listener:
    """Hears the events of one job's run.

    Args:
        store: the job store.
        claim: the job, held by this process.
        leave: set when the process has to leave.
        device: name of the device, which durations are kept by.
    """

    def __init__(self, store: Store, claim: Claim, leave: threading.Event, device: str) -> None:
        self.store, self.claim, self.leave = store, claim, leave
        self.folder = store.folder(claim.job.id)
        self.stop = threading.Event()
        self.want = claim.job.want
        self.over = threading.Event()
        self.last_step = 0.0
        self.mark = 0
        self.figures: dict[str, float] = {}
        self.asks = claim.job.request.get("choose") == "ask" and claim.job.choice is None
        before = Summary(log.LogReader(self.folder / log.LOG_FILE)).update()
        self.has_candidates = bool(before.candidates)
        self.warned = set(before.warnings)
        group = f"{claim.job.kind} {claim.job.request.get('preset') or 'standard'} {device}"
        preset = str(claim.job.request.get("preset") or "standard")
        expected = typical(preset, store.typical_seconds(group))
        if claim.job.kind == "export":
            expected = {name: expected[name] for name in ("export", "report")}
        self.estimate = Estimate(
            expected,
            lambda part, seconds: store.note_seconds(group, part, seconds),
            before.progress if before.progress < 1.0 else 0.0,
        )
        if self.want:
            self.stop.set()

    def watch(self) -> Watch:
        """What the run is given."""
        return Watch(self.hear, self.stop, live_mesh=True)

    def begin(self) -> None:
        """Start to look for what the owner of the job wants."""
        threading.Thread(target=self._control, daemon=True).start()

    def end(self) -> None:
        """The work is over."""
        self.over.set()

    def _control(self) -> None:
        """Until the work is over: pass on a wish to stop, and enforce a cancel."""
        asked_at = None
        while not self.over.wait(WANT_EVERY_S):
            if self.leave.is_set():
                self.stop.set()
            if not self.want:
                job = self.store.find(self.claim.job.id)
                self.want = job.want if job is not None else "cancel"
            if self.want:
                self.stop.set()
            if self.want == "cancel":
                asked_at = asked_at or time.monotonic()
                if time.monotonic() - asked_at > CANCEL_S and not self.over.is_set():
                    os._exit(EXIT_CANCELLED)  # every file is complete or absent at any moment

    def hear(self, event: Event) -> None:
        """Log an event; end the work where it has to end."""
        if not isinstance(event, Step):
            self.check()
        if isinstance(event, Stage):
            self._stage(event)
        elif isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Candidates):
            self.note_candidates(event.scores, event.chosen)
            if self.asks:
                raise AwaitingChoice
        elif isinstance(event, Preview):
            kind = event.path.suffix.lstrip(".")
            self._append("preview", {"kind": kind, "name": event.path.name, "stage": event.stage})
        elif isinstance(event, Warning):
            self.warn(event.message)
        elif isinstance(event, Note):
            self._append("note", {"message": self._public(event.message)})
        elif isinstance(event, Artifact):
            self._artifact(event.path)
        elif isinstance(event, Done):
            self.figures = dict(event.figures)

    def check(self) -> None:
        """End the work if the process has to leave or the job was cancelled."""
        if self.leave.is_set():
            raise Leaving
        if self.want == "cancel":
            raise Cancelled

    def _append(self, name: str, data: dict[str, Any]) -> None:
        log.append(self.folder, name, plain(data))

    def _public(self, message: str) -> str:
        """A message without the data folder's path."""
        return message.replace(f"{self.store.data}/", "")

    def warn(self, message: str) -> None:
        """Log a warning, once."""
        message = self._public(message)
        if message.startswith("the field became"):
            self.estimate.restart()
        if message not in self.warned:
            self.warned.add(message)
            self._append("warning", {"message": message})

    def _stage(self, event: Stage) -> None:
        if event.name == "report":  # the rest is written without a chance to stop
            self.asks = False
        self.estimate.enter(event.name)
        index = STAGES.index(event.name) if event.name in STAGES else len(STAGES)
        data = {"name": event.name, "index": index, "of": len(STAGES), "steps": event.steps}
        self._append("stage", {**data, **self._pace()})
        if event.name in FIRST_MARK:  # what came before is kept: another worker need not make it
            self._advance(FIRST_MARK[event.name])

    def _step(self, event: Step) -> None:
        self.estimate.step(event.step, event.steps)
        now = time.monotonic()
        if now - self.last_step < STEP_EVENTS_S and event.step != event.steps:
            return
        self.last_step = now
        shown = {
            name: round(float(value), 5)
            for name, value in event.values.items()
            if name in SHOWN_VALUES or name.startswith("reward_")
        }
        data = {"stage": event.stage, "step": event.step, "steps": event.steps}
        self._append("step", {**data, **self._pace(), **shown})
        self._advance(FIRST_MARK[event.stage] + event.step)

    def _advance(self, mark: int) -> None:
        """The job came as far as `mark`: `FIRST_MARK` of a stage, and its steps added."""
        if mark > self.mark:
            self.mark = mark
            if self.claim.job.deaths:
                self.store.progressed(self.claim.job.id, mark)

    def _pace(self) -> dict[str, float]:
        left = self.estimate.seconds_left()
        return {"progress": round(self.estimate.now(), 4), "eta_s": round(left, 2)}

    def note_candidates(self, scores: Any, chosen: int) -> None:
        """Log the candidates, once."""
        if not self.has_candidates:
            self.has_candidates = True
            self._append("candidates", {"scores": list(scores), "chosen": chosen})

    def _artifact(self, path: Path) -> None:
        found = describe(path.name, path)
        url = f"/v1/jobs/{self.claim.job.id}/artifacts/{found.name}"
        data = {"name": found.name, "bytes": found.bytes, "sha256": found.sha256}
        self._append("artifact", {**data, "media_type": found.media_type, "url": url})


def sync(store: Store, job: Job) -> None:
    """Bring a job's log up to its stored state."""
    from vp3d.jobs.views import log_state

    def state() -> tuple[str, dict[str, Any]]:
        summary = Summary(log.LogReader(store.folder(job.id) / log.LOG_FILE)).update()
        return log_state(job, summary, store.queue_position(job))

    log.sync_state(store.folder(job.id), job.revision, state)

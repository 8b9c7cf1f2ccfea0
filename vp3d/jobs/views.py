"""A job as clients see it: its row in the store, and where its log says that it is."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vp3d.jobs.log import LOG_FILE, Line, LogReader
from vp3d.jobs.store import FINAL, Job
from vp3d.report.front_view import in_words

MOST_LOGS = 256  # logs whose summary is kept in memory


@dataclass
class Summary:
    """What a log says so far."""

    reader: LogReader
    stage: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    preview: dict[str, int] = field(default_factory=dict)  # kind -> how often it was written
    warnings: list[str] = field(default_factory=list)
    candidates: dict[str, Any] = field(default_factory=dict)
    progress: float = 0.0
    eta_s: float | None = None
    revision: int = -1
    lines: int = 0
    last_event: str = ""

    def update(self) -> Summary:
        """Read what was added to the log."""
        for line in self.reader.read():
            self._add(line)
        return self

    def _add(self, line: Line) -> None:
        self.lines, self.last_event = line.number, line.event or self.last_event
        self.revision = max(self.revision, line.revision)
        data = line.data
        if line.event == "stage":
            self.stage = data
            self.progress = float(data.get("progress", self.progress))
            self.eta_s = data.get("eta_s")
        elif line.event == "step":
            self.step = data
            self.progress, self.eta_s = float(data["progress"]), float(data["eta_s"])
        elif line.event == "preview":
            self.preview = {
                name: self.preview.get(name, 0) + (name == data.get("kind"))
                for name in {*self.preview, str(data.get("kind"))}
            }
        elif line.event == "warning":
            self.warnings.append(str(data.get("message", "")))
        elif line.event == "candidates":
            self.candidates = data


class Summaries:
    """The summaries of logs that were asked for last."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Path, Summary] = OrderedDict()
        self.lock = threading.Lock()

    def of(self, folder: Path) -> Summary:
        """The up-to-date summary of the log of the job in `folder`."""
        path = folder / LOG_FILE
        with self.lock:
            found = self.kept.pop(path, None) or Summary(LogReader(path))
            self.kept[path] = found
            if len(self.kept) > MOST_LOGS:
                self.kept.popitem(last=False)
            return found.update()


def timestamp(seconds: float | None) -> str | None:
    """Seconds since 1970 as RFC 3339 in UTC, to the millisecond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def job_view(job: Job, log: Summary, queue_position: int | None = None) -> dict[str, Any]:
    """The job object of the service.

    Args:
        job: its row.
        log: what its log says.
        queue_position: how many jobs will be claimed before it; None if it does not wait.

    Returns:
        Plain JSON types.
    """
    base = f"/v1/jobs/{job.id}"
    done = job.status == "succeeded"
    active = job.status in ("running", "cancelling")
    stage = log.stage.get("name", "")
    return {
        "id": job.id,
        "kind": job.kind,
        "origin": "command_line" if job.folder else "service",
        "status": job.status,
        "status_detail": job.detail or (stage if active else ""),
        "request": job.request,
        "parent": job.parent or None,
        "batch": job.batch or None,
        "progress": 1.0 if done else round(log.progress, 4),
        "stage": _stage(log) if active else None,
        "eta_s": round(log.eta_s, 1) if active and log.eta_s is not None else None,
        "queue_position": queue_position,
        "priority": job.priority,
        "attempts": job.attempts,
        "stopped_early": bool(job.result.get("stopped")),
        "choice": job.choice if job.choice is not None and job.choice >= 0 else None,
        "created_at": timestamp(job.created),
        "started_at": timestamp(job.started),
        "finished_at": timestamp(job.finished) if job.status in FINAL else None,
        "preview": {
            "glb": _preview(base, "glb", log),
            "image": _preview(base, "png", log),
        },
        "candidates": _candidates(base, log),
        "figures": job.result.get("figures"),
        "front_view": _front_view(job),
        "warnings": log.warnings[-50:],
        "error": job.error,
        "links": {
            "self": base,
            "events": f"{base}/events",
            "cancel": f"{base}/cancel",
            "artifacts": f"{base}/artifacts",
        },
    }


def _stage(log: Summary) -> dict[str, Any] | None:
    if not log.stage:
        return None
    found = {key: log.stage.get(key) for key in ("name", "index", "of")}
    same = log.step.get("stage") == log.stage.get("name")
    steps = log.step.get("steps") if same else log.stage.get("steps")
    return {**found, "step": log.step.get("step") if same else 0, "steps": steps or 0}


def _preview(base: str, kind: str, log: Summary) -> str | None:
    count = log.preview.get(kind, 0)
    return f"{base}/artifacts/preview.{kind}?v={count}" if count else None


def _front_view(job: Job) -> dict[str, Any] | None:
    grade = job.result.get("front_grade")
    return None if grade is None else {"grade": grade, "words": in_words(grade)}


def _candidates(base: str, log: Summary) -> dict[str, Any] | None:
    if not log.candidates:
        return None
    count = len(log.candidates.get("scores", []))
    pictures = [f"{base}/artifacts/candidate_{n}.png" for n in range(count)]
    return {**log.candidates, "pictures": pictures}


def log_state(
    job: Job, log: Summary, queue_position: int | None = None
) -> tuple[str, dict[str, Any]]:
    """The event that shows a job's state in its log: "end" for the last one."""
    return ("end" if job.status in FINAL else "status"), job_view(job, log, queue_position)

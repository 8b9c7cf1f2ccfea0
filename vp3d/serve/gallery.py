"""Runs that the command line made below the data folder, listed with the jobs of the service."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vp3d.errors import VP3DError
from vp3d.jobs.store import Store
from vp3d.report.front_view import last_front_view
from vp3d.runs.events import figures_of
from vp3d.runs.folder import RunFolder
from vp3d.system.files import JsonError, parse_json

EVERY_S = 2.0  # shortest time between two looks at the folder
OURS = ("jobs", "uploads", "workers")
TAIL = 64 << 10  # bytes at the end of a log in which its last state is


class Gallery:
    """Keeps the store's list of command-line runs up to date."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stamps: dict[str, tuple[int, bool]] = {}
        self.last = 0.0
        self.lock = threading.Lock()

    def refresh(self) -> None:
        """Look at the data folder, unless that was just done."""
        with self.lock:
            if time.monotonic() - self.last < EVERY_S:
                return
            self.last = time.monotonic()
            present = set()
            for path in sorted(self.store.data.glob("*/config.yaml")):
                if path.parent.name not in OURS and not path.parent.is_symlink():
                    present.add(path.parent.name)
                    self._look(path.parent)
            for job in self.store.adopted():
                if job.folder not in present:
                    self.store.forget(job.id)
                    self.stamps.pop(job.folder, None)

    def _look(self, run: Path) -> None:
        log = run / "events.jsonl"
        held = is_held(run)
        stamp = (log.stat().st_mtime_ns if log.is_file() else 0, held)
        if self.stamps.get(run.name) == stamp:
            return
        try:
            config = RunFolder(run).config()
        except VP3DError:
            return  # not a run that this version can show
        self.stamps[run.name] = stamp
        events = last_events(log)
        last, graded = last_done(events), last_front_view(events)
        status = "running" if held else "succeeded" if last else "cancelled"
        request = {
            "prompt": config.prompt,
            "negative_prompt": config.negative_prompt,
            "preset": config.preset,
            "seed": config.seed,
        }
        created = first_time(log) or (run / "config.yaml").stat().st_mtime
        result = {
            "figures": figures_of(last),
            "front_grade": None if graded is None else graded["grade"],
            "stopped": bool(last.get("stopped")),
            "run": run.name,
        }
        values: dict[str, Any] = {
            "request": request,
            "result": result,
            "created": float(created),
            "finished": float(last["time"]) if last else None,
        }
        self.store.adopt(run.name, status, {**values, "request": json.dumps(request)})


def is_held(run: Path) -> bool:
    """Whether a process works on the run now."""
    try:
        descriptor = os.open(run / ".lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def first_time(log: Path) -> float | None:
    """When the first event of a log was written; None if that cannot be read."""
    try:
        with log.open("rb") as stream:
            event = parse_json(stream.readline(TAIL))
        found = event.get("time") if isinstance(event, dict) else None
        return float(found) if isinstance(found, int | float) else None
    except (OSError, JsonError):
        return None


def last_events(log: Path) -> list[dict[str, Any]]:
    """The events at the end of a log, oldest first; damaged lines are left out."""
    if not log.is_file():
        return []
    with log.open("rb") as stream:
        stream.seek(max(log.stat().st_size - TAIL, 0))
        lines = stream.read().splitlines()
    found = []
    for line in lines:
        try:
            event = parse_json(line)
        except JsonError:
            continue
        if isinstance(event, dict):
            found.append(event)
    return found


def last_done(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last event "done" that says when; empty if there is none."""
    for event in reversed(events):
        if event.get("kind") == "done" and isinstance(event.get("time"), int | float):
            return event
    return {}

"""The log of a job: `events.jsonl` in its folder, from which every progress display is replayed.

One JSON object a line: `time`, `event`, `data`, and `revision` for a state of the job. The number
of a line, from 1, is the id of the event. Lines are only appended, one writer at a time (`flock`
on the file); a line that a kill cut short is closed by the next writer, counts, and is shown to
nobody. The state of a job is stored first (vp3d/jobs/store.py) and logged afterwards, so a line
may be missing after a kill: `sync_state` adds it, whoever notices first.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vp3d.system.files import JsonError, disk_errors, parse_json, plain

LOG_FILE = "events.jsonl"


@dataclass(frozen=True)
class Line:
    """One line of a log; `event` is "" for a line that was cut short."""

    number: int  # from 1
    event: str
    data: dict[str, Any]
    time: float = 0.0
    revision: int = -1  # of the job, for a line that shows its state


def parse_line(number: int, text: bytes) -> Line:
    """The line of a text, without its line break."""
    try:
        found: Any = parse_json(text)
        event, data = str(found["event"]), dict(found["data"])
        return Line(number, event, data, float(found["time"]), int(found.get("revision", -1)))
    except (JsonError, KeyError, TypeError, ValueError):
        return Line(number, "", {})


class LogReader:
    """Reads a log that grows: each call of `read` gives the lines since the last one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.lines = 0

    def read(self) -> list[Line]:
        """The complete lines that were added."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                data = stream.read()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        texts = data[:end].split(b"\n")[:-1]
        found = [parse_line(self.lines + n, text) for n, text in enumerate(texts, 1)]
        self.offset += end
        self.lines += len(texts)
        return found


def append(folder: Path, event: str, data: dict[str, Any]) -> None:
    """Append one event to the log of the job in `folder`."""
    with _writing(folder) as descriptor:
        _write(descriptor, {"time": round(time.time(), 3), "event": event, "data": data})


def sync_state(
    folder: Path, revision: int, state: Callable[[], tuple[str, dict[str, Any]]]
) -> bool:
    """Append a job's state unless this revision or a later one is in its log.

    Args:
        folder: the job's folder.
        revision: of the job as it is stored.
        state: the name of the event and its data; called only if it is needed.

    Returns:
        Whether a line was added.
    """
    with _writing(folder) as descriptor:
        logged = max((line.revision for line in LogReader(folder / LOG_FILE).read()), default=-1)
        if logged >= revision:
            return False
        event, data = state()
        line = {"time": round(time.time(), 3), "event": event, "revision": revision, "data": data}
        _write(descriptor, line)
        return True


@contextmanager
def _writing(folder: Path) -> Iterator[int]:
    path = folder / LOG_FILE
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _write(descriptor: int, line: dict[str, Any]) -> None:
    text = json.dumps(plain(line), allow_nan=False).encode() + b"\n"
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        text = b"\n" + text
    os.write(descriptor, text)

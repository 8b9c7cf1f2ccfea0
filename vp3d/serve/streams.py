"""Server-sent events: a job's log replayed and followed, and the states of all jobs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from vp3d.jobs.log import LOG_FILE, Line, LogReader
from vp3d.jobs.store import FINAL, Job, Store
from vp3d.jobs.views import Summaries, job_view
from vp3d.jobs.work import sync
from vp3d.serve.problems import Problem

POLL_S = 0.15  # between two looks at a log
ALIVE_S = 15.0  # between two comments of a quiet stream
RETRY_MS = 2000  # after which a client connects again
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Streams:
    """Counts the open streams of a service."""

    def __init__(self, store: Store, summaries: Summaries, most: int) -> None:
        self.store, self.summaries, self.most = store, summaries, most
        self.open = 0
        self.draining = False

    def respond(self, request: Request, events: AsyncIterator[str]) -> StreamingResponse:
        """The response that sends `events`; a problem if too many streams are open."""
        if self.open >= self.most:
            raise Problem(429, "too_fast", "too many event streams", headers={"Retry-After": "5"})
        self.open += 1

        async def counted() -> AsyncIterator[str]:
            try:
                yield f"retry: {RETRY_MS}\n\n"
                async for text in events:
                    yield text
            finally:
                self.open -= 1

        return StreamingResponse(counted(), media_type="text/event-stream", headers=HEADERS)

    async def job(self, job: Job, after: int) -> AsyncIterator[str]:
        """The lines of a job's log after number `after`, each once and in order, to its end."""
        reader = LogReader(self.store.folder(job.id) / LOG_FILE)
        last_sent, quiet_since = after, time.monotonic()
        while not self.draining:
            lines = reader.read()
            for index, line in enumerate(lines):
                if line.number > last_sent and line.event:
                    is_last = index == len(lines) - 1
                    yield message(line, "status" if line.event == "end" and not is_last else "")
                    last_sent, quiet_since = line.number, time.monotonic()
            stored = await asyncio.to_thread(self.store.find, job.id)
            if stored is None:
                return
            logged = self.summaries.of(self.store.folder(job.id)).revision
            if logged < stored.revision:  # a kill came between the store and the log
                await asyncio.to_thread(sync, self.store, stored)
                continue
            if stored.status in FINAL and reader.lines >= self._lines(job.id):
                return
            if time.monotonic() - quiet_since > ALIVE_S:
                quiet_since = time.monotonic()
                yield ": alive\n\n"
            await asyncio.sleep(POLL_S)

    def _lines(self, job_id: str) -> int:
        return self.summaries.of(self.store.folder(job_id)).lines

    async def all_jobs(self, after: int) -> AsyncIterator[str]:
        """The state of each job whenever it changes; the id is the store's change counter."""
        quiet_since = time.monotonic()
        while not self.draining:
            jobs = await asyncio.to_thread(self.store.changed_since, after)
            for job in jobs:
                log = self.summaries.of(self.store.folder(job.id))
                view = job_view(job, log, self.store.queue_position(job))
                yield text_of(job.change, "status", view)
                after, quiet_since = job.change, time.monotonic()
            if time.monotonic() - quiet_since > ALIVE_S:
                quiet_since = time.monotonic()
                yield ": alive\n\n"
            await asyncio.sleep(POLL_S)


def message(line: Line, name: str = "") -> str:
    """One line of a log as an event; `name` replaces its own."""
    return text_of(line.number, name or line.event, line.data)


def text_of(number: int, name: str, data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n"


def start_after(request: Request, after: int | None) -> int:
    """Where a stream continues: `Last-Event-ID`, else `?after=`, else the start."""
    given = request.headers.get("last-event-id", "").strip()
    if given.isascii() and given.isdigit() and len(given) < 16:
        return int(given)
    return max(after or 0, 0)

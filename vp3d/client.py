"""A client of the REST service, in one file of the standard library: copy it anywhere.

    from vp3d.client import Client

    client = Client("http://127.0.0.1:8765", token="...")
    job = client.submit("a red mushroom with a white stem", preset="draft")
    for event in job.events():          # reconnects, and continues after the last event
        print(event.name, event.progress, event.eta_s)
    job.download("model.glb", "mushroom.glb")   # checks the SHA-256

Calls are repeated after a lost connection or a busy answer; a submit has an idempotency key, so a
repeated one makes no second job.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

FINAL = ("succeeded", "failed", "cancelled")
TRIES = 8  # of a call that found no server, or a busy one, or was cut off
PATIENCE = 5  # so many times the tries, in a row, of a stream: a service restarts meanwhile
PAUSE_S = 0.3  # before the second try; doubled each time, at most LONGEST_PAUSE_S
LONGEST_PAUSE_S = 5.0
TIMEOUT_S = 60.0  # without a byte; a quiet event stream sends a comment every 15 s
CHUNK = 256 << 10  # bytes of a download read at once
BUSY = (429, 503)  # answers after which the same call may succeed later
LOST = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
Result = TypeVar("Result")


class ServiceError(Exception):
    """The service refused a call.

    Attributes:
        status: the HTTP status.
        code: what went wrong, for programs: unknown_words, wrong_state, ...
        problem: the complete answer (RFC 9457).
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status, self.problem = status, problem
        self.code = str(problem.get("code", "error"))
        super().__init__(str(problem.get("detail") or f"the service answered {status}"))


class JobFailed(Exception):
    """A job ended without an asset; `error` is what the service says."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.error = error
        super().__init__(str(error.get("detail", "the job failed")))


@dataclass(frozen=True)
class Event:
    """One event of a job: status, stage, candidates, step, preview, warning, artifact or end."""

    id: int
    name: str
    data: dict[str, Any]

    @property
    def progress(self) -> float | None:
        """Share of the job that is done, in [0, 1], if the event has it."""
        return self.data.get("progress")

    @property
    def eta_s(self) -> float | None:
        """Seconds left, if the event has them."""
        return self.data.get("eta_s")


@dataclass
class Job:
    """A job of the service; `data` is the job object as it was last heard of."""

    client: Client
    data: dict[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        """The job's id."""
        return str(self.data["id"])

    @property
    def status(self) -> str:
        """queued, running, awaiting_choice, cancelling, succeeded, failed or cancelled."""
        return str(self.data["status"])

    @property
    def path(self) -> str:
        """Where the job is."""
        return f"/v1/jobs/{quote(self.id, safe='')}"

    def refresh(self) -> Job:
        """Ask for the job's present state."""
        self.data = self.client.call("GET", self.path)
        return self

    def events(self, after: int = 0) -> Iterator[Event]:
        """What happens to the job, from event `after` on, to its end.

        A lost connection is made again, and the stream continues: no event is lost or repeated.
        """
        for event in self.client.events(f"{self.path}/events", after):
            if event.name in ("status", "end"):
                self.data = event.data
            yield event
            if event.name == "end":
                return

    def wait(self) -> Job:
        """Wait for the end; JobFailed if the job failed, and for a job that was cancelled."""
        for _ in self.events():
            continue
        self.refresh()
        if self.status != "succeeded":
            error = self.data.get("error") or {"detail": f"the job was {self.status}"}
            raise JobFailed(error)
        return self

    def choose(self, candidate: int) -> Job:
        """Continue with a candidate."""
        return self._post("choose", {"candidate": candidate})

    def cancel(self, keep: bool = False) -> Job:
        """Stop the job; with `keep`, what there is becomes its asset."""
        return self._post("cancel", {"keep": keep})

    def resume(self) -> Job:
        """Continue after a cancel, a failure or an early stop."""
        return self._post("resume", {})

    def export(self, **request: Any) -> Job:
        """Other files of the same run, as a new job: faces, texture_size, formats, settings."""
        return Job(self.client, self.client.call("POST", f"{self.path}/exports", request))

    def delete(self) -> None:
        """Delete the job with its files."""
        self.client.call("DELETE", self.path)

    def artifacts(self) -> list[dict[str, Any]]:
        """The job's files: name, bytes, sha256, media_type, url."""
        return list(self.client.call("GET", f"{self.path}/artifacts")["artifacts"])

    def download(self, name: str, path: str | os.PathLike[str]) -> Path:
        """Write a file of the job to `path`, complete or not at all; checks its SHA-256."""
        return self.client.download(f"{self.path}/artifacts/{quote(name, safe='')}", Path(path))

    def _post(self, verb: str, body: dict[str, Any]) -> Job:
        self.data = self.client.call("POST", f"{self.path}/{verb}", body)
        return self


class Client:
    """A service at an address.

    Args:
        url: where it is, for example http://127.0.0.1:8765.
        token: its token; "" takes VP3D_TOKEN, and none if that is not set.
        timeout_s: seconds without a byte after which a connection counts as lost.
        tries: how often a call is tried; a stream, five times as often in a row.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8765",
        token: str = "",
        timeout_s: float = TIMEOUT_S,
        tries: int = TRIES,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"{url!r} is not an http(s) address")
        self.url, self.timeout_s, self.tries = url.rstrip("/"), timeout_s, tries
        self.token = token or os.environ.get("VP3D_TOKEN", "")
        # No redirects: a token is for this server alone.
        self.opener = urllib.request.build_opener(_NoRedirects)

    def info(self) -> dict[str, Any]:
        """Version, profiles, presets, formats and limits."""
        return self.call("GET", "/v1/info")

    def check(self, prompt: str, profile: str = "toybox") -> dict[str, Any]:
        """Whether a prompt can be made; unknown words with the nearest known ones."""
        return self.call("POST", "/v1/prompts/check", {"prompt": prompt, "profile": profile})

    def submit(self, prompt: str, *, key: str = "", **request: Any) -> Job:
        """Submit a job.

        Args:
            prompt: what to make.
            key: the idempotency key; "" makes one, so that repeated tries make one job.
            request: preset, seed, profile, image, choose, formats, settings, priority.

        Returns:
            The job.
        """
        body = {"prompt": prompt, **request}
        return Job(self, self.call("POST", "/v1/jobs", body, key or uuid.uuid4().hex))

    def submit_batch(self, prompts: list[str], **request: Any) -> dict[str, Any]:
        """Submit many prompts; the answer has the batch's id and its jobs."""
        body = {"prompts": prompts, **request}
        return self.call("POST", "/v1/batches", body, uuid.uuid4().hex)

    def upload(self, path: str | os.PathLike[str]) -> str:
        """Send a reference picture; its id is the `image` of a submit."""
        data = Path(path).read_bytes()
        headers = {"Content-Type": "image/png"}
        return str(self._ask("POST", "/v1/uploads", read_json, data, headers)["id"])

    def job(self, job_id: str) -> Job:
        """A job by its id."""
        return Job(self, self.call("GET", f"/v1/jobs/{quote(job_id, safe='')}"))

    def jobs(self, status: str = "", q: str = "") -> Iterator[Job]:
        """All jobs, newest first; only those in a state, or whose prompt has some words."""
        cursor: str | None = ""
        while cursor is not None:
            query = {"status": status, "q": q, "cursor": cursor}
            page = self.call("GET", "/v1/jobs?" + urlencode(query))
            yield from (Job(self, data) for data in page["jobs"])
            cursor = page["next_cursor"]

    def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, key: str = ""
    ) -> dict[str, Any]:
        """One call; ServiceError if it is refused, OSError if there is no service."""
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        data = None if body is None else json.dumps(body).encode()
        return self._ask(method, path, read_json, data, headers)

    def events(self, path: str, after: int = 0) -> Iterator[Event]:
        """The events of a stream; it is opened again wherever it breaks."""
        last, misses = after, 0
        while True:
            pause = PAUSE_S
            try:
                headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
                with self._open("GET", path, None, headers) as reply:
                    for event in read_events(reply):
                        misses = 0
                        if event.id > last:
                            last = event.id
                            yield event
            except LOST as error:
                pause = pause_after(error, misses, PATIENCE * self.tries)
                misses += 1
            time.sleep(pause)

    def download(self, path: str, target: Path) -> Path:
        """Write a file of the service to `target`; ValueError if its hash is wrong.

        The file is asked for again if its transfer breaks off in the middle.
        """
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            digest, tag = self._ask("GET", path, lambda reply: write_reply(reply, temporary))
            if digest != tag:
                raise ValueError(f"{path} arrived damaged: its SHA-256 is not {tag}")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def _ask(
        self,
        method: str,
        path: str,
        read: Callable[[Any], Result],
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Result:
        """What `read` makes of the reply to a call.

        Both are repeated, `tries` times together, while no server or only a busy one answers, or
        the reply breaks off in the middle.
        """
        for attempt in range(self.tries):
            try:
                with self._open(method, path, data, headers) as reply:
                    return read(reply)
            except LOST as error:
                pause = pause_after(error, attempt, self.tries)
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _open(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str] | None
    ) -> Any:
        """The reply of one call, to be read and closed."""
        request = urllib.request.Request(self.url + path, data, headers or {}, method=method)
        if self.token:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        return self.opener.open(request, timeout=self.timeout_s)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as an error."""

    def redirect_request(self, *arguments: Any, **keywords: Any) -> None:
        """No request follows."""


def pause_after(error: Exception, attempt: int, tries: int) -> float:
    """Seconds to wait before a call is tried again.

    Args:
        error: one of `LOST`, of the try.
        attempt: the number of the try, from 0.
        tries: how many there may be.

    Raises:
        ServiceError: the service refused the call, or is still busy at the last try.
        Exception: `error`, at the last try.
    """
    is_last = attempt + 1 >= tries
    pause = min(PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
    if not isinstance(error, urllib.error.HTTPError):
        if is_last:
            raise error
        return pause
    with error:
        problem = read_problem(error)
    if error.code not in BUSY or is_last:
        raise ServiceError(error.code, problem) from None
    wait = error.headers.get("Retry-After", "")
    return min(float(wait), LONGEST_PAUSE_S) if wait.isdecimal() else pause


def read_json(reply: Any) -> dict[str, Any]:
    """The JSON object of a reply; empty for a reply without a body."""
    text = reply.read()
    return dict(json.loads(text)) if text else {}


def write_reply(reply: Any, target: Path) -> tuple[str, str]:
    """Write the file of a reply; its SHA-256, and the one that the service gave."""
    digest, count = hashlib.sha256(), 0
    with target.open("wb") as stream:
        while data := reply.read(CHUNK):
            digest.update(data)
            stream.write(data)
            count += len(data)
    if count < int(reply.headers.get("Content-Length") or 0):
        raise http.client.IncompleteRead(b"")
    return digest.hexdigest(), reply.headers.get("ETag", "").strip('"')


def read_problem(reply: Any) -> dict[str, Any]:
    """The JSON of an error; empty for any other text."""
    try:
        found = json.loads(reply.read())
    except (ValueError, *LOST):
        return {}
    return found if isinstance(found, dict) else {}


def read_events(lines: Any) -> Iterator[Event]:
    """The events of a stream of server-sent events, given by its lines (bytes)."""
    number, name, data = 0, "message", []
    for raw in lines:
        line = raw.decode("utf-8").rstrip("\r\n")
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "id" and value.isdigit():
            number = int(value)
        elif key == "event":
            name = value
        elif key == "data":
            data.append(value)
        elif not line:
            if data:
                yield Event(number, name, json.loads("\n".join(data)))
            name, data = "message", []

"""What the paths of one service share. No torch here."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse

from vp3d.jobs.artifacts import ArtifactFile, artifact_paths, describe, run_folder
from vp3d.jobs.executors import WorkerPool
from vp3d.jobs.request import missing_weights, profiles
from vp3d.jobs.store import Job, Key, NewJob, Store
from vp3d.jobs.views import Summaries, job_view
from vp3d.jobs.work import sync
from vp3d.serve.gallery import Gallery
from vp3d.serve.problems import Problem
from vp3d.serve.settings import ServiceSettings
from vp3d.serve.streams import Streams

WEIGHTS_S = 60.0  # how long the list of profiles without weights is kept
KEY_LENGTH = 200  # characters of an idempotency key


class Service:
    """What the paths of one service share."""

    def __init__(self, settings: ServiceSettings, store: Store, pool: WorkerPool | None) -> None:
        self.settings, self.store, self.pool = settings, store, pool
        self.summaries = Summaries()
        self.streams = Streams(store, self.summaries, settings.max_streams)
        self.gallery = Gallery(store)
        self.found: tuple[float, dict[str, str]] = (-WEIGHTS_S, {})

    def missing(self) -> dict[str, str]:
        """Why each profile cannot run here, with the command that helps; "" where it can."""
        when, found = self.found
        if time.monotonic() - when >= WEIGHTS_S:
            found = {name: missing_weights(name) for name in profiles()}
            self.found = (time.monotonic(), found)
        return found

    def refuse_missing(self, profile: str) -> None:
        """Refuse a job whose weights are not here, before it waits for nothing."""
        message = missing_weights(profile) if self.missing().get(profile) else ""
        if message:
            raise Problem(422, "missing_weights", message)

    def job(self, job_id: str) -> Job:
        """A job; 404 or 410 if there is none."""
        found = self.store.find(job_id)
        if found is None and job_id.startswith("run_"):
            self.gallery.refresh()
            found = self.store.find(job_id)
        if found is None:
            gone = self.store.was_deleted(job_id)
            raise Problem(
                410 if gone else 404,
                "gone" if gone else "not_found",
                f"the job {job_id[:40]!r} was deleted" if gone else f"no job {job_id[:40]!r}",
            )
        return found

    def view(self, job: Job) -> dict[str, Any]:
        """The job object."""
        log = self.summaries.of(self.store.folder(job.id))
        return job_view(job, log, self.store.queue_position(job))

    def change(self, job: Job, allowed: tuple[str, ...], **values: Any) -> dict[str, Any]:
        """Change a job, log its new state, and show it."""
        changed = self.store.update(job.id, allowed, **values)
        sync(self.store, changed)
        return self.view(changed)

    def submit(self, jobs: list[NewJob], request: Request, body: bytes) -> tuple[list[Job], bool]:
        """Store jobs, once for each idempotency key."""
        if self.streams.draining:
            retry = {"Retry-After": "10"}
            raise Problem(503, "draining", "the service is stopping", headers=retry)
        name = request.headers.get("idempotency-key", "")
        if len(name) > KEY_LENGTH:
            raise Problem(422, "invalid", f"Idempotency-Key has more than {KEY_LENGTH} characters")
        key = None
        if name:
            scope = f"{request.url.path} {name}"
            key = Key(scope, hashlib.sha256(body).hexdigest())
        stored, replayed = self.store.submit(jobs, key, self.settings.max_queued)
        for job in stored:
            if job.revision == 0 and not replayed:
                sync(self.store, job)
        return stored, replayed

    def accepted(self, job: Job, replayed: bool) -> JSONResponse:
        """202 with the job and where it is."""
        headers = {"Location": f"/v1/jobs/{job.id}"}
        if replayed:
            headers["Idempotent-Replayed"] = "true"
        return JSONResponse(self.view(job), 202, headers)

    def artifacts(self, job: Job) -> dict[str, Any]:
        """The files of a job by name."""
        run = run_folder(self.store.data, job.id, job.folder)
        return {} if run is None else dict(artifact_paths(run))

    def artifact(self, job: Job, name: str) -> ArtifactFile:
        """One file of a job; 404 for a name that is not in its list."""
        path = self.artifacts(job).get(name)
        if path is None:
            raise Problem(404, "not_found", f"the job has no artifact {name[:60]!r}")
        try:
            return describe(name, path)
        except FileNotFoundError as error:
            raise Problem(404, "not_found", f"the artifact {name[:60]!r} is gone") from error

    def has_checkpoint(self, job: Job) -> bool:
        """Whether the job's run can be exported."""
        run = run_folder(self.store.data, job.id, job.folder)
        return run is not None and any((run / "checkpoints").rglob("*.safetensors"))


async def service_of(request: Request) -> Service:
    """A dependency: the service of the application that got the request."""
    service: Service = request.app.state.service
    return service

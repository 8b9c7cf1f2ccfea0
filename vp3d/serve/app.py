"""The REST service: every path of docs/reference/rest_api.md. No torch here."""

from __future__ import annotations

import base64
import hashlib
import shutil
import time
import uuid
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from vp3d import __version__
from vp3d.config.loader import PRESETS
from vp3d.jobs.artifacts import ArtifactFile, artifact_paths, describe, run_folder
from vp3d.jobs.executors import WorkerPool
from vp3d.jobs.locks import try_lock
from vp3d.jobs.request import (
    CEILINGS,
    config_of,
    export_layer,
    missing_weights,
    profiles,
    settable_keys,
)
from vp3d.jobs.store import ACTIVE, FINAL, Job, Key, NewJob, Store
from vp3d.jobs.views import Summaries, job_view
from vp3d.jobs.work import sync
from vp3d.serve import prompt_help
from vp3d.serve.files import respond_file
from vp3d.serve.gallery import Gallery
from vp3d.serve.guards import Guard, same_text
from vp3d.serve.models import (
    BatchRequest,
    CancelRequest,
    ChooseRequest,
    ExportRequest,
    JobRequest,
    PriorityRequest,
    PromptRequest,
    QueueRequest,
    RefineRequest,
    SessionRequest,
    read_body,
    read_limited,
    schema_of,
)
from vp3d.serve.pages import page_files
from vp3d.serve.problems import Problem, install
from vp3d.serve.settings import COOKIE, ServiceSettings
from vp3d.serve.streams import Streams, start_after
from vp3d.serve.uploads import keep_picture, read_upload

FORMATS = ("glb", "obj", "ply", "stl")
KEY_LENGTH = 200  # characters of an idempotency key
JobId = Annotated[str, Path(max_length=80)]
After = Annotated[int | None, Query(ge=0, le=2**53)]


class Service:
    """What the paths of one service share."""

    def __init__(self, settings: ServiceSettings, store: Store, pool: WorkerPool | None) -> None:
        self.settings, self.store, self.pool = settings, store, pool
        self.summaries = Summaries()
        self.streams = Streams(store, self.summaries, settings.max_streams)
        self.gallery = Gallery(store)
        self.missing: dict[str, str] = {}

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


def create_app(
    settings: ServiceSettings, store: Store, pool: WorkerPool | None = None
) -> FastAPI:
    """The service as an ASGI application, with its guards around it.

    Args:
        settings: what the owner decided.
        store: the job store.
        pool: the workers, for /readyz; None for a service without workers of its own.

    Returns:
        The application; `app.state.service` is the `Service`.
    """
    service = Service(settings, store, pool)
    app = FastAPI(
        title="VP3D",
        version=__version__,
        description="Text to textured 3D assets as jobs.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    install(app)
    app.add_middleware(Guard, settings=settings)
    _add_general(app, service)
    _add_submits(app, service)
    _add_jobs(app, service)
    _add_changes(app, service)
    _add_artifacts(app, service)
    _add_pages(app)
    return app


def _add_general(app: FastAPI, service: Service) -> None:
    settings, store = service.settings, service.store

    @app.get("/healthz", summary="The service is alive")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="A worker can take a job")
    def readyz() -> dict[str, str]:
        if service.pool is not None and not service.pool.is_ready():
            retry = {"Retry-After": "5"}
            raise Problem(503, "not_available", "no worker is ready yet", headers=retry)
        return {"status": "ready"}

    @app.get("/v1/info", summary="Version, profiles, presets, formats and limits")
    def info() -> dict[str, Any]:
        if not service.missing:
            service.missing = {name: missing_weights(name) for name in profiles()}
        return {
            "version": __version__,
            "profiles": [
                {"name": name, "available": not missing, "message": missing}
                for name, missing in service.missing.items()
            ],
            "presets": list(PRESETS),
            "formats": list(FORMATS),
            "settings": settable_keys(),
            "limits": {
                "prompt_characters": settings.limits.prompt,
                "json_bytes": settings.max_json,
                "picture_bytes": settings.max_picture,
                "max_queued": settings.max_queued,
                "settings": {} if settings.trusted else CEILINGS,
            },
            "workers": service.pool.count if service.pool is not None else 0,
            "refine": False,
        }

    @app.get("/v1/vocabulary", summary="Words, grammar and examples of a profile")
    def vocabulary(profile: Annotated[str, Query(max_length=60)] = "toybox") -> dict[str, Any]:
        return prompt_help.describe(profile)

    @app.post(
        "/v1/prompts/check",
        summary="Check a prompt, without queueing it",
        openapi_extra=schema_of(PromptRequest),
    )
    async def check(request: Request) -> dict[str, Any]:
        body = read_body(await read_limited(request, settings.max_json), PromptRequest)
        return await run_in_threadpool(
            prompt_help.check, body.prompt, body.profile, settings.limits
        )

    @app.get("/v1/queue", summary="Counts by state, and whether the queue is paused")
    def queue() -> dict[str, Any]:
        return {"paused": store.is_paused(), "counts": store.counts()}

    @app.post(
        "/v1/queue",
        summary="Hold queued jobs back, or let them start",
        openapi_extra=schema_of(QueueRequest),
    )
    async def pause(request: Request) -> dict[str, Any]:
        body = read_body(await read_limited(request, settings.max_json), QueueRequest)
        await run_in_threadpool(store.pause, body.paused)
        return await run_in_threadpool(queue)

    @app.post(
        "/v1/session",
        status_code=204,
        response_class=Response,
        summary="Exchange the token for a cookie",
        openapi_extra=schema_of(SessionRequest),
    )
    async def session(request: Request) -> Response:
        body = read_body(await read_limited(request, settings.max_json), SessionRequest)
        if settings.token and not same_text(body.token, settings.token):
            raise Problem(401, "unauthorized", "this is not the token of this service")
        response = Response(status_code=204)
        response.set_cookie(
            COOKIE, settings.session() if settings.token else "", httponly=True, samesite="strict"
        )
        return response

    @app.get("/v1/events", summary="The states of all jobs, as server-sent events")
    async def events(request: Request, after: After = None) -> Response:
        return service.streams.respond(
            request, service.streams.all_jobs(start_after(request, after))
        )


def _add_submits(app: FastAPI, service: Service) -> None:
    settings, store = service.settings, service.store

    def checked(body: JobRequest, pointer: str = "/prompt") -> dict[str, Any]:
        fields = body.model_dump(exclude={"priority"})
        prompt_help.refuse_unknown(body.prompt, body.profile, settings.limits, pointer)
        config_of(fields, store.data, settings.limits)
        return fields

    @app.post(
        "/v1/uploads", status_code=201, summary="Send a reference picture, raw or multipart"
    )
    async def upload(request: Request) -> JSONResponse:
        data = await read_upload(request, settings.max_picture)
        return JSONResponse(await run_in_threadpool(keep_picture, store.data, data), 201)

    @app.post(
        "/v1/jobs", status_code=202, summary="Submit a job", openapi_extra=schema_of(JobRequest)
    )
    async def submit(request: Request) -> JSONResponse:
        data = await read_limited(request, settings.max_json)

        def work() -> JSONResponse:
            body = read_body(data, JobRequest)
            job = NewJob(checked(body), priority=body.priority)
            stored, replayed = service.submit([job], request, data)
            return service.accepted(stored[0], replayed)

        return await run_in_threadpool(work)

    @app.post(
        "/v1/batches",
        status_code=202,
        summary="Submit many prompts",
        openapi_extra=schema_of(BatchRequest),
    )
    async def submit_batch(request: Request) -> JSONResponse:
        data = await read_limited(request, 4 * settings.max_json)

        def work() -> JSONResponse:
            body = read_body(data, BatchRequest)
            shared = body.model_dump(exclude={"prompts", "seeds", "priority"})
            batch = f"batch_{uuid.uuid4().hex[:16]}"
            jobs = []
            for number, prompt in enumerate(body.prompts):
                for seed in body.seeds:
                    one = JobRequest(prompt=prompt or " ", seed=seed, **shared)
                    fields = checked(one, f"/prompts/{number}")
                    jobs.append(NewJob(fields, batch=batch, priority=body.priority))
            stored, replayed = service.submit(jobs, request, data)
            headers = {"Location": f"/v1/batches/{stored[0].batch}"}
            headers |= {"Idempotent-Replayed": "true"} if replayed else {}
            return JSONResponse(show_batch(stored[0].batch), 202, headers)

        return await run_in_threadpool(work)

    def show_batch(batch: str) -> dict[str, Any]:
        jobs = store.list(batch=batch, limit=100_000)
        if not jobs:
            raise Problem(404, "not_found", f"no batch {batch[:40]!r}")
        jobs = jobs[::-1]
        return {
            "id": batch,
            "counts": store.counts(batch),
            "jobs": [
                {"id": job.id, "status": job.status, "prompt": job.request.get("prompt", "")}
                for job in jobs
            ],
        }

    @app.get("/v1/batches/{batch}", summary="A batch: counts by state, and its jobs")
    def batch(batch: Annotated[str, Path(max_length=80)]) -> dict[str, Any]:
        return show_batch(batch or "-")

    @app.post(
        "/v1/jobs/{job_id}/exports",
        status_code=202,
        summary="Export a finished run again, as a new job",
        openapi_extra=schema_of(ExportRequest, required=False),
    )
    async def export(job_id: JobId, request: Request) -> JSONResponse:
        data = await read_limited(request, settings.max_json)

        def work() -> JSONResponse:
            body = read_body(data, ExportRequest)
            parent = service.job(job_id)
            fields = body.model_dump(exclude_none=True)
            export_layer(fields, settings.limits)
            if parent.status not in FINAL or not _has_checkpoint(service, parent):
                raise Problem(409, "wrong_state", "only a run with a checkpoint can be exported")
            request_fields = {**parent.request, **fields}
            job = NewJob(request_fields, "export", parent.id)
            stored, replayed = service.submit([job], request, data)
            return service.accepted(stored[0], replayed)

        return await run_in_threadpool(work)

    @app.post(
        "/v1/jobs/{job_id}/refine",
        status_code=202,
        summary="Refine a finished run, as a new job; 409 where this version has no refinement",
        openapi_extra=schema_of(RefineRequest, required=False),
    )
    async def refine(job_id: JobId, request: Request) -> JSONResponse:
        data = await read_limited(request, settings.max_json)
        read_body(data, RefineRequest)
        await run_in_threadpool(service.job, job_id)
        raise Problem(409, "not_available", "this version of VP3D has no refinement of meshes")


def _has_checkpoint(service: Service, job: Job) -> bool:
    run = run_folder(service.store.data, job.id, job.folder)
    return run is not None and any((run / "checkpoints").rglob("*.safetensors"))


def _add_jobs(app: FastAPI, service: Service) -> None:
    store = service.store

    @app.get("/v1/jobs", summary="Jobs and runs of the command line, newest first")
    def jobs(
        status: Annotated[str, Query(max_length=20)] = "",
        q: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str, Query(max_length=40)] = "",
    ) -> dict[str, Any]:
        if status and status not in (*ACTIVE, *FINAL):
            known = ", ".join((*ACTIVE, *FINAL))
            raise Problem(422, "invalid", f"status: choose one of {known}")
        service.gallery.refresh()
        before = read_cursor(cursor)
        found = store.list(status, q, before=before, limit=limit + 1)
        more = make_cursor(found[limit - 1].seq) if len(found) > limit else None
        return {"jobs": [service.view(job) for job in found[:limit]], "next_cursor": more}

    @app.get("/v1/jobs/{job_id}", summary="A job")
    async def job(job_id: JobId, request: Request, after: After = None) -> Response:
        if "text/event-stream" in request.headers.get("accept", ""):
            return await events(job_id, request, after)
        found = await run_in_threadpool(lambda: service.view(service.job(job_id)))
        return JSONResponse(found)

    @app.get("/v1/jobs/{job_id}/events", summary="Progress of a job, as server-sent events")
    async def events(job_id: JobId, request: Request, after: After = None) -> Response:
        found = await run_in_threadpool(service.job, job_id)
        return service.streams.respond(
            request, service.streams.job(found, start_after(request, after))
        )


def make_cursor(seq: int) -> str:
    """An opaque text for the place of a job in the list."""
    return base64.urlsafe_b64encode(f"s{seq}".encode()).decode()


def read_cursor(cursor: str) -> int | None:
    """Inverse of `make_cursor`; None for ""; a problem for anything else."""
    if not cursor:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor.encode()).decode()
        if text[:1] == "s" and text[1:].isascii() and text[1:].isdigit() and len(text) < 18:
            return int(text[1:])
    except ValueError:
        pass
    raise Problem(422, "invalid", "cursor: take it from next_cursor of the page before")


def _add_changes(app: FastAPI, service: Service) -> None:
    settings = service.settings

    @app.post(
        "/v1/jobs/{job_id}/choose",
        status_code=202,
        summary="Continue with a candidate",
        openapi_extra=schema_of(ChooseRequest),
    )
    async def choose(job_id: JobId, request: Request) -> JSONResponse:
        body = read_body(await read_limited(request, settings.max_json), ChooseRequest)

        def work() -> JSONResponse:
            job = service.job(job_id)
            if job.status != "awaiting_choice":
                raise Problem(409, "wrong_state", f"the job is {job.status}, it awaits no choice")
            scores = service.view(job)["candidates"]["scores"]
            if body.candidate >= len(scores) or scores[body.candidate] is None:
                usable = [n for n, score in enumerate(scores) if score is not None]
                raise Problem(422, "invalid", f"candidate: choose one of {usable}")
            values = {"status": "queued", "choice": body.candidate, "finished": None}
            return JSONResponse(service.change(job, ("awaiting_choice",), **values), 202)

        return await run_in_threadpool(work)

    @app.post(
        "/v1/jobs/{job_id}/cancel",
        status_code=202,
        summary="Stop a job; with keep, export what there is",
        openapi_extra=schema_of(CancelRequest, required=False),
    )
    async def cancel(job_id: JobId, request: Request) -> JSONResponse:
        body = read_body(await read_limited(request, settings.max_json), CancelRequest)

        def work() -> JSONResponse:
            job = service.job(job_id)
            if job.folder:
                raise Problem(409, "wrong_state", "the command line made this run; stop it there")
            if job.status == "cancelling" and not body.keep:  # a keep that became a cancel
                return JSONResponse(service.change(job, ("cancelling",), want="cancel"), 202)
            if job.status in ("queued", "awaiting_choice"):
                if body.keep and not _has_checkpoint(service, job):
                    raise Problem(409, "wrong_state", "there is nothing to keep yet")
                if body.keep:
                    values = {"status": "cancelling", "want": "keep"}
                    return JSONResponse(service.change(job, (job.status,), **values), 202)
                values = {"status": "cancelled", "finished": time.time()}
                return JSONResponse(service.change(job, (job.status,), **values), 202)
            want = "keep" if body.keep else "cancel"
            values = {"status": "cancelling", "want": want}
            return JSONResponse(service.change(job, ("running",), **values), 202)

        return await run_in_threadpool(work)

    @app.post(
        "/v1/jobs/{job_id}/resume",
        status_code=202,
        summary="Continue a job that was cancelled, failed, or stopped early",
    )
    def resume(job_id: JobId) -> JSONResponse:
        job = service.job(job_id)
        if job.folder:
            raise Problem(409, "wrong_state", "the command line made this run; resume it there")
        if job.status == "succeeded" and not job.result.get("stopped"):
            raise Problem(409, "wrong_state", "the job is complete")
        values = {"status": "queued", "want": "", "deaths": 0, "error": None, "finished": None}
        return JSONResponse(service.change(job, FINAL, **values), 202)

    @app.post(
        "/v1/jobs/{job_id}/priority",
        status_code=202,
        summary="Move a queued job",
        openapi_extra=schema_of(PriorityRequest),
    )
    async def priority(job_id: JobId, request: Request) -> JSONResponse:
        body = read_body(await read_limited(request, settings.max_json), PriorityRequest)

        def work() -> JSONResponse:
            changed = service.change(service.job(job_id), ("queued",), priority=body.priority)
            return JSONResponse(changed, 202)

        return await run_in_threadpool(work)

    @app.delete(
        "/v1/jobs/{job_id}",
        status_code=204,
        response_class=Response,
        summary="Delete a job that is over, with its files",
    )
    def delete(job_id: JobId) -> Response:
        job = service.job(job_id)
        if job.status not in FINAL:
            raise Problem(409, "wrong_state", f"the job is {job.status}; cancel it first")
        run = run_folder(service.store.data, job.id, job.folder)
        name = ".lock" if job.folder else ".job.lock"
        folder = run if job.folder else service.store.folder(job.id)
        lock = None if folder is None or not folder.is_dir() else try_lock(folder / name)
        if lock is None and folder is not None and folder.is_dir():
            raise Problem(409, "wrong_state", "a process works on this run")
        try:
            service.store.delete(job)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            if lock is not None:
                lock.release()
        return Response(status_code=204)


def _add_artifacts(app: FastAPI, service: Service) -> None:
    @app.get("/v1/jobs/{job_id}/artifacts", summary="The files of a job")
    def artifacts(job_id: JobId) -> dict[str, Any]:
        job = service.job(job_id)
        found = [service.artifact(job, name) for name in service.artifacts(job)]
        return {
            "artifacts": [
                {
                    "name": item.name,
                    "bytes": item.bytes,
                    "sha256": item.sha256,
                    "media_type": item.media_type,
                    "url": f"/v1/jobs/{job.id}/artifacts/{item.name}",
                }
                for item in found
            ]
        }

    @app.get("/v1/jobs/{job_id}/artifacts/{name}", summary="A file of a job")
    def artifact(
        job_id: JobId, name: Annotated[str, Path(max_length=80)], request: Request
    ) -> Response:
        return respond_file(request, service.artifact(service.job(job_id), name))


def _add_pages(app: FastAPI) -> None:
    files = page_files()

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: str, request: Request) -> Response:
        if name not in files:
            raise Problem(404, "not_found", "the page has no such file")
        return files[name].respond(request)

    @app.get("/", include_in_schema=False)
    def index(request: Request) -> Response:
        if "index.html" not in files:
            raise Problem(404, "not_found", "the page is not installed")
        return files["index.html"].respond(request)

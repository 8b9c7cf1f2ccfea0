"""The REST service: every path of docs/reference/rest_api.md. No torch here."""

from __future__ import annotations

import base64
import re
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from vp3d import __version__
from vp3d.config.loader import PRESETS
from vp3d.jobs.executors import WorkerPool
from vp3d.jobs.request import CEILINGS, settable_keys
from vp3d.jobs.store import ACTIVE, FINAL, Job, Store
from vp3d.serve import commands, prompt_help
from vp3d.serve.commands import JobId
from vp3d.serve.files import respond_file
from vp3d.serve.guards import Guard, same_text
from vp3d.serve.models import (
    Given,
    PromptRequest,
    QueueRequest,
    SessionRequest,
    body_of,
    schema_of,
)
from vp3d.serve.pages import PageFile, page_files, viewer_of
from vp3d.serve.problems import Problem, install
from vp3d.serve.service import Service
from vp3d.serve.settings import COOKIE, ServiceSettings
from vp3d.serve.streams import start_after

CURSOR = re.compile(r"(\d{1,12}\.\d{1,9}) (\d{1,15})")  # when a job was made, and its number
FORMATS = ("glb", "obj", "ply", "stl", "usdz", "3mf")
After = Annotated[int | None, Query(ge=0, le=2**53)]


def create_app(settings: ServiceSettings, store: Store, pool: WorkerPool | None = None) -> FastAPI:
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
        redirect_slashes=False,
    )
    app.state.service = service
    install(app)
    app.add_middleware(Guard, settings=settings)
    files = page_files()
    _add_general(app, service, viewer_of(files))
    _add_jobs(app, service)
    app.include_router(commands.router)
    _add_artifacts(app, service)
    _add_pages(app, files)
    return app


def _add_general(app: FastAPI, service: Service, viewer: str) -> None:
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
        return {
            "version": __version__,
            "profiles": [
                {"name": name, "available": not missing, "message": missing}
                for name, missing in service.missing().items()
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
            "viewer": viewer,
        }

    @app.get("/v1/vocabulary", summary="Words, grammar and examples of a profile")
    def vocabulary(profile: Annotated[str, Query(max_length=60)] = "toybox") -> dict[str, Any]:
        return prompt_help.describe(profile)

    @app.post(
        "/v1/prompts/check",
        summary="Check a prompt, without queueing it",
        openapi_extra=schema_of(PromptRequest),
    )
    def check(
        given: Annotated[Given[PromptRequest], Depends(body_of(PromptRequest))],
    ) -> dict[str, Any]:
        return prompt_help.check(given.body.prompt, given.body.profile, settings.limits)

    @app.get("/v1/queue", summary="Counts by state, and whether the queue is paused")
    def queue() -> dict[str, Any]:
        return {"paused": store.is_paused(), "counts": store.counts()}

    @app.post(
        "/v1/queue",
        summary="Hold queued jobs back, or let them start",
        openapi_extra=schema_of(QueueRequest),
    )
    def pause(
        given: Annotated[Given[QueueRequest], Depends(body_of(QueueRequest))],
    ) -> dict[str, Any]:
        store.pause(given.body.paused)
        return queue()

    @app.post(
        "/v1/session",
        status_code=204,
        response_class=Response,
        summary="Exchange the token for a cookie",
        openapi_extra=schema_of(SessionRequest),
    )
    async def session(
        given: Annotated[Given[SessionRequest], Depends(body_of(SessionRequest))],
    ) -> Response:
        if settings.token and not same_text(given.body.token, settings.token):
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


def _add_jobs(app: FastAPI, service: Service) -> None:
    store = service.store

    @app.get("/v1/jobs", summary="Jobs and runs of the command line, newest first")
    def jobs(
        status: Annotated[str, Query(max_length=20)] = "",
        q: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str, Query(max_length=80)] = "",
    ) -> dict[str, Any]:
        if status and status not in (*ACTIVE, *FINAL):
            known = ", ".join((*ACTIVE, *FINAL))
            raise Problem(422, "invalid", f"status: choose one of {known}")
        service.gallery.refresh()
        before = read_cursor(cursor)
        found = store.jobs(status, q, before=before, limit=limit + 1)
        more = make_cursor(found[limit - 1]) if len(found) > limit else None
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


def make_cursor(job: Job) -> str:
    """An opaque text for the place of a job in the list."""
    return base64.urlsafe_b64encode(f"{job.created!r} {job.seq}".encode()).decode()


def read_cursor(cursor: str) -> tuple[float, int] | None:
    """Inverse of `make_cursor`; None for ""; a problem for anything else."""
    if not cursor:
        return None
    try:
        match = CURSOR.fullmatch(base64.urlsafe_b64decode(cursor.encode()).decode())
        if match:
            return float(match[1]), int(match[2])
    except ValueError:
        pass
    raise Problem(422, "invalid", "cursor: take it from next_cursor of the page before")


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


def _add_pages(app: FastAPI, files: dict[str, PageFile]) -> None:
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

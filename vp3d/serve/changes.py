"""Paths that change a job: choose, cancel, resume, priority, delete."""

from __future__ import annotations

import shutil
import time
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from vp3d.jobs.artifacts import run_folder
from vp3d.jobs.locks import try_lock
from vp3d.jobs.store import FINAL
from vp3d.serve.models import (
    CancelRequest,
    ChooseRequest,
    PriorityRequest,
    read_body,
    read_limited,
    schema_of,
)
from vp3d.serve.problems import Problem
from vp3d.serve.service import Service

JobId = Annotated[str, Path(max_length=80)]


def add_changes(app: FastAPI, service: Service) -> None:
    """Add the paths to `app`."""
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
            values: dict[str, Any]
            if job.folder:
                raise Problem(409, "wrong_state", "the command line made this run; stop it there")
            if job.status == "cancelling" and not body.keep:  # a keep that became a cancel
                return JSONResponse(service.change(job, ("cancelling",), want="cancel"), 202)
            if job.status in ("queued", "awaiting_choice"):
                if body.keep and not service.has_checkpoint(job):
                    raise Problem(409, "wrong_state", "there is nothing to keep yet")
                values = {"status": "cancelled", "finished": time.time()}
                if body.keep:
                    values = {"status": "cancelling", "want": "keep"}
                return JSONResponse(service.change(job, (job.status,), **values), 202)
            values = {"status": "cancelling", "want": "keep" if body.keep else "cancel"}
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

"""Paths that store new jobs: submits, batches, exports."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from vp3d.jobs.request import config_of, export_layer
from vp3d.jobs.store import FINAL, NewJob
from vp3d.serve import prompt_help
from vp3d.serve.models import (
    BatchRequest,
    ExportRequest,
    JobRequest,
    RefineRequest,
    read_body,
    read_limited,
    schema_of,
)
from vp3d.serve.problems import Problem
from vp3d.serve.service import Service
from vp3d.serve.uploads import keep_picture, read_upload

JobId = Annotated[str, Path(max_length=80)]


def add_submits(app: FastAPI, service: Service) -> None:
    """Add the paths to `app`."""
    settings, store = service.settings, service.store

    def checked(body: JobRequest, pointer: str = "/prompt") -> dict[str, Any]:
        fields = body.model_dump(exclude={"priority"})
        prompt_help.refuse_unknown(body.prompt, body.profile, settings.limits, pointer)
        config_of(fields, store.data, settings.limits)
        return fields

    @app.post("/v1/uploads", status_code=201, summary="Send a reference picture, raw or multipart")
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
        jobs = store.jobs(batch=batch, limit=100_000)
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
            if parent.status not in FINAL or not service.has_checkpoint(parent):
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

"""Paths that store jobs or change them. No torch here."""

from __future__ import annotations

import shutil
import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from vp3d.jobs.artifacts import run_folder
from vp3d.jobs.locks import try_lock
from vp3d.jobs.request import config_of, export_layer
from vp3d.jobs.store import FINAL, NewJob
from vp3d.serve import prompt_help
from vp3d.serve.models import (
    MAX_BATCH,
    BatchRequest,
    CancelRequest,
    ChooseRequest,
    ExportRequest,
    Given,
    JobRequest,
    PriorityRequest,
    RefineRequest,
    body_of,
    schema_of,
)
from vp3d.serve.problems import Problem
from vp3d.serve.service import Service, service_of
from vp3d.serve.uploads import keep_picture, read_upload

JobId = Annotated[str, Path(max_length=80)]
Served = Annotated[Service, Depends(service_of)]
BATCH_BODIES = 4  # a batch may be so many times as large as another body
router = APIRouter()


def checked(service: Service, body: JobRequest, pointer: str = "/prompt") -> dict[str, Any]:
    """The fields of a submit that the store keeps; a problem if the job cannot be made."""
    fields = body.model_dump(exclude={"priority"})
    config_of(fields, service.store.data, service.settings.limits)
    prompt_help.refuse_unknown(body.prompt, body.negative_prompt, body.profile, pointer)
    return fields


@router.post("/v1/uploads", status_code=201, summary="Send a reference picture, raw or multipart")
async def upload(request: Request, service: Served) -> JSONResponse:
    """Keep a picture under an id."""
    data = await read_upload(request, service.settings.max_picture)
    return JSONResponse(await run_in_threadpool(keep_picture, service.store.data, data), 201)


@router.post(
    "/v1/jobs", status_code=202, summary="Submit a job", openapi_extra=schema_of(JobRequest)
)
def submit(
    request: Request,
    given: Annotated[Given[JobRequest], Depends(body_of(JobRequest))],
    service: Served,
) -> JSONResponse:
    """Store one job."""
    job = NewJob(checked(service, given.body), priority=given.body.priority)
    service.refuse_missing(given.body.profile)
    stored, replayed = service.submit([job], request, given.data)
    return service.accepted(stored[0], replayed)


@router.post(
    "/v1/batches",
    status_code=202,
    summary="Submit many prompts",
    openapi_extra=schema_of(BatchRequest),
)
def submit_batch(
    request: Request,
    given: Annotated[Given[BatchRequest], Depends(body_of(BatchRequest, BATCH_BODIES))],
    service: Served,
) -> JSONResponse:
    """Store a job for each prompt and seed: all of them or none."""
    body, count = given.body, len(given.body.prompts) * len(given.body.seeds)
    if count > MAX_BATCH:
        detail = f"prompts and seeds make {count:,} jobs; a batch has at most {MAX_BATCH}"
        raise Problem(422, "invalid", detail)
    shared = body.model_dump(exclude={"prompts", "seeds", "priority"})
    batch = f"batch_{uuid.uuid4().hex[:16]}"
    jobs = []
    for number, prompt in enumerate(body.prompts):
        fields = checked(service, JobRequest(prompt=prompt or " ", **shared), f"/prompts/{number}")
        for seed in body.seeds:
            one = {**fields, "seed": seed}
            jobs.append(NewJob(one, batch=batch, priority=body.priority))
    service.refuse_missing(body.profile)
    stored, replayed = service.submit(jobs, request, given.data)
    headers = {"Location": f"/v1/batches/{stored[0].batch}"}
    headers |= {"Idempotent-Replayed": "true"} if replayed else {}
    return JSONResponse(show_batch(stored[0].batch, service), 202, headers)


@router.get("/v1/batches/{batch}", summary="A batch: counts by state, and its jobs")
def show_batch(batch: Annotated[str, Path(max_length=80)], service: Served) -> dict[str, Any]:
    """The jobs of a batch, in the order of the submit."""
    jobs = service.store.jobs(batch=batch, limit=100_000)
    if not jobs:
        raise Problem(404, "not_found", f"no batch {batch[:40]!r}")
    return {
        "id": batch,
        "counts": service.store.counts(batch),
        "jobs": [
            {"id": job.id, "status": job.status, "prompt": job.request.get("prompt", "")}
            for job in reversed(jobs)
        ],
    }


@router.post(
    "/v1/jobs/{job_id}/exports",
    status_code=202,
    summary="Export a finished run again, as a new job",
    openapi_extra=schema_of(ExportRequest, required=False),
)
def export(
    job_id: JobId,
    request: Request,
    given: Annotated[Given[ExportRequest], Depends(body_of(ExportRequest))],
    service: Served,
) -> JSONResponse:
    """Store a job that exports a copy of the run."""
    parent = service.job(job_id)
    fields = given.body.model_dump(exclude_none=True)
    export_layer(fields, service.settings.limits)
    if parent.status not in FINAL or not service.has_checkpoint(parent):
        raise Problem(409, "wrong_state", "only a run with a checkpoint can be exported")
    job = NewJob({**parent.request, **fields}, "export", parent.id)
    stored, replayed = service.submit([job], request, given.data)
    return service.accepted(stored[0], replayed)


@router.post(
    "/v1/jobs/{job_id}/refine",
    status_code=202,
    summary="Refused: a run is refined while it is made, by its setting refine.method",
    openapi_extra=schema_of(RefineRequest, required=False),
)
def refine(
    job_id: JobId,
    given: Annotated[Given[RefineRequest], Depends(body_of(RefineRequest))],
    service: Served,
) -> JSONResponse:
    """Refuse: the second stage belongs to a run, it is no job of its own."""
    service.job(job_id)
    raise Problem(
        409,
        "not_available",
        "a finished run is not refined; submit a job with the setting refine.method",
    )


@router.post(
    "/v1/jobs/{job_id}/choose",
    status_code=202,
    summary="Continue with a candidate",
    openapi_extra=schema_of(ChooseRequest),
)
def choose(
    job_id: JobId,
    given: Annotated[Given[ChooseRequest], Depends(body_of(ChooseRequest))],
    service: Served,
) -> JSONResponse:
    """Queue a job again that awaits a choice."""
    job, candidate = service.job(job_id), given.body.candidate
    if job.status != "awaiting_choice":
        raise Problem(409, "wrong_state", f"the job is {job.status}, it awaits no choice")
    scores = service.view(job)["candidates"]["scores"]
    if candidate >= len(scores) or scores[candidate] is None:
        usable = [n for n, score in enumerate(scores) if score is not None]
        raise Problem(422, "invalid", f"candidate: choose one of {usable}")
    values = {"status": "queued", "choice": candidate, "finished": None}
    return JSONResponse(service.change(job, ("awaiting_choice",), **values), 202)


@router.post(
    "/v1/jobs/{job_id}/cancel",
    status_code=202,
    summary="Stop a job; with keep, export what there is",
    openapi_extra=schema_of(CancelRequest, required=False),
)
def cancel(
    job_id: JobId,
    given: Annotated[Given[CancelRequest], Depends(body_of(CancelRequest))],
    service: Served,
) -> JSONResponse:
    """Ask the worker to stop; a job without one ends at once."""
    job, keep = service.job(job_id), given.body.keep
    values: dict[str, Any]
    if job.folder:
        raise Problem(409, "wrong_state", "the command line made this run; stop it there")
    if job.status == "cancelling" and not keep:  # a keep that became a cancel
        return JSONResponse(service.change(job, ("cancelling",), want="cancel"), 202)
    if job.status in ("queued", "awaiting_choice"):
        if keep and not service.has_checkpoint(job):
            raise Problem(409, "wrong_state", "there is nothing to keep yet")
        values = {"status": "cancelled", "finished": time.time()}
        if keep:
            values = {"status": "cancelling", "want": "keep"}
        return JSONResponse(service.change(job, (job.status,), **values), 202)
    values = {"status": "cancelling", "want": "keep" if keep else "cancel"}
    return JSONResponse(service.change(job, ("running",), **values), 202)


@router.post(
    "/v1/jobs/{job_id}/resume",
    status_code=202,
    summary="Continue a job that was cancelled, failed, or stopped early",
)
def resume(job_id: JobId, service: Served) -> JSONResponse:
    """Queue a job again that is over, but not complete."""
    job = service.job(job_id)
    if job.folder:
        raise Problem(409, "wrong_state", "the command line made this run; resume it there")
    if job.status == "succeeded" and not job.result.get("stopped"):
        raise Problem(409, "wrong_state", "the job is complete")
    values = {"status": "queued", "want": "", "deaths": 0, "error": None, "finished": None}
    return JSONResponse(service.change(job, FINAL, **values), 202)


@router.post(
    "/v1/jobs/{job_id}/priority",
    status_code=202,
    summary="Move a queued job",
    openapi_extra=schema_of(PriorityRequest),
)
def priority(
    job_id: JobId,
    given: Annotated[Given[PriorityRequest], Depends(body_of(PriorityRequest))],
    service: Served,
) -> JSONResponse:
    """Change the order in which queued jobs start."""
    job = service.job(job_id)
    return JSONResponse(service.change(job, ("queued",), priority=given.body.priority), 202)


@router.delete(
    "/v1/jobs/{job_id}",
    status_code=204,
    response_class=Response,
    summary="Delete a job that is over, with its files",
)
def delete(job_id: JobId, service: Served) -> Response:
    """Remove a job and its folder, unless a process holds it."""
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

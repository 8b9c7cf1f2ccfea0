"""Errors as RFC 9457 problem details: one JSON object that a program can read."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from vp3d.errors import ResourceError, VP3DError
from vp3d.jobs.store import KeyReusedError, QueueFullError, StateError

MEDIA_TYPE = "application/problem+json"
TITLES = {
    "not_json": "The body is not JSON",
    "unauthorized": "A token is needed",
    "forbidden_origin": "Another site may not do this",
    "forbidden_host": "This is not the service's address",
    "not_found": "There is nothing here",
    "method_not_allowed": "This method is not allowed here",
    "wrong_state": "The job is in another state",
    "gone": "The job was deleted",
    "too_large": "The body is too large",
    "not_a_picture": "This is not a picture",
    "invalid": "The request is not valid",
    "bad_request": "The request is not valid",
    "unknown_words": "Unknown words",
    "key_reused": "The key was used for another request",
    "queue_full": "The queue is full",
    "too_fast": "Too many requests",
    "internal": "Internal error",
    "draining": "The service is stopping",
    "not_available": "Not available here",
    "resource": "The machine could not do it",
    "missing_weights": "Weights are missing",
    "range": "The range cannot be satisfied",
}
STATUS_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
_log = logging.getLogger(__name__)


class Problem(Exception):
    """An error with its status, its code, and what to do about it."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.errors, self.headers = list(errors), dict(headers or {})


def problem_body(problem: Problem, instance: str) -> dict[str, Any]:
    """The JSON object of a problem; `instance` is the path of the request."""
    body: dict[str, Any] = {
        "type": f"/problems/{problem.code.replace('_', '-')}",
        "title": TITLES.get(problem.code, problem.code.replace("_", " ").capitalize()),
        "status": problem.status,
        "code": problem.code,
        "detail": problem.detail,
        "instance": instance,
        "request_id": f"req_{uuid.uuid4().hex[:12]}",
    }
    return body | ({"errors": problem.errors} if problem.errors else {})


def respond(problem: Problem, instance: str) -> Response:
    """The response for a problem."""
    body = problem_body(problem, instance)
    if problem.status >= 500:
        _log.error("%s %s: %s", body["request_id"], instance, problem.detail)
    text = json.dumps(body)
    return Response(text, problem.status, problem.headers, media_type=MEDIA_TYPE)


def problem_from(error: VP3DError) -> Problem:
    """One of our own errors as a problem."""
    if isinstance(error, StateError):
        return Problem(409, error.code, str(error))
    if isinstance(error, KeyReusedError):
        return Problem(422, error.code, str(error))
    if isinstance(error, QueueFullError):
        return Problem(429, error.code, str(error), headers={"Retry-After": "10"})
    if isinstance(error, ResourceError):
        full = "free some space" in str(error)
        return Problem(507 if full else 503, error.code, str(error), headers={"Retry-After": "10"})
    return Problem(422, error.code, str(error))


def install(app: FastAPI) -> None:
    """Answer every error of `app` as a problem."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return respond(error, request.url.path)

    async def on_own(request: Request, error: Exception) -> Response:
        assert isinstance(error, VP3DError)
        return respond(problem_from(error), request.url.path)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = STATUS_CODES.get(error.status_code, "invalid")
        problem = Problem(error.status_code, code, str(error.detail), headers=error.headers)
        return respond(problem, request.url.path)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = [
            {"pointer": "/" + "/".join(map(str, item["loc"][1:])), "message": item["msg"]}
            for item in error.errors()
        ]
        detail = "; ".join(f"{item['pointer'][1:]}: {item['message']}" for item in found)
        return respond(Problem(422, "invalid", detail[:500], found), request.url.path)

    async def on_bug(request: Request, error: Exception) -> Response:
        _log.error("%s %s", request.method, request.url.path, exc_info=error)
        text = "an unexpected error; the log of the service has it under this request_id"
        return respond(Problem(500, "internal", text), request.url.path)

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(VP3DError, on_own)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_bug)

"""The bodies that clients send, for checking and for the OpenAPI page."""

from __future__ import annotations

import difflib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vp3d.serve.problems import Problem
from vp3d.system.files import JsonError, parse_json

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Priority = Annotated[int, Field(ge=-100, le=100)]
Preset = Literal["draft", "standard", "high"]
Settings = dict[str, int | float | str | bool | list[int | float | str]]
Formats = list[Annotated[str, Field(max_length=8)]]
MAX_BATCH = 500  # jobs


class Body(BaseModel):
    """A body without unknown fields; numbers are not taken for text, nor text for numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)


class JobRequest(Body):
    """What to make."""

    prompt: Annotated[str, Field(min_length=1, description="what to make, one line")]
    negative_prompt: Annotated[str, Field(description="what the pictures should not show")] = ""
    profile: Annotated[str, Field(max_length=60, description="a name of /v1/info")] = "toybox"
    preset: Annotated[Preset, Field(description="how much work to put in")] = "standard"
    seed: Annotated[Seed, Field(description="another seed gives another variant")] = 0
    image: Annotated[str, Field(max_length=40, description="an id of /v1/uploads")] = ""
    choose: Annotated[
        Literal["auto", "ask"], Field(description="ask: wait for /choose after the pictures")
    ] = "auto"
    formats: Annotated[Formats, Field(max_length=10, description="mesh files to write")] = []
    settings: Annotated[Settings, Field(description="settings by dotted key")] = {}
    priority: Annotated[Priority, Field(description="higher starts earlier")] = 0


class BatchRequest(Body):
    """Many prompts with the same settings."""

    prompts: Annotated[list[str], Field(min_length=1, max_length=MAX_BATCH)]
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=64)] = [0]
    negative_prompt: str = ""
    profile: Annotated[str, Field(max_length=60)] = "toybox"
    preset: Preset = "standard"
    formats: Annotated[Formats, Field(max_length=10)] = []
    settings: Settings = {}
    priority: Priority = 0


class ExportRequest(Body):
    """Other files of a finished run."""

    faces: Annotated[int, Field(ge=0)] | None = None
    texture_size: Annotated[int, Field(ge=16)] | None = None
    formats: Annotated[Formats, Field(min_length=1, max_length=10)] | None = None
    settings: Annotated[Settings, Field(description="`export.*` settings by dotted key")] = {}


class RefineRequest(Body):
    """A refinement of a finished run."""

    settings: Settings = {}


class ChooseRequest(Body):
    """The candidate to continue with."""

    candidate: Annotated[int, Field(ge=0, le=63)]


class CancelRequest(Body):
    """Whether to export what there is."""

    keep: bool = False


class PromptRequest(Body):
    """A prompt to check."""

    prompt: str
    profile: Annotated[str, Field(max_length=60)] = "toybox"


class QueueRequest(Body):
    """Whether queued jobs are held back."""

    paused: bool


class PriorityRequest(Body):
    """The place of a job in the queue."""

    priority: Priority


class SessionRequest(Body):
    """The token of the service."""

    token: Annotated[str, Field(max_length=400)]


Model = TypeVar("Model", bound=Body)


def schema_of(model: type[Body], required: bool = True) -> dict[str, Any]:
    """The `requestBody` of an OpenAPI operation."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": required, "content": content}}


async def read_limited(request: Request, most: int) -> bytes:
    """The body of a request; a problem if it is larger than `most` bytes."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most:
            raise Problem(413, "too_large", f"the body is larger than {most:,} bytes")
    return bytes(data)


@dataclass(frozen=True)
class Given(Generic[Model]):
    """The body of a request: as the client sent it, and read."""

    data: bytes
    body: Model


def body_of(model: type[Model], times: int = 1) -> Callable[[Request], Awaitable[Given[Model]]]:
    """A dependency that reads a body of at most `times` the largest size of the service."""

    async def read(request: Request) -> Given[Model]:
        data = await read_limited(request, times * request.app.state.service.settings.max_json)
        return Given(data, read_body(data, model))

    return read


def read_body(data: bytes, model: type[Model]) -> Model:
    """A body as a model; a problem that names each fault, with the nearest known field."""
    try:
        found = parse_json(data or b"{}", unique_keys=True)
    except JsonError as error:
        raise Problem(400, "not_json", error.reason) from error
    if not isinstance(found, dict):
        raise Problem(422, "invalid", "the body must be a JSON object")
    try:
        json.dumps(found, ensure_ascii=False).encode()  # lone surrogates are no text
        return model.model_validate(found)
    except UnicodeEncodeError as error:
        raise Problem(422, "invalid", "the body has text that is not Unicode") from error
    except ValidationError as error:
        found = [_fault(dict(item), model) for item in error.errors(include_url=False)]
        faults = list({fault["pointer"]: fault for fault in found}.values())
        detail = "; ".join(f"{fault['pointer'][1:]}: {fault['message']}" for fault in faults)
        raise Problem(422, "invalid", detail[:500], faults[:20]) from error


def _fault(item: dict[str, Any], model: type[Body]) -> dict[str, Any]:
    pointer = "/" + "/".join(str(part)[:60] for part in item["loc"])
    if item["loc"][0] == "settings" and len(item["loc"]) > 2:  # tried as each type of a value
        text = 'takes a number or a choice by a dotted key, such as {"optim.steps": 400}'
        return {"pointer": f"/settings/{str(item['loc'][1])[:60]}", "message": text}
    if item["type"] != "extra_forbidden":
        return {"pointer": pointer, "message": item["msg"]}
    near = difflib.get_close_matches(str(item["loc"][-1])[:60], model.model_fields, 3)
    hint = f"; did you mean {near[0]}?" if near else ""
    return {"pointer": pointer, "message": f"there is no such field{hint}", "nearest": near}

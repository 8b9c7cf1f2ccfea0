"""Pictures that clients send, kept under an id that is their hash."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from vp3d.jobs.request import upload_file
from vp3d.serve.models import read_limited
from vp3d.serve.problems import Problem
from vp3d.system.files import disk_errors, sha256_file, write_bytes

TIMEOUT_S = 30.0
MULTIPART_OVERHEAD = 64 << 10  # bytes of headers around the picture


async def read_upload(request: Request, most: int) -> bytes:
    """The picture of a request: its body, or the one file of a multipart form."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await read_limited(request, most)
    body = await read_limited(request, most + MULTIPART_OVERHEAD)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        form = await Request(request.scope, receive).form(max_files=1, max_fields=4)
    except (MultiPartException, HTTPException, ValueError, AssertionError, KeyError) as error:
        raise Problem(400, "invalid", "the form cannot be read") from error
    for value in form.values():
        if not isinstance(value, str):
            data = await value.read()
            if len(data) > most:
                raise Problem(413, "too_large", f"the picture is larger than {most:,} bytes")
            return data
    raise Problem(422, "invalid", "the form has no file")


def keep_picture(data_folder: Path, data: bytes) -> dict[str, Any]:
    """Store a picture; a 415 problem if it is none."""
    if not data:
        raise Problem(415, "not_a_picture", "the body is empty")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in", Path(folder) / "out.png"
        source.write_bytes(data)
        size = _rewrite(source, target)
        digest = sha256_file(target)
        upload_id = f"pic_{hashlib.sha256(target.read_bytes()).hexdigest()[:16]}"
        path = data_folder / "uploads" / f"{upload_id}.png"
        with disk_errors(path, "then try again"):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, target.read_bytes())
    upload_file(data_folder, upload_id)
    return {"id": upload_id, "width": size[0], "height": size[1], "sha256": digest}


def _rewrite(source: Path, target: Path) -> tuple[int, int]:
    command = [sys.executable, "-m", "vp3d.serve.picture", str(source), str(target)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise Problem(415, "not_a_picture", "it takes too long to read") from None
    answer = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode != 0 or not target.is_file():
        raise Problem(415, "not_a_picture", answer[:200] or "it cannot be read")
    width, height = answer.split()
    return int(width), int(height)

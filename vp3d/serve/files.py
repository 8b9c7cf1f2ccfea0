"""A file as a response: with its hash as ETag, one byte range, and headers for a browser."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from vp3d.jobs.artifacts import ArtifactFile
from vp3d.serve.problems import Problem

CHUNK = 256 << 10  # bytes read at once
SHOWN = ("image/", "video/", "model/gltf-binary", "text/html")  # the rest is saved, not opened
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data: blob:; media-src data:; connect-src data: blob:; "
    "worker-src blob:; frame-src 'self'"
)


def respond_file(request: Request, found: ArtifactFile) -> Response:
    """The artifact, whole (200), a part of it (206), or "you have it" (304)."""
    tag = f'"{found.sha256}"'
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": disposition(found),
    }
    if found.media_type.startswith("text/html"):
        headers["Content-Security-Policy"] = REPORT_POLICY
    known = [text.strip() for text in request.headers.get("if-none-match", "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    descriptor = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC)
    size = os.fstat(descriptor).st_size  # a preview may have been replaced since it was hashed
    start, end, status = 0, size, 200
    if request.headers.get("if-range", tag) == tag:
        try:
            part = parse_range(request.headers.get("range", ""), size)
        except Problem:
            os.close(descriptor)
            raise
        if part is not None:
            (start, end), status = part, 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    body = _read(descriptor, start, end)
    return StreamingResponse(body, status, headers, media_type=found.media_type)


def disposition(found: ArtifactFile) -> str:
    """Whether a browser shows a file or saves it."""
    shown = found.media_type.startswith(SHOWN)
    return f'{"inline" if shown else "attachment"}; filename="{found.name}"'


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """`bytes=a-b` as a half-open range; None for anything that is to be answered in whole.

    Raises a 416 problem for a range beyond the end.
    """
    match = RANGE.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
    if last and first and int(last) < int(first):
        return None
    if start >= size:
        headers = {"Content-Range": f"bytes */{size}"}
        raise Problem(416, "range", f"the file has {size:,} bytes", headers=headers)
    return start, end


def _read(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    try:
        while start < end:
            data = os.pread(descriptor, min(CHUNK, end - start), start)
            if not data:
                return
            start += len(data)
            yield data
    finally:
        os.close(descriptor)

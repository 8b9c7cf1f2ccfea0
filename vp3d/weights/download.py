"""Getting one file: from the hub, by http, from a folder. Resumes, shows progress, and says why it could not.

A file is downloaded to `NAME.partial` and renamed when it is whole. What was there is gone on with, by a Range request, as
long as the server still has the same file (ETag); a dropped connection is taken up again a few times.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from vp3d.system.console import PLAIN_EVERY_S, say, terminal
from vp3d.system.files import write_text

TIMEOUT_S = 30.0  # seconds without a byte
ATTEMPTS = 4
ADDRESSES = 3  # how often in a row the hub is asked for an address of a file that its storage then refuses: one may expire
CHUNK = 1 << 20
MB = 1.0e6
SHA256_DIGITS = 64


class Unavailable(Exception):
    """A source cannot give a file, and why.

    absent: it has no such file; refused: it asks for a login or a fresh address; begun: it gave a part of it just now.
    """

    def __init__(
        self, reason: str, absent: bool = False, refused: bool = False, begun: bool = False
    ) -> None:
        super().__init__(" ".join(reason.split()))
        self.absent, self.refused, self.begun = absent, refused, begun


class Transfer:
    """Shows how much of a file of `total` bytes (0: unknown) is there: a live bar on a terminal, else a line now and then."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self.name, self.total, self.done = name, total, done
        self.began, self.shown, self.first = time.monotonic(), time.monotonic(), done
        self.bar: Any = None

    def __enter__(self) -> Transfer:
        if terminal().is_terminal:
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = (
                "{task.description}",
                BarColumn(20),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=terminal())
            self.task = self.bar.add_task(self.name, total=self.total or None, completed=self.done)
            self.bar.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def add(self, count: int) -> None:
        """Another `count` bytes are there."""
        self.done += count
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
        elif now - self.shown >= PLAIN_EVERY_S:
            self.shown = now
            rate = (self.done - self.first) / (now - self.began)
            of = f" of {self.total / MB:.0f}" if self.total else ""
            say(f"{self.name}: {self.done / MB:.0f}{of} MB, {rate / MB:.1f} MB/s")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, with progress; `target` is there whole or not at all."""
    partial = target.with_name(f"{target.name}.partial")
    shown = Transfer(target.name, source.stat().st_size, 0)
    with source.open("rb") as reader, partial.open("wb") as writer, shown as transfer:
        _pump(reader.read, writer, transfer)
    partial.replace(target)


def _pump(read: Callable[[int], bytes], writer: BinaryIO, transfer: Transfer) -> None:
    while chunk := read(CHUNK):
        writer.write(chunk)
        transfer.add(len(chunk))


def download_http(url: str, target: Path, authorization: str = "") -> str:
    """Get `url` into the file `target`; returns "" (a plain server promises no hash). Unavailable with the reason.

    authorization: of the header of that name; it is not sent on to where the server points.
    """
    if target.is_file():
        return ""
    partial, tag = (
        target.with_name(f"{target.name}.partial"),
        target.with_name(f"{target.name}.etag"),
    )
    had, reason = _size(partial), "it sends less than it announces"
    for attempt in range(ATTEMPTS):
        try:
            if _continue_http(url, partial, tag, authorization):
                partial.replace(target)
                tag.unlink(missing_ok=True)
                return ""
        except urllib.error.HTTPError as error:
            if (
                error.code == 416 and partial.exists()
            ):  # more is here than there: it is another file now
                partial.unlink()
            elif error.code not in (408, 429, 500, 502, 503, 504) or attempt == ATTEMPTS - 1:
                begun = _size(partial) > had
                raise Unavailable(
                    _http_reason(error.code),
                    error.code in (404, 410),
                    error.code in (401, 403),
                    begun,
                ) from error
        except (
            urllib.error.URLError,
            TimeoutError,
            ConnectionError,
            HTTPException,
            ValueError,
        ) as error:
            reason = f"no answer ({getattr(error, 'reason', error)})"
            if isinstance(error, ValueError | InvalidURL):
                raise Unavailable(reason) from error
        time.sleep(0.2 * attempt)
    if _size(partial) > had:
        raise Unavailable(
            "the connection broke again and again; the same command goes on where it stopped",
            begun=True,
        )
    raise Unavailable(reason)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _http_reason(code: int) -> str:
    reasons = {
        401: "it asks for a login",
        403: "it refuses access",
        404: "it has no such file",
        410: "it is gone",
    }
    return f"{reasons.get(code, 'the server failed')} (HTTP {code})"


def _continue_http(url: str, partial: Path, tag: Path, authorization: str = "") -> bool:
    """Read on from where `partial` ends; whether it is whole then."""
    have = _size(partial)
    request = urllib.request.Request(
        url, headers={"User-Agent": "vp3d", "Accept-Encoding": "identity"}
    )
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if tag.is_file():
            request.add_header("If-Range", tag.read_text(encoding="utf-8"))
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        start = have if reply.status == 206 else 0
        length = reply.headers.get("Content-Length")
        total = start + int(length) if length else 0
        if reply.headers.get("ETag"):
            write_text(tag, reply.headers["ETag"])
        with (
            partial.open("ab" if start else "wb") as writer,
            Transfer(partial.stem, total, start) as transfer,
        ):
            _pump(lambda size: _receive(reply, size), writer, transfer)
    return not total or partial.stat().st_size == total


def _receive(reply: Any, size: int) -> bytes:
    """At most `size` bytes of a reply; whatever breaks is a ConnectionError, so that only writing raises other OSErrors."""
    try:
        return bytes(reply.read(size))
    except (OSError, HTTPException) as error:
        raise ConnectionError(str(error) or type(error).__name__) from error


def exists_http(url: str) -> bool:
    """Whether a server has `url`, asked without fetching it."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "vp3d"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return False
    except (
        urllib.error.URLError,
        TimeoutError,
        ConnectionError,
        HTTPException,
        ValueError,
    ) as error:
        raise Unavailable(f"no answer ({error})") from error


def _endpoint() -> str | None:
    """`HF_ENDPOINT`, None where it is not set; Unavailable for what is no address."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    try:
        address = urlsplit(endpoint)
        sound = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        sound = False
    if endpoint and not sound:
        raise Unavailable(
            f"HF_ENDPOINT is {endpoint!r}, not an address such as https://huggingface.co"
        )
    return endpoint or None


def download_hub(repository: str, revision: str, path: str, target: Path) -> str:
    """Get a file of a hub repository into `target`; returns the SHA-256 the hub promises ("" for small files).

    huggingface_hub finds it (it honours HF_TOKEN and HF_HUB_OFFLINE), `download_http` gets it: the client's own download
    begins anew when it was stopped. The token goes to the hub alone, not to the storage that it points to. The address there is
    signed and expires: when the storage refuses it, the hub is asked for another, and the file goes on where it stopped.
    """
    asked = 0
    while asked < ADDRESSES:
        address, authorization, promised = _find_at_hub(repository, revision, path)
        try:
            download_http(address, target, authorization or "")
            return promised
        except Unavailable as error:
            if not error.refused or authorization is not None:
                raise
            refusal, asked = error, 1 if error.begun else asked + 1
    reason = f"its storage does not take the address that it gives: {refusal}"
    raise Unavailable(f"{reason}; the same command goes on where it stopped") from refusal


def _find_at_hub(repository: str, revision: str, path: str) -> tuple[str, str | None, str]:
    """Where the hub has a file: address, Authorization header (None where that is not the hub but its storage), promised hash."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HTTPError,  # of the http library that this version of the client uses; no OSError
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import build_hf_headers

    endpoint = _endpoint()
    try:
        url = hf_hub_url(repository, path, revision=revision, endpoint=endpoint)
        about = get_hf_file_metadata(url, timeout=TIMEOUT_S, endpoint=endpoint)
        headers = build_hf_headers()
    except GatedRepoError as error:
        page = f"{endpoint or 'https://huggingface.co'}/{repository}"
        raise Unavailable(
            f"it is gated: accept its terms at {page} and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise Unavailable(f"it has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise Unavailable("it is gone from the hub, or private") from error
    except EntryNotFoundError as error:
        raise Unavailable(f"it has no {path}", absent=True) from error
    except (
        HTTPError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # no network, offline mode, a server that fails
        raise Unavailable(
            f"no answer ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        ) from error
    at_hub = urlsplit(about.location).netloc == urlsplit(url).netloc
    promised = about.etag or ""
    promised = promised if len(promised) == SHA256_DIGITS else ""
    return about.location, headers.get("authorization", "") if at_hub else None, promised


def exists_hub(repository: str, revision: str, path: str) -> bool:
    """Whether a hub repository has a file."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return HfApi(endpoint=_endpoint()).file_exists(repository, path, revision=revision)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise Unavailable(f"no answer ({error})") from error

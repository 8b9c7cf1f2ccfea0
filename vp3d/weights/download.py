"""Get one file: from the hub, by http, or from a folder; resumed, with progress.

A file is downloaded to `NAME.partial` and renamed when it is complete. A partial file is continued
by a Range request only where the server proves that it is still the same file: it gave a strong
ETag, or a date of change that is old enough (stored with the length in `NAME.etag`), and its answer
starts at the byte asked for and names the same length. Otherwise the download starts again. After a
broken connection it is tried again a few times.

Hub files are located by huggingface_hub but downloaded here, because its client does not resume
across calls. Measured with version 2.4.0 against a server that closes the connection after 70,000
of 200,072 bytes: `hf_hub_download`, with and without `local_dir`, starts again at byte 0 after each
of 6 failed attempts (what it holds of a 10 MB chunk is lost), then deletes its temporary file, and
the next call starts at byte 0 as well.
"""

from __future__ import annotations

import os
import re
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from vp3d.errors import in_one_line
from vp3d.system.files import write_text
from vp3d.system.web import open_url
from vp3d.weights.progress import Transfer

TIMEOUT_S = 30.0  # seconds without a byte
ATTEMPTS = 4  # connections to one address
ADDRESSES = 3  # times in a row that the hub is asked for an address that its storage then refuses
CHUNK = 1 << 20  # bytes read at once
SHA256_DIGITS = 64
COMMIT = re.compile(r"[0-9a-f]{40}")
STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
SETTLED_S = 60.0  # a file that changed less than this before the reply may change again unnoticed
TRANSIENT = (408, 429, 500, 502, 503, 504)  # HTTP codes after which another attempt may succeed
NO_CONNECTION = (  # what urllib raises when there is no usable answer
    urllib.error.URLError,
    TimeoutError,
    ConnectionError,
    HTTPException,
    ValueError,
)
HTTP_REASONS = {
    401: "it requires a login",
    403: "it refuses access",
    404: "it has no such file",
    410: "it has removed the file",
}
RESUME = "run the same command again to resume"


class Unavailable(Exception):
    """A source cannot give a file.

    Attributes:
        absent: the source has no such file.
        refused: the source requires a login or a fresh address.
        started: the source has sent a part of the file in this call.
    """

    def __init__(
        self, reason: str, absent: bool = False, refused: bool = False, started: bool = False
    ) -> None:
        super().__init__(" ".join(reason.split()))
        self.absent, self.refused, self.started = absent, refused, started


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, with progress; `target` is complete or does not exist."""
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
    """Download `url` to the file `target`, continuing `target.partial`.

    Args:
        url: the address.
        target: the file; if it exists, nothing is done.
        authorization: the value of the Authorization header; not sent to where a redirect leads.

    Returns:
        "", as a plain server promises no hash.

    Raises:
        Unavailable: with the reason.
    """
    if target.is_file():
        return ""
    partial = target.with_name(f"{target.name}.partial")
    tag = target.with_name(f"{target.name}.etag")
    size_before, reason = _size(partial), "it sends less than it announces"
    for attempt in range(ATTEMPTS):
        try:
            if _continue_http(url, partial, tag, authorization):
                partial.replace(target)
                tag.unlink(missing_ok=True)
                return ""
        except urllib.error.HTTPError as error:
            if error.code == 416 and partial.exists():
                partial.unlink()  # longer than the file of the server, so it is another file
            elif error.code not in TRANSIENT or attempt == ATTEMPTS - 1:
                raise _refusal(error.code, _size(partial) > size_before) from error
        except NO_CONNECTION as error:
            reason = f"no answer ({getattr(error, 'reason', error)})"
            if isinstance(error, ValueError | InvalidURL):  # not a valid address
                raise Unavailable(reason) from error
        time.sleep(0.2 * attempt)
    if _size(partial) > size_before:
        raise Unavailable(f"the connection broke {ATTEMPTS} times; {RESUME}", started=True)
    raise Unavailable(reason)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _refusal(code: int, started: bool) -> Unavailable:
    """The error for an HTTP code that no further attempt will change."""
    reason = f"{HTTP_REASONS.get(code, 'the server failed')} (HTTP {code})"
    return Unavailable(reason, code in (404, 410), code in (401, 403), started)


def _continue_http(url: str, partial: Path, tag: Path, authorization: str = "") -> bool:
    """Download from where `partial` ends; whether it is then complete."""
    stored = _size(partial)
    known = Version.read(tag) if stored else Version()
    headers = {"User-Agent": "vp3d", "Accept-Encoding": "identity"}
    if authorization:
        headers["Authorization"] = authorization
    if known.validator:
        headers |= {"Range": f"bytes={stored}-", "If-Range": known.validator}
    with open_url(url, TIMEOUT_S, headers) as reply:
        _check_reply(reply, stored)
        found, start = Version.of(reply), stored if reply.status == 206 else 0
        total = known.total_if_continued(found, reply, stored) if start else found.total
        if start and not total:
            partial.unlink()  # the bytes of this reply are of another file
            tag.unlink(missing_ok=True)
            return False
        if not start:
            found.write(tag)
        with (
            partial.open("ab" if start else "wb") as writer,
            Transfer(partial.stem, total, start) as transfer,
        ):
            _pump(lambda size: _receive(reply, size), writer, transfer)
    return not total or partial.stat().st_size == total


def _check_reply(reply: Any, stored: int) -> None:
    """Raise HTTPException for a reply that does not make a complete file."""
    if reply.status not in (200, 206):
        raise HTTPException(f"it answers with HTTP {reply.status}")
    if reply.status == 206 and not stored:
        raise HTTPException("it sends a part of the file where all of it was asked for")
    if reply.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise HTTPException("it sends the file compressed, which was not asked for")
    if reply.status == 200 and reply.length is None and not reply.chunked:
        raise HTTPException("it does not say how long the file is")


@dataclass(frozen=True)
class Version:
    """One version of a file on a server.

    Attributes:
        validator: A strong ETag, or the date of the last change; "" if the server gives neither,
            so that a partial file of it cannot be continued.
        total: The bytes of the complete file; 0 if not known.
    """

    validator: str = ""
    total: int = 0

    @classmethod
    def of(cls, reply: Any) -> Version:
        """The version that a reply belongs to (RFC 9110, 8.8)."""
        etag, changed = reply.headers.get("ETag", ""), reply.headers.get("Last-Modified", "")
        length = reply.headers.get("Content-Length") or "0"
        total = int(length) if reply.status == 200 and length.isdecimal() else 0
        if STRONG_ETAG.fullmatch(etag):
            return cls(etag, total)
        settled = _seconds_since(changed, reply.headers.get("Date", "")) >= SETTLED_S
        return cls(changed if settled and not etag else "", total)

    @classmethod
    def read(cls, path: Path) -> Version:
        """The version that `write` stored; an empty one if there is none or it is damaged."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return cls()
        validator = lines[0] if lines else ""
        total = lines[1] if len(lines) > 1 else "0"
        is_valid = STRONG_ETAG.fullmatch(validator) or _seconds_since(validator, validator) == 0.0
        return cls(validator if is_valid else "", int(total) if total.isdecimal() else 0)

    def write(self, path: Path) -> None:
        """Store it, or remove `path` where there is nothing to recognise the file by."""
        if self.validator:
            write_text(path, f"{self.validator}\n{self.total}\n")
        else:
            path.unlink(missing_ok=True)

    def total_if_continued(self, found: Version, reply: Any, stored: int) -> int:
        """The bytes of the complete file if a 206 reply continues a partial file of this version.

        Args:
            found: The version of the reply.
            reply: The reply.
            stored: The bytes of the partial file.

        Returns:
            0 if the reply is of another version, or starts at another byte.
        """
        match = CONTENT_RANGE.fullmatch(reply.headers.get("Content-Range", ""))
        if not self.validator or not match or found.validator not in ("", self.validator):
            return 0
        first, last, total = map(int, match.groups())
        fits = first == stored and first <= last < total and self.total in (0, total)
        return total if fits else 0


def _seconds_since(changed: str, now: str) -> float:
    """Seconds between two dates of HTTP; -1 if one of them is no such date."""
    try:
        return (parsedate_to_datetime(now) - parsedate_to_datetime(changed)).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return -1.0


def _receive(reply: Any, size: int) -> bytes:
    """At most `size` bytes of a reply.

    An error of the connection is raised as ConnectionError, so that any other OSError of a download
    is an error of writing.
    """
    try:
        return bytes(reply.read(size))
    except (OSError, HTTPException) as error:
        raise ConnectionError(str(error) or type(error).__name__) from error


def exists_http(url: str) -> bool:
    """Whether a server has `url`, by a HEAD request."""
    try:
        with open_url(url, TIMEOUT_S, {"User-Agent": "vp3d"}, method="HEAD"):
            return True
    except urllib.error.HTTPError:
        return False
    except NO_CONNECTION as error:
        raise Unavailable(f"no answer ({error})") from error


def _endpoint() -> str | None:
    """`HF_ENDPOINT`, None if it is not set; Unavailable if it is not an address."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    try:
        address = urlsplit(endpoint)
        valid = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        valid = False
    if endpoint and not valid:
        raise Unavailable(
            f"HF_ENDPOINT is {endpoint!r}, not an address such as https://huggingface.co"
        )
    return endpoint or None


@dataclass(frozen=True)
class Received:
    """What a source says of a file that it gave.

    Attributes:
        sha256: The SHA-256 that it promises; "" for none.
        revision: The commit that the file is of; "" where the source has none.
    """

    sha256: str = ""
    revision: str = ""


def download_hub(repository: str, revision: str, path: str, target: Path) -> Received:
    """Download a file of a hub repository to `target`, continuing `target.partial`.

    huggingface_hub locates the file (it respects HF_TOKEN and HF_HUB_OFFLINE), `download_http`
    downloads it. The token is sent to the hub only, not to the storage to which it redirects. The
    address in the storage is signed and expires: when the storage refuses it, the hub is asked for
    another one and the download continues.

    Args:
        repository: OWNER/NAME.
        revision: a branch, tag or commit.
        path: the path of the file in the repository.
        target: the file to write.

    Returns:
        The SHA-256 that the hub promises ("" for small files), and the commit of the file.

    Raises:
        Unavailable: with the reason.
    """
    refusals = 0
    while True:
        address, authorization, received = _locate_at_hub(repository, revision, path)
        try:
            download_http(address, target, authorization or "")
            return received
        except Unavailable as error:
            if not error.refused or authorization is not None:
                raise
            refusals = 1 if error.started else refusals + 1
            if refusals == ADDRESSES:
                reason = f"its storage refuses the address that the hub gives: {error}; {RESUME}"
                raise Unavailable(reason) from error


def _locate_at_hub(repository: str, revision: str, path: str) -> tuple[str, str | None, Received]:
    """Where the hub stores a file.

    Returns:
        The address, the Authorization header (None if the address is not on the hub itself but in
        its storage), and the promised SHA-256 and commit.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HTTPError,  # of the http library of the client; not an OSError
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import build_hf_headers

    endpoint = _endpoint()
    try:
        url = hf_hub_url(repository, path, revision=revision, endpoint=endpoint)
        metadata = get_hf_file_metadata(url, timeout=TIMEOUT_S, endpoint=endpoint)
        headers = build_hf_headers()
    except GatedRepoError as error:
        page = f"{endpoint or 'https://huggingface.co'}/{repository}"
        raise Unavailable(
            f"it is gated: accept its terms at {page} and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise Unavailable(f"it has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise Unavailable("it does not exist on the hub, or is private") from error
    except EntryNotFoundError as error:
        raise Unavailable(f"it has no {path}", absent=True) from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # no network, offline mode, 5xx
        reason = in_one_line(error, 120)
        raise Unavailable(f"no answer ({type(error).__name__}: {reason})") from error
    is_on_hub = urlsplit(metadata.location).netloc == urlsplit(url).netloc
    etag = metadata.etag or ""
    promised = etag if len(etag) == SHA256_DIGITS else ""
    commit = metadata.commit_hash or ""
    received = Received(promised, commit if COMMIT.fullmatch(commit) else "")
    return metadata.location, headers.get("authorization", "") if is_on_hub else None, received


def exists_hub(repository: str, revision: str, path: str) -> bool:
    """Whether a hub repository has a file."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return HfApi(endpoint=_endpoint()).file_exists(repository, path, revision=revision)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise Unavailable(f"no answer ({error})") from error

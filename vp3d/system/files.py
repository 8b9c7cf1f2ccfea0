"""Atomic writes: a file is complete or absent, whatever moment the process dies at.

A file is written to a temporary name in its own folder, synced to disk and renamed. JSON has no
NaN, so non-finite numbers are stored as "nan", "inf" and "-inf", which `float()` reads back.
An `OSError` on the way (full disk, no permission) becomes one line: a `ResourceError`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from vp3d.errors import ResourceError

TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.\w+")  # the names that `atomic_write` gives
OUTPUT_OPTION = "output_dir=FOLDER"  # the setting that names where runs are written


@contextmanager
def disk_errors(
    path: Path, otherwise: str = "try again; `launch.py resume RUN` continues a run"
) -> Iterator[None]:
    """Turn any OSError about `path` into a ResourceError; `otherwise` ends its advice."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space" if full else "check the path and its permissions"
        raise ResourceError(
            f"cannot write {path}: {error.strerror or error}; {advice}, {otherwise}"
        ) from error


def another_folder(option: str) -> str:
    """Advice for a folder that cannot be written to: choose another with `option`."""
    return f"or choose another folder with {option}"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, of the same suffix.

    On success the file is synced and renamed to `path`; on failure it is removed.
    """
    temporary = path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:8]}{path.suffix}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or which names a folder lists."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and needs no sync of it
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically as UTF-8.

    Bytes of file names that are not UTF-8 are escaped.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, data: object) -> None:
    """Write `data` to `path` atomically as indented JSON, converted by `plain`."""
    write_text(path, json.dumps(plain(data), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """`value` in the types of JSON.

    Tensors, arrays, paths and dataclasses are converted; non-finite floats become strings.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (str, int)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if hasattr(value, "tolist"):  # a torch tensor, numpy array or numpy scalar
        return plain(value.tolist())
    return str(value)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_output(folder: Path, option: str = OUTPUT_OPTION) -> None:
    """Create `folder` and check that it can be written to.

    Raises ResourceError, which names the `option` to change, if it cannot.
    """
    with disk_errors(folder, another_folder(option)):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass

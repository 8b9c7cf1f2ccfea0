"""Atomic writes: a file is complete or absent, whatever moment the process dies at.

A file is written to a temporary name in its own folder, synced and renamed. JSON has no NaN, so non-finite numbers
are stored as "nan", "inf" and "-inf", which `float()` reads back. An `OSError` becomes one line for the user.
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

TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.\w+")  # names that `atomic_write` gives


ELSEWHERE = "or choose another place with "  # of what is not begun yet; the option that names the place follows
HERE = "output_dir=FOLDER"


@contextmanager
def _disk_errors(
    path: Path, otherwise: str = "try again; `launch.py resume RUN` goes on with a run"
) -> Iterator[None]:
    """Turn any OSError about `path` into one line that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space" if full else "check the path and its permissions"
        raise ResourceError(
            f"cannot write {path}: {error.strerror or error}; {advice}, {otherwise}"
        ) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix); rename it to `path` on success, remove it on failure."""
    temporary = path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:8]}{path.suffix}")
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, UTF-8; what of a file's name is not, is escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, data: object) -> None:
    """Write `data` to `path` atomically as indented JSON; tensors, arrays, paths and dataclasses are converted."""
    write_text(path, json.dumps(plain(data), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """`value` made of what JSON has: dict, list, str, int, finite float, bool, None (non-finite floats as strings)."""
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


def check_output(folder: Path, option: str = HERE) -> None:
    """Raise UserError, which names the `option` to change, unless `folder` can be written to; it is made if it is not there."""
    with _disk_errors(folder, ELSEWHERE + option):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass

"""Atomic writes, and the one reader of JSON.

A file is complete or absent, whatever moment the process dies at.

A file is written to a temporary name in its own folder, synced to disk and renamed. JSON has no
NaN, so non-finite numbers are stored as "nan", "inf" and "-inf", which `float()` reads back.
An `OSError` on the way (full disk, no permission) becomes one line: a `ResourceError`.

JSON that VP3D did not just write itself is hostile: `read_json` and `parse_json` turn every way in
which it can be wrong into one error, a `JsonError`.
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
from pathlib import Path, PurePosixPath
from typing import Any

from vp3d.config.paths import program
from vp3d.errors import DamagedFileError, ResourceError

TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.\w+")  # the names that `atomic_write` gives
OUTPUT_OPTION = "output_dir=FOLDER"  # the setting that names where runs are written
MAX_JSON_BYTES = 256 << 20  # of a file that is read as JSON
MAX_JSON_DEPTH = 100  # of nested lists and objects: far from the limit of Python's own recursion
MAX_JSON_DIGITS = 300  # of a whole number, so that it can become a float


class JsonError(DamagedFileError):
    """A file or text is not JSON that can be used; `missing` says that there is no such file.

    `reason` is the fault without the name of the file.
    """

    def __init__(self, reason: str, source: str = "", missing: bool = False) -> None:
        self.reason, self.missing = " ".join(reason.split())[:200], missing
        super().__init__(f"{source}: {self.reason}" if source else self.reason)


@contextmanager
def disk_errors(
    path: Path, otherwise: str = f"try again; `{program()} resume RUN` continues a run"
) -> Iterator[None]:
    """Turn any OSError about `path` into a ResourceError; `otherwise` ends its advice."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space" if full else "check the path and its permissions"
        if error.errno == errno.EFBIG:
            advice = "raise the limit of the size of files (`ulimit -f`)"
        reason = f"{error.strerror or error}"
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            reason += " (a file or a dead link is where a folder should be)"
        raise ResourceError(f"cannot write {path}: {reason}; {advice}, {otherwise}") from error


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


def is_inside(name: str) -> bool:
    """Whether `name` is a relative path that does not leave its folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    return (
        bool(path.parts) and "\0" not in name and not path.is_absolute() and ".." not in path.parts
    )


def printable(name: str) -> str:
    """The name of a file as text that every stream and file takes.

    Names of files are bytes: those that are not UTF-8 are shown as escapes.

    Example:
        >>> printable("note" + chr(0xDCFF) + ".txt")
        'note\\\\xff.txt'
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_json(path: Path, data: object) -> None:
    """Write `data` to `path` atomically as indented JSON, converted by `plain`."""
    write_text(path, json.dumps(plain(data), indent=2, allow_nan=False) + "\n")


def read_json(path: Path, unique_keys: bool = False, allow_nan: bool = False) -> object:
    """The content of a JSON file.

    Args:
        path: A regular file of at most `MAX_JSON_BYTES`.
        unique_keys: As for `parse_json`.
        allow_nan: As for `parse_json`.

    Raises:
        JsonError: For every failure. It is a DamagedFileError that names the file.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():  # a pipe would never end
            raise JsonError("it is not a file", str(path))
        if size > MAX_JSON_BYTES:
            raise JsonError(f"it has {size:,} bytes, too many for JSON", str(path))
        return parse_json(path.read_bytes(), unique_keys, allow_nan)
    except JsonError as error:
        raise JsonError(error.reason, str(path)) from error
    except FileNotFoundError as error:
        raise JsonError("there is no such file", str(path), missing=True) from error
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise JsonError(f"it cannot be read ({error})", str(path)) from error


def read_json_object(path: Path, unique_keys: bool = False) -> dict[str, Any]:
    """`read_json` for a file that must contain an object; JsonError for anything else."""
    content = read_json(path, unique_keys)
    if not isinstance(content, dict):
        raise JsonError(f"it contains a {type(content).__name__}, not a JSON object", str(path))
    return content


def parse_json(text: str | bytes, unique_keys: bool = False, allow_nan: bool = False) -> object:
    """The value of a JSON text.

    Args:
        text: The text; bytes are UTF-8.
        unique_keys: Refuse an object with the same key twice, of which readers take different ones.
        allow_nan: Accept NaN and Infinity, which are not JSON; for files of other programs.

    Raises:
        JsonError: The text is not valid JSON or not UTF-8, is nested more than `MAX_JSON_DEPTH`
            deep, or has a number that no float can hold.

    Example:
        >>> parse_json('{"a": [1, 2.5, null]}')
        {'a': [1, 2.5, None]}
    """
    hooks: dict[str, Any] = {"parse_int": _parse_int}
    if not allow_nan:
        hooks |= {"parse_constant": _refuse_constant, "parse_float": _parse_float}
    if unique_keys:
        hooks["object_pairs_hook"] = _unique
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, **hooks)
    except RecursionError as error:
        raise JsonError("it is nested too deeply") from error
    except ValueError as error:  # also UnicodeDecodeError, and numbers of thousands of digits
        raise JsonError(f"it is not valid JSON ({error})") from error
    _check_depth(value)
    return value


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_JSON_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            item
            for node in level
            if isinstance(node, dict | list)
            for item in (node.values() if isinstance(node, dict) else node)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise JsonError("it is nested too deeply")


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

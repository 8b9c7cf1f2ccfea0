"""Read a text file that a user names, which may be anything."""

from __future__ import annotations

import errno
from pathlib import Path

OPEN_FILES = (Path("/dev/fd"), Path("/proc/self/fd"))  # where a shell shows the pipe of `<(...)`


def read_text(path: Path, most: int, encoding: str = "utf-8") -> str:
    """The text of a file that a user names.

    Args:
        path: The file.
        most: Bytes that it may have.
        encoding: Of the text.

    Raises:
        OSError: It cannot be read, or is a named pipe, which might never end. The pipe of a shell's
            `<(...)` is read.
        ValueError: It is larger, or has another encoding.
    """
    if path.is_fifo() and path.parent not in OPEN_FILES:
        raise OSError(errno.EINVAL, "it is a pipe, not a file")
    with path.open("rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data.decode(encoding)

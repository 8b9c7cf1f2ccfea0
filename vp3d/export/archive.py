"""Zip archives with the same bytes for the same content: the container of USDZ and 3MF."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

FIRST_DATE = (1980, 1, 1, 0, 0, 0)  # the first date that a zip file can have
LOCAL_HEADER = 30  # bytes of a local header before the name
PADDING_FIELD = 0x1986  # id of the extra field that only pads, as in USD's own writer
MAX_MEMBER = 256 << 20  # bytes of a member that is read


class ArchiveError(ValueError):
    """An archive is damaged or too large."""


def stored(members: Sequence[tuple[str, bytes]], align: int) -> bytes:
    """An uncompressed archive in which the data of each member starts at a multiple of `align`."""
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members:
            entry = zipfile.ZipInfo(name, FIRST_DATE)
            entry.external_attr = 0o644 << 16
            start = stream.tell() + LOCAL_HEADER + len(name.encode()) + 4
            padding = -start % align
            field = PADDING_FIELD.to_bytes(2, "little") + padding.to_bytes(2, "little")
            entry.extra = field + b"\0" * padding
            archive.writestr(entry, data)
    return stream.getvalue()


def deflated(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A compressed archive of `members` (name, content), in their order."""
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, data in members:
            entry = zipfile.ZipInfo(name, FIRST_DATE)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return stream.getvalue()


def read_members(path: Path) -> dict[str, bytes]:
    """The content of all members of an archive, at most MAX_MEMBER bytes together.

    Raises:
        ArchiveError: It is no archive, is damaged, or is too large.
    """
    found: dict[str, bytes] = {}
    total = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                total += entry.file_size
                if total > MAX_MEMBER:
                    raise ArchiveError(f"it holds more than {MAX_MEMBER >> 20} MiB")
                if not entry.is_dir():
                    found[entry.filename] = archive.read(entry)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ArchiveError(f"it is no readable archive ({error})") from error
    return found

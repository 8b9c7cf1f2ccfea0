"""Give up on an asset that kills its process again and again without getting further.

A process that is killed leaves no exception, so each attempt is noted in a file before it starts
and the note is removed after it, whatever its end. A note that is found was left by a kill.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vp3d.errors import VP3DError
from vp3d.system.files import JsonError, read_json_object, write_json

NOTE = "attempt.json"
MOST_KILLS = 5  # in a row, without a further checkpoint in between


class KilledTooOftenError(VP3DError):
    """The process of an asset was killed `MOST_KILLS` times in a row at the same checkpoint."""


@contextmanager
def noted_attempt(work: Path) -> Iterator[None]:
    """Note an attempt at the asset whose run is below the folder `work`.

    Raises:
        KilledTooOftenError: the asset killed its process too often.
    """
    note, mark = work / NOTE, newest_checkpoint(work)
    kills = _kills(note, mark)
    if kills >= MOST_KILLS:
        raise KilledTooOftenError(
            f"its process was killed {kills} times in a row without a new checkpoint, perhaps "
            f"because memory ran out; remove {note} to try again"
        )
    work.mkdir(parents=True, exist_ok=True)
    write_json(note, {"checkpoint": mark, "kills": kills + 1})
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def newest_checkpoint(work: Path) -> str:
    """The name of the newest checkpoint of the runs below `work`, "" if there is none."""
    names = (path.relative_to(work).as_posix() for path in work.glob("*/checkpoints/*/*"))
    return max(names, default="")


def _kills(note: Path, mark: str) -> int:
    """How many attempts in a row were killed at the checkpoint `mark`."""
    try:
        found = read_json_object(note)
    except JsonError:
        return 0
    kills = found.get("kills")
    return kills if found.get("checkpoint") == mark and isinstance(kills, int) else 0

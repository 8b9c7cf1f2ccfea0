"""Memory that ran out, on a device or on the machine: how it is told from other errors, and how the user is told of it.

Whoever can go on with less at once does (`render_rays`, `Prior.predict_noise`, the loop's `advance`); what cannot be cut into
smaller pieces ends in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from vp3d.errors import OutOfMemoryError

Done = TypeVar("Done")
TOLD = (  # by errors that are no OutOfMemoryError: torch's on a CPU, and its libraries' where their workspace does not fit
    "out of memory",
    "allocate memory",
    "_status_alloc_failed",
    "unable to find an engine to execute this computation",
    "unable to find a valid cudnn algorithm",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the device or of the machine, ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in TOLD)


def attempt(work: Callable[[], Done], may_shrink: bool) -> Done | None:
    """`work()`, or None when memory ran out and a smaller piece can be tried."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not (may_shrink and is_out_of_memory(error)):
            raise
    return None


@contextmanager
def report_out_of_memory(doing: str, advice: str) -> Iterator[None]:
    """Around what cannot go on with less (a `with`, or a decorator): memory that runs out there is `ResourceError`, in one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory while {doing}: {advice}") from error

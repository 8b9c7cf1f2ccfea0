"""Memory that ran out, on a device or on the machine: how it is recognised and reported.

Code that can continue with smaller pieces does so (`render_rays`, `Prior.predict_noise`, the
loop's `advance`). What cannot be cut into smaller pieces ends with one line for the user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from vp3d.errors import OutOfMemoryError

Done = TypeVar("Done")
# In the text of errors that are not an OutOfMemoryError: torch's on a CPU, and those of CUDA
# libraries whose workspace does not fit.
MESSAGES = (
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
    return any(words in text for words in MESSAGES)


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
    """Turn memory that runs out inside into an OutOfMemoryError of one line.

    A `with` block or a decorator, for work that cannot be cut into smaller pieces.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory while {doing}: {advice}") from error

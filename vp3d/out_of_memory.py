"""Memory that ran out, on a device or on the machine: how it is told from other errors, and how the user is told of it.

Whoever can go on with less at once does (`render_rays`, `Prior.predict_noise`, the loop's `advance`); what cannot be cut into
smaller pieces ends in one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vp3d.errors import Hindered


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the device or of the machine, ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "allocate memory" in text


@contextmanager
def told_out_of_memory(doing: str, advice: str) -> Iterator[None]:
    """Around what cannot go on with less (a `with`, or a decorator): memory that runs out there is `Hindered`, in one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise Hindered(f"out of memory while {doing}: {advice}") from error

"""Turn what the model loaders raise for unreadable files into one line for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from vp3d.errors import UserError

LOAD_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    SafetensorError,
)


@contextmanager
def readable(what: str, key: str) -> Iterator[None]:
    """Turn what the loaders raise for missing, damaged or unfit files into one line."""
    try:
        yield
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot load {what} ({type(error).__name__}: {reason}); check {key}"
        ) from error

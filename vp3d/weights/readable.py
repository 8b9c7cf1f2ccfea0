"""One error for everything that model loaders raise for unreadable files."""

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
    """Turn the errors of loaders for missing, damaged or unsuitable files into one UserError.

    Args:
        what: what is loaded, for the message.
        key: the config key that names the files, for the message.

    Example:
        with readable("the CLIP of the rewards", "rewards.clip"):
            model = load(folder)
    """
    try:
        yield
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot load {what} ({type(error).__name__}: {reason}); check {key}"
        ) from error

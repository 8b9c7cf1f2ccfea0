"""One error for everything that model loaders raise for unreadable files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vp3d.errors import UserError, VP3DError, in_one_line
from vp3d.system.files import JsonError


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
    except Exception as error:  # the loaders of other packages raise many types for a damaged file
        if isinstance(error, VP3DError) and not isinstance(error, JsonError):
            raise
        reason = in_one_line(error)
        raise UserError(
            f"cannot load {what} ({type(error).__name__}: {reason}); check {key}"
        ) from error

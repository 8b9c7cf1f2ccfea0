"""The errors that VP3D raises on purpose, each with a stable `code` for programs that call it.

Everything here is free of torch, so that the command line answers at once. Any other exception is
a bug.
"""

from __future__ import annotations

from typing import ClassVar


class VP3DError(Exception):
    """Base of all errors below.

    The command line prints the message as one line and exits with code 2.
    """

    code: ClassVar[str] = "error"


class UserError(VP3DError):
    """The request is wrong: a prompt, setting, file or argument that the user can correct."""

    code = "bad_request"


class MissingWeightsError(UserError):
    """A model that the request names is not on this machine; the message says how to fetch it."""

    code = "missing_weights"


class DamagedFileError(UserError):
    """A file of a run or a model is incomplete, changed or unreadable."""

    code = "damaged_file"


class ResourceError(VP3DError):
    """The machine could not do it: memory, disk or permissions.

    The same request may succeed later.
    """

    code = "resource"


class OutOfMemoryError(ResourceError):
    """Memory ran out and nothing was left to make smaller."""

    code = "out_of_memory"


class RunInUseError(ResourceError):
    """Another process holds the run folder."""

    code = "run_in_use"


class EmptyFieldError(VP3DError):
    """The optimised field has no surface to export."""

    code = "empty_field"


class DivergedError(VP3DError):
    """The optimisation produced numbers that are not finite, too often in a row."""

    code = "diverged"


def in_one_line(error: BaseException, most: int = 300) -> str:
    """The message of another package's error in one line of at most so many characters.

    An error without a message gives the name of its type.
    """
    return " ".join(str(error).split())[:most] or type(error).__name__

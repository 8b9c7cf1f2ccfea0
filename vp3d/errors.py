"""The errors that are the user's to mend. Free of torch, so that the command line answers at once."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend. The command line prints it as one line on stderr and exits with code 2."""


class Hindered(UserError):
    """Trouble with the machine and not with what was asked: no memory, a full disk, a folder in use. Later it may work."""

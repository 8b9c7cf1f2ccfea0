"""The one error that is the user's to mend. Free of torch, so that the command line answers at once."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend. The command line prints it as one line on stderr and exits with code 2."""

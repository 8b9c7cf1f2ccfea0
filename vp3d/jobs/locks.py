"""Who works on a job: an exclusive `flock` on a file, which the system frees at death."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from vp3d.system.files import disk_errors


class Lock:
    """A held lock; `release` frees it, and so does the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def release(self) -> None:
        """Free the lock; a second call does nothing."""
        if self.descriptor >= 0:
            with suppress(OSError):
                os.close(self.descriptor)
            self.descriptor = -1


def try_lock(path: Path) -> Lock | None:
    """The lock of a file, created with its folder if need be; None if another holder lives.

    A child process does not inherit the lock.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Lock(descriptor)

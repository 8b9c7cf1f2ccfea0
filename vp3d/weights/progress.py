"""The progress display of one file that is downloaded or copied."""

from __future__ import annotations

import time
from typing import Any

from vp3d.system.console import PLAIN_EVERY_S, say, terminal

MB = 1.0e6


class Transfer:
    """Shows how many bytes of a file have arrived: a live bar on a terminal, else a line at times.

    Example:
        with Transfer("model.safetensors", total=200_000, done=0) as transfer:
            transfer.add(30_000)
    """

    def __init__(self, name: str, total: int, done: int) -> None:
        """Prepare the display.

        Args:
            name: the name to show.
            total: bytes of the file; 0 if unknown.
            done: bytes that an earlier attempt has stored.
        """
        self.name, self.total, self.done, self.done_before = name, total, done, done
        self.started_at = self.shown_at = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Transfer:
        if terminal().is_terminal:
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = (
                "{task.description}",
                BarColumn(20),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=terminal())
            self.task = self.bar.add_task(self.name, total=self.total or None, completed=self.done)
            self.bar.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def add(self, count: int) -> None:
        """Record that another `count` bytes are stored."""
        self.done += count
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
        elif now - self.shown_at >= PLAIN_EVERY_S:
            self.shown_at = now
            rate = (self.done - self.done_before) / (now - self.started_at)
            of_total = f" of {self.total / MB:.0f}" if self.total else ""
            say(f"{self.name}: {self.done / MB:.0f}{of_total} MB, {rate / MB:.1f} MB/s")

"""The terminal: status lines, a progress bar, Ctrl-C, and one line for a mistake.

Everything goes to stderr, so that stdout holds results only. On a terminal the progress bar is one
live line (rich), elsewhere one plain line every few seconds.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from vp3d.errors import UserError, VP3DError

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_EVERY_S = 5.0  # seconds between lines where there is no terminal
SHOWN = ("opacity", "samples_per_s")  # besides these, every value whose name starts with "reward"


class Parser(argparse.ArgumentParser):
    """argparse that reports a mistake like any other: as a UserError."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def run_program(name: str, main: Callable[[], None]) -> None:
    """Call the `main` of a program and exit.

    The exit code is 2 after an error, which is one line on stderr, and 130 after Ctrl-C.
    """
    try:
        main()
    except (VP3DError, OSError) as problem:  # OSError: a missing file, or one without permission
        sys.stderr.write(f"{name}: {' '.join(str(problem).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted\n")
        sys.exit(130)


@lru_cache(maxsize=1)
def terminal() -> Console:
    """The rich console on stderr, created at first use: `--help` need not import rich."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Show one status line; it stays above a live progress display."""
    terminal().print(text, markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe(values: dict[str, Any]) -> str:
    """The values to display, in words: `opacity 0.12  reward text image 0.31  1.2M samples/s`."""
    parts = []
    for name, value in values.items():
        if name == "samples_per_s":
            parts.append(f"{_short(float(value))} samples/s")
        elif name in SHOWN or name.startswith("reward"):
            parts.append(f"{name.replace('_', ' ')} {float(value):.3g}")
    return "  ".join(parts)


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


class Progress:
    """The progress display of one stage: `with Progress(400, "coarse") as bar: bar.update(1,
    opacity=0.2)`.
    """

    def __init__(self, total: int, stage: str, preview: Path | None = None) -> None:
        self.total, self.stage, self.preview = total, stage, preview
        self.began = time.monotonic()
        self.first_step: int | None = None
        self.said: int | None = None  # the step of the last plain line
        self.last_line = self.began
        self.step = 0
        self.values: dict[str, Any] = {}
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        if terminal().is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            details = TextColumn("{task.fields[details]}", markup=False)
            counts = TextColumn("{task.completed:.0f}/{task.total:.0f}")
            self.bar = Bar(
                TextColumn("{task.description}"), BarColumn(20), counts, details, console=terminal()
            )
            self.task = self.bar.add_task(self.stage, total=self.total, details="")
            self.bar.start()
        if self.preview is not None:
            say(f"{self.stage}: live preview in {self.preview}")
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif self.first_step is not None and self.said != self.step:
            say(self.line())

    def update(self, step: int, **values: Any) -> None:
        """Show that `step` of `total` steps are done.

        A value called `eta_s` overrides the display's own estimate.
        """
        if (
            self.first_step is None
        ):  # a resumed run starts in the middle: its rate is measured from here
            self.first_step, self.began = step, time.monotonic()
        self.step = step
        self.values |= values
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=step, details=self.details())
        elif now - self.last_line >= PLAIN_EVERY_S:
            self.last_line, self.said = now, self.step
            say(self.line())

    def show(self, numbers: dict[str, float]) -> None:
        """`update` from the training loop's numbers, which hold the step among them."""
        self.update(
            int(numbers["step"]),
            **{name: value for name, value in numbers.items() if name != "step"},
        )

    def eta_s(self) -> float | None:
        """Seconds left: the loop's own figure, else by the mean rate since the first update.

        None before that.
        """
        if "eta_s" in self.values:
            return float(self.values["eta_s"])
        done = self.step - (self.first_step or 0)
        return (
            (time.monotonic() - self.began) / done * (self.total - self.step) if done > 0 else None
        )

    def details(self) -> str:
        """Elapsed time, time left, and the values."""
        eta = self.eta_s()
        times = clock(time.monotonic() - self.began) + (
            f", {clock(eta)} left" if eta is not None else ""
        )
        return f"{times}  {describe(self.values)}".rstrip()

    def line(self) -> str:
        """The whole display as one plain line."""
        return f"{self.stage} {self.step}/{self.total}  {self.details()}"


class StopFlag:
    """What Ctrl-C does while a stage is optimised.

    While armed, the first Ctrl-C sets `is_set()` and the second raises KeyboardInterrupt at once.
    `with StopFlag() as stop:` arms it for a block.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.previous: Any = None

    def is_set(self) -> bool:
        """Whether the user has asked to stop."""
        return self.event.is_set()

    def set(self) -> None:
        """Ask to stop, as Ctrl-C does."""
        self.event.set()

    def arm(self) -> None:
        """Take over SIGINT; only the main thread can, elsewhere Python allows no signal handler."""
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGINT, self.on_signal)

    def disarm(self) -> None:
        """Give SIGINT back."""
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
            self.previous = None

    def __enter__(self) -> StopFlag:
        self.arm()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.disarm()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The SIGINT handler."""
        if self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()
        sys.stderr.write(
            "\nstopping after this step, then exporting what there is; Ctrl-C again ends at once\n"
        )

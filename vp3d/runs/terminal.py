"""The terminal as a listener: the events of a run as lines and a progress bar on stderr."""

from __future__ import annotations

import shlex
from types import TracebackType

from vp3d.config.paths import program
from vp3d.runs.events import Done, Event, Note, Stage, Step, Warning, Watch
from vp3d.system.console import Progress, StopFlag, say


class TerminalDisplay:
    """Shows the events of a run; `with TerminalDisplay() as display: generate(...,
    watch=display.watch)`.

    While a stage is optimised, one Ctrl-C stops it after the current step and what there is gets
    exported; a second one, or one at any other time, ends the program at once.

    Args:
        process_started: as in `Watch`.
    """

    def __init__(self, process_started: float | None = None) -> None:
        self.stop = StopFlag()
        self.watch = Watch(self.show, self.stop, process_started)
        self.progress: Progress | None = None

    def __enter__(self) -> TerminalDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_progress()

    def show(self, event: Event) -> None:
        """The listener."""
        if isinstance(event, Stage):
            self._end_progress()
            say(event.text)
            if event.steps:
                self._start_progress(event)
        elif isinstance(event, Step) and self.progress is not None:
            self.progress.update(event.step, **event.values)
        elif isinstance(event, Warning):
            say(f"warning: {event.message}")
        elif isinstance(event, Note):
            say(event.message)
        elif isinstance(event, Done) and event.stopped:
            command = f"{program()} resume {shlex.quote(str(event.run_dir))}"
            say(
                f"stopped in the {event.stage} stage: this asset was exported at step "
                f"{event.steps} of {event.total_steps}; to continue: {command}"
            )

    def _start_progress(self, stage: Stage) -> None:
        self.progress = Progress(stage.steps, stage.name)
        self.progress.__enter__()
        self.stop.arm()

    def _end_progress(self) -> None:
        if self.progress is not None:
            self.stop.disarm()
            self.progress.__exit__(None, None, None)
            self.progress = None

"""The log of a run and the listener of its caller, written to in one call."""

from __future__ import annotations

from vp3d.runs.events import Event, Note, Warning, Watch
from vp3d.runs.folder import RunFolder
from vp3d.runs.migrate import FIRST_STAGE


class Journal:
    """Hands what happens in a run to its log and to its listener."""

    def __init__(self, run: RunFolder, watch: Watch) -> None:
        self.run = run
        self.watch = watch

    def log(self, kind: str, **data: object) -> None:
        """Append to events.jsonl alone."""
        self.run.event(kind, **data)

    def log_of(self, stage: str, kind: str, **data: object) -> None:
        """Append an event of a stage: "step", and "refine_step" after the first stage.

        Steps are counted by stage, so that readers of the log keep them apart.
        """
        self.log(kind if stage == FIRST_STAGE else f"{stage}_{kind}", **data)

    def show(self, event: Event) -> None:
        """Hand an event to the listener alone."""
        self.watch.on_event(event)

    def note(self, message: str) -> None:
        """Hand the listener one line."""
        self.show(Note(message))

    def warn(self, message: str, **data: object) -> None:
        """Log a warning and hand it to the listener."""
        self.log("warning", message=message, **data)
        self.show(Warning(message))

    def event(self, kind: str, **data: object) -> None:
        """Log an event of a part of the run; warnings and lack of memory reach the listener too."""
        if kind == "warning":
            message = str(data.pop("message"))
            self.warn(message, **data)
            return
        self.log(kind, **data)
        if kind == "out_of_memory":
            at_once = (
                f"{data['images']} image(s)" if "images" in data else f"{data['chunk']:,} samples"
            )
            self.show(Warning(f"out of memory: continuing with {at_once} at once"))

"""A journal of a run whose lines a test can read."""

from __future__ import annotations

import threading

from vp3d.config.schema import Config
from vp3d.fields.nerf import Field
from vp3d.runs.events import Event, Note, StopRequest, Warning, Watch
from vp3d.runs.folder import RunFolder
from vp3d.runs.journal import Journal
from vp3d.train import loop
from vp3d.train.coarse import Coarse


class Listener:
    """Keeps the events it hears; `lines` are those a terminal would show."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Hear one event."""
        self.events.append(event)

    @property
    def lines(self) -> list[str]:
        """Warnings and notes as text."""
        shown = [event for event in self.events if isinstance(event, Warning | Note)]
        return [
            f"warning: {event.message}" if isinstance(event, Warning) else event.message
            for event in shown
        ]


def journal_of(
    run: RunFolder, listener: Listener | None = None, stop: StopRequest | None = None
) -> Journal:
    """A journal of `run`."""
    return Journal(run, Watch(listener or Listener(), stop or threading.Event()))


def optimise(
    stage: Coarse,
    config: Config,
    run: RunFolder,
    listener: Listener | None = None,
    stop: StopRequest | None = None,
) -> loop.Outcome[Field]:
    """`loop.run` with the parts of a config."""
    return loop.run(stage, config.optim, config.camera, journal_of(run, listener, stop))

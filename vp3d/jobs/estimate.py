"""How far a job is and how long it will take, from what earlier jobs took.

A job is a row of parts: the stages that `Watch` names, the optimisation in `QUARTERS` of its steps,
because rewards that start late make later steps slower. The typical seconds of each part are the
medians of the last runs of the same preset on the same device; a table serves until there are some.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

QUARTERS = 4
STAGES = ("load", "visual_prompt", "coarse", "refine", "export", "views", "report")
TABLE = {  # preset -> seconds of each stage on two cores, before anything was measured
    "draft": {"load": 2.0, "visual_prompt": 4.0, "coarse": 20.0, "export": 4.0},
    "standard": {"load": 2.0, "visual_prompt": 8.0, "coarse": 90.0, "export": 8.0},
    "high": {"load": 2.0, "visual_prompt": 20.0, "coarse": 480.0, "export": 30.0},
}
OTHER_STAGE_S = {"views": 1.0, "report": 4.0, "refine": 0.0}
SLOWER = 4.0  # how far the pace of one run may be from the typical one, as a factor


def parts_of(stage: str) -> list[str]:
    """The parts of a stage: quarters of an optimisation, else the stage itself."""
    if stage in ("coarse", "refine"):
        return [f"{stage}.{n}" for n in range(QUARTERS)]
    return [stage]


def typical(preset: str, measured: Mapping[str, float]) -> dict[str, float]:
    """Seconds of every part: measured ones, else those of the table."""
    table = {**OTHER_STAGE_S, **TABLE.get(preset, TABLE["standard"])}
    found = {}
    for stage in STAGES:
        parts = parts_of(stage)
        for part in parts:
            found[part] = measured.get(part, table.get(stage, 1.0) / len(parts))
    return found


class Estimate:
    """Progress in [0, 1], which never falls, and the seconds left.

    Args:
        expected: typical seconds of each part.
        note: called with a part and its seconds when the part was done from its start to its end.
        floor: the progress that an earlier attempt reached.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        expected: Mapping[str, float],
        note: Callable[[str, float], None],
        floor: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.expected = dict(expected)
        self.note = note
        self.progress = floor
        self.clock = clock
        self.stage, self.part, self.share = "", "", 0.0
        self.whole = False  # the current part was entered at its start
        self.began = clock()
        self.spent = 0.0  # seconds of the parts that are done
        self.planned = 0.0  # what they take typically

    def enter(self, stage: str) -> None:
        """A stage starts."""
        self._leave()
        self.stage = stage
        self._enter(parts_of(stage)[0], 0.0, whole=True)

    def step(self, step: int, steps: int) -> None:
        """Step `step` of `steps` of the current stage is done."""
        parts = parts_of(self.stage)
        position = len(parts) * min(step / max(steps, 1), 1.0)
        index = min(int(position), len(parts) - 1)
        if parts[index] != self.part:
            follows = parts.index(self.part) + 1 == index
            self._leave(done=follows)
            self._enter(parts[index], position - index, whole=follows)
        elif self.share == 0.0 and position - index > 0.5:  # resumed in the middle of a quarter
            self.whole = False
        self.share = position - index

    def _enter(self, part: str, share: float, whole: bool) -> None:
        self.part, self.share, self.whole, self.began = part, share, whole, self.clock()

    def _leave(self, done: bool = True) -> None:
        if self.part and done and self.whole:
            seconds = self.clock() - self.began
            self.note(self.part, seconds)
            self.spent += seconds
            self.planned += self.expected.get(self.part, 0.0)

    def finish(self) -> None:
        """The job is done."""
        self._leave()
        self.progress = 1.0

    def restart(self) -> None:
        """The optimisation starts again: the one case in which progress falls."""
        self.progress = 0.0

    def seconds_left(self) -> float:
        """Seconds until the job is done, at this run's own pace."""
        elapsed = self.clock() - self.began
        here = self.expected.get(self.part, 0.0)
        share = self.share if self.share else min(elapsed / here, 0.95) if here else 0.0
        planned = self.planned + (share * here if self.whole else 0.0)
        spent = self.spent + (elapsed if self.whole else 0.0)
        pace = min(max(spent / planned, 1.0 / SLOWER), SLOWER) if planned > 1.0 else 1.0
        later = sum(self._after().values())
        return pace * ((1.0 - share) * here + later)

    def _after(self) -> dict[str, float]:
        names = list(self.expected)
        start = names.index(self.part) + 1 if self.part in names else 0
        return {name: self.expected[name] for name in names[start:]}

    def now(self) -> float:
        """Progress in [0, 1]."""
        total = sum(self.expected.values()) or 1.0
        later = sum(self._after().values())
        here = self.expected.get(self.part, 0.0)
        elapsed = self.clock() - self.began
        share = self.share if self.share else min(elapsed / here, 0.95) if here else 0.0
        done = 1.0 - (later + (1.0 - share) * here) / total
        self.progress = max(self.progress, min(max(done, 0.0), 1.0))
        return self.progress

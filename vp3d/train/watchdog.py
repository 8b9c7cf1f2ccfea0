"""Two watchdogs of the optimisation: numbers that are no longer finite, and a field that became empty or solid.

Both are small state machines on plain numbers, so that their state goes into a checkpoint as JSON and a resumed run takes
the same decisions as one that was never stopped.

* A step whose loss, gradient or parameters are not finite is skipped; the stage goes back to the last good snapshot and
  every rate is multiplied by `RATE_DROP`. After `optim.bad_steps` such steps in a row the run stops with a diagnosis.
* A field whose mean opacity stays below `EMPTY` or above `SOLID` in the first part of the run is started again once,
  softer: rates and regularisers are scaled down. Later, or after that restart, a collapse is told and the run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from vp3d.errors import DivergedError

RATE_DROP = 0.5  # factor on all rates after a roll-back
RATE_FLOOR = 1.0 / 16.0  # ... down to this share
EMPTY = 0.01  # mean opacity over a step's pixels below which nothing is there
SOLID = 0.95  # ... above which fog fills the frame
FIRST_PART = (
    0.5  # progress after which a collapse no longer leads to a restart: too little time is left
)
PATIENCE = 0.04  # share of all steps a collapse must last, at least MIN_PATIENCE steps
MIN_PATIENCE = 5
SOFTER_RATE = 0.5  # factor on the rates after a restart
SOFTER_REGULARISERS = 0.1  # factor on the opacity and sparsity weights after a restart


@dataclass
class Watchdog:
    """What both watchdogs remember; `vars(watchdog)` is its JSON form."""

    bad_in_row: int = 0
    bad_total: int = 0
    rate_scale: float = 1.0
    collapsed_for: int = 0
    restarts: int = 0

    def good(self) -> None:
        """A finite step ends the row of bad ones."""
        self.bad_in_row = 0

    def bad(self, limit: int, what: str) -> None:
        """Count a bad step and lower the rates; `limit` in a row stop the run with the diagnosis `what`."""
        self.bad_in_row += 1
        self.bad_total += 1
        self.rate_scale = max(self.rate_scale * RATE_DROP, RATE_FLOOR)
        if self.bad_in_row >= limit:
            raise DivergedError(
                f"stopped: {self.bad_in_row} steps in a row were not finite ({what}), also after rolling back and lowering "
                "the rates; try prior.dtype=float32, on a GPU cuda.table_dtype=float32, a lower guidance.guidance_scale or "
                "a lower optim.lr_density"
            )

    def collapse(self, opacity: float, step: int, steps: int) -> str:
        """Feed the mean opacity in [0, 1] of one step; "empty" or "solid" when a collapse has just lasted too long, else ""."""
        kind = "empty" if opacity < EMPTY else "solid" if opacity > SOLID else ""
        self.collapsed_for = self.collapsed_for + 1 if kind else 0
        return kind if self.collapsed_for == max(MIN_PATIENCE, round(PATIENCE * steps)) else ""

    def may_restart(self, step: int, steps: int) -> bool:
        """Whether a run that collapsed at `step` is to start again: once, and while there is time."""
        return self.restarts == 0 and step < FIRST_PART * steps

    def restarted(self) -> None:
        """Note the one restart a run may have."""
        self.restarts += 1
        self.collapsed_for = 0
        self.rate_scale *= SOFTER_RATE

    @property
    def regulariser_scale(self) -> float:
        """Factor on the opacity and sparsity weights, in (0, 1]."""
        return SOFTER_REGULARISERS if self.restarts else 1.0

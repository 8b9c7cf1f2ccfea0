"""Two watchdogs of the optimisation: non-finite numbers, and a field that became empty or solid.

Both are small state machines on plain numbers. Their state goes into the checkpoint as JSON, so
that a resumed run takes the same decisions as an uninterrupted one.

* A step is skipped if its loss, gradient or parameters are not finite. The stage then returns to
  its last good snapshot, and every learning rate is multiplied by `ROLLBACK_RATE`. After
  `optim.bad_steps` such steps in a row the run stops with a diagnosis.
* A field collapses if its mean opacity stays below `EMPTY_OPACITY` or above `SOLID_OPACITY`. In
  the first part of the run the field is then initialised again, once, with lower rates and weaker
  regularisers. A later collapse is only reported, and the run continues.
"""

from __future__ import annotations

from dataclasses import dataclass

from vp3d.errors import DivergedError

ROLLBACK_RATE = 0.5  # factor on all learning rates after a roll-back ...
MIN_RATE_SCALE = 1.0 / 16.0  # ... but the product with RESTART_RATE never falls below this
EMPTY_OPACITY = 0.01  # mean opacity over the pixels of a step below which the field is empty
SOLID_OPACITY = 0.95  # mean opacity above which it fills the image
COLLAPSE_SHARE = 0.04  # share of all steps that a collapse must last before it counts ...
MIN_COLLAPSE_STEPS = 5  # ... and the least number of steps
RESTART_SHARE = 0.5  # share of the run in which a restart is allowed; later too few steps are left
RESTART_RATE = 0.5  # factor on all learning rates after a restart
RESTART_REGULARISERS = 0.1  # factor on the opacity and sparsity weights after a restart


@dataclass
class Watchdog:
    """The state of both watchdogs; `vars(watchdog)` is its JSON form.

    Attributes:
        bad_in_row: Non-finite steps since the last finite one.
        bad_total: Non-finite steps of the run.
        rate_scale: Factor on all learning rates, in (0, 1].
        collapsed_for: Steps in a row with an empty or solid field.
        restarts: Restarts of the field, 0 or 1.
    """

    bad_in_row: int = 0
    bad_total: int = 0
    rate_scale: float = 1.0
    collapsed_for: int = 0
    restarts: int = 0

    def good(self) -> None:
        """Count a finite step: the row of non-finite ones ends."""
        self.bad_in_row = 0

    def bad(self, limit: int, what: str) -> None:
        """Count a non-finite step and lower the learning rates.

        Args:
            limit: Number of non-finite steps in a row that stops the run.
            what: What was not finite, for the message.

        Raises:
            DivergedError: This is step number `limit` in a row.
        """
        self.bad_in_row += 1
        self.bad_total += 1
        self._lower_rates(ROLLBACK_RATE)
        if self.bad_in_row >= limit:
            raise DivergedError(
                f"stopped: {self.bad_in_row} steps in a row were not finite ({what}), even after "
                "rolling back and lowering the learning rates; try prior.dtype=float32, on a GPU "
                "cuda.table_dtype=float32, a lower guidance.guidance_scale or a lower "
                "optim.lr_density"
            )

    def collapse(self, opacity: float, step: int, steps: int) -> str:
        """Count a step with mean `opacity` in [0, 1].

        Args:
            opacity: Mean opacity over the pixels of the step.
            step: Index of the step.
            steps: Number of steps of the run.

        Returns:
            "empty" or "solid" at the step at which a collapse has lasted long enough, else "".
        """
        kind = "empty" if opacity < EMPTY_OPACITY else "solid" if opacity > SOLID_OPACITY else ""
        self.collapsed_for = self.collapsed_for + 1 if kind else 0
        patience = max(MIN_COLLAPSE_STEPS, round(COLLAPSE_SHARE * steps))
        return kind if self.collapsed_for == patience else ""

    def may_restart(self, step: int, steps: int) -> bool:
        """Whether a field that collapsed at `step` of `steps` may be initialised again."""
        return self.restarts == 0 and step < RESTART_SHARE * steps

    def restarted(self) -> None:
        """Record the restart; a run has at most one."""
        self.restarts += 1
        self.collapsed_for = 0
        self._lower_rates(RESTART_RATE)

    def _lower_rates(self, factor: float) -> None:
        """Multiply the rates by `factor`, down to the floor; they never rise.

        A checkpoint of an older version may be below the floor, and stays there.
        """
        self.rate_scale = min(self.rate_scale, max(self.rate_scale * factor, MIN_RATE_SCALE))

    @property
    def regulariser_scale(self) -> float:
        """Factor on the opacity and sparsity weights, in (0, 1]."""
        return RESTART_REGULARISERS if self.restarts else 1.0

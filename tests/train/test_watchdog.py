"""The two watchdogs as plain state machines."""

from __future__ import annotations

import json

import pytest

from vp3d.errors import DivergedError
from vp3d.train.watchdog import EMPTY, MIN_PATIENCE, RATE_DROP, RATE_FLOOR, SOLID, Watchdog


def test_bad_steps_lower_the_rate_to_a_floor_and_stop_with_the_reason() -> None:
    watchdog = Watchdog()
    for count in range(1, 8):
        watchdog.bad(8, "the gradient")
        assert watchdog.rate_scale == max(RATE_DROP**count, RATE_FLOOR)
    with pytest.raises(DivergedError, match=r"8 steps in a row.*the gradient"):
        watchdog.bad(8, "the gradient")


def test_a_good_step_ends_the_row_but_not_the_lower_rate() -> None:
    watchdog = Watchdog()
    for _ in range(50):
        watchdog.bad(2, "the loss")
        watchdog.good()
    assert (watchdog.bad_in_row, watchdog.bad_total, watchdog.rate_scale) == (0, 50, RATE_FLOOR)


@pytest.mark.parametrize(("opacity", "kind"), [(EMPTY / 2, "empty"), (SOLID + 0.01, "solid")])
def test_collapse_needs_patience_and_happens_once(opacity: float, kind: str) -> None:
    watchdog = Watchdog()
    told = [watchdog.collapse(opacity, step, 100) for step in range(MIN_PATIENCE)]
    assert told == [""] * (MIN_PATIENCE - 1) + [kind]
    assert watchdog.may_restart(MIN_PATIENCE, 100)
    watchdog.restarted()
    assert watchdog.rate_scale < 1.0 and watchdog.regulariser_scale < 1.0
    again = [watchdog.collapse(opacity, step, 100) for step in range(50)]
    assert again.count(kind) == 1 and again[MIN_PATIENCE - 1] == kind, "told once, though it lasts"
    assert not watchdog.may_restart(MIN_PATIENCE, 100)


def test_a_late_collapse_is_told_but_starts_nothing_again_and_recovery_is_not_told() -> None:
    assert not any(Watchdog().collapse(0.3, step, 100) for step in range(100))
    late = Watchdog()
    told = [late.collapse(0.0, step, 100) for step in range(60, 100)]
    assert told.count("empty") == 1 and not any(
        late.may_restart(step, 100) for step in range(60, 100)
    )
    flicker = Watchdog()
    assert not any(
        flicker.collapse(0.0 if step % MIN_PATIENCE else 0.2, step, 100) for step in range(50)
    )


def test_state_survives_json() -> None:
    watchdog = Watchdog()
    watchdog.bad(9, "x")
    watchdog.collapse(0.0, 0, 100)
    watchdog.restarted()
    assert Watchdog(**json.loads(json.dumps(vars(watchdog)))) == watchdog

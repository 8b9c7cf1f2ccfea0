"""The two watchdogs as plain state machines."""

from __future__ import annotations

import json

import pytest

from vp3d.errors import DivergedError
from vp3d.train.watchdog import (
    EMPTY_OPACITY,
    MIN_COLLAPSE_STEPS,
    MIN_RATE_SCALE,
    RESTART_RATE,
    RESTART_REGULARISERS,
    ROLLBACK_RATE,
    SOLID_OPACITY,
    Watchdog,
)


def test_bad_steps_lower_the_rate_to_a_floor_and_stop_with_the_reason() -> None:
    watchdog = Watchdog()
    for count in range(1, 8):
        watchdog.bad(8, "the gradient")
        assert watchdog.rate_scale == max(ROLLBACK_RATE**count, MIN_RATE_SCALE)
    with pytest.raises(DivergedError, match=r"8 steps in a row.*the gradient"):
        watchdog.bad(8, "the gradient")


def test_a_good_step_ends_the_row_but_not_the_lower_rate() -> None:
    watchdog = Watchdog()
    for _ in range(50):
        watchdog.bad(2, "the loss")
        watchdog.good()
    assert (watchdog.bad_in_row, watchdog.bad_total, watchdog.rate_scale) == (0, 50, MIN_RATE_SCALE)


@pytest.mark.parametrize(
    ("opacity", "kind"), [(EMPTY_OPACITY / 2, "empty"), (SOLID_OPACITY + 0.01, "solid")]
)
def test_collapse_needs_patience_and_happens_once(opacity: float, kind: str) -> None:
    watchdog = Watchdog()
    found = [watchdog.collapse(opacity, step, 100) for step in range(MIN_COLLAPSE_STEPS)]
    assert found == [""] * (MIN_COLLAPSE_STEPS - 1) + [kind]
    assert watchdog.may_restart(MIN_COLLAPSE_STEPS, 100)
    watchdog.restarted()
    assert watchdog.rate_scale < 1.0 and watchdog.regulariser_scale < 1.0
    later = [watchdog.collapse(opacity, step, 100) for step in range(50)]
    assert later.count(kind) == 1 and later[MIN_COLLAPSE_STEPS - 1] == kind, (
        "reported once, although it lasts"
    )
    assert not watchdog.may_restart(MIN_COLLAPSE_STEPS, 100)


def test_a_late_collapse_is_told_but_starts_nothing_again_and_recovery_is_not_told() -> None:
    assert not any(Watchdog().collapse(0.3, step, 100) for step in range(100))
    late = Watchdog()
    found = [late.collapse(0.0, step, 100) for step in range(60, 100)]
    assert found.count("empty") == 1 and not any(
        late.may_restart(step, 100) for step in range(60, 100)
    )
    flicker = Watchdog()
    assert not any(
        flicker.collapse(0.0 if step % MIN_COLLAPSE_STEPS else 0.2, step, 100) for step in range(50)
    )


def test_state_survives_json() -> None:
    watchdog = Watchdog()
    watchdog.bad(9, "x")
    watchdog.collapse(0.0, 0, 100)
    watchdog.restarted()
    assert Watchdog(**json.loads(json.dumps(vars(watchdog)))) == watchdog


def test_bad_steps_and_a_restart_share_one_floor_and_rates_never_rise() -> None:
    for bad_before in range(8):
        watchdog, scales = Watchdog(), []
        for step in range(bad_before + 6):
            if step == bad_before:
                watchdog.restarted()
            else:
                watchdog.bad(100, "the loss")
            scales.append(watchdog.rate_scale)
        assert scales == sorted(scales, reverse=True) and scales[-1] == MIN_RATE_SCALE
    below = Watchdog(rate_scale=MIN_RATE_SCALE / 2)  # a checkpoint of an older version
    below.bad(100, "the loss")
    assert below.rate_scale == MIN_RATE_SCALE / 2


def test_the_decisions_by_hand() -> None:
    """The numbers that docs/how_to/resume_and_recover.md and the messages rest on."""
    assert (ROLLBACK_RATE, RESTART_RATE, MIN_RATE_SCALE) == (0.5, 0.5, 1 / 16)
    assert (EMPTY_OPACITY, SOLID_OPACITY, MIN_COLLAPSE_STEPS) == (0.01, 0.95, 5)
    watchdog = Watchdog()
    watchdog.restarted()
    assert (watchdog.rate_scale, watchdog.restarts, watchdog.collapsed_for) == (0.5, 1, 0)
    assert watchdog.regulariser_scale == RESTART_REGULARISERS == 0.1
    assert Watchdog().regulariser_scale == 1.0


@pytest.mark.parametrize(("steps", "patience"), [(10, 5), (125, 5), (150, 6), (1000, 40)])
def test_a_collapse_counts_after_four_per_cent_of_the_steps(steps: int, patience: int) -> None:
    watchdog = Watchdog()
    found = [watchdog.collapse(0.0, step, steps) for step in range(patience + 1)]
    assert found == [""] * (patience - 1) + ["empty", ""]


def test_opacity_at_the_limits_is_no_collapse_and_the_second_half_no_time_to_restart() -> None:
    for opacity in (EMPTY_OPACITY, SOLID_OPACITY):
        watchdog = Watchdog(collapsed_for=3)
        assert watchdog.collapse(opacity, 0, 10) == "" and watchdog.collapsed_for == 0
    assert Watchdog().may_restart(49, 100) and not Watchdog().may_restart(50, 100)


def test_the_row_of_bad_steps_reaches_its_limit_exactly() -> None:
    watchdog = Watchdog()
    watchdog.bad(2, "the loss")
    with pytest.raises(DivergedError, match="2 steps in a row"):
        watchdog.bad(2, "the loss")
    assert (watchdog.bad_in_row, watchdog.bad_total) == (2, 2)
    with pytest.raises(DivergedError, match="1 steps in a row"):
        Watchdog().bad(1, "the loss")

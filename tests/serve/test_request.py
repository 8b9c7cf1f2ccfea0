"""What the settings of a request may cost."""

from __future__ import annotations

from operator import attrgetter

import pytest

from vp3d.config.loader import PRESETS, load_config
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.jobs.request import CEILINGS, Limits, check_settings, settable_keys

# Whole numbers that make no run longer or larger.
CHEAP = {
    "guidance.estimate_every",
    "optim.bad_steps",
    "optim.checkpoint_every",
    "optim.preview_every",
    "export.colors",
}


def test_every_whole_number_that_costs_has_a_ceiling() -> None:
    keys = [key for key in settable_keys() if type(attrgetter(key)(Config())) is int]
    assert set(keys) - set(CEILINGS) == CHEAP


def test_the_presets_stay_below_the_ceilings() -> None:
    for preset in PRESETS:
        config = load_config(preset)
        over = {key for key, most in CEILINGS.items() if attrgetter(key)(config) > most}
        assert not over, preset


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("refine.steps", 1001),
        ("refine.texture_size", 4096),
        ("refine.strengths", [0.5] * 9),
        ("refine.elevations_deg", [0.0] * 9),
        ("export.lods", [0.5] * 9),
    ],
)
def test_what_costs_too_much_is_refused(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"the setting '{key}' (is limited to|takes at most)"):
        check_settings({key: value}, Limits())

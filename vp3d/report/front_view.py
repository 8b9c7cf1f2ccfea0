"""The grade of an asset's front view against its visual prompt, and what it means, in words.

`vp3d.picture_check` measures it. Nothing here loads torch, so the service can use it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class ZeroLine(NamedTuple):
    """The grades, 1 to 5, of assets that are right in every view by the held-out judge."""

    median: float
    low: float  # 10 % of the assets have a lower grade
    high: float  # 10 % of the assets have a higher grade
    assets: int  # how many were graded


# Grades of right assets against their own visual prompt (docs/results/front_views.md).
ZERO_LINE = ZeroLine(median=3.36, low=1.62, high=4.63, assets=98)
# Written next to the visual prompt by the check of the front view -> captions.
FRONT_PICTURES = {
    "front_prompt.png": "visual prompt, in the frame of the comparison",
    "front_render.png": "front view of the asset",
    "front_heat.png": "where they differ",
}


def last_front_view(events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The logged comparison of the last export; None if that export was not compared.

    Args:
        events: the log of a run, oldest first.
    """
    kinds = ("front_view", "export")
    nothing: Mapping[str, Any] = {}
    last = next((event for event in reversed(events) if event.get("kind") in kinds), nothing)
    graded = last.get("kind") == "front_view" and isinstance(last.get("grade"), float)
    return last if graded else None


def in_words(grade: float) -> str:
    """A grade beside those of right assets, in two sentences."""
    line = ZERO_LINE
    return (
        f"Grade {grade:.1f} of 5 by features: 1 is nothing invented, 5 another object. Right "
        f"assets of the embedded models have {line.median:.1f}, 80 % of them {line.low:.1f} to "
        f"{line.high:.1f} ({line.assets} assets), so this one is {_against(grade, line)}."
    )


def _against(grade: float, line: ZeroLine) -> str:
    """Where a grade is, compared with those of right assets, in words."""
    if grade > line.high:
        return "above that range: look at where they differ"
    return "below that range" if grade < line.low else "within that range"

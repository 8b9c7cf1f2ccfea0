"""Loads what the hallucination score of the embedded models needs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from vp3d.config.paths import ASSETS, MANIFEST
from vp3d.errors import DamagedFileError
from vp3d.metrics.attribute_judge import load_judge
from vp3d.metrics.hallucination_features import EmbeddedFeatures
from vp3d.rewards.encoders import load_clip
from vp3d.system.files import JsonError, read_json

TOWER = ASSETS / "feature_tower"
GRADES = TOWER / "grades.json"  # rows of (proxy, grade), written by vp3d.evaluate.planted


@lru_cache(maxsize=1)
def embedded_features() -> EmbeddedFeatures:
    """The embedded feature tower and CLIP, frozen; loaded once a process."""
    return EmbeddedFeatures(
        load_judge(TOWER, MANIFEST), load_clip(str(ASSETS / "clip"), str(MANIFEST))
    )


@lru_cache(maxsize=1)
def grades() -> tuple[tuple[float, float], ...]:
    """The table of grades of the embedded features: (proxy, grade), both rising.

    Raises:
        DamagedFileError: the file is missing or damaged.
    """
    try:
        return read_table(GRADES)
    except (JsonError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{GRADES} cannot be read ({error}); restore it from the repository"
        ) from error


def read_table(path: Path) -> tuple[tuple[float, float], ...]:
    """A table of grades: (proxy, grade), the proxies rising.

    Raises:
        JsonError, TypeError, ValueError: the file is missing or damaged.
    """
    rows = read_json(path)
    table = tuple((float(proxy), float(grade)) for proxy, grade in rows)  # type: ignore[attr-defined]
    if len(table) < 2 or any(a[0] >= b[0] for a, b in zip(table[:-1], table[1:], strict=True)):
        raise ValueError("it is no rising table")
    return table

"""KHR_texture_transform by hand: texture coordinates are scaled, then turned, then moved."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vp3d.export.gltf_color import transformed

QUARTER, MOVED, LARGER = {"rotation": math.pi / 2}, {"offset": [0.1, 0.2]}, {"scale": [2.0, 0.5]}


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ({}, (0.25, 0.5)),
        (MOVED, (0.35, 0.7)),
        (LARGER, (0.5, 0.25)),
        (LARGER | MOVED, (0.6, 0.45)),
        (QUARTER, (0.5, -0.25)),  # counter-clockwise where v points down: u to -v, v to u
        (QUARTER | LARGER, (0.25, -0.5)),
        (QUARTER | LARGER | MOVED, (0.35, -0.3)),
    ],
)
def test_a_texture_coordinate_by_hand(
    transform: dict[str, Any], expected: tuple[float, float]
) -> None:
    found = transformed(np.array([[0.25, 0.5], [0.0, 0.0]]), transform)
    origin = transform.get("offset", [0.0, 0.0])
    np.testing.assert_allclose(found, [expected, origin], atol=1e-6)

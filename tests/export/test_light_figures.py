"""The figures of a fitted light by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vp3d.export.light import HUBER, Light, _solve, fit

SIX = np.r_[np.eye(3), -np.eye(3)]  # normals along the axes, both ways


def test_figures_have_three_decimals() -> None:
    """Darkest is exp(-|g| - max(|g|, 0.25)): exp(-0.7) for |g| = 0.35."""
    light = Light(np.array([0.21, 0.0, 0.28]), 0.123456)
    assert light.figures() == {
        "direction": [0.6, 0.0, 0.8],
        "darkest": 0.497,
        "explained": 0.123,
        "doubt": "",
    }


def test_too_few_bright_points_have_no_light() -> None:
    normals = np.tile(SIX, (2, 1))[:11]
    light = fit(np.full((11, 3), 0.5), normals, np.ones(11))
    assert light.gradient.tolist() == [0.0, 0.0, 0.0] and light.explained == 0.0
    assert light.doubt == "too few points are bright enough"
    enough = fit(np.full((12, 3), 0.5), np.tile(SIX, (2, 1)), np.ones(12))
    assert enough.doubt == ""


@pytest.mark.parametrize("rest", [0.0, 0.05, 0.1])
def test_the_explained_share_is_that_of_the_variance(rest: float) -> None:
    """Each normal twice, with g . n + rest and g . n - rest: 0.3 along x is 0.03 of the variance.

    The mean of (0.3 n_x)^2 over the six normals is 2 * 0.09 / 6.
    """
    assert rest < HUBER
    normals = np.repeat(SIX, 2, 0)
    logs = 0.3 * normals[:, 0] + np.tile([rest, -rest], 6)
    gradient, explained = _solve(logs, normals, np.ones(12), np.zeros(12, np.int64))
    np.testing.assert_allclose(gradient, [0.3, 0.0, 0.0], atol=1e-3)
    assert explained == pytest.approx(0.03 / (0.03 + rest**2), abs=1e-3)

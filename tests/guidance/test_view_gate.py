"""The view gate against a version written with plain floats."""

from __future__ import annotations

import math

import pytest
import torch

from vp3d.config.schema import ViewGate
from vp3d.guidance.view_gate import gate_weight


def naive(gate: ViewGate, azimuth: float) -> float:
    radians = math.radians(azimuth - gate.center_deg)
    turn = math.degrees(math.acos(max(-1.0, min(1.0, math.cos(radians)))))
    if turn <= gate.full_deg:
        return 1.0
    if turn >= gate.zero_deg:
        return gate.floor
    return gate.floor + (1 - gate.floor) * (gate.zero_deg - turn) / (gate.zero_deg - gate.full_deg)


@pytest.mark.parametrize(
    "gate",
    [
        ViewGate(0, 45, 100, 0),
        ViewGate(90, 30, 120, 0.25),
        ViewGate(-170, 0, 180, 0.0),
        ViewGate(10, 60, 60, 0.5),
        ViewGate(0, 45, 45.5, 0.0),
    ],
)
def test_agrees_with_the_naive_version(gate: ViewGate) -> None:
    azimuth = torch.linspace(-720.3, 720.9, 997, dtype=torch.float64)
    expected = torch.tensor([naive(gate, float(a)) for a in azimuth], dtype=torch.float64)
    torch.testing.assert_close(gate_weight(gate, azimuth), expected, atol=1e-6, rtol=0)


def test_hand_values() -> None:
    gate = ViewGate(center_deg=0, full_deg=45, zero_deg=100, floor=0.2)
    azimuth = torch.tensor([0.0, 45.0, -45.0, 72.5, 287.5, 100.0, 180.0])
    expected = torch.tensor([1.0, 1.0, 1.0, 0.6, 0.6, 0.2, 0.2])
    torch.testing.assert_close(gate_weight(gate, azimuth), expected)


def test_default_gate_is_one_everywhere() -> None:
    assert torch.equal(gate_weight(ViewGate(), torch.arange(-360.0, 361.0, 22.5)), torch.ones(33))

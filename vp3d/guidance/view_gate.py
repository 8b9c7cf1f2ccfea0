"""View gates: how strongly a view-dependent term acts at each camera azimuth."""

from __future__ import annotations

import torch
from torch import Tensor

from vp3d.config.schema import ViewGate


def gate_weight(gate: ViewGate, azimuth_deg: Tensor) -> Tensor:
    """The weight of a view gate at camera azimuths.

    It is 1 within `full_deg` of `center_deg`, falls linearly, and is `floor` beyond `zero_deg`. If
    `zero_deg` is not above `full_deg`, it drops at `full_deg` without a ramp.

    Args:
        gate: The gate, angles in degrees.
        azimuth_deg: `[B]`, degrees, any turn.

    Returns:
        `[B]`, weights in [floor, 1].

    Example:
        >>> front_half = ViewGate(center_deg=0.0, full_deg=45.0, zero_deg=90.0, floor=0.0)
        >>> gate_weight(front_half, torch.tensor([0.0, 67.5, 180.0])).tolist()
        [1.0, 0.5, 0.0]
    """
    # Distance from the centre, the shorter way round, in [0, 180].
    distance = ((azimuth_deg - gate.center_deg + 180.0) % 360.0 - 180.0).abs()
    beyond = distance - gate.full_deg
    width = gate.zero_deg - gate.full_deg
    fall = (beyond / width).clamp(0.0, 1.0) if width > 0.0 else (beyond > 0.0).to(beyond.dtype)
    return torch.lerp(torch.ones_like(fall), torch.full_like(fall, gate.floor), fall)

"""How strongly a view-dependent term acts: a `ViewGate` evaluated at camera azimuths."""

from __future__ import annotations

import torch
from torch import Tensor

from vp3d.config.schema import ViewGate


def gate_weight(gate: ViewGate, azimuth_deg: Tensor) -> Tensor:
    """The gate's weight [B] in [floor, 1] at `azimuth_deg` [B] (degrees, any turn).

    1 up to `full_deg` from `center_deg` (shorter way round), `floor` from `zero_deg` on, linear in between; where
    `zero_deg` is not above `full_deg` it falls at once.
    """
    distance = ((azimuth_deg - gate.center_deg + 180.0) % 360.0 - 180.0).abs()
    beyond = distance - gate.full_deg
    width = gate.zero_deg - gate.full_deg
    fall = (beyond / width).clamp(0.0, 1.0) if width > 0.0 else (beyond > 0.0).to(beyond.dtype)
    return torch.lerp(torch.ones_like(fall), torch.full_like(fall, gate.floor), fall)

"""One estimate of the denoiser that serves several steps of the field."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vp3d.guidance.vp_sds import Target
from vp3d.types import Camera


@dataclass(frozen=True)
class ReusedEstimate:
    """The views of an estimate that serves more steps.

    grey `[B]` in [0, 1] is the background behind each view; target is what the views are moved to.
    """

    camera: Camera
    grey: Tensor
    target: Target
    steps_left: int  # steps that it still serves

    def tensors(self) -> dict[str, Tensor]:
        """All of it (any shape and range) by name, for a checkpoint."""
        target = {"target": self.target.target, "weight": self.target.weight}
        left = torch.tensor(self.steps_left)
        return {**vars(self.camera), "grey": self.grey, **target, "left": left}


def load_reused(tensors: Mapping[str, Tensor], device: torch.device) -> ReusedEstimate | None:
    """Inverse of `ReusedEstimate.tensors` (any shape and range); None if there are none."""
    if not tensors:
        return None
    here = {name: tensor.to(device) for name, tensor in tensors.items()}
    camera = Camera(**{field.name: here[field.name] for field in dataclasses.fields(Camera)})
    target = Target(here["target"], here["weight"])
    return ReusedEstimate(camera, here["grey"], target, int(here["left"]))

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
    """The views of an estimate that serves more steps: their cameras, the greys [B] in [0, 1] behind them, and the pull."""

    camera: Camera
    grey: Tensor
    pull: Target
    left: int  # steps it is still to serve

    def tensors(self) -> dict[str, Tensor]:
        """All of it (any shape and range) by name, for a checkpoint."""
        pull = {"target": self.pull.target, "weight": self.pull.weight}
        return {**vars(self.camera), "grey": self.grey, **pull, "left": torch.tensor(self.left)}


def load_reused(tensors: Mapping[str, Tensor], device: torch.device) -> ReusedEstimate | None:
    """Inverse of `ReusedEstimate.tensors` (any shape and range); None of nothing."""
    if not tensors:
        return None
    here = {name: tensor.to(device) for name, tensor in tensors.items()}
    camera = Camera(**{field.name: here[field.name] for field in dataclasses.fields(Camera)})
    return ReusedEstimate(
        camera, here["grey"], Target(here["target"], here["weight"]), int(here["left"])
    )

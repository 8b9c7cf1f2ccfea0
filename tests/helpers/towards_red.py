"""A guidance without a prior, for tests of the stage and its loop."""

from __future__ import annotations

import torch
from torch import Tensor

from vp3d.diffusion.text import TextEmbedding
from vp3d.guidance.condition import Condition
from vp3d.guidance.vp_sds import Target
from vp3d.types import Camera

Terms = dict[str, Tensor]
NOTHING = Condition({}, TextEmbedding(torch.zeros(1, 1, 1)))
RED = torch.tensor([0.9, 0.3, 0.3])[None, :, None, None]


class TowardsRed:
    """Wants a reddish picture, with a little noise of its own.

    `asked` counts its estimates and `used` its losses.
    """

    def __init__(self) -> None:
        self.asked = self.used = 0

    def __call__(
        self,
        rgb: Tensor,
        camera: Camera,
        condition: Condition,
        progress: float,
        generator: torch.Generator,
    ) -> tuple[Terms, Target]:
        """The loss of views rgb [B, 3, H, W] in [0, 1], and what it pulls them to."""
        self.asked += 1
        pull = Target(
            RED + 0.05 * torch.randn(rgb.shape, generator=generator), torch.ones(len(rgb))
        )
        return self.reuse(rgb, pull), pull

    def reuse(self, rgb: Tensor, pull: Target) -> Terms:
        """The loss of views rgb [B, 3, H, W] in [0, 1] by a pull that is there."""
        self.used += 1
        return {"sds": (rgb - pull.target).square().mean()}

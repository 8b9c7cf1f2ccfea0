"""Features for the hallucination score (`vp3d.align.hallucination.Features`).

`EmbeddedFeatures` are those that ship with the package; `TokenFeatures` those of a DINOv2 or CLIP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from vp3d.metrics.attribute_judge import Judge
from vp3d.rewards.encoders import ClipEncoder
from vp3d.rewards.image_image import ImageFeatures

STAGES = (0, 1)  # of the tower: the first sees edges and texture, the second parts
MULTIPLE = 16  # sides that the tower takes


class EmbeddedFeatures:
    """The embedded feature tower for the parts with positions, the embedded CLIP for the whole.

    The tower was trained at 64 pixels. It is convolutional and sees pictures at their full size,
    because a picture made smaller has lost the details that may be invented. The judge, which
    measures the result, has the same architecture but another seed, and is never used here.
    """

    def __init__(self, tower: Judge, clip: ClipEncoder) -> None:
        self.tower, self.clip = tower.eval().requires_grad_(False), clip

    def maps(self, rgb: Tensor) -> tuple[list[Tensor], Tensor]:
        """Unit features of two stages, and those of the last, of pictures in [0, 1] of any size."""
        size = max(round(rgb.shape[-1] / MULTIPLE), 1) * MULTIPLE
        if size != rgb.shape[-1]:
            rgb = F.interpolate(
                rgb, (size, size), mode="bilinear", antialias=True, align_corners=False
            )
        found = self.tower.stage_features(rgb)
        return [F.normalize(found[stage], dim=1) for stage in STAGES], found[-1]

    def whole(self, rgb: Tensor) -> Tensor:
        """CLIP's unit features `[B, D]`."""
        return self.clip.image(rgb)


class TokenTower(ImageFeatures, Protocol):
    """A frozen image tower with a feature for each patch."""

    folder: Path  # that it was read from

    def tokens(self, rgb: Tensor) -> Tensor:
        """Unit features `[B, T, C]` of the T patches of `rgb [B, 3, H, H]` in [0, 1]."""
        ...


class TokenFeatures:
    """Patch tokens and pooled features of one tower, such as DINOv2's."""

    def __init__(self, tower: TokenTower) -> None:
        self.tower = tower

    def maps(self, rgb: Tensor) -> tuple[list[Tensor], Tensor]:
        """The patch tokens as the one stage `[B, C, h, w]`, unit length at each position."""
        tokens = self.tower.tokens(rgb)
        side = round(tokens.shape[1] ** 0.5)
        stage = tokens.transpose(1, 2).unflatten(2, (side, side))
        return [stage], stage

    def whole(self, rgb: Tensor) -> Tensor:
        """Unit features `[B, D]`."""
        return self.tower.image(rgb)

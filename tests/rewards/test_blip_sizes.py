"""The sizes of BLIP are read from the shapes of its tensors; its norms are the published ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.tiny_rewards import SIZES
from vp3d.rewards.blip import Blip, BlipSizes


@pytest.mark.parametrize("patches", [1, 2, 3, 14])
def test_sizes_are_found_in_the_shapes(patches: int) -> None:
    sizes = replace(SIZES, image_size=16 * patches, patch_size=16)
    with torch.device("meta"):
        state = Blip(sizes).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["visual_encoder.pos_embed"] == (1, patches**2 + 1, sizes.vision_width)
    assert BlipSizes.of(shapes) == sizes


def test_the_norms_divide_as_the_published_ones_do() -> None:
    """1e-6 in the vision transformer (timm's ViT), 1e-12 in the text encoder (BERT)."""
    with torch.device("meta"):
        blip = Blip(SIZES)
    found = {
        tower: {module.eps for module in net.modules() if isinstance(module, torch.nn.LayerNorm)}
        for tower, net in (("vision", blip.visual_encoder), ("text", blip.text_encoder))
    }
    assert found == {"vision": {1e-6}, "text": {1e-12}}

"""CLIP's patch features against a plain pass through its layers, and folders without weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import vp3d.system.torch_compat  # noqa: F401  (before open_clip, which imports torchvision)

import pytest
import torch

from tests.helpers.tiny_clip import write_tiny_clip
from vp3d.errors import UserError
from vp3d.rewards.encoders import WEIGHTS_FILE, ClipEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@torch.no_grad()
def test_patch_features_are_the_last_blocks_after_the_final_norm(folder: Path) -> None:
    """By hand: the output of the last block, the layer norm, without the class token, length 1."""
    clip, kept = ClipEncoder(folder), []
    visual = clip.model.visual
    visual.ln_post.weight.copy_(torch.linspace(0.2, 3.0, 32))  # a norm that changes directions
    visual.ln_post.bias.copy_(torch.linspace(-1.0, 1.0, 32))
    rgb = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    hook = visual.transformer.resblocks[-1].register_forward_hook(
        lambda _module, _inputs, output: kept.append(output)
    )
    visual(clip.preprocess(rgb))
    hook.remove()
    (hidden,) = kept
    centred = hidden - hidden.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    patches = (normal * visual.ln_post.weight + visual.ln_post.bias)[:, 1:]
    expected = patches / patches.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(clip.tokens(rgb), expected, atol=1e-5, rtol=1e-4)


def test_a_model_without_weights_is_refused_and_not_made_up(folder: Path, tmp_path: Path) -> None:
    """open_clip would give random weights, and only warn."""
    shutil.copytree(folder, tmp_path / "clip")
    (tmp_path / "clip" / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match="not a usable open_clip folder"):
        ClipEncoder(tmp_path / "clip")

"""The aesthetic reward: how good a picture looks, whatever it shows.

It is LAION's aesthetic head on CLIP ViT-L/14 (improved-aesthetic-predictor):

    r = head(CLIP(x) / |CLIP(x)|)        about 1 to 10, higher is better

The head has linear layers of 768-1024-128-64-16-1 features. A model folder has the CLIP in
transformers' layout, and the head as `head.safetensors` (`layers.N.weight`, `layers.N.bias`).
AlignProp (arXiv 2310.03739) uses the reward as `-|r - 10|`; here the hinge of the term does that.
"""

from __future__ import annotations

from vp3d.system.torch_compat import freeze

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vp3d.errors import UserError
from vp3d.rewards.imagereward import score_head
from vp3d.rewards.towers import ClipTower, load_clip_tower
from vp3d.weights.readable import readable

CONFIG_KEY = "rewards.aesthetic_model"


class Aesthetic:
    """The frozen head and its CLIP."""

    def __init__(self, clip: ClipTower, layers: nn.Sequential) -> None:
        self.clip = clip
        self.layers = freeze(layers).to(clip.device)

    def score(self, rgb: Tensor, target: Tensor) -> Tensor:
        """Rewards `[B]` of pictures `rgb [B, 3, H, H]` in [0, 1]; differentiable.

        `target` is not used: the reward has no text and no picture to compare with.
        """
        return self.layers(self.clip.image(rgb))[:, 0]


def load_aesthetic(location: str, device: torch.device | str = "cpu") -> Aesthetic:
    """Load the CLIP and the head.

    Args:
        location: A model folder, or a name of `models list`.
        device: Where the model runs.

    Returns:
        The frozen model.

    Raises:
        UserError: A file is missing, damaged or of another model.
    """
    clip = load_clip_tower(location, CONFIG_KEY, device, text=False)
    path = clip.folder / "head.safetensors"
    if not path.is_file():
        raise UserError(
            f"{path} is missing: set {CONFIG_KEY} to a folder written by `models fetch`"
        )
    with readable(str(path), CONFIG_KEY):
        state = {
            key.removeprefix("layers."): value.float() for key, value in load_file(path).items()
        }
        layers = score_head(clip.model.config.projection_dim)
        layers.load_state_dict(state)
    return Aesthetic(clip, layers)

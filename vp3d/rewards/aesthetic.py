"""How good a picture looks, whatever it shows: LAION's aesthetic head on CLIP ViT-L/14 (improved-aesthetic-predictor).

    r = head(CLIP(x) / |CLIP(x)|)        about 1 to 10, higher is better; linear layers 768-1024-128-64-16-1

A folder with the CLIP in transformers' layout and the head as `head.safetensors` (`layers.N.weight`, `layers.N.bias`).
AlignProp rewards it as `-|r - 10|` (reference values in arXiv 2310.03739); here the hinge of the term does that.
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

KEY = "rewards.aesthetic_model"


class Aesthetic:
    """The frozen head and its CLIP."""

    def __init__(self, clip: ClipTower, layers: nn.Sequential) -> None:
        self.clip = clip
        self.layers = freeze(layers).to(clip.device)

    def score(self, rgb: Tensor, target: Tensor) -> Tensor:
        """Rewards `[B]` of pictures `rgb [B, 3, H, H]` in [0, 1]; differentiable. `target` is not looked at."""
        return self.layers(self.clip.image(rgb))[:, 0]


def load_aesthetic(place: str, device: torch.device | str = "cpu") -> Aesthetic:
    """Load CLIP and head from `place` (a folder or a name of the table); UserError for anything missing or unfit."""
    clip = load_clip_tower(place, KEY, device, text=False)
    path = clip.folder / "head.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing: set {KEY} to a folder that `models fetch` made")
    with readable(str(path), KEY):
        state = {
            key.removeprefix("layers."): value.float() for key, value in load_file(path).items()
        }
        layers = score_head(clip.model.config.projection_dim)
        layers.load_state_dict(state)
    return Aesthetic(clip, layers)

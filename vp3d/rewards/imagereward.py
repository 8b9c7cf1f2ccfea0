"""ImageReward-v1.0 (Xu et al., arXiv 2304.05977): how well people think a picture fits its text.

    r = (MLP(BLIP(picture, text)) - 0.16717) / 1.03334        a standardised score, mostly in [-2, 2], higher is better

A folder with `model.safetensors` (the published state dict: `blip.visual_encoder.*`, `blip.text_encoder.*`, `mlp.layers.*`)
and `vocab.txt` (BERT's, lower-case). The published code scores pictures without gradient and has a second, tensor path for
training; this is that path, from rgb in [0, 1] on.
"""

from __future__ import annotations

from pathlib import Path

from vp3d.system.torch_compat import freeze

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn

from vp3d.diffusion.image_prompt import CLIP_MEAN, CLIP_STD
from vp3d.errors import UserError
from vp3d.rewards.blip import Blip, BlipSizes
from vp3d.rewards.resize import channels, resize_normalize
from vp3d.weights.locate import local_weights

WEIGHTS, VOCABULARY = "model.safetensors", "vocab.txt"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw score on the training set
TOKENS = 35  # the longest text it was trained on, start and end included
HIDDEN = (1024, 128, 64, 16, 1)
UNUSED = (
    "blip.vision_proj.",
    "blip.text_proj.",
    "blip.text_encoder.embeddings.position_ids",
)  # of BLIP's pre-training


def score_head(width: int) -> nn.Sequential:
    """The linear-only head `width`-1024-128-64-16-1; dropout keeps the published numbering of its layers."""
    layers: list[nn.Module] = []
    for inside, outside in zip((width, *HIDDEN[:-1]), HIDDEN, strict=True):
        layers.append(nn.Linear(inside, outside))
        if outside > 16:
            layers.append(nn.Dropout())
    return nn.Sequential(*layers)


class ImageRewardNet(nn.Module):
    """The network under its published parameter names."""

    def __init__(self, sizes: BlipSizes) -> None:
        super().__init__()
        self.blip = Blip(sizes)
        self.mlp = nn.ModuleDict({"layers": score_head(sizes.text_width)})

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores `[B]` of normalised pictures `[B, 3, S, S]` and texts, ids and mask `[B, L]`."""
        return (self.mlp["layers"](self.blip(pixels, ids, mask))[:, 0] - MEAN) / STD


class ImageReward:
    """The frozen model as a text-image reward: `target(prompts)`, then `score(rgb, target)`."""

    def __init__(
        self,
        net: ImageRewardNet,
        image_size: int,
        vocabulary: Path,
        device: torch.device | str = "cpu",
    ) -> None:
        self.net = freeze(net).to(device)
        self.size, self.device = image_size, torch.device(device)
        self.tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
        self.mean, self.std = channels(CLIP_MEAN, device), channels(CLIP_STD, device)

    def target(self, prompts: list[str], cut: bool = False) -> Tensor:
        """Token ids `[B, 35]` of prompts, 0 behind their end; UserError for one that does not fit, whose view words were lost.

        cut: shorten such a prompt instead, as the published package does.
        """
        rows = [self.tokenizer.encode(prompt).ids for prompt in prompts]
        if cut:
            rows = [ids if len(ids) <= TOKENS else ids[: TOKENS - 1] + ids[-1:] for ids in rows]
        for prompt, ids in zip(prompts, rows, strict=True):
            if len(ids) > TOKENS:
                raise UserError(
                    f'the prompt "{prompt}" has {len(ids)} tokens, ImageReward reads {TOKENS}: '
                    "shorten it or set rewards.text_model to another"
                )
        return torch.tensor([ids + [0] * (TOKENS - len(ids)) for ids in rows], device=self.device)

    def score(self, rgb: Tensor, target: Tensor) -> Tensor:
        """Rewards `[B]` of `rgb [B, 3, H, H]` in [0, 1] for token ids `[B, 35]` (or `[1, 35]`); differentiable in rgb."""
        ids = target.expand(len(rgb), -1)
        return self.net(resize_normalize(rgb, self.size, self.mean, self.std), ids, ids != 0)


def check_vocabulary(path: Path) -> None:
    """ValueError for a file that is not BERT's vocabulary, of which the tokenizer makes an error of no particular kind."""
    words = path.read_text(encoding="utf-8").split("\n")
    if words[0] != "[PAD]" or not {"[UNK]", "[CLS]", "[SEP]"} <= set(words):
        raise ValueError(
            f"{path.name} is not BERT's vocabulary: it does not begin with [PAD], or has no [UNK], [CLS] or [SEP]"
        )


def load_imagereward(place: str, device: torch.device | str = "cpu") -> ImageReward:
    """Load ImageReward from `place` (a folder or a name of the table), strictly; UserError for anything missing or unfit."""
    folder = local_weights(place, "rewards.imagereward")
    for name in (WEIGHTS, VOCABULARY):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} is missing: set rewards.imagereward to a folder that `models fetch` made"
            )
    try:
        with safe_open(folder / WEIGHTS, "pt") as stored:
            state = {
                key: stored.get_tensor(key).float()
                for key in stored.keys()  # noqa: SIM118
                if not key.startswith(UNUSED)
            }
        sizes = BlipSizes.of(
            {key.removeprefix("blip."): tuple(value.shape) for key, value in state.items()}
        )
        with torch.device("meta"):
            net = ImageRewardNet(sizes)
        net.load_state_dict(state, assign=True)
        check_vocabulary(folder / VOCABULARY)
        return ImageReward(net, sizes.image_size, folder / VOCABULARY, device)
    except (SafetensorError, OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{folder} is not ImageReward ({type(error).__name__}: {reason})"
        ) from error

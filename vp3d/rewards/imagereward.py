"""ImageReward-v1.0 (Xu et al., arXiv 2304.05977): how well people think a picture fits its text.

    r = (MLP(BLIP(picture, text)) - 0.16717) / 1.03334

r is a standardised score, mostly in [-2, 2]; higher is better.

A folder has `model.safetensors` (the published state dict: `blip.visual_encoder.*`,
`blip.text_encoder.*`, `mlp.layers.*`) and `vocab.txt` (BERT's, lower-case). The published code has
two paths: one scores PIL pictures without gradient, the other takes tensors, for training. This
module is the second one, from rgb in [0, 1] on.
"""

from __future__ import annotations

from pathlib import Path

from vp3d.system.torch_compat import freeze

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn

from vp3d.diffusion.image_prompt import CLIP_MEAN, CLIP_STD
from vp3d.errors import UserError, in_one_line
from vp3d.prompt_length import fit_prompt
from vp3d.rewards.blip import Blip, BlipSizes
from vp3d.rewards.resize import channels, resize_normalize
from vp3d.weights.locate import local_weights

WEIGHTS_FILE, VOCABULARY_FILE = "model.safetensors", "vocab.txt"
# Mean and standard deviation of the raw score on the training set, as published.
SCORE_MEAN, SCORE_STD = 0.16717362830052426, 1.0333394966054072
MAX_TOKENS = 35  # the longest text of its training, start and end tokens included
HEAD_WIDTHS = (1024, 128, 64, 16, 1)
# Tensors of the checkpoint that only BLIP's pre-training uses.
UNUSED_TENSORS = (
    "blip.vision_proj.",
    "blip.text_proj.",
    "blip.text_encoder.embeddings.position_ids",
)


def score_head(width: int) -> nn.Sequential:
    """The head: linear layers of `width`-1024-128-64-16-1 features, without activations.

    The dropout layers do nothing in eval mode. They keep the published numbering of the layers.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in zip((width, *HEAD_WIDTHS[:-1]), HEAD_WIDTHS, strict=True):
        layers.append(nn.Linear(width_in, width_out))
        if width_out > 16:
            layers.append(nn.Dropout())
    return nn.Sequential(*layers)


class ImageRewardNet(nn.Module):
    """The network under its published parameter names."""

    def __init__(self, sizes: BlipSizes) -> None:
        super().__init__()
        self.blip = Blip(sizes)
        self.mlp = nn.ModuleDict({"layers": score_head(sizes.text_width)})

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores `[B]` of normalised pictures `[B, 3, S, S]` for token ids and mask `[B, L]`."""
        raw = self.mlp["layers"](self.blip(pixels, ids, mask))[:, 0]
        return (raw - SCORE_MEAN) / SCORE_STD


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
        """Token ids `[B, 35]` of prompts, padded with 0.

        Args:
            prompts: B prompts with their view words.
            cut: Cut a prompt that is too long at its end, as the published package does. It loses
                its view words; by default it loses words before them (`fit`).

        Returns:
            `[B, 35]` int64.
        """
        if not cut:
            prompts = [self.fit(prompt)[0] for prompt in prompts]
        rows = [self.tokenizer.encode(prompt).ids for prompt in prompts]
        last = MAX_TOKENS - 1
        rows = [ids if len(ids) <= MAX_TOKENS else ids[:last] + ids[-1:] for ids in rows]
        padded = [ids + [0] * (MAX_TOKENS - len(ids)) for ids in rows]
        return torch.tensor(padded, device=self.device)

    def fit(self, prompt: str) -> tuple[str, str]:
        """The part of a prompt that the model reads, with its view words, and the rest."""
        return fit_prompt(prompt, MAX_TOKENS, lambda text: len(self.tokenizer.encode(text).ids))

    def score(self, rgb: Tensor, target: Tensor) -> Tensor:
        """Rewards `[B]` of pictures `rgb [B, 3, H, H]` in [0, 1]; differentiable in rgb.

        `target` has token ids, `[B, 35]`, or `[1, 35]` for all pictures.
        """
        ids = target.expand(len(rgb), -1)
        return self.net(resize_normalize(rgb, self.size, self.mean, self.std), ids, ids != 0)


def check_vocabulary(path: Path) -> None:
    """Raise ValueError if a file is not BERT's vocabulary.

    Without this check the tokenizer raises a bare Exception or TypeError, or gives wrong ids.
    """
    words = path.read_text(encoding="utf-8").split("\n")
    if words[0] != "[PAD]" or not {"[UNK]", "[CLS]", "[SEP]"} <= set(words):
        raise ValueError(
            f"{path.name} is not BERT's vocabulary: "
            "it does not start with [PAD], or has no [UNK], [CLS] or [SEP]"
        )


def load_imagereward(location: str, device: torch.device | str = "cpu") -> ImageReward:
    """Load ImageReward; every tensor of the network must be in the file, and no other.

    Args:
        location: A model folder, or a name of `models list`.
        device: Where the model runs.

    Returns:
        The frozen model.

    Raises:
        UserError: A file is missing, damaged or of another model.
    """
    folder = local_weights(location, "rewards.imagereward")
    for name in (WEIGHTS_FILE, VOCABULARY_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} is missing: "
                "set rewards.imagereward to a folder written by `models fetch`"
            )
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as stored:
            state = {
                key: stored.get_tensor(key).float()
                for key in stored.keys()  # noqa: SIM118
                if not key.startswith(UNUSED_TENSORS)
            }
        sizes = BlipSizes.of(
            {key.removeprefix("blip."): tuple(value.shape) for key, value in state.items()}
        )
        with torch.device("meta"):
            net = ImageRewardNet(sizes)
        net.load_state_dict(state, assign=True)
        check_vocabulary(folder / VOCABULARY_FILE)
        return ImageReward(net, sizes.image_size, folder / VOCABULARY_FILE, device)
    except (SafetensorError, OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
        reason = in_one_line(error)
        raise UserError(
            f"{folder} is not ImageReward ({type(error).__name__}: {reason}); "
            "set rewards.imagereward to a folder written by `models fetch`"
        ) from error

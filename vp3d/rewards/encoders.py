"""Frozen CLIP features of pictures and prompts, differentiable with respect to the picture.

A model is an open_clip folder (`local-dir:`), read offline:

    open_clip_config.json         {"model_cfg": {"embed_dim", "vision_cfg", "text_cfg"},
                                   "preprocess_cfg": {"mean", "std", ...}}
    open_clip_model.safetensors   the weights, in the only format that is read
    tokenizer.json                a Hugging Face fast tokenizer
    tokenizer_config.json         {"tokenizer_class": "PreTrainedTokenizerFast",
                                   "pad_token", "eos_token", ...}

If `text_cfg.hf_tokenizer_name` is set, to any name, open_clip reads the tokenizer from this folder.
Otherwise it uses OpenAI's byte-pair tokenizer. With the default text pooling ("argmax") the
end-of-text token must have the highest id; with `text_cfg.pool_type: "eos"` its id is
`text_cfg.eos_id`.

Conventions: pictures are square, `[B, 3, H, H]` in [0, 1] sRGB, of any size. Features have unit
length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vp3d.errors import UserError, in_one_line

# Before open_clip, which imports torchvision.
from vp3d.system.torch_compat import freeze  # isort: skip

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from vp3d.config.paths import locate
from vp3d.prompt_length import fit_prompt
from vp3d.rewards.resize import channels, resize_normalize
from vp3d.system.files import read_json_object
from vp3d.weights.locate import local_weights
from vp3d.weights.manifest import verify_files
from vp3d.weights.model_settings import check_model_settings, offline

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
CODE_KEYS = frozenset(  # settings of open_clip that name code of other packages or of a folder
    ("hf_model_name", "timm_model_name", "tokenizer_kwargs", "tokenizer_mode", "norm_kwargs")
)


def load_clip(
    clip: str, manifest: str = "", device: torch.device | str = "cpu", key: str = "rewards.clip"
) -> ClipEncoder:
    """Load a frozen CLIP.

    Args:
        clip: An open_clip folder, or a name of `models list`.
        manifest: A file of hashes that the folder's files are checked against; "" for none.
        device: Where the model runs.
        key: The config key that `clip` is the value of, for error messages.

    Returns:
        The encoder.

    Raises:
        UserError: A file is missing, damaged or of another kind.
    """
    folder = local_weights(clip, key)
    if manifest:
        verify_files(locate(manifest), folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} is missing: "
                f"set {key} to an open_clip folder with safetensors weights"
            )
    return ClipEncoder(folder, device)


def check_model_config(path: Path) -> bool:
    """Refuse the config of an open_clip folder that chooses code.

    open_clip would build a tower of timm or transformers that the config names, and would pass its
    `tokenizer_kwargs` on, among them "trust_remote_code".

    Returns:
        Whether the tokenizer is that of the folder, and not open_clip's own.

    Raises:
        ValueError: The config names other code. JsonError: It cannot be read.
    """
    model = read_json_object(path).get("model_cfg")
    if not isinstance(model, dict):
        raise ValueError(f"{path.name} has no model_cfg")
    for key in ("custom_text", "multimodal_cfg"):
        if model.get(key):
            raise ValueError(f"{path.name} sets {key}, which is not supported")
    text, vision = (model.get(key) for key in ("text_cfg", "vision_cfg"))
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise ValueError(f"{path.name} has no text_cfg or vision_cfg")
    named = [f"text_cfg.{key}" for key in sorted(text.keys() & CODE_KEYS) if text[key]]
    named += [f"vision_cfg.{key}" for key in sorted(vision.keys() & CODE_KEYS) if vision[key]]
    check_model_settings(model)
    if named:
        raise ValueError(f"{path.name} sets {', '.join(named)}, which could run other code")
    return bool(text.get("hf_tokenizer_name"))


class ClipEncoder:
    """A frozen open_clip model: in eval mode, its parameters without gradient."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        name = f"local-dir:{folder}"
        try:
            own_tokenizer = check_model_config(folder / CONFIG_FILE)
            # open_clip hands these to transformers, over those of the folder
            options = {"trust_remote_code": False} if own_tokenizer else {}
            with offline():
                model = open_clip.create_model(name, device=device, require_pretrained=True)
                self.tokenizer = open_clip.get_tokenizer(name, **options)
            self._read_preprocessing(model, device)
        except Exception as error:  # open_clip raises many types for a damaged file
            reason = in_one_line(error)
            raise UserError(f"{folder} is not a usable open_clip folder: {reason}") from error
        self.folder = folder
        self.model = freeze(model)
        self.device = torch.device(device)

    def _read_preprocessing(self, model: Any, device: torch.device | str) -> None:
        """Take the size, the interpolation and the colours of the model's pictures."""
        preprocess = model.visual.preprocess_cfg
        size = preprocess["size"]
        self.size: int = size if isinstance(size, int) else size[0]
        self.interpolation: str = preprocess["interpolation"]
        self.mean = channels(preprocess["mean"], device)
        self.std = channels(preprocess["std"], device)

    def preprocess(self, rgb: Tensor) -> Tensor:
        """The input of the image tower, `[B, 3, size, size]`, normalised; differentiable.

        `rgb` is `[B, 3, H, H]` in [0, 1].
        """
        return resize_normalize(rgb, self.size, self.mean, self.std, self.interpolation)

    def image(self, rgb: Tensor) -> Tensor:
        """Unit features `[B, D]` of pictures `rgb [B, 3, H, H]` in [0, 1]; differentiable."""
        return self.model.encode_image(self.preprocess(rgb), normalize=True)

    def tokens(self, rgb: Tensor) -> Tensor:
        """Unit features `[B, T, C]` of the patches, from the last block; differentiable.

        `rgb` is `[B, 3, H, H]` in [0, 1].
        """
        features = self.model.visual.forward_intermediates(
            self.preprocess(rgb),
            indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
        )
        return F.normalize(features["image_intermediates"][-1], dim=-1)

    @torch.no_grad()
    def text(self, prompts: list[str]) -> Tensor:
        """Unit features `[B, D]` of prompts, in the space of `image`; without gradient."""
        tokens = self.tokenizer([self.fit(prompt)[0] for prompt in prompts])
        return self.model.encode_text(tokens.to(self.device), normalize=True)

    def fit(self, prompt: str) -> tuple[str, str]:
        """The part of a prompt that the text tower reads, with its view words, and the rest."""
        return fit_prompt(prompt, self.tokenizer.context_length, self._count)

    def _count(self, text: str) -> int:
        """Tokens of a text, with those of its start and end."""
        inner = getattr(self.tokenizer, "tokenizer", None)  # of a Hugging Face tokenizer
        if inner is not None:
            return len(inner(text).input_ids)
        return len(self.tokenizer.encode(text)) + 2

"""Frozen CLIP and DINOv2 towers in transformers' folder layout.

CLIP is used for PickScore and, as ViT-L/14, for the aesthetic head. A folder has `config.json`,
`model.safetensors`, `preprocessor_config.json` (its `crop_size`, mean and std are used) and, for a
text tower, the tokenizer's files. Pictures are `[B, 3, H, H]` in [0, 1] sRGB. They are resized
without a crop: the centre crop of the published preprocessing would cut an object that fills its
view. Features have unit length.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vp3d.system.torch_compat import freeze

import torch
import torch.nn.functional as F
from torch import Tensor

from vp3d.diffusion.image_prompt import CLIP_MEAN, CLIP_STD
from vp3d.prompt_length import fit_prompt
from vp3d.rewards.resize import channels, resize_normalize
from vp3d.system.files import read_json_object
from vp3d.weights.locate import local_weights, read_whole
from vp3d.weights.model_settings import offline
from vp3d.weights.readable import readable

import transformers  # isort: skip

T = TypeVar("T", bound="Tower")


class Tower:
    """A frozen transformers model and its preprocessing."""

    def __init__(self, model: Any, folder: Path, size: int, device: torch.device | str) -> None:
        self.model = freeze(model).to(device)
        self.folder, self.device = folder, torch.device(device)
        settings = read_json_object(folder / "preprocessor_config.json")
        crop = settings.get("crop_size", size)
        self.size: int = crop["height"] if isinstance(crop, dict) else crop
        self.mean = channels(settings.get("image_mean", CLIP_MEAN), device)
        self.std = channels(settings.get("image_std", CLIP_STD), device)

    def preprocess(self, rgb: Tensor) -> Tensor:
        """The input of the tower, `[B, 3, size, size]`, normalised; differentiable.

        `rgb` is `[B, 3, H, H]` in [0, 1].
        """
        return resize_normalize(rgb, self.size, self.mean, self.std)


class ClipTower(Tower):
    """A `CLIPModel`; text and image features are in one space."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu", text: bool = True) -> None:
        model = _read(transformers.CLIPModel, folder)
        super().__init__(model, folder, model.config.vision_config.image_size, device)
        self.scale = float(model.logit_scale.detach().exp())
        # Code in the folder is never run, and nothing asks whether to run it.
        options = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = None
        if text:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)

    def image(self, rgb: Tensor) -> Tensor:
        """Unit features `[B, D]` of pictures `rgb [B, 3, H, H]` in [0, 1]; differentiable."""
        pooled = self.model.vision_model(pixel_values=self.preprocess(rgb)).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    def tokens(self, rgb: Tensor) -> Tensor:
        """Unit patch features `[B, T, C]` of `rgb [B, 3, H, H]` in [0, 1]; differentiable."""
        found = self.model.vision_model(pixel_values=self.preprocess(rgb)).last_hidden_state
        return F.normalize(found[:, 1:], dim=-1)

    @torch.no_grad()
    def text(self, prompts: list[str]) -> Tensor:
        """Unit features `[B, D]` of prompts, in the space of `image`; without gradient."""
        fitted = [self.fit(prompt)[0] for prompt in prompts]
        tokens = self._tokenizer()(
            fitted,
            padding="max_length",
            max_length=self._text_length,
            truncation=True,
            return_tensors="pt",
        )
        pooled = self.model.text_model(input_ids=tokens.input_ids.to(self.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)

    def fit(self, prompt: str) -> tuple[str, str]:
        """The part of a prompt that the text tower reads, with its view words, and the rest."""
        tokenizer = self._tokenizer()
        return fit_prompt(prompt, self._text_length, lambda text: len(tokenizer(text).input_ids))

    @property
    def _text_length(self) -> int:
        """Tokens that the text tower reads."""
        return int(self.model.config.text_config.max_position_embeddings)

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError("this tower has no tokenizer: load it with text=True")
        return self.tokenizer


class DinoTower(Tower):
    """A `Dinov2Model`: image features that describe shape and layout; it has no text tower."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        model = _read(transformers.Dinov2Model, folder)
        super().__init__(model, folder, model.config.image_size, device)

    def image(self, rgb: Tensor) -> Tensor:
        """Unit class-token features `[B, C]` of `rgb [B, 3, H, H]` in [0, 1]; differentiable."""
        return F.normalize(self._hidden(rgb)[:, 0], dim=-1)

    def tokens(self, rgb: Tensor) -> Tensor:
        """Unit patch features `[B, T, C]` of `rgb [B, 3, H, H]` in [0, 1]; differentiable."""
        return F.normalize(self._hidden(rgb)[:, 1:], dim=-1)

    def _hidden(self, rgb: Tensor) -> Tensor:
        return self.model(pixel_values=self.preprocess(rgb)).last_hidden_state


def _read(kind: Any, folder: Path) -> Any:
    """A model of class `kind` in float32; an error if its file lacks a tensor."""
    return read_whole(kind, folder, local_files_only=True, dtype=torch.float32)


def load_clip_tower(
    location: str, key: str, device: torch.device | str = "cpu", text: bool = True
) -> ClipTower:
    """Load a frozen CLIP.

    Args:
        location: A model folder, or a name of `models list`.
        key: The config key that `location` is the value of, for error messages.
        device: Where the model runs.
        text: Whether to load the tokenizer too, which `ClipTower.text` needs.

    Returns:
        The tower.

    Raises:
        UserError: A file is missing, damaged or of another model.
    """
    return _load(location, key, lambda folder: ClipTower(folder, device, text))


def load_dino(
    location: str, device: torch.device | str = "cpu", key: str = "rewards.dinov2"
) -> DinoTower:
    """Load the frozen DINOv2 of a folder or a name of `models list`; UserError if it is unfit.

    `key` is the config key or option that `location` is the value of, for error messages.
    """
    return _load(location, key, lambda folder: DinoTower(folder, device))


def _load(location: str, key: str, build: Callable[[Path], T]) -> T:
    folder = local_weights(location, key)
    with readable(str(folder), key), offline():
        transformers.utils.logging.disable_progress_bar()
        # transformers warns about tensors that a file lacks; `read_whole` raises an error instead.
        transformers.utils.logging.set_verbosity_error()
        return build(folder)

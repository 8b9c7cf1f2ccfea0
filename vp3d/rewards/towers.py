"""Frozen towers in transformers' folder layout: CLIP (PickScore, the aesthetic head's ViT-L/14) and DINOv2.

A folder holds `config.json`, `model.safetensors`, `preprocessor_config.json` (its `crop_size`, mean and std are used) and,
where text is read, the tokenizer's files. Pictures are `[B, 3, H, H]` in [0, 1] sRGB and are resized whole: the centre crop
of the published preprocessing would cut an object that fills its view. Features have unit length.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vp3d.system.torch_compat import freeze

import torch
import torch.nn.functional as F
from torch import Tensor

from vp3d.diffusion.image_prompt import CLIP_MEAN, CLIP_STD
from vp3d.rewards.resize import channels, resize_normalize
from vp3d.weights.locate import local_weights, read_whole
from vp3d.weights.readable import readable

import transformers  # isort: skip

T = TypeVar("T", bound="Tower")


class Tower:
    """A frozen transformers model and its preprocessing."""

    def __init__(self, model: Any, folder: Path, size: int, device: torch.device | str) -> None:
        self.model = freeze(model).to(device)
        self.folder, self.device = folder, torch.device(device)
        settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        crop = settings.get("crop_size", size)
        self.size: int = crop["height"] if isinstance(crop, dict) else crop
        self.mean = channels(settings.get("image_mean", CLIP_MEAN), device)
        self.std = channels(settings.get("image_std", CLIP_STD), device)

    def preprocess(self, rgb: Tensor) -> Tensor:
        """What the tower sees, `[B, 3, size, size]` normalised, of `rgb [B, 3, H, H]` in [0, 1]; differentiable."""
        return resize_normalize(rgb, self.size, self.mean, self.std)


class ClipTower(Tower):
    """A `CLIPModel`; text and image features share a space."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu", text: bool = True) -> None:
        model = _read(transformers.CLIPModel, folder)
        super().__init__(model, folder, model.config.vision_config.image_size, device)
        self.scale = float(model.logit_scale.detach().exp())
        options = {
            "local_files_only": True,
            "trust_remote_code": False,
        }  # False: no code of the folder's, and nobody is asked
        self.tokenizer = (
            transformers.AutoTokenizer.from_pretrained(folder, **options) if text else None
        )

    def image(self, rgb: Tensor) -> Tensor:
        """Unit features `[B, D]` of `rgb [B, 3, H, H]` in [0, 1]; differentiable with respect to rgb."""
        pooled = self.model.vision_model(pixel_values=self.preprocess(rgb)).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def text(self, prompts: list[str]) -> Tensor:
        """Unit features `[B, D]` of prompts, in the same space as `image`; without gradient."""
        if self.tokenizer is None:
            raise ValueError("this tower was loaded without its tokenizer")
        length = self.model.config.text_config.max_position_embeddings
        found = self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        pooled = self.model.text_model(input_ids=found.input_ids.to(self.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)


class DinoTower(Tower):
    """A `Dinov2Model`: features of pictures alone, of shape and layout more than of words."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        model = _read(transformers.Dinov2Model, folder)
        super().__init__(model, folder, model.config.image_size, device)

    def image(self, rgb: Tensor) -> Tensor:
        """Unit class-token features `[B, C]` of `rgb [B, 3, H, H]` in [0, 1]; differentiable with respect to rgb."""
        return F.normalize(self._hidden(rgb)[:, 0], dim=-1)

    def tokens(self, rgb: Tensor) -> Tensor:
        """Unit patch features `[B, T, C]` of `rgb [B, 3, H, H]` in [0, 1]; differentiable with respect to rgb."""
        return F.normalize(self._hidden(rgb)[:, 1:], dim=-1)

    def _hidden(self, rgb: Tensor) -> Tensor:
        return self.model(pixel_values=self.preprocess(rgb)).last_hidden_state


def _read(kind: Any, folder: Path) -> Any:
    """A model of class `kind`, whole, in float32."""
    return read_whole(kind, folder, local_files_only=True, dtype=torch.float32)


def load_clip_tower(
    place: str, key: str, device: torch.device | str = "cpu", text: bool = True
) -> ClipTower:
    """The CLIP of `place`, the value of config key `key`; without its text side's tokenizer if `text` is False."""
    return _load(place, key, lambda folder: ClipTower(folder, device, text))


def load_dino(place: str, device: torch.device | str = "cpu") -> DinoTower:
    """The DINOv2 of `place`, a folder or a name of the table."""
    return _load(place, "rewards.dinov2", lambda folder: DinoTower(folder, device))


def _load(place: str, key: str, build: Callable[[Path], T]) -> T:
    folder = local_weights(place, key)
    with readable(str(folder), key):
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()  # it reports what a file lacks; `read_whole` refuses that
        return build(folder)

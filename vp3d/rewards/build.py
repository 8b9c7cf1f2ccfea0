"""The models behind the rewards, built from the config; only what is used is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vp3d.config.schema import RewardsConfig
from vp3d.rewards.aesthetic import Aesthetic, load_aesthetic
from vp3d.rewards.encoders import ClipEncoder, load_clip
from vp3d.rewards.image_image import ImageFeatures
from vp3d.rewards.imagereward import load_imagereward
from vp3d.rewards.text_image import ClipText, TextImage
from vp3d.rewards.towers import load_clip_tower, load_dino


@dataclass(frozen=True)
class Judges:
    """What judges rendered views: by their text, by the visual prompt, and (if asked for) by their looks."""

    text: TextImage
    image: ImageFeatures
    aesthetic: Aesthetic | None = None


def load_judges(
    config: RewardsConfig, manifest: str = "", device: torch.device | str = "cpu"
) -> Judges:
    """Load the models that `config` names; `manifest` covers the open_clip folder `config.clip` alone ("" for none)."""
    needs_clip = "clip" in (config.text_model, config.image_model)
    clip = load_clip(config.clip, manifest, device) if needs_clip else None
    text = _text_model(config, clip, device)
    image: ImageFeatures = (
        clip if clip and config.image_model == "clip" else load_dino(config.dinov2, device)
    )
    aesthetic = (
        load_aesthetic(config.aesthetic_model, device) if config.aesthetic.weight > 0.0 else None
    )
    return Judges(text, image, aesthetic)


def _text_model(
    config: RewardsConfig, clip: ClipEncoder | None, device: torch.device | str
) -> TextImage:
    if config.text_model == "imagereward":
        return load_imagereward(config.imagereward, device)
    if config.text_model == "pickscore":
        tower = load_clip_tower(config.pickscore, "rewards.pickscore", device)
        return ClipText(tower, tower.scale)
    if config.text_model == "hpsv2":
        return ClipText(load_clip(config.hpsv2, "", device, "rewards.hpsv2"))
    assert clip is not None
    return ClipText(clip)

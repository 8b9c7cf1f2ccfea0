"""Load the models behind the rewards. Only the models that the config uses are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vp3d.config.schema import RewardsConfig
from vp3d.errors import UserError
from vp3d.rewards.aesthetic import Aesthetic, load_aesthetic
from vp3d.rewards.encoders import ClipEncoder, load_clip
from vp3d.rewards.image_image import ImageFeatures
from vp3d.rewards.imagereward import load_imagereward
from vp3d.rewards.text_image import ClipText, TextImage
from vp3d.rewards.towers import load_clip_tower, load_dino


@dataclass(frozen=True)
class Judges:
    """The frozen models that score rendered views.

    Attributes:
        text: Scores a view by its text.
        image: Gives the features that compare a view with the visual prompt.
        aesthetic: Scores how good a view looks; None if that reward is off.
    """

    text: TextImage
    image: ImageFeatures
    aesthetic: Aesthetic | None = None


def load_judges(
    config: RewardsConfig, manifest: str = "", device: torch.device | str = "cpu"
) -> Judges:
    """Load the models that `config` names.

    Args:
        config: The `rewards` group.
        manifest: A file of hashes that the open_clip folder `config.clip` is checked against;
            "" for none.
        device: Where the models run.

    Returns:
        The models. CLIP is shared if it serves text and image.

    Raises:
        UserError: A model is missing, damaged or of another kind, or a setting is unknown.
    """
    clip = None
    if "clip" in (config.text_model, config.image_model):
        clip = load_clip(config.clip, manifest, device)
    text, image = _text_model(config, clip, device), _image_model(config, clip, device)
    aesthetic = None
    if config.aesthetic.weight > 0.0:
        aesthetic = load_aesthetic(config.aesthetic_model, device)
    return Judges(text, image, aesthetic)


def _text_model(
    config: RewardsConfig, clip: ClipEncoder | None, device: torch.device | str
) -> TextImage:
    if clip is not None and config.text_model == "clip":
        return ClipText(clip)
    if config.text_model == "imagereward":
        return load_imagereward(config.imagereward, device)
    if config.text_model == "pickscore":
        tower = load_clip_tower(config.pickscore, "rewards.pickscore", device)
        return ClipText(tower, tower.scale)
    if config.text_model == "hpsv2":
        return ClipText(load_clip(config.hpsv2, "", device, "rewards.hpsv2"))
    raise UserError(
        f'rewards.text_model is "{config.text_model}": '
        'use "clip", "imagereward", "pickscore" or "hpsv2"'
    )


def _image_model(
    config: RewardsConfig, clip: ClipEncoder | None, device: torch.device | str
) -> ImageFeatures:
    if clip is not None and config.image_model == "clip":
        return clip
    return load_dino(config.dinov2, device)

"""A whole run that is small in every direction, on tiny random models. For tests only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.tiny_clip import write_tiny_clip
from tests.helpers.tiny_models import RESOLUTION, save_manifest, tiny_prior_config
from vp3d.config.schema import Config

PROMPT = "a red sphere"


def write_disc(path: Path, color: tuple[int, int, int] = (200, 40, 30)) -> Path:
    """A picture of a coloured disc on white."""
    y, x = np.mgrid[:96, :96]
    inside = (x - 48) ** 2 + (y - 48) ** 2 < 30**2
    Image.fromarray(np.where(inside[..., None], color, 255).astype(np.uint8)).save(path)
    return path


def tiny_config(root: Path, kind: str = "sd", plus: bool = False) -> Config:
    """Write models (see `tiny_prior_config`) and a reference picture under `root`.

    The config of a run of 12 steps on them.
    """
    weights = root / "weights"
    config = Config(
        prompt=PROMPT,
        image=str(write_disc(root / "disc.png")),
        seed=3,
        output_dir=str(root / "outputs"),
    )
    config.prior = tiny_prior_config(weights, kind=kind, plus=plus)
    config.rewards.clip = str(write_tiny_clip(weights / "clip"))
    save_manifest(weights)
    config.rewards.text_image.begin = config.rewards.image_image.begin = 0.0
    config.loss.orientation.end = 0.01
    config.field.resolution = 20
    config.render.resolution, config.render.samples, config.render.occupancy_resolution = (
        RESOLUTION,
        16,
        12,
    )
    config.render.occupancy_every = 3
    (
        config.optim.steps,
        config.optim.views,
        config.optim.checkpoint_every,
        config.optim.preview_every,
    ) = 12, 2, 2, 4
    config.visual_prompt.candidates, config.visual_prompt.steps = 2, 2
    config.visual_prompt.steadiness = 0.0  # networks of random weights draw no objects
    config.export.grid, config.export.faces, config.export.texture_size = 24, 400, 32
    config.export.turntable_frames, config.export.turntable_size = 4, 32
    return config

"""Judges of the hallucination score from a folder of the user: a DINOv2, a CLIP, or a chat model.

The first two are feature distances, which need a table of grades of their own
(`vp3d.evaluate.planted.table_of`); the third answers the questions of `vp3d.metrics.rubric`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from vp3d.errors import UserError
from vp3d.metrics.hallucination_features import TokenFeatures
from vp3d.metrics.local_chat import TYPES, LocalChat, model_type
from vp3d.rewards.towers import load_clip_tower, load_dino

TOWERS = ("clip", "dinov2")


def load_folder_judge(
    folder: Path, device: torch.device | str = "cpu"
) -> TokenFeatures | LocalChat:
    """The judge in a folder of transformers.

    Raises:
        UserError: a file is missing, damaged, or of a model that is not read.
    """
    if not folder.is_dir():
        raise UserError(f"--judge {folder} is not a folder: give one with a config.json")
    kind = model_type(folder)
    if kind == "clip":
        return TokenFeatures(load_clip_tower(str(folder), "--judge", device, text=False))
    if kind == "dinov2":
        return TokenFeatures(load_dino(str(folder), device, "--judge"))
    if kind in TYPES:
        return LocalChat(folder, device)
    raise UserError(
        f"--judge {folder} is of type {kind or 'unknown'}; these are read: "
        f"{', '.join((*TOWERS, *TYPES))}"
    )

"""Which of several seeds of one asset is taken: `batch --best-of` and `generate --candidates`.

The text reward chooses. The runs were optimised with it (`rewards.text_model`), so its score is no
measure of quality; the judges of `evaluate` are other models. What the choice is worth by those:
`evaluate claims best-of`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vp3d.config.schema import CameraConfig
from vp3d.prompts import view_prompt
from vp3d.report.pictures import AZIMUTHS, ELEVATION_DEG, VIEWS, ring_frames
from vp3d.rewards.text_image import TextImage
from vp3d.types import Mesh

SIDE = 128  # pixels of a side of a scored view


@torch.no_grad()
def text_score(mesh: Mesh, prompt: str, reward: TextImage) -> float:
    """The mean reward of eight views, each for the prompt with the words of its view.

    Args:
        mesh: the mesh, of any shape in the unit cube.
        prompt: the prompt in words that the reward knows.
        reward: the text-image reward; the range of the score is that of its values.
    """
    frames = ring_frames(mesh, VIEWS, SIDE, CameraConfig())
    rgb = torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(255.0).to(reward.device)
    texts = [view_prompt(prompt, azimuth, ELEVATION_DEG) for azimuth in AZIMUTHS]
    return float(reward.score(rgb, reward.target(texts)).mean())


def highest(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The record with the highest "score" among its figures, the first of equal ones.

    Returns:
        None if no record has a score, as all of them failed.
    """
    scored = [record for record in records if record["figures"].get("score") is not None]
    return max(scored, key=lambda record: record["figures"]["score"], default=None)

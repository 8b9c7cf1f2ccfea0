"""`hallucination_score`: what a picture shows that its reference does not support.

The embedded features were calibrated on exact scenes (docs/explanation/hallucination_score.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from vp3d.align.hallucination import distance, grade
from vp3d.metrics.hallucination_towers import embedded_features, grades
from vp3d.types import to_uint8
from vp3d.visual_prompt.read import read_picture

if TYPE_CHECKING:
    from vp3d.metrics.hallucination_judge import MultimodalJudge, Verdict

SIZE = 128  # pixels of a side at which pictures are compared, the size of the calibration
HEAT = "inferno"  # colour map of the picture of where
STRONG = 0.5  # local distance that has the brightest colour
DARKEN = 0.45  # of the grey picture under the heat map


@dataclass(frozen=True)
class HallucinationScore:
    """What was found in picture A.

    Attributes:
        grade: 1 (nothing invented) to 5 (another object), by the feature distance.
        local: the largest local distances, >= 0.
        whole: the distance of the whole pictures, 0 to 2.
        where: float32 `[H, W]` >= 0, the local distance over picture A.
        verdict: of the multimodal judge; None if none was asked.
    """

    grade: float
    local: float
    whole: float
    where: np.ndarray
    verdict: Verdict | None = None


def hallucination_score(
    a: Path | str | np.ndarray,
    b: Path | str | np.ndarray,
    judge: MultimodalJudge | None = None,
) -> HallucinationScore:
    """Grade what picture `a` shows that its reference `b` does not support.

    Ren et al. 2025 (arXiv 2507.14367) define the score as the grade of a multimodal model; the
    distance of features is a cheap stand-in for it. Both pictures are compared as squares of `SIZE`
    pixels, so they should show the same scene in the same frame.

    Args:
        a: a picture file, or uint8 `[H, W, 3]` sRGB.
        b: its reference, the same.
        judge: a multimodal model to ask as well; the pictures are sent to its server.

    Raises:
        UserError: a file cannot be read as a picture.

    Example:
        >>> picture = np.full((64, 64, 3), 128, np.uint8)
        >>> hallucination_score(picture, picture).grade
        1.0
    """
    pictures = [_read(a, "--image"), _read(b, "--reference")]
    squares = [_square(picture) for picture in pictures]
    with torch.no_grad():
        found = distance(squares[0], squares[1], embedded_features())
        score = float(grade(found.proxy, grades())[0])
    height, width = pictures[0].shape[-2:]
    where = F.interpolate(
        found.maps[:, None], (height, width), mode="bilinear", align_corners=False
    )[0, 0]
    verdict = judge.score(*(to_uint8(picture[None])[0] for picture in pictures)) if judge else None
    return HallucinationScore(
        score, float(found.local[0]), float(found.whole[0]), where.numpy(), verdict
    )


def heat_picture(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The picture in dark grey with `where` over it in colours, uint8 `[H, W, 3]`.

    Args:
        picture: uint8 `[H, W, 3]`.
        where: float `[H, W]` >= 0, from `HallucinationScore.where`.
    """
    share = np.clip(where / STRONG, 0.0, 1.0)[..., None]
    grey = DARKEN * picture.mean(axis=-1, keepdims=True) / 255.0
    heat = colormaps[HEAT](share[..., 0])[..., :3]
    mixed: np.ndarray = np.rint(255.0 * (grey * (1.0 - share) + heat * share)).astype(np.uint8)
    return mixed


def as_array(picture: Path | str | np.ndarray, option: str = "--image") -> np.ndarray:
    """A picture file or array as uint8 `[H, W, 3]` sRGB, transparency over grey."""
    shown: np.ndarray = to_uint8(_read(picture, option)[None])[0]
    return shown


def _read(picture: Path | str | np.ndarray, option: str) -> Tensor:
    """`[3, H, W]` in [0, 1] sRGB; transparent parts are grey."""
    if isinstance(picture, np.ndarray):
        values = np.asarray(Image.fromarray(picture).convert("RGB"))
        return torch.from_numpy(values.copy()).permute(2, 0, 1).float() / 255.0
    found = read_picture(Path(picture), option)
    if found.alpha is None:
        return found.rgb
    return found.rgb * found.alpha + 0.5 * (1.0 - found.alpha)


def _square(rgb: Tensor) -> Tensor:
    return F.interpolate(
        rgb[None], (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False
    ).clamp(0.0, 1.0)

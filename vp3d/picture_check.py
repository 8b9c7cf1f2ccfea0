"""What a picture shows that its reference does not support.

`hallucination_score` grades two pictures, `check_front` the front view of an asset against its
visual prompt. The embedded features were calibrated on exact scenes
(docs/explanation/hallucination_score.md).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from vp3d.align.hallucination import Features, distance, grade
from vp3d.config.schema import CameraConfig
from vp3d.errors import UserError
from vp3d.metrics.hallucination_towers import embedded_features, grades
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.report.pictures import ELEVATION_DEG
from vp3d.types import Mesh, to_uint8
from vp3d.visual_prompt.cutout import over_grey, square_up
from vp3d.visual_prompt.read import read_picture

EDGE_STEPS = 4  # parts of a pixel to which the edges of an object are found
SIZE = 128  # pixels of a side at which pictures are compared, the size of the calibration
HEAT = "inferno"  # colour map of the picture of where
STRONG = 0.5  # local distance that has the brightest colour
DARKEN = 0.45  # of the grey picture under the heat map
FINEST_RENDER = 256  # pixels of a side of the front view, before it is brought to the prompt's size


@dataclass(frozen=True)
class HallucinationScore:
    """What was found in picture A.

    Attributes:
        grade: 1 (nothing invented) to 5 (another object), by the feature distance.
        local: the largest local distances, >= 0.
        whole: the distance of the whole pictures, 0 to 2.
        where: float32 `[H, W]` >= 0, the local distance over picture A.
    """

    grade: float
    local: float
    whole: float
    where: np.ndarray


@dataclass(frozen=True)
class Yardstick:
    """What pictures are compared by.

    Attributes:
        features: of the distance.
        table: (proxy, grade), both rising, fitted for these features at this size.
        size: pixels of a side at which pictures are compared.
    """

    features: Features
    table: Sequence[tuple[float, float]]
    size: int = SIZE


@dataclass(frozen=True)
class FrontCheck:
    """The front view of an asset against its visual prompt.

    Attributes:
        score: what the front view shows that the visual prompt does not.
        render: the front view, uint8 `[SIZE, SIZE, 3]`.
        prompt: the visual prompt in the same frame, the same.
        heat: the front view in grey with the distance over it in colours, the same.
        seconds: time that the check took, with the loading of its models.
    """

    score: HallucinationScore
    render: np.ndarray
    prompt: np.ndarray
    heat: np.ndarray
    seconds: float


def check_front(
    mesh: Mesh, rgb: Tensor, mask: Tensor, camera: CameraConfig, ground: float
) -> FrontCheck:
    """Grade what the front view of a mesh shows that the visual prompt does not.

    Both objects are brought to the size of the visual prompt, into the same frame and over the same
    grey, because blur and framing are no inventions.

    Args:
        mesh: the asset.
        rgb: the visual prompt `[1, 3, R, R]` in [0, 1].
        mask: its mask `[1, 1, R, R]` in [0, 1].
        camera: distance and field of view of the front view.
        ground: the grey behind both, [0, 1].

    Raises:
        UserError: one of them shows nothing.
    """
    began = time.monotonic()
    side = rgb.shape[-1]
    front = ring(1, ELEVATION_DEG, camera.distance, camera.fov_deg)
    fine = max(FINEST_RENDER, side)
    view, opacity = (
        F.interpolate(layer, (side, side), mode="bilinear", antialias=True, align_corners=False)
        for layer in render_mesh(mesh, front, fine, fine, ground)
    )
    render, prompt = _framed(view, opacity, ground), _framed(rgb, mask, ground)
    score = hallucination_score(render, prompt)
    heat = heat_picture(render, score.where)
    return FrontCheck(score, render, prompt, heat, time.monotonic() - began)


def _framed(rgb: Tensor, mask: Tensor, ground: float) -> np.ndarray:
    """The object of a picture in the frame of all comparisons, uint8 `[SIZE, SIZE, 3]`."""
    if not bool((mask > 0.5).any()):
        raise UserError("the front view or the visual prompt shows no object")
    fine = tuple(EDGE_STEPS * side for side in rgb.shape[-2:])
    rgb, mask = (
        F.interpolate(layer.cpu(), fine, mode="bilinear", align_corners=False)
        for layer in (rgb, mask)
    )
    square, layer = square_up(rgb[0], mask[0], SIZE)
    framed: np.ndarray = to_uint8(over_grey(square[None], layer[None], ground))[0]
    return framed


def hallucination_score(
    a: Path | str | np.ndarray,
    b: Path | str | np.ndarray,
    yardstick: Yardstick | None = None,
) -> HallucinationScore:
    """Grade what picture `a` shows that its reference `b` does not support.

    Ren et al. 2025 (arXiv 2507.14367) define the score as the grade of a multimodal model; the
    distance of features is a cheap stand-in for it. Both pictures are compared as squares of `SIZE`
    pixels, so they should show the same scene in the same frame.

    Args:
        a: a picture file, or uint8 `[H, W, 3]` sRGB.
        b: its reference, the same.
        yardstick: features other than the embedded ones.

    Raises:
        UserError: a file cannot be read as a picture.

    Example:
        >>> picture = np.full((64, 64, 3), 128, np.uint8)
        >>> hallucination_score(picture, picture).grade
        1.0
    """
    pictures = [_read(a, "--image"), _read(b, "--reference")]
    used = yardstick or Yardstick(embedded_features(), grades())
    squares = [_square(picture, used.size) for picture in pictures]
    with torch.no_grad():
        found = distance(squares[0], squares[1], used.features)
        score = float(grade(found.proxy, used.table)[0])
    height, width = pictures[0].shape[-2:]
    where = F.interpolate(
        found.maps[:, None], (height, width), mode="bilinear", align_corners=False
    )[0, 0]
    return HallucinationScore(score, float(found.local[0]), float(found.whole[0]), where.numpy())


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


def _square(rgb: Tensor, size: int) -> Tensor:
    return F.interpolate(
        rgb[None], (size, size), mode="bilinear", antialias=True, align_corners=False
    ).clamp(0.0, 1.0)

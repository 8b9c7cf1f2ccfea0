"""How well a picture compresses: its size as JPEG, and a differentiable rate in its place.

AlignProp and DDPO use compressibility as a reward (arXiv 2310.03739, arXiv 2305.13301). The true
size has no gradient. The rate is that of the quantised block transform which JPEG codes,

    sum over the coefficients c of all 8 x 8 blocks of log2(1 + |c / q|)

in bits for each pixel, with JPEG's tables q (ITU-T T.81, annex K) at the given quality.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vp3d.types import to_uint8

QUALITY = 95  # of the JPEG, 1 to 100
BLOCK = 8
LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 32),
)
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def jpeg_size(rgb: Tensor, quality: int = QUALITY) -> Tensor:
    """True JPEG size in kB less that of a flat picture `[B]`, of rgb `[B, 3, H, W]` in [0, 1]."""
    pictures = to_uint8(rgb.detach())
    flat = _bytes(np.full_like(pictures[0], 128), quality)
    sizes = [(_bytes(picture, quality) - flat) / 1000.0 for picture in pictures]
    return torch.tensor(sizes, dtype=torch.float32, device=rgb.device)


def rate(rgb: Tensor, quality: int = QUALITY) -> Tensor:
    """The differentiable rate in bits a pixel `[B]`, of rgb `[B, 3, H, W]` in [0, 1].

    Sides that are no multiple of 8 are cut.
    """
    height, width = (side - side % BLOCK for side in rgb.shape[-2:])
    if not height or not width:
        raise ValueError(f"pictures need sides of {BLOCK} pixels or more, got {tuple(rgb.shape)}")
    ycc = torch.einsum("cd,bdhw->bchw", rgb.new_tensor(TO_YCC), rgb[..., :height, :width] * 255.0)
    blocks = ycc.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)  # [B, 3, h, w, 8, 8]
    transform = _dct().to(rgb)
    coefficients = transform @ blocks @ transform.T / _steps(quality).to(rgb)[:, None, None]
    # the mean brightness of a block is coded as a difference; leave it out
    mask = torch.ones(BLOCK, BLOCK).to(rgb)
    mask[0, 0] = 0.0
    bits = torch.log2(1.0 + coefficients.abs()) * mask
    return bits.sum(dim=(1, 2, 3, 4, 5)) / (height * width)


def _bytes(picture: np.ndarray, quality: int) -> int:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return stream.tell()


@lru_cache(maxsize=1)
def _dct() -> Tensor:
    """The orthonormal cosine transform of 8 values `[8, 8]`."""
    k, n = torch.arange(BLOCK)[:, None], torch.arange(BLOCK)[None]
    matrix = torch.cos(math.pi / BLOCK * (n + 0.5) * k) * math.sqrt(2.0 / BLOCK)
    matrix[0] /= math.sqrt(2.0)
    return matrix


@lru_cache(maxsize=8)
def _steps(quality: int) -> Tensor:
    """JPEG's quantisation steps `[3, 8, 8]` at a quality, as libjpeg scales its tables."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    tables = torch.tensor([LUMA, CHROMA, CHROMA], dtype=torch.float32)
    return ((tables * scale + 50.0) / 100.0).floor().clamp(1, 255).reshape(3, BLOCK, BLOCK)

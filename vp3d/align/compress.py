"""How many bytes a picture takes as a JPEG: a reward without gradient."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from vp3d.types import to_uint8

QUALITY = 95  # of 1 to 100


def jpeg_size(rgb: Tensor, quality: int = QUALITY) -> Tensor:
    """The size in kB [B] of pictures `rgb` [B, 3, H, W] in [0, 1] as JPEG files.

    The size of a flat grey picture, which is all header, is subtracted.
    """
    flat = _bytes(torch.full_like(rgb[0], 0.5), quality)
    sizes = [(_bytes(picture, quality) - flat) / 1000.0 for picture in rgb]
    return torch.tensor(sizes, device=rgb.device)


def _bytes(picture: Tensor, quality: int) -> int:
    stream = io.BytesIO()
    values = to_uint8(torch.nan_to_num(picture.detach().float()).clamp(0.0, 1.0))
    Image.fromarray(values).save(stream, format="JPEG", quality=quality)
    return stream.tell()

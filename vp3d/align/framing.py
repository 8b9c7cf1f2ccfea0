"""How well a picture shows one object for 3D: whole, centred, of the right size, cut out steadily.

The first functions judge the cut-out that a run would make (`visual_prompt/cutout.py`); they have
no gradient. `soft_framing` has one: it replaces the cut-out by how much each pixel differs from the
picture's border. All take rgb `[B, 3, H, W]` in [0, 1]; higher is better.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy import ndimage
from torch import Tensor

from vp3d.visual_prompt.cutout import border_flood, steadiness

TOLERANCE = 0.12  # colour distance that is background, that of `visual_prompt.cutout_tolerance`
SMALLEST, LARGEST = 0.6, 0.8  # share of the side that an object should take up
SOFTNESS = 0.03  # colour distance over which the soft silhouette rises
PIECE = 0.003  # share of the picture from which a piece counts as an object


def whole(rgb: Tensor) -> Tensor:
    """Share of the border that the object does not touch `[B]` in [0, 1]; 0 without an object."""
    return _of_masks(rgb, _whole)


def centred(rgb: Tensor) -> Tensor:
    """1 less the distance of the object's centre from the picture's, in half sides `[B]`."""
    return _of_masks(rgb, lambda mask: 1.0 - float((box(mask)[:2] - 0.5).norm()) * 2.0)


def filled(rgb: Tensor) -> Tensor:
    """1 where the object takes up 60 to 80 % of the side, falling to 0 linearly `[B]`."""
    return _of_masks(rgb, lambda mask: _in_band(float(box(mask)[2:].max())))


def steady(rgb: Tensor) -> Tensor:
    """Overlap of the cut-outs by tighter and wider thresholds `[B]` in [0, 1]."""
    pictures = rgb.detach().cpu().float()
    return torch.tensor([steadiness(one, TOLERANCE) for one in pictures], device=rgb.device)


def plain(rgb: Tensor) -> Tensor:
    """1 less ten times the colour deviation of the background `[B]`, at least 0."""

    def evenness(picture: Tensor) -> float:
        outside = border_flood(picture, TOLERANCE)[0] < 0.5
        if not bool(outside.any()):
            return 0.0
        return max(0.0, 1.0 - 10.0 * float(picture[:, outside].std(dim=1, unbiased=False).mean()))

    values = [evenness(one) for one in rgb.detach().cpu().float()]
    return torch.tensor(values, device=rgb.device)


def objects(rgb: Tensor) -> Tensor:
    """The number of separate pieces of the cut-out `[B]`; small ones do not count."""

    def count(mask: Tensor) -> float:
        pieces, found = ndimage.label(mask.numpy())
        sizes = torch.bincount(torch.from_numpy(pieces).flatten(), minlength=found + 1)[1:]
        return float((sizes >= PIECE * mask.numel()).sum())

    return _of_masks(rgb, count)


def soft_framing(rgb: Tensor) -> Tensor:
    """Differentiable: a whole, centred object on a plain background `[B]`, at most 0.

    It is the negative sum of the silhouette's share of the border, of the squared distance of its
    centre from the picture's (in half sides), of how far its height and width (from its second
    moments) are from 60 to 80 % of the side, and of ten times the border's colour deviation.
    """
    batch, _, height, width = rgb.shape
    edge = torch.cat([rgb[:, :, 0], rgb[:, :, -1], rgb[:, :, :, 0], rgb[:, :, :, -1]], dim=2)
    color = edge.median(dim=2).values.detach()
    distance = ((rgb - color[:, :, None, None]).square().mean(1) + 1e-8).sqrt()
    soft = torch.sigmoid((distance - TOLERANCE) / SOFTNESS)  # [B, H, W]
    border = torch.cat([soft[:, 0], soft[:, -1], soft[:, :, 0], soft[:, :, -1]], dim=1).mean(1)
    total = soft.sum((1, 2)) + 1e-6
    y = torch.linspace(-1.0, 1.0, height).to(rgb)[:, None]
    x = torch.linspace(-1.0, 1.0, width).to(rgb)[None]
    off, size = rgb.new_zeros(batch), []
    for axis in (y, x):
        centre = (soft * axis).sum((1, 2)) / total
        spread = (soft * (axis - centre[:, None, None]).square()).sum((1, 2)) / total
        off = off + centre.square()
        size.append((spread + 1e-8).sqrt() * 3.0**0.5)  # of a filled bar: half its length
    largest = torch.maximum(*size)
    misfit = torch.relu(SMALLEST - largest) + torch.relu(largest - LARGEST)
    return -(border + off + misfit + 10.0 * edge.std(dim=2).mean(1))


def box(mask: Tensor) -> Tensor:
    """Centre (y, x) and size (height, width) of a mask's box, as shares of the sides."""
    found = []
    for axis in (1, 0):
        at = torch.nonzero(mask.any(dim=axis)).flatten()
        side = mask.shape[1 - axis]
        found.append((float(at[0] + at[-1] + 1) / 2.0 / side, float(at[-1] + 1 - at[0]) / side))
    return torch.tensor([centre for centre, _ in found] + [size for _, size in found])


def _of_masks(rgb: Tensor, judge: Callable[[Tensor], float]) -> Tensor:
    values = []
    for picture in rgb.detach().cpu().float():
        mask = border_flood(picture, TOLERANCE)[0] > 0.5
        values.append(judge(mask) if bool(mask.any()) else 0.0)
    return torch.tensor(values, device=rgb.device)


def _whole(mask: Tensor) -> float:
    edge = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return 1.0 - float(edge.float().mean())


def _in_band(share: float) -> float:
    off = max(SMALLEST - share, share - LARGEST, 0.0)
    return max(0.0, 1.0 - off / (1.0 - LARGEST))

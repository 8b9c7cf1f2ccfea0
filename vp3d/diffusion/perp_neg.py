"""Perp-Neg: negative prompts that cannot cancel the positive one, against Janus faces.

(Armandpour et al., arXiv 2304.04968.)

    e_i   = e(y_i) - e(0)                                 direction of a negative text y_i
    e_pos = e(y,v) - e(0)                                 of the positive condition (or e(y) - e(0))
    perp  = e_i - <e_i, e_pos> / <e_pos, e_pos> * e_pos   the part of e_i orthogonal to e_pos
    e_hat <- e_hat - s * share * sum_i w_i * perp_i

<,> sums over all latent elements of a sample. s is the guidance scale and e_hat the guided noise of
cfg.py, so with share = 1 and joint guidance this is the paper's e(0) + s * (e_pos - sum_i w_i
perp_i). The negatives are the same prompt with the view words of the neighbouring views, with the
null image. Their weights depend on the azimuth theta in (-180, 180] from the front and are never
negative:

    |theta| < 90:   r = 1 - |theta| / 90   y_1 front, w_1 = f_fs(r);  y_2 side, w_2 = f_sf(1 - r)
    else:           r = 2 - |theta| / 90   y_1 side,  w_1 = f_sb(r);  y_2 front, w_2 = f_fsb(r)
    f(r) = a * exp(-b * r) + c with (a, b, c):
           f_fs = f_sf: 4, 0.5, -2.426;  f_sb: 1, 0.5, -0.606;  f_fsb: 1, 0.5, 0.967

The four curves are those of threestudio. threestudio also interpolates the text embedding between
front, side and back; here the positive text is the one of its own view words, and there are eight
sectors instead of three.
"""

from __future__ import annotations

import torch
from torch import Tensor

Curve = tuple[float, float, float]
FRONT_SIDE: Curve = (4.0, 0.5, -2.426)
SIDE_BACK: Curve = (1.0, 0.5, -0.606)
FRONT_SIDE_BACK: Curve = (1.0, 0.5, 0.967)


def decay(r: Tensor, curve: Curve) -> Tensor:
    """a * exp(-b * r) + c at r (any shape, in [0, 1])."""
    a, b, c = curve
    return a * torch.exp(-b * r) + c


def view_negatives(azimuth_deg: Tensor) -> tuple[Tensor, Tensor]:
    """The two negative views of each view.

    Args:
        azimuth_deg: Azimuths of the views [B], degrees from the front.

    Returns:
        The azimuths of the negatives [B, 2] in degrees, and their weights [B, 2], at least 0.
    """
    theta = (azimuth_deg + 180.0) % 360.0 - 180.0
    turn = theta.abs() / 90.0
    side = torch.where(theta < 0, -90.0, 90.0).to(theta.dtype)
    front = torch.zeros_like(side)
    ahead = (turn < 1.0)[:, None]
    azimuths = torch.where(ahead, torch.stack([front, side], 1), torch.stack([side, front], 1))
    near = torch.stack([decay(1.0 - turn, FRONT_SIDE), decay(turn, FRONT_SIDE)], 1)
    behind = torch.stack([decay(2.0 - turn, SIDE_BACK), decay(2.0 - turn, FRONT_SIDE_BACK)], 1)
    return azimuths, torch.where(ahead, near, behind)


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """The part of each sample x [B, C, H, W] orthogonal to y [B, C, H, W]; x itself if y is 0."""
    dims = tuple(range(1, x.ndim))
    along = (x * y).sum(dims, keepdim=True) / (y * y).sum(dims, keepdim=True).clamp_min(1.0e-6)
    return x - along * y


def perp_neg(null: Tensor, positive: Tensor, negatives: list[Tensor], weights: Tensor) -> Tensor:
    """The weighted sum of the perpendicular parts, sum_i w_i perp_i.

    Args:
        null: e(0) [B, C, H, W].
        positive: e(y,v) [B, C, H, W].
        negatives: The K predictions e(y_i), each [B, C, H, W].
        weights: w_i [B, K].

    Returns:
        [B, C, H, W].
    """
    e_pos = positive - null
    # [B, K, C, H, W]
    parts = torch.stack([perpendicular(negative - null, e_pos) for negative in negatives], 1)
    return (weights[:, :, None, None, None] * parts).sum(1)

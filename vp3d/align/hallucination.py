"""Hallucination score: how much picture A shows that picture B does not support, and where.

The score of the literature (Ren et al. 2025, arXiv 2507.14367) is the grade of a multimodal model;
cheap stand-ins for it are distances of deep features. Prompt, layers and recipe of that paper are
not published: those here are ours. `vp3d.metrics.rubric` has the multimodal judge.

The distance has local and global parts:

    m_l(p)  = min over |q - p| <= 1 of |f_l(A)(p) - f_l(B)(q)|^2, made symmetric in A and B
    local   = mean over stages of the mean of the largest `TOP_SHARE` of m_l
    spread  = mean of m_l over all positions, for the last of these stages
    deep    = mean of 1 - cos(D(A), D(B)) and 1 - cos(mean D(A), mean D(B))
    whole   = 1 - cos(F(A), F(B))
    proxy   = sum of `WEIGHTS` * log(distance + EPSILON)

f_l are features of one stage with unit length at each position, D those of the deepest stage, at
all positions or their mean, F are features of the whole picture. Blur, noise and a shift move
shallow features all over the picture, and deep ones little; an invented thing moves the deep ones
more than the shallow ones explain, hence the negative weight of the spread. `grade` maps the proxy
to 1 (nothing invented) to 5 (another object) by a table that was fitted on planted cases
(`vp3d.evaluate.planted`).

Conventions: pictures are rgb `[B, 3, H, H]` in [0, 1] sRGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

TOP_SHARE = 0.02  # of the positions that count as the local distance
SMOOTH_SHARE = 0.1  # of the positions that a reward averages over
REACH = 1  # positions that a detail may move by
EPSILON = 1e-4  # keeps the logarithm finite for equal pictures
# Found on planted cases of other scenes than those that are reported
WEIGHTS = {"local": 0.5, "deep": 3.0, "spread": -2.0, "whole": 0.5}
NOTHING, MOST = 1.0, 5.0  # the ends of the scale


class Features(Protocol):
    """What a distance is computed from."""

    def maps(self, rgb: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features at positions, of pictures `[B, 3, H, H]`.

        Returns:
            Those of each shallow stage `[B, C, h, w]`, with unit length at each position, and those
            of the deepest stage `[B, C, h, w]` of any length.
        """
        ...

    def whole(self, rgb: Tensor) -> Tensor:
        """Features `[B, D]` of the whole picture, with unit length."""
        ...


@dataclass(frozen=True)
class Distance:
    """How far picture A is from picture B.

    Attributes:
        local: `[B]` >= 0, the largest local distances.
        smooth: `[B]` >= 0, a mean over more positions, for use as a reward.
        deep: `[B]` in [0, 2], of the deepest features.
        spread: `[B]` >= 0, the mean local distance of the last shallow stage.
        whole: `[B]` in [0, 2], of the features of the whole picture.
        maps: `[B, H, H]` >= 0, where they differ, at the size of the pictures.
    """

    local: Tensor
    smooth: Tensor
    deep: Tensor
    spread: Tensor
    whole: Tensor
    maps: Tensor

    @property
    def proxy(self) -> Tensor:
        """`[B]`, any range; differentiable, finite for equal pictures."""
        terms = [w * torch.log(getattr(self, name) + EPSILON) for name, w in WEIGHTS.items()]
        return torch.stack(terms).sum(0)

    @property
    def smooth_proxy(self) -> Tensor:
        """`[B]`: log smooth + log whole, for use as a reward: more positions have a say in it.

        It has no spread, because a network could lower the proxy by changing more of the picture.
        """
        return torch.log(self.smooth + EPSILON) + torch.log(self.whole + EPSILON)


def distance(a: Tensor, b: Tensor, features: Features) -> Distance:
    """The distance of pictures `a` from `b`, both `[B, 3, H, H]` in [0, 1]; differentiable.

    Raises:
        ValueError: their shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"pictures of one shape are compared, not {a.shape} and {b.shape}")
    (shallow_a, deep_a), (shallow_b, deep_b) = features.maps(a), features.maps(b)
    maps = [local_map(x, y) for x, y in zip(shallow_a, shallow_b, strict=True)]
    flat = [one.flatten(1) for one in maps]
    in_place = 1.0 - F.cosine_similarity(deep_a.flatten(1), deep_b.flatten(1))
    pooled = 1.0 - F.cosine_similarity(deep_a.mean((2, 3)), deep_b.mean((2, 3)))
    whole = 1.0 - (features.whole(a) * features.whole(b)).sum(1)
    full = [
        F.interpolate(one[:, None], a.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        for one in maps
    ]
    return Distance(
        torch.stack([top_mean(one, TOP_SHARE) for one in flat]).mean(0),
        torch.stack([top_mean(one, SMOOTH_SHARE) for one in flat]).mean(0),
        ((in_place + pooled) / 2.0).clamp(min=0.0),
        flat[-1].mean(1),
        whole.clamp(min=0.0),
        torch.stack(full).mean(0),
    )


def local_map(x: Tensor, y: Tensor) -> Tensor:
    """Squared distance `[B, h, w]` of features `[B, C, h, w]`, tolerant of small shifts.

    Each position is compared with all of the other picture within `REACH`, in both directions; the
    larger of the two smallest distances counts, so a thing that is only in one picture counts
    whichever it is.
    """
    return torch.maximum(_nearest(x, y), _nearest(y, x))


def _nearest(x: Tensor, y: Tensor) -> Tensor:
    """Smallest squared distance `[B, h, w]` of each position of x to those of y around it."""
    height, width = x.shape[-2:]
    padded = F.pad(y, (REACH,) * 4, mode="replicate")
    found = [
        (x - padded[..., i : i + height, j : j + width]).square().sum(1)
        for i in range(2 * REACH + 1)
        for j in range(2 * REACH + 1)
    ]
    return torch.stack(found).amin(0)


def top_mean(values: Tensor, share: float) -> Tensor:
    """Mean `[B]` of the largest `share` of values `[B, N]`, at least of one."""
    count = max(round(share * values.shape[1]), 1)
    return values.topk(count, dim=1).values.mean(1)


def grade(proxy: Tensor, table: Sequence[tuple[float, float]]) -> Tensor:
    """Grades `[B]` in [1, 5] of proxies `[B]`, by linear interpolation in `table`.

    Args:
        proxy: from `Distance.proxy`.
        table: (proxy, grade), both rising.
    """
    knots = torch.tensor([row[0] for row in table], dtype=proxy.dtype, device=proxy.device)
    values = torch.tensor([row[1] for row in table], dtype=proxy.dtype, device=proxy.device)
    right = torch.searchsorted(knots, proxy.detach().contiguous()).clamp(1, len(knots) - 1)
    share = (proxy - knots[right - 1]) / (knots[right] - knots[right - 1])
    return values[right - 1] + share.clamp(0.0, 1.0) * (values[right] - values[right - 1])

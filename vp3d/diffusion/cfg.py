"""Classifier-free guidance with a text condition y and an image condition v.

    joint:  e_hat = e(0) + s * (e(y,v) - e(0))
    split:  e_hat = e(0) + s_text * (e(y) - e(0)) + s_image * (e(y,v) - e(y))

e(0) is the prediction under the negative prompt, e(y) under the text alone, e(y,v) under both. A
scale of 1 is plain conditioning: e_hat = e(y,v). Without an image e(y,v) is e(y): joint guidance is
e(0) + s * (e(y) - e(0)), and split guidance is the same with s_text. Configuration and log use
these numbers (some codebases start from the text branch instead; their 100 is 101 here).

Both forms are a weighted sum whose weights add up to 1. It is computed as that sum, and a branch of
weight 0 is not evaluated: joint guidance costs two forward passes and split guidance three, or two
if s_text = s_image; a scale of 1 costs one.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from vp3d.errors import UserError

# conditioned on: the negative prompt | the text | text and image | the text of two other views
# (see perp_neg.py)
Branch = Literal["null", "text", "full", "other_1", "other_2"]


def branch_weights(
    mode: str, guidance_scale: float, text_scale: float, image_scale: float, with_image: bool
) -> dict[Branch, float]:
    """The weight of each branch in e_hat.

    Args:
        mode: "joint" or "split".
        guidance_scale: s of joint guidance.
        text_scale: s_text of split guidance.
        image_scale: s_image of split guidance.
        with_image: Whether there is an image; without one, "text" has the weight of "full".

    Returns:
        Weights that add up to 1, in the order null, text, full; branches of weight 0 are left out.

    Raises:
        UserError: if the mode is unknown.

    Example:
        >>> branch_weights("joint", 3.0, 1.0, 1.0, with_image=True)
        {'null': -2.0, 'full': 3.0}
    """
    if mode == "joint":
        null, text, full = 1.0 - guidance_scale, 0.0, guidance_scale
    elif mode == "split":
        null, text, full = 1.0 - text_scale, text_scale - image_scale, image_scale
    else:
        raise UserError(f'guidance.mode is "{mode}": use "joint" or "split"')
    if not with_image:
        text, full = 1.0 - null, 0.0
    weights: dict[Branch, float] = {"null": null, "text": text, "full": full}
    return {branch: weight for branch, weight in weights.items() if weight != 0.0}


def combine(predictions: dict[Branch, Tensor], weights: dict[Branch, float]) -> Tensor:
    """e_hat [B, C, H, W] from the predictions of the branches, each [B, C, H, W].

    With a single branch of weight 1 it is exactly that prediction.
    """
    branches = iter(weights.items())
    first, weight = next(branches)
    total = predictions[first] if weight == 1.0 else weight * predictions[first]
    for branch, weight in branches:
        total = total + weight * predictions[branch]
    return total


def rescale_std(x0: Tensor, reference: Tensor, share: float) -> Tensor:
    """Bring the spread of a guided x0 estimate to that of an unguided one, against over-saturation.

    (MVDream, arXiv 2308.16512, and Lin et al., arXiv 2305.08891, section 3.4, applied to x0.)

    Args:
        x0: The estimate from e_hat [B, C, H, W], latents.
        reference: The estimate from the most conditioned branch [B, C, H, W].
        share: How much of the change to apply, in [0, 1]; 0 changes nothing.

    Returns:
        share * x0 * std(reference) / std(x0) + (1 - share) * x0, std over C, H, W of each sample.
    """
    if share == 0.0:
        return x0
    dims = (1, 2, 3)
    spread = x0.std(dim=dims, keepdim=True).clamp_min(1e-8)
    factor = reference.std(dim=dims, keepdim=True) / spread
    return x0 * (share * factor + (1.0 - share))

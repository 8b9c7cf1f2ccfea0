"""Classifier-free guidance with a text condition y and an image condition v.

    joint:  e_hat = e(0) + s * (e(y,v) - e(0))
    split:  e_hat = e(0) + s_text * (e(y) - e(0)) + s_image * (e(y,v) - e(y))

e(0) is the prediction under the negative prompt, e(y) under the text alone, e(y,v) under both. A scale of 1 is plain
conditioning: e_hat = e(y,v). Without an image e(y,v) is e(y), so joint reads e(0) + s * (e(y) - e(0)) and split the same
with s_text. UI, config and log use these very numbers (some codebases build on the text branch instead; their 100 is 101 here).

Both forms are a weighted sum whose weights add up to 1. It is computed as that sum, and a branch of weight 0 is never
evaluated: joint costs two forwards, split three, split with s_text = s_image exactly the two of joint, a scale of 1 one.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from vp3d.errors import UserError

# conditioned on: the negative prompt | the text | text and image | the text as told for two other views (see perp_neg.py)
Branch = Literal["null", "text", "full", "other_1", "other_2"]


def branch_weights(
    mode: str, guidance_scale: float, text_scale: float, image_scale: float, with_image: bool
) -> dict[Branch, float]:
    """The weight of each branch in e_hat, in the order null, text, full; branches of weight 0 are left out.

    `joint` reads `guidance_scale`, `split` reads the other two. Without an image the text branch takes the full one's place.
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
    """e_hat from the predictions of the branches, each [B, C, H, W] (any range); exactly the prediction for a single branch."""
    branches = iter(weights.items())
    first, weight = next(branches)
    total = predictions[first] if weight == 1.0 else weight * predictions[first]
    for branch, weight in branches:
        total = total + weight * predictions[branch]
    return total


def rescale_std(x0: Tensor, reference: Tensor, share: float) -> Tensor:
    """Target the spread of a guided x0 estimate back to that of an unguided one, against over-saturation.

    x0, reference [B, C, H, W], latents (unbounded): the estimate from e_hat and the one from the most conditioned branch.
    Returns share * x0 * std(reference) / std(x0) + (1 - share) * x0, std over C, H, W of each sample
    (MVDream, arXiv 2308.16512, and Lin et al., arXiv 2305.08891, section 3.4, written on x0). share in [0, 1]; 0 changes nothing.
    """
    if share == 0.0:
        return x0
    factor = reference.std(dim=(1, 2, 3), keepdim=True) / x0.std(
        dim=(1, 2, 3), keepdim=True
    ).clamp_min(1e-8)
    return x0 * (share * factor + (1.0 - share))

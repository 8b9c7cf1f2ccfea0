"""Training of the image branch from scratch, beside a trained denoiser.

The denoiser follows captions well, but image tokens that are trained by its error alone stay weak:
the tokens contained the two nouns of 85 in 100 pictures of two objects, and 46 were drawn right.
So the image branch is trained in two stages.

1. `train_image_tokens`, without the denoiser. From a picture, the tokens learn to be the text
   encoder's tokens of "caption, view words", and their part in the time embedding learns to be the
   text's (prompt inversion by regression; the opposite direction is unCLIP's prior, Ramesh et al.,
   arXiv 2204.06125). Then the text's keys and values work for image tokens at once.
2. `AdapterLosses`, with the denoiser frozen. The usual losses, and after an image alone the output
   of each cross-attention must match its output after caption and view words (FitNets: Romero et
   al., arXiv 1412.6550).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.embedded.denoising import IMAGE, PriorLosses
from vp3d.embedded.fit import Plan, fit, half_precision, use_ema
from vp3d.embedded.latent_reader import caption_batch

STEPS, LR, WARMUP = 900, 1.5e-3, 100  # of stage 1
BATCH = 64
ATTRIBUTES_WEIGHT = 0.5


def train_image_tokens(prior: PriorLosses, plan: Plan, work: Path) -> None:
    """Stage 1, in place, on the model behind `prior`; ends with `copy_text_projections`.

    Trains the vision tower, the projection and the image's part in the time embedding.
    """
    model, pictures = prior.model, prior.pictures
    text_pooling, image_pooling = (
        model.get_submodule(f"unet.add_embedding.{kind}") for kind in ("text", "image")
    )
    trained = nn.ModuleDict({k: model[k] for k in ("vision_tower", "projection", "aid_image")})
    trained["pooled"] = image_pooling

    @torch.no_grad()
    def regression_targets(index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Text tokens [B, 20, 128] of pictures, and their pooled text less the empty one [B, D]."""
        text = prior.encode(caption_batch(pictures, index, prior.device)[0])
        return text, text_pooling(text) - text_pooling(empty_text)

    with torch.no_grad():
        empty_text = prior.encode([""])
    some = np.linspace(0, len(pictures) - 1, min(2000, len(pictures))).astype(np.int64)
    examples = regression_targets(some)
    variance = [(target - target.mean(0)).square().mean() for target in examples]

    def losses(rng: np.random.Generator, _: torch.Generator) -> dict[str, Tensor]:
        index = np.searchsorted(prior.quantiles, rng.random(BATCH), side="right")
        tokens = prior.image_tokens(index, rng)
        predicted = (tokens, image_pooling(tokens.flatten(1)))
        errors = [
            F.mse_loss(a, b) for a, b in zip(predicted, regression_targets(index), strict=True)
        ]
        targets = prior.targets[index].to(prior.device)
        attributes = model["aid_image"](tokens.flatten(1), targets)
        return {
            "loss_tokens": errors[0] / variance[0],
            "loss_pooled": errors[1] / variance[1],
            "loss_image_attributes": ATTRIBUTES_WEIGHT * attributes,
        }

    stage_plan = replace(plan, steps=min(STEPS, plan.steps), lr=LR, warmup=WARMUP)
    use_ema(trained, fit("image", trained, losses, stage_plan, work))
    copy_text_projections(model["unet"], empty_text[0], examples[0].flatten(0, 1))


@torch.no_grad()
def copy_text_projections(unet: nn.Module, empty_text: Tensor, text: Tensor) -> None:
    """Make the text's keys and values those of the image branch, in place, less the empty text.

    The branch is added to the attention to the empty text. All tokens of the empty text are nearly
    equal, so that attention is nearly the same for every query. The value of the empty text is
    therefore subtracted from that of every image token: along a direction w that maps every token
    of real text close to 1, W_v' = W_v - (W_v empty) w^T.

    Args:
        unet: The denoiser with its image branch.
        empty_text: Tokens of the empty text [20, C].
        text: Tokens of captions [N, C], from which w is computed by ridge regression.
    """
    square = text.T @ text / len(text)
    ridge = 0.01 * torch.eye(len(square), device=text.device)
    direction = torch.linalg.solve(square + ridge, text.mean(0))
    for attention in [m for name, m in unet.named_modules() if name.endswith("attn2")]:
        branch: Any = attention.processor
        branch.to_k_ip.weight.copy_(attention.to_k.weight)
        empty_value = attention.to_v.weight @ empty_text.mean(0)
        branch.to_v_ip.weight.copy_(attention.to_v.weight - torch.outer(empty_value, direction))


class AdapterLosses:
    """Stage 2: `PriorLosses`, and `loss_attention`.

    `loss_attention` is the error between the outputs of the cross-attentions (and of the time
    embedding) after an image alone, and those after its caption and view words. The samples are
    conditioned on the image alone 66 %, text and image 25 %, text and the null image 4 %, the null
    image alone 5 %.
    """

    PRIOR_OPTIONS: Mapping[str, Any] = {
        "shares": (0.0, 0.0, 0.25, 0.66, 0.04),
        "extra_images": 80,
        "image_weight": 0.25,
    }
    ATTENTION_WEIGHT = 0.15

    def __init__(self, prior: PriorLosses) -> None:
        self.prior, self.outputs = prior, list[Tensor]()
        for name, module in prior.model["unet"].named_modules():
            if name.endswith("attn2") or name == "add_embedding":
                module.register_forward_hook(self._keep_output)

    def _keep_output(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self.outputs.append(output.float())

    def __call__(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        """Named scalars of one batch; the training minimises the sum of those named `loss*`."""
        prior = self.prior
        self.outputs.clear()
        values = prior(rng, generator)
        after_image, last = list(self.outputs), prior.last
        self.outputs.clear()
        rows = np.flatnonzero(last.conditions.kind == IMAGE)
        if len(rows):
            texts = caption_batch(prior.pictures, last.conditions.index[rows], prior.device)[0]
            with torch.no_grad(), half_precision(prior.device):
                prior.model["unet"](last.noisy[rows], last.t[rows], prior.encode(texts))
            errors = [
                F.mse_loss(a[rows], b) / b.var()
                for a, b in zip(after_image, self.outputs, strict=True)
            ]
            values["loss_attention"] = self.ATTENTION_WEIGHT * torch.stack(errors).mean()
        return values

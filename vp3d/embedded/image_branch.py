"""How the image branch is begun anew: image tokens that first are what the caption would be.

The denoiser reads captions well, and tokens that only its own error teaches hardly at all: they told which two nouns there
were in 85 of 100 pictures of two objects, and 46 were drawn. So the image branch learns in two stages.

1. `teach_image`, without the denoiser: from a picture, the tokens learn to be the text encoder's of "caption, view words", and
   their part in the time embedding what that text adds to it (prompt inversion by regression: compare unCLIP's prior, Ramesh
   et al., arXiv 2204.06125, which goes the other way). Keys and values then are the text's own, and are read at once.
2. `AdapterLosses`, with the denoiser frozen: the usual losses, and after a picture alone every cross-attention is to put out
   what it puts out after caption and view words (FitNets: Romero et al., arXiv 1412.6550).
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

from vp3d.embedded.denoising import PriorLosses
from vp3d.embedded.fit import Plan, fit, half_precision, use_ema
from vp3d.embedded.latent_reader import tell

STEPS, LR, WARMUP = 900, 1.5e-3, 100  # of stage 1
BATCH = 64
SHOWN_WEIGHT = 0.5


def teach_image(prior: PriorLosses, plan: Plan, work: Path) -> None:
    """Stage 1, in place: of the model behind `prior` the eye, the projection and the pooled tokens, then `copy_text`."""
    model, pictures = prior.model, prior.pictures
    pooling, pooled = (
        model.get_submodule(f"unet.add_embedding.{kind}") for kind in ("text", "image")
    )
    taught = nn.ModuleDict(
        {k: model[k] for k in ("eye", "projection", "aid_image")} | {"pooled": pooled}
    )

    @torch.no_grad()
    def goals(index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Text tokens [B, 20, 128] of pictures, and what they add to the pooled empty text [B, D]."""
        said = prior.encode(tell(pictures, index, prior.device)[0])
        return said, pooling(said) - pooling(nothing)

    with torch.no_grad():
        nothing = prior.encode([""])
    some = goals(np.linspace(0, len(pictures) - 1, min(2000, len(pictures))).astype(np.int64))
    spread = [(goal - goal.mean(0)).square().mean() for goal in some]

    def losses(rng: np.random.Generator, _: torch.Generator) -> dict[str, Tensor]:
        index = np.searchsorted(prior.quantiles, rng.random(BATCH), side="right")
        tokens = prior.image(index, rng)
        missed = [
            F.mse_loss(a, b)
            for a, b in zip((tokens, pooled(tokens.flatten(1))), goals(index), strict=True)
        ]
        return {
            "loss_tokens": missed[0] / spread[0],
            "loss_pooled": missed[1] / spread[1],
            "loss_shown": SHOWN_WEIGHT
            * model["aid_image"](tokens.flatten(1), prior.answers[index].to(prior.device)),
        }

    lesson = replace(plan, steps=min(STEPS, plan.steps), lr=LR, warmup=WARMUP)
    use_ema(taught, fit("image", taught, losses, lesson, work))
    copy_text(model["unet"], nothing[0], some[0].flatten(0, 1))


@torch.no_grad()
def copy_text(unet: nn.Module, nothing: Tensor, said: Tensor) -> None:
    """Keys and values of the image branch become the text's, in place, less the values of the empty text.

    The branch is added to the attention to the empty text, which is nearly the same whatever is asked: all its tokens `nothing`
    [20, C] are alike. So their value is taken off that of every token, by a direction in which texts `said` [N, C] tell "one".
    """
    square = said.T @ said / len(said)
    one = torch.linalg.solve(
        square + 0.01 * torch.eye(len(square), device=said.device), said.mean(0)
    )
    for attention in [m for name, m in unet.named_modules() if name.endswith("attn2")]:
        branch: Any = attention.processor
        branch.to_k_ip.weight.copy_(attention.to_k.weight)
        branch.to_v_ip.weight.copy_(
            attention.to_v.weight - torch.outer(attention.to_v.weight @ nothing.mean(0), one)
        )


class AdapterLosses:
    """Stage 2: `PriorLosses`, and what the cross-attentions and the time embedding say otherwise than after the caption.

    Of the samples 66 % are told the picture alone, 25 % text and picture, 4 % text and the null image, 5 % the null image alone.
    """

    OF_PRIOR: Mapping[str, Any] = {
        "shares": (0.0, 0.0, 0.25, 0.66, 0.04),
        "more_shown": 80,
        "shown_weight": 0.25,
    }
    HEARD_WEIGHT = 0.15

    def __init__(self, prior: PriorLosses) -> None:
        self.prior, self.heard = prior, list[Tensor]()
        for name, module in prior.model["unet"].named_modules():
            if name.endswith("attn2") or name == "add_embedding":
                module.register_forward_hook(self._hear)

    def _hear(self, _: nn.Module, __: Any, said: Tensor) -> None:
        self.heard.append(said.float())

    def __call__(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        """Named scalars of one batch; `loss*` are summed."""
        prior = self.prior
        self.heard.clear()
        values = prior(rng, generator)
        heard, last = list(self.heard), prior.last
        self.heard.clear()
        alone = np.flatnonzero(last.told.kind == 3)
        if len(alone):
            texts = tell(prior.pictures, last.told.index[alone], prior.device)[0]
            with torch.no_grad(), half_precision(prior.device):
                prior.model["unet"](last.noisy[alone], last.t[alone], prior.encode(texts))
            missed = [
                F.mse_loss(a[alone], b) / b.var() for a, b in zip(heard, self.heard, strict=True)
            ]
            values["loss_heard"] = self.HEARD_WEIGHT * torch.stack(missed).mean()
        return values

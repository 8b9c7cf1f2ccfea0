"""A small network that names what latents show, as a perceptual loss for the denoiser.

The squared error of a denoiser hardly counts what makes a small duck a duck: a blob in the right colour is nearly as good. So
its estimate of the clean latents must also be read rightly, by this frozen network (compare Lin and Yang, arXiv 2401.00110,
who take the denoiser's own features). It is a training aid, thrown away afterwards, and not the judge: that one sees pixels, has
another architecture and other targets, and is never trained through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.embedded import architectures
from vp3d.embedded.fit import Plan, fit, half_precision, use_ema
from vp3d.prompts import all_views
from vp3d.worlds.toybox.data import (
    HEADS,
    Pictures,
    attribute_targets,
    noun_maps,
    spec_targets,
    thumbnails,
)
from vp3d.worlds.toybox.scenes import NOUNS, caption, kind_of

PLAN = Plan(steps=1500, lr=2e-3)
BATCH = 96
OFTEN = {"on": 6.0, "next to": 6.0}  # two objects are small and hard to read
VIEW = {"view": all_views()}
READ = HEADS | VIEW
NOISE = 0.4  # largest standard deviation of the noise on the latents it learns from, whose own is 1


class LatentReader(nn.Module):
    """Reads scaled latents [B, 4, 16, 16]: the noun of each of 8 x 8 cells, the attributes of the whole and the view."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU()
            )

        self.body = nn.Sequential(
            block(4, 48), block(48, 64), block(64, 128, 2), block(128, 128), block(128, 128)
        )
        self.map = nn.Conv2d(128, len(NOUNS), 1)
        self.squeeze = nn.Sequential(
            nn.Conv2d(128, 32, 1), nn.Flatten(), nn.Linear(32 * 8 * 8, 256), nn.SiLU()
        )
        self.aid = architectures.AttributeHeads(256, HEADS)
        self.view = architectures.AttributeHeads(256, VIEW)

    def forward(self, latents: Tensor, shares: Tensor, told: Tensor) -> Tensor:
        """Mean cross-entropy against `noun_maps` [B, nouns, 8, 8], plus that of the attributes and half that of the view.

        told [B, heads] int64: `read_targets`, -100 where it cannot be told or was not asked for. A scalar.
        """
        cells = self.body(latents)
        missed = -(shares * F.log_softmax(self.map(cells), 1)).sum() / shares.sum()
        return missed + self.missed(self.whole(cells), told)

    def whole(self, cells: Tensor) -> Tensor:
        """What the features `cells` [B, 128, 8, 8] say of the picture as a whole, [B, 256]."""
        read: Tensor = self.squeeze(cells)
        return read

    def missed(self, whole: Tensor, told: Tensor) -> Tensor:
        """Mean cross-entropy of the attributes, plus half that of the view; a scalar."""
        return self.aid(whole, told[:, :-1]) + 0.5 * self.view(whole, told[:, -1:])


def read_targets(pictures: Pictures) -> Tensor:
    """Right answers [N, heads] int64 in the order of `READ`: `attribute_targets` and the view words."""
    numbers = {view: number for number, view in enumerate(READ["view"])}
    views = torch.tensor([numbers[pictures.view(i)] for i in range(len(pictures))])
    return torch.cat([torch.from_numpy(attribute_targets(pictures)), views[:, None]], 1)


def kind_quantiles(pictures: Pictures, often: Mapping[str, float]) -> np.ndarray:
    """Cumulative shares [N] by which pictures of each kind (`scenes.kind_of`) are drawn `often` times as often, others once."""
    weights = np.array([often.get(kind_of(s), 1.0) for s in pictures.specs])[
        pictures.scene_of
    ].cumsum()
    return np.asarray(weights / weights[-1])


def taught_reader(
    pictures: Pictures,
    latents: Tensor,
    told: Tensor,
    work: Path,
    device: str,
    most_steps: int = PLAN.steps,
) -> LatentReader:
    """A frozen reader of the `latents` [N, 4, 16, 16] of `pictures` with `read_targets` `told`; trained once in `work`."""
    reader = LatentReader().to(device)
    quantiles = kind_quantiles(pictures, OFTEN)

    def losses(rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        index = np.searchsorted(quantiles, rng.random(BATCH), side="right")
        x0 = latents[index].to(device).float()
        strength = NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator, device=device)
        noisy = x0 + strength * torch.randn(x0.shape, generator=generator, device=device)
        shares = noun_maps(pictures, index, device)
        with half_precision(x0.device):
            return {"loss_read": reader(noisy, shares, told[index].to(device))}

    use_ema(
        reader,
        fit("reader", reader, losses, replace(PLAN, steps=min(PLAN.steps, most_steps)), work),
    )
    return reader.requires_grad_(False)


def tell(
    pictures: Pictures, index: np.ndarray, device: torch.device | str
) -> tuple[list[str], Tensor, Tensor]:
    """Captions with view words of B pictures, what they say [B, heads + 1] int64 (last the view), and the thumbnails [B, T]."""
    specs = [pictures.specs[pictures.scene_of[i]] for i in index]
    views = [pictures.view(int(i)) for i in index]
    told = torch.cat(
        [spec_targets(specs), torch.tensor([[READ["view"].index(v)] for v in views])], 1
    )
    texts = [f"{caption(s)}, {v}" for s, v in zip(specs, views, strict=True)]
    return texts, told.to(device), thumbnails(pictures.images[index]).to(device)

"""A small network that recognises what latents show: a perceptual loss for the denoiser.

The squared error of a denoiser hardly counts the details that make a small duck a duck: a blob of
the right colour is nearly as good. So this frozen network must recognise the attributes in the
denoiser's estimate of the clean latents (compare Lin and Yang, arXiv 2401.00110, who use the
denoiser's own features). It serves training only and is not saved with the models. It is not the
judge either: the judge reads pixels, has another architecture and other targets, and no model is
trained through it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.embedded import architectures
from vp3d.embedded.fit import Plan, fit, half_precision, use_ema
from vp3d.prompts import all_views
from vp3d.worlds.base import LATENT_CHANNELS, TrainingPictures, World
from vp3d.worlds.toybox.data import TOYBOX, thumbnails

PLAN = Plan(steps=1500, lr=2e-3)
BATCH = 96
KIND_FREQUENCY = {"on": 6.0, "next to": 6.0}  # two objects are small and hard to recognise
VIEW_HEAD = {"view": all_views()}


def reader_heads(world: World) -> dict[str, list[str]]:
    """What the reader names: the attributes of the world, and the view last."""
    return {**world.heads, **VIEW_HEAD}


READER_HEADS = reader_heads(TOYBOX)
NO_TARGET = -100  # a target that the cross-entropy ignores
# Largest standard deviation of the noise added to the latents in training; theirs is 1
NOISE = 0.4


class LatentReader(nn.Module):
    """Recognises the content of scaled latents [B, 4, S, S].

    Its outputs are the noun of each of 8 x 8 cells, the attributes of the picture and its view.
    """

    def __init__(self, world: World = TOYBOX) -> None:
        super().__init__()
        # 16 x 16 latents are halved once before the 8 x 8 cells, larger ones in every early block
        first = world.sizes.latent // 16

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU()
            )

        self.body = nn.Sequential(
            block(LATENT_CHANNELS, 48),
            block(48, 64, first),
            block(64, 128, 2),
            block(128, 128),
            block(128, 128),
        )
        self.map = nn.Conv2d(128, len(world.nouns), 1)
        self.squeeze = nn.Sequential(
            nn.Conv2d(128, 32, 1), nn.Flatten(), nn.Linear(32 * 8 * 8, 256), nn.SiLU()
        )
        self.aid = architectures.AttributeHeads(256, world.heads)
        self.view = architectures.AttributeHeads(256, VIEW_HEAD)

    def forward(self, latents: Tensor, shares: Tensor, targets: Tensor) -> Tensor:
        """The loss: cross-entropy of the noun maps, plus `attribute_loss`. A scalar.

        Args:
            latents: Scaled latents [B, 4, S, S].
            shares: Share of each cell that each noun covers [B, nouns, 8, 8] (`noun_maps`).
            targets: Attributes [B, heads] int64 (`read_targets`), `NO_TARGET` for none.
        """
        cells = self.body(latents)
        noun_loss = -(shares * F.log_softmax(self.map(cells), 1)).sum() / shares.sum()
        return noun_loss + self.attribute_loss(self.whole(cells), targets)

    def whole(self, cells: Tensor) -> Tensor:
        """Features [B, 256] of the complete picture from the features `cells` [B, 128, 8, 8]."""
        features: Tensor = self.squeeze(cells)
        return features

    def attribute_loss(self, whole: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the attributes, plus half that of the view; a scalar.

        whole [B, 256] are the features of `whole`; targets as in `forward`.
        """
        return self.aid(whole, targets[:, :-1]) + 0.5 * self.view(whole, targets[:, -1:])


def read_targets(pictures: TrainingPictures) -> Tensor:
    """Targets [N, heads] int64 in the order of `reader_heads`: what is visible, and the view."""
    numbers = {view: number for number, view in enumerate(VIEW_HEAD["view"])}
    views = torch.tensor([numbers[pictures.view(i)] for i in range(len(pictures))])
    return torch.cat([torch.from_numpy(pictures.visible_targets()), views[:, None]], 1)


def train_reader(
    pictures: TrainingPictures,
    latents: Tensor,
    targets: Tensor,
    work: Path,
    device: str,
    most_steps: int = PLAN.steps,
) -> LatentReader:
    """A frozen reader of the latents of `pictures`; trained only if `work` has no checkpoint of it.

    Args:
        pictures: The N training pictures.
        latents: Their scaled latents [N, 4, S, S].
        targets: Their targets [N, heads] (`read_targets`).
        work: Folder of the checkpoint.
        device: Where to train.
        most_steps: Upper bound of the training steps.

    Returns:
        The reader on `device`, without gradient in its parameters.
    """
    reader = LatentReader(pictures.world).to(device)
    quantiles = pictures.quantiles(KIND_FREQUENCY)

    def losses(rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        index = np.searchsorted(quantiles, rng.random(BATCH), side="right")
        x0 = latents[index].to(device).float()
        strength = NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator, device=device)
        noisy = x0 + strength * torch.randn(x0.shape, generator=generator, device=device)
        shares = pictures.noun_maps(index, device)
        with half_precision(x0.device):
            return {"loss_read": reader(noisy, shares, targets[index].to(device))}

    plan = replace(PLAN, steps=min(PLAN.steps, most_steps))
    use_ema(reader, fit("reader", reader, losses, plan, work))
    return reader.requires_grad_(False)


def caption_batch(
    pictures: TrainingPictures, index: np.ndarray, device: torch.device | str
) -> tuple[list[str], Tensor, Tensor]:
    """Captions of pictures with what they must predict.

    Args:
        pictures: The training pictures.
        index: Numbers of B of them.
        device: Of the tensors.

    Returns:
        B captions with view words; the attributes they state [B, heads] int64 in the order of
        `reader_heads`; the thumbnails of the pictures [B, T] (`data.thumbnails`).
    """
    views = [pictures.view(int(i)) for i in index]
    view_targets = torch.tensor([[VIEW_HEAD["view"].index(v)] for v in views])
    targets = torch.cat([pictures.stated_targets(index), view_targets], 1)
    texts = [f"{pictures.caption(int(i))}, {v}" for i, v in zip(index, views, strict=True)]
    return texts, targets.to(device), thumbnails(pictures.images[index]).to(device)

"""What a world is to the training of its models: names, sizes and training pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

FACTOR = 4  # a latent covers FACTOR x FACTOR pixels
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Sizes:
    """Sizes of a world's models. The defaults are those of the toybox.

    Attributes:
        resolution: Side of a picture, pixels.
        widths: Channels of the denoiser's levels, the outermost first. The two innermost levels
            have cross-attention to the prompt.
        layers: Blocks of each level.
        time_width: Width of the denoiser's time embedding.
        patch: Side of a patch of the vision tower, pixels; it has (resolution / patch)^2 of them.
    """

    resolution: int = 64
    widths: tuple[int, ...] = (96, 96, 160)
    layers: tuple[int, ...] = (2, 1, 1)
    time_width: int = 384
    patch: int = 8

    @property
    def latent(self) -> int:
        """Side of the latents."""
        return self.resolution // FACTOR


@dataclass(frozen=True)
class World:
    """The names and sizes that the models of a world share.

    Attributes:
        name: Of the adapter's file and the reward model's tokenizer.
        sizes: Of the models.
        nouns: Every noun.
        heads: What a judge names: the values of each attribute.
        words: Every word of captions and view words, each one token.
        start: Folder of the models that an untrained denoiser starts from; None for random weights.
        licence: Of the models trained on it; "" if it is not known, as of a user's own meshes.
    """

    name: str
    sizes: Sizes
    nouns: tuple[str, ...]
    heads: Mapping[str, list[str]]
    words: tuple[str, ...]
    start: Path | None = None
    licence: str = ""


class TrainingPictures(Protocol):
    """Pictures of a world with all that their training asks of them."""

    @property
    def world(self) -> World:
        """The world."""
        ...

    @property
    def key(self) -> str:
        """What was drawn, as a digest: latents and readers of other pictures are not used.

        "" for the toybox, whose pictures are the same in every training.
        """
        ...

    @property
    def images(self) -> Any:
        """[N, S, S, 3] uint8; indexed by slices and by arrays of numbers."""
        ...

    def __len__(self) -> int: ...

    def caption(self, index: int) -> str:
        """The caption of picture `index` without view words."""
        ...

    def view(self, index: int) -> str:
        """The view words of picture `index`."""
        ...

    def confused(self, index: int, rng: np.random.Generator) -> str:
        """A nearly right caption of picture `index`, without view words."""
        ...

    def other_views(self, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each of B pictures [B] the number of a picture of the same thing, or its own."""
        ...

    def quantiles(self, frequency: Mapping[str, float]) -> np.ndarray:
        """Cumulative probabilities [N] for drawing pictures by the frequency of their kind."""
        ...

    def noun_maps(self, index: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Share of each of 8 x 8 cells that each noun covers [B, nouns, 8, 8], in [0, 1]."""
        ...

    def visible_targets(self) -> np.ndarray:
        """What each picture shows [N, heads] int64, -100 where it does not show it."""
        ...

    def stated_targets(self, index: np.ndarray) -> Tensor:
        """What the captions of B pictures state [B, heads] int64, -100 where they do not."""
        ...

    def without_colors(self, text: str) -> str:
        """A caption without its colours, as a user writes it next to an image."""
        ...

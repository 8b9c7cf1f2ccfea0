"""Training losses of the denoiser, its text encoder and its image branch.

`PriorLosses` is the usual denoising loss on noisy latents of true pictures. `AlignLosses` adds a
loss on pictures that the model draws itself; its gradient flows through all sampling steps
(AlignProp: Prabhudesai et al., arXiv 2310.03739; DRaFT: Clark et al., arXiv 2309.17400). The
denoising loss alone does not see how errors add up over the steps: an object can end as a blob
although the error of every single step is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.diffusion.sampling import noise_levels, sample
from vp3d.diffusion.schedule import alpha_bar_from_config, epsilon_from_v
from vp3d.embedded import architectures
from vp3d.embedded.fit import half_precision
from vp3d.embedded.latent_reader import (
    NO_TARGET,
    LatentReader,
    caption_batch,
)
from vp3d.worlds.base import LATENT_CHANNELS, TrainingPictures
from vp3d.worlds.toybox.data import augment, to_tensor

# What a sample is conditioned on, by number
TEXT, NOTHING, TEXT_AND_IMAGE, IMAGE, TEXT_AND_NULL_IMAGE, NULL_IMAGE = range(6)


@dataclass(frozen=True)
class Conditions:
    """The conditions of B samples and what can be predicted from them.

    Attributes:
        index: Number of the true picture [B].
        kind: What the sample is conditioned on [B], `TEXT` to `NULL_IMAGE`.
        inputs: Text embeddings [B, L, C], image tokens [B, T, C] and gates [B] for the denoiser;
            the text alone if it has no image branch.
        targets: Attributes [B, heads] int64 in the order of `reader_heads`, `NO_TARGET` where the
            condition does not determine them.
        image_targets: The same of the picture behind the image tokens, `NO_TARGET` without one.
    """

    index: np.ndarray
    kind: np.ndarray
    inputs: tuple[Tensor, ...]
    targets: Tensor
    image_targets: Tensor


@dataclass(frozen=True)
class Batch:
    """The last input of the denoiser: conditions, noisy latents [B, 4, S, S], time steps [B]."""

    conditions: Conditions
    noisy: Tensor
    t: Tensor


class PriorLosses:
    """The v-prediction loss (Salimans and Ho 2022) on a mix of conditions, and auxiliary losses.

    Every branch of the guidance must be in distribution, so the samples are conditioned on: the
    text 38 %, nothing 8 %, text and image 16 %, the image alone 31 %, text and the null image 3 %,
    the null image alone 4 %. Without image the gate is 0, else it is in [0.4, 1]. Nine captions in
    ten have view words; next to an image, two captions in five leave the colours out. If the text
    names the view, the image is another view of the same scene in three cases out of four, so that
    the text turns the object; otherwise it is the picture itself. Each kind of caption is
    `KIND_FREQUENCY` times as frequent as in `scenes.sample_spec`, because what is small in the
    picture is learnt last.

    The denoiser alone teaches the text encoder slowly which colour belongs to which object, and
    view words hardly at all: each picture is then drawn as the mean of its views. So there are
    auxiliary losses:

    * `loss_pooled`, `loss_tokens`: the text embedding (its mean, and its part in the time
      embedding) must predict attributes, view and thumbnail linearly, on `TEXT_BATCH` more
      captions.
    * `loss_nouns`: each of 8 x 8 cells inside the denoiser must predict which noun it shows.
      Without it, colours were in the right place after half a million pictures and the nouns of
      two objects were not.
    * `loss_read`: a frozen network (`latent_reader`) must recognise the attributes in the estimate
      of the clean latents.
    * `loss_image_attributes`: the image tokens must predict the attributes, on the batch and on
      `extra_images` pictures that only the vision tower sees.

    Each is computed only if `model` has the auxiliary head for it (`aid_*`).
    """

    SHARES = (0.38, 0.08, 0.16, 0.31, 0.03)
    BATCH, TEXT_BATCH = 32, 32
    KIND_FREQUENCY = {
        "plain": 0.6, "part": 1.4, "on": 2.0, "next to": 3.0, "stripes": 0.8, "checks": 2.0,
    }  # fmt: skip
    NOUNS_WEIGHT = 0.3
    READ_WEIGHT = 0.005  # with 0.02 nouns are learnt sooner, but as caricatures

    def __init__(
        self,
        model: nn.ModuleDict,
        tokenizer: object,
        pictures: TrainingPictures,
        latents: Tensor,
        targets: Tensor,
        reader: LatentReader,
        shares: Sequence[float] = SHARES,
        batch: int = BATCH,
        extra_images: int = 0,
        image_weight: float = 0.05,
    ) -> None:
        """Prepare the losses of a model.

        Args:
            model: "unet", "text" and any of the auxiliary heads; "projection" and "vision_tower" if
                the denoiser has an image branch.
            tokenizer: Of the text encoder.
            pictures: The N training pictures.
            latents: Their scaled latents [N, 4, S, S].
            targets: Their attributes [N, heads] (`read_targets`).
            reader: The frozen network behind `loss_read`.
            shares: Shares of the kinds of condition, in their order; the last kind has the rest.
            batch: Samples in a batch.
            extra_images: Pictures more for `loss_image_attributes`.
            image_weight: Weight of `loss_image_attributes`.
        """
        self.model, self.tokenizer, self.pictures, self.reader = model, tokenizer, pictures, reader
        self.latents, self.targets, self.shares = latents, targets, np.cumsum(shares)
        self.batch, self.extra_images, self.image_weight = batch, extra_images, image_weight
        self.device = next(model.parameters()).device
        self.alpha_bar = alpha_bar_from_config(architectures.new_scheduler().config).to(self.device)
        self.quantiles = pictures.quantiles(self.KIND_FREQUENCY)
        self.cells = torch.empty(0)  # features [B, C, 8, 8] of the last forward pass
        if "aid_map" in model:
            model.get_submodule("unet.up_blocks.1.upsamplers.0").register_forward_pre_hook(
                self._keep_cells
            )

    def __call__(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        """Named scalars of one batch; the training minimises the sum of those named `loss*`."""
        conditions = self.draw_conditions(rng, self.batch, self.shares)
        x0 = self.latents[conditions.index].to(self.device).float()
        noise = torch.randn(x0.shape, generator=generator, device=self.device)
        u = torch.rand(self.batch, generator=generator, device=self.device)
        # more of the high noise, where the text decides which object it is
        t = (len(self.alpha_bar) * u**0.6).long()
        alpha, sigma = (
            a[:, None, None, None]
            for a in (self.alpha_bar[t].sqrt(), (1 - self.alpha_bar[t]).sqrt())
        )
        noisy = alpha * x0 + sigma * noise
        self.last = Batch(conditions, noisy, t)
        with half_precision(self.device):
            predicted = self.model["unet"](noisy, t, denoiser_inputs(conditions.inputs)).sample
        predicted = predicted.float()
        shares = self.pictures.noun_maps(conditions.index, self.device)
        known = torch.from_numpy(determines_scene(conditions.kind)).to(self.device)
        known_shares = shares * known[:, None, None, None]
        with half_precision(self.device):
            x0_estimate = alpha * noisy - sigma * predicted
            read = self.reader(x0_estimate, known_shares, conditions.targets)
        values = {
            "loss_v": F.mse_loss(predicted, alpha * noise - sigma * x0),
            "loss_read": self.READ_WEIGHT * read,
        }
        if "aid_map" in self.model:
            log_share = F.log_softmax(self.model["aid_map"](self.cells), 1)
            values["loss_nouns"] = -self.NOUNS_WEIGHT * (shares * log_share).sum() / shares.sum()
        if "aid_image" in self.model:
            values["loss_image_attributes"] = self._image_loss(conditions, rng)
        return values | (self._text_losses(rng) if "aid_pooled" in self.model else {})

    def draw_conditions(
        self, rng: np.random.Generator, batch: int, shares: np.ndarray
    ) -> Conditions:
        """Conditions of `batch` random pictures, of kinds drawn by the cumulative `shares`."""
        index = np.searchsorted(self.quantiles, rng.random(batch), side="right")
        kind = np.searchsorted(shares, rng.random(batch), side="right")
        texts = [self._prompt(int(i), int(k), rng) for i, k in zip(index, kind, strict=True)]
        names_view = np.array(
            [self.pictures.view(int(i)) in s for i, s in zip(index, texts, strict=True)]
        )
        image_index = self._image_index(index, kind, names_view, rng)
        gate = torch.from_numpy(
            np.where(kind < 2, 0.0, rng.uniform(0.4, 1.0, batch)).astype(np.float32)
        )
        gate = torch.where(torch.from_numpy(kind == IMAGE), torch.ones_like(gate), gate)
        known = torch.from_numpy(determines_scene(kind))[:, None].repeat(1, self.targets.shape[1])
        known[:, -1] &= torch.from_numpy(names_view)
        none = self.targets.new_tensor(NO_TARGET)
        targets = self.targets[index].where(known, none)
        has_image = torch.from_numpy(image_index >= 0)[:, None]
        image_targets = self.targets[image_index].where(has_image, none)
        inputs: tuple[Tensor, ...] = (self.encode(texts),)
        if "projection" in self.model:
            inputs += (self.image_tokens(image_index, rng), gate.to(self.device))
        return Conditions(
            index, kind, inputs, targets.to(self.device), image_targets.to(self.device)
        )

    def null_patches(self) -> Tensor:
        """Patches [1, 65, 128] that the vision tower gives for no image (zeros, normalised)."""
        side = self.pictures.world.sizes.resolution
        nothing = torch.zeros(1, 3, side, side, device=self.device)
        tower = self.model["vision_tower"]
        return architectures.patches(tower(nothing, output_hidden_states=True))

    def encode(self, texts: list[str]) -> Tensor:
        """Text embeddings [B, 20, 128]."""
        return self.model["text"](architectures.tokenize(self.tokenizer, texts).to(self.device))[0]

    def image_tokens(self, index: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Image tokens [B, 20, 128] of the pictures numbered `index` [B], null tokens for -1."""
        embedding = self.null_patches().repeat(len(index), 1, 1)
        rows = np.flatnonzero(index >= 0)
        if len(rows):
            rgb = to_tensor(self.pictures.images[index[rows]], self.device)
            # no shift: the tokens have to say where things are
            rgb = augment(rgb, rng, strength=0.25, most_shift=0)
            with half_precision(self.device):
                outputs = architectures.vision_outputs(self.model["vision_tower"], rgb)
                embedding[rows] = architectures.patches(outputs).float()
        with half_precision(self.device):
            return self.model["projection"](embedding).float()

    def _keep_cells(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.cells = inputs[0].float()

    def _image_loss(self, conditions: Conditions, rng: np.random.Generator) -> Tensor:
        tokens, targets = conditions.inputs[1], conditions.image_targets
        if self.extra_images:
            extra = np.searchsorted(self.quantiles, rng.random(self.extra_images), side="right")
            tokens = torch.cat([tokens, self.image_tokens(extra, rng)])
            targets = torch.cat([targets, self.targets[extra].to(self.device)])
        return self.image_weight * self.model["aid_image"](tokens.flatten(1), targets)

    def _text_losses(self, rng: np.random.Generator) -> dict[str, Tensor]:
        index = rng.integers(len(self.pictures), size=self.TEXT_BATCH)
        texts, targets, thumbnails = caption_batch(self.pictures, index, self.device)
        text = self.encode(texts)
        pooled = self.model.get_submodule("unet.add_embedding")(text)
        return {
            "loss_pooled": self.model["aid_pooled"](pooled, targets, thumbnails),
            "loss_tokens": self.model["aid_tokens"](text.mean(1), targets, thumbnails),
        }

    def _prompt(self, index: int, kind: int, rng: np.random.Generator) -> str:
        """The text of a sample: of an image alone it is empty, or sometimes the view words."""
        has_text = kind in (TEXT, TEXT_AND_IMAGE, TEXT_AND_NULL_IMAGE)
        view = self.pictures.view(index) if rng.random() < 0.9 else ""
        if not has_text:
            return view if kind == IMAGE and rng.random() < 0.3 else ""
        text = self.pictures.caption(index)
        if rng.random() < (0.4 if kind == TEXT_AND_IMAGE else 0.04):
            text = self.pictures.without_colors(text)
        return f"{text}, {view}" if view else text

    def _image_index(
        self, index: np.ndarray, kind: np.ndarray, names_view: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Number [B] of the picture behind the image tokens, -1 without one."""
        other = names_view & (rng.random(len(index)) < 0.75)
        chosen = np.where(other, self.pictures.other_views(index, rng), index)
        return np.where((kind == TEXT_AND_IMAGE) | (kind == IMAGE), chosen, -1)


def denoiser_inputs(inputs: tuple[Tensor, ...]) -> Any:
    """`Conditions.inputs` as the denoiser takes them: without image branch the text itself."""
    return inputs if len(inputs) > 1 else inputs[0]


def determines_scene(kind: np.ndarray) -> np.ndarray:
    """Whether conditions of these kinds [B] say which scene to draw, [B] bool."""
    return (kind != NOTHING) & (kind < NULL_IMAGE)


class AlignLosses:
    """`PriorLosses`, and losses on pictures that the model draws itself.

    Two pictures are drawn for each of `paired` conditions, in `STEPS` steps of DDIM without
    guidance. `loss_drawn` is the cross-entropy of the latent reader on each drawing.
    `loss_energy` compares the two drawings x and x' of a condition with the true picture y by the
    energy score (Gneiting and Raftery 2007),

        1/2 |x - y| + 1/2 |x' - y| - 1/2 |x - x'|,

    on the latents and on the reader's features. It is least if drawings are distributed as true
    pictures are, so a drawing that only scores well with the reader costs. The time steps are
    jittered; otherwise the denoiser would be trained at `STEPS` noise levels alone.
    """

    SHARES = (0.4, 0.0, 0.12, 0.48)
    STEPS = 6
    NOISE = 0.4  # largest standard deviation of the noise on a drawing that is read
    READ_WEIGHT, ENERGY_WEIGHT = 0.02, 0.3

    def __init__(
        self, prior: PriorLosses, paired: int = 8, shares: Sequence[float] = SHARES
    ) -> None:
        self.prior, self.paired, self.shares = prior, paired, np.cumsum(shares)

    def __call__(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        """Named scalars of one batch; the training minimises the sum of those named `loss*`."""
        prior, reader = self.prior, self.prior.reader
        values = prior(rng, generator)
        conditions = prior.draw_conditions(rng, self.paired, self.shares)
        drawn = self.draw(tuple(torch.cat([c, c]) for c in conditions.inputs), rng, generator)
        strength = self.NOISE * torch.rand(
            len(drawn), 1, 1, 1, generator=generator, device=drawn.device
        )
        noise = torch.randn(drawn.shape, generator=generator, device=drawn.device)
        read = reader.whole(reader.body(drawn + strength * noise))
        true = prior.latents[conditions.index].to(drawn)
        features = [(x, reader.body(x)) for x in (*drawn.chunk(2), true)]
        energy = torch.stack(
            [
                distance(a, y) + distance(b, y) - distance(a, b)
                for a, b, y in zip(*features, strict=True)
            ]
        )
        targets = torch.cat([conditions.targets, conditions.targets])
        return values | {
            "loss_drawn": self.READ_WEIGHT * reader.attribute_loss(read, targets),
            "loss_energy": 0.5 * self.ENERGY_WEIGHT * energy.mean(),
        }

    def draw(
        self, inputs: tuple[Tensor, ...], rng: np.random.Generator, generator: torch.Generator
    ) -> Tensor:
        """Latents [B, 4, S, S] sampled from noise, with their gradient.

        Args:
            inputs: Text embeddings, image tokens and gates of B samples (`Conditions.inputs`).
            rng: Jitters the time steps.
            generator: Draws the noise.
        """
        batch, alpha_bar = len(inputs[0]), self.prior.alpha_bar
        # the first step starts from pure noise, so only the later ones are moved
        jitter = rng.random(self.STEPS) * (np.arange(self.STEPS) > 0)
        exact_times = len(alpha_bar) * (np.arange(self.STEPS, 0, -1) - jitter) / self.STEPS
        times = [max(round(time) - 1, 0) for time in exact_times]
        levels = noise_levels(alpha_bar, torch.tensor(times, device=alpha_bar.device))
        side = self.prior.pictures.world.sizes.latent
        shape = (batch, LATENT_CHANNELS, side, side)
        start = torch.randn(shape, generator=generator, device=alpha_bar.device)

        def denoise(x: Tensor, step: int) -> Tensor:
            with half_precision(self.prior.device):
                v = self.prior.model["unet"](x, times[step], denoiser_inputs(inputs)).sample
            return epsilon_from_v(x, v.float(), levels[step].expand(len(x)))

        return sample(denoise, start, levels)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Root of the mean squared difference [B] of features [B, C, H, W]."""
    return (a - b).flatten(1).square().mean(1).add(1e-8).sqrt()

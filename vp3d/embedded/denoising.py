"""What the denoiser, its text encoder and its image branch learn from: true pictures, and their own drawings.

`PriorLosses` is the usual training on noisy latents of true pictures. `AlignLosses` adds drawings of the model itself, through
whose whole sampling the gradient goes back (AlignProp: Prabhudesai et al., arXiv 2310.03739; DRaFT: Clark et al., arXiv
2309.17400). The first says nothing of how errors add up over the steps: objects of which every single step is nearly right
still end as blobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.diffusion.sampling import noise_levels, sample
from vp3d.diffusion.schedule import alpha_bar_from_config, epsilon_from_v
from vp3d.embedded import architectures
from vp3d.embedded.fit import half_precision
from vp3d.embedded.latent_reader import READ, LatentReader, kind_quantiles, tell
from vp3d.worlds.toybox.data import Pictures, augment, noun_maps, to_tensor
from vp3d.worlds.toybox.scenes import without_colors


@dataclass(frozen=True)
class Told:
    """What B pictures are to be drawn from, and what may be asked of the drawings.

    index [B] of the picture, kind [B] (`PriorLosses`), condition: text [B, L, C], image tokens [B, T, C], gate [B]; answers
    [B, heads] int64 in the order of `READ`, -100 where the condition does not tell; shown [B, heads] those of the pictures
    behind the image tokens, -100 where there is none.
    """

    index: np.ndarray
    kind: np.ndarray
    condition: tuple[Tensor, Tensor, Tensor]
    answers: Tensor
    shown: Tensor


@dataclass(frozen=True)
class Batch:
    """What the denoiser was last asked: after `told`, noisy latents [B, 4, 16, 16] at time steps t [B]."""

    told: Told
    noisy: Tensor
    t: Tensor


class PriorLosses:
    """v-prediction (Salimans and Ho 2022) on a mix of conditions, so that every branch of the guidance is in distribution.

    Of the samples 38 % are told the text, 8 % nothing, 16 % text and image, 31 % the image alone, 3 % text and the null image,
    4 % the null image alone; without image the gate is 0, else it is in [0.4, 1]. Captions carry view words nine times in ten;
    beside a picture two in five leave the colours out. Where the text tells the view, the image is three times in four another
    view of the same scene, so that the text turns it; where it does not, the image is the picture itself.
    Each kind of caption is OFTEN times as frequent as in `scenes.sample_spec`: what is small in the picture is learnt last.

    The denoiser alone teaches the text encoder slowly which colour belongs to which object, and the view words hardly at all:
    then everything is drawn as the mean of its views. So the text's tokens (their mean) and what of it joins the time
    embedding must also tell the exact attributes, the view and the picture's thumbnail, linearly, for CAPTIONS more pictures,
    while `model` has aids for it. And inside the denoiser every cell of 8 x 8 must tell which noun it shows: of two objects
    the colours went to their places after half a million pictures, and the nouns to neither. The estimate of the clean latents
    must be read rightly, too (`reader`), and of the image tokens the attributes (`aid_image`): of those of the batch and of
    `more_shown` pictures that the eye alone sees.
    """

    SHARES = (0.38, 0.08, 0.16, 0.31, 0.03)
    BATCH, CAPTIONS = 32, 32
    OFTEN = {"plain": 0.6, "part": 1.4, "on": 2.0, "next to": 3.0, "stripes": 0.8, "checks": 2.0}
    NOUNS_WEIGHT = 0.3
    READ_WEIGHT = 0.005  # at 0.02 nouns come sooner, but as caricatures

    def __init__(
        self,
        model: nn.ModuleDict,
        tokenizer: object,
        pictures: Pictures,
        latents: Tensor,
        answers: Tensor,
        reader: LatentReader,
        shares: Sequence[float] = SHARES,
        batch: int = BATCH,
        more_shown: int = 0,
        shown_weight: float = 0.05,
    ) -> None:
        self.model, self.tokenizer, self.pictures, self.reader = model, tokenizer, pictures, reader
        self.latents, self.answers, self.shares = latents, answers, np.cumsum(shares)
        self.batch, self.more_shown, self.shown_weight = batch, more_shown, shown_weight
        self.device = next(model.parameters()).device
        self.alpha_bar = alpha_bar_from_config(architectures.new_scheduler().config).to(self.device)
        self.views = len(pictures) // len(pictures.specs)
        self.quantiles = kind_quantiles(pictures, self.OFTEN)
        self.cells = torch.empty(0)  # features [B, C, 8, 8] of the last denoising
        if "aid_map" in model:
            model.get_submodule("unet.up_blocks.1.upsamplers.0").register_forward_pre_hook(
                self._keep_cells
            )

    def __call__(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        """Named scalars of one batch; `loss*` are summed."""
        told = self.draw_conditions(rng, self.batch, self.shares)
        x0 = self.latents[told.index].to(self.device).float()
        noise = torch.randn(x0.shape, generator=generator, device=self.device)
        u = torch.rand(self.batch, generator=generator, device=self.device)
        t = (
            len(self.alpha_bar) * u**0.6
        ).long()  # more of the high noise, where the text decides what there is
        alpha, sigma = (
            a[:, None, None, None]
            for a in (self.alpha_bar[t].sqrt(), (1 - self.alpha_bar[t]).sqrt())
        )
        noisy = alpha * x0 + sigma * noise
        self.last = Batch(told, noisy, t)
        with half_precision(self.device):
            predicted = self.model["unet"](noisy, t, told.condition).sample
        predicted = predicted.float()
        shares = noun_maps(self.pictures, told.index, self.device)
        asked = torch.from_numpy((told.kind != 1) & (told.kind < 5))[:, None, None, None].to(
            self.device
        )
        with half_precision(self.device):
            read = self.reader(alpha * noisy - sigma * predicted, shares * asked, told.answers)
        values = {
            "loss_v": F.mse_loss(predicted, alpha * noise - sigma * x0),
            "loss_read": self.READ_WEIGHT * read,
        }
        if "aid_map" in self.model:
            named = F.log_softmax(self.model["aid_map"](self.cells), 1)
            values["loss_nouns"] = -self.NOUNS_WEIGHT * (shares * named).sum() / shares.sum()
        if "aid_image" in self.model:
            tokens, behind = told.condition[1], told.shown
            if self.more_shown:
                more = np.searchsorted(self.quantiles, rng.random(self.more_shown), side="right")
                tokens = torch.cat([tokens, self.image(more, rng)])
                behind = torch.cat([behind, self.answers[more].to(self.device)])
            values["loss_shown"] = self.shown_weight * self.model["aid_image"](
                tokens.flatten(1), behind
            )
        return values | (self._text_aids(rng) if "aid_pooled" in self.model else {})

    def draw_conditions(self, rng: np.random.Generator, batch: int, shares: np.ndarray) -> Told:
        """Conditions of `batch` random pictures, of the kinds of the class docstring by cumulative `shares`."""
        index = np.searchsorted(self.quantiles, rng.random(batch), side="right")
        kind = np.searchsorted(shares, rng.random(batch), side="right")
        texts = [self._text(int(i), int(k), rng) for i, k in zip(index, kind, strict=True)]
        turned = np.array(
            [self.pictures.view(int(i)) in s for i, s in zip(index, texts, strict=True)]
        )  # the view is told
        shown = self._shown(index, kind, turned, rng)
        gate = torch.from_numpy(
            np.where(kind < 2, 0.0, rng.uniform(0.4, 1.0, batch)).astype(np.float32)
        )
        gate = torch.where(torch.from_numpy(kind == 3), torch.ones_like(gate), gate).to(self.device)
        asked = torch.from_numpy((kind != 1) & (kind < 5))[:, None].repeat(1, len(READ))
        asked[:, -1] &= torch.from_numpy(turned)
        untold = self.answers.new_tensor(-100)
        answers = self.answers[index].where(asked, untold).to(self.device)
        behind = (
            self.answers[shown].where(torch.from_numpy(shown >= 0)[:, None], untold).to(self.device)
        )
        return Told(
            index, kind, (self.encode(texts), self.image(shown, rng), gate), answers, behind
        )

    def blind(self) -> Tensor:
        """What the eye makes of no image, one of zeros after normalising: patches [1, 65, 128]."""
        nothing = torch.zeros(
            1, 3, architectures.RESOLUTION, architectures.RESOLUTION, device=self.device
        )
        return architectures.patches(self.model["eye"](nothing, output_hidden_states=True))

    def _keep_cells(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.cells = given[0].float()

    def encode(self, texts: list[str]) -> Tensor:
        """Text embeddings [B, 20, 128]."""
        return self.model["text"](architectures.tokenize(self.tokenizer, texts).to(self.device))[0]

    def _text_aids(self, rng: np.random.Generator) -> dict[str, Tensor]:
        index = rng.integers(len(self.pictures), size=self.CAPTIONS)
        texts, told, seen = tell(self.pictures, index, self.device)
        text = self.encode(texts)
        pooled = self.model.get_submodule("unet.add_embedding")(text)
        return {
            "loss_pooled": self.model["aid_pooled"](pooled, told, seen),
            "loss_tokens": self.model["aid_tokens"](text.mean(1), told, seen),
        }

    def _text(self, index: int, kind: int, rng: np.random.Generator) -> str:
        told = kind in (0, 2, 4)
        view = self.pictures.view(index) if rng.random() < 0.9 else ""
        if not told:
            return view if kind == 3 and rng.random() < 0.3 else ""
        text = self.pictures.caption(index)
        if rng.random() < (0.4 if kind == 2 else 0.04):
            text = without_colors(text)
        return f"{text}, {view}" if view else text

    def _shown(
        self, index: np.ndarray, kind: np.ndarray, turned: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Number [B] of the picture behind the image tokens, -1 where there is none."""
        other = turned & (rng.random(len(index)) < 0.75)
        shown = np.where(
            other,
            index // self.views * self.views + rng.integers(self.views, size=len(index)),
            index,
        )
        return np.where((kind == 2) | (kind == 3), shown, -1)

    def image(self, shown: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Image tokens [B, 20, 128] of the pictures numbered `shown`, null (of `blind`) where that is -1."""
        embedding = self.blind().repeat(len(shown), 1, 1)
        has = np.flatnonzero(shown >= 0)
        if len(has):
            rgb = to_tensor(self.pictures.images[shown[has]], self.device)
            rgb = augment(
                rgb, rng, strength=0.25, most_shift=0
            )  # shifted, it would not say where things are
            with half_precision(self.device):
                embedding[has] = architectures.patches(
                    architectures.see(self.model["eye"], rgb)
                ).float()
        with half_precision(self.device):
            return self.model["projection"](embedding).float()


class AlignLosses:
    """`PriorLosses`, and what of the model's own drawings is not as told.

    `paired` conditions are drawn from twice, in STEPS steps of DDIM without guidance. Each drawing is read by the reader
    (`loss_drawn`, cross-entropy), and the two of a condition are compared with the true picture y by the energy score (Gneiting
    and Raftery 2007), ½|x - y| + ½|x' - y| - ½|x - x'|, on the latents and on the reader's features: it is least where drawings
    are distributed as true pictures are, so a drawing that only pleases the reader costs. Times within the steps are jittered,
    else the denoiser would be taught at STEPS noise levels alone.
    """

    SHARES = (0.4, 0.0, 0.12, 0.48)
    STEPS = 6
    NOISE = 0.4  # largest standard deviation of the noise on a drawing that is read
    READ_WEIGHT, ENERGY_WEIGHT = 0.02, 0.3

    def __init__(self, prior: PriorLosses, paired: int = 8) -> None:
        self.prior, self.paired, self.shares = prior, paired, np.cumsum(self.SHARES)

    def __call__(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        """Named scalars of one batch; `loss*` are summed."""
        prior = self.prior
        values = prior(rng, generator)
        told = prior.draw_conditions(rng, self.paired, self.shares)
        drawn = self.draw(tuple(torch.cat([c, c]) for c in told.condition), rng, generator)
        strength = self.NOISE * torch.rand(
            len(drawn), 1, 1, 1, generator=generator, device=drawn.device
        )
        noise = torch.randn(drawn.shape, generator=generator, device=drawn.device)
        read = prior.reader.whole(prior.reader.body(drawn + strength * noise))
        seen = [
            (x, prior.reader.body(x))
            for x in (*drawn.chunk(2), prior.latents[told.index].to(drawn))
        ]
        energy = torch.stack(
            [
                distance(a, y) + distance(b, y) - distance(a, b)
                for a, b, y in zip(*seen, strict=True)
            ]
        )
        return values | {
            "loss_drawn": self.READ_WEIGHT
            * prior.reader.missed(read, torch.cat([told.answers, told.answers])),
            "loss_energy": 0.5 * self.ENERGY_WEIGHT * energy.mean(),
        }

    def draw(
        self, condition: tuple[Tensor, ...], rng: np.random.Generator, generator: torch.Generator
    ) -> Tensor:
        """Latents [B, 4, 16, 16] sampled from noise after `condition`, with their gradient."""
        batch, alpha_bar = len(condition[0]), self.prior.alpha_bar
        early = rng.random(self.STEPS) * (
            np.arange(self.STEPS) > 0
        )  # the first step is from pure noise
        levels = len(alpha_bar) * (np.arange(self.STEPS, 0, -1) - early) / self.STEPS
        times = [max(round(level) - 1, 0) for level in levels]
        x = torch.randn(batch, 4, 16, 16, generator=generator, device=alpha_bar.device)
        levels = noise_levels(alpha_bar, torch.tensor(times, device=alpha_bar.device))

        def denoise(x: Tensor, step: int) -> Tensor:
            with half_precision(self.prior.device):
                v = self.prior.model["unet"](x, times[step], condition).sample
            return epsilon_from_v(x, v.float(), levels[step].expand(len(x)))

        return sample(denoise, x, levels)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Root of the mean squared difference [B] of features [B, C, H, W]."""
    return (a - b).flatten(1).square().mean(1).add(1e-8).sqrt()

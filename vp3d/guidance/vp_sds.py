"""VP-SDS: score distillation conditioned on the text and on the visual prompt (VP3D, arXiv 2403.17001; DreamFusion, 2209.14988).

    grad_z = w(t) * (e_hat(z_t; t, y, v) - e),   z = encode(render),   z_t = alpha_t z + sigma_t e

e_hat is the guided noise of diffusion/cfg.py, with that of diffusion/perp_neg.py as an option; v enters by the gated
attention of diffusion/image_prompt.py with lambda = `lam` at the run's progress times `lam_gate` at the camera's azimuth.
lambda = 0 takes the path of plain SDS, bit for bit.
With `denoise_steps` N above 1, e_hat is the noise that would give the x0 which N deterministic steps from z_t to 0 end at,
each guided (ReconFusion, arXiv 2312.02981, section 4.3, samples its target so); N = 1 is score distillation.
The gradient reaches autograd as an MSE against a detached target, 0.5 * (z - stop(z - grad_z))^2, and flows through
`encode_images` alone; the denoiser runs without gradient. With `space` "pixels" no encoder stands between error and field:
the clean latents x0 that e_hat stands for are decoded, and the views x pulled there (HiFA's term, arXiv 2305.18766):

    grad_x = w(t) * alpha_t / sigma_t * (x - decode(x0))

An estimate may serve several steps of the field: x0 stays, as a `Target`, and the views as they are by then are pulled there
(after Instruct-NeRF2NeRF, arXiv 2303.12789, whose edited pictures serve many steps; ours are drawn anew every few).
Normalisation of the MSE: "sum" over elements divided by B (dreamfusion code's), or "mean" over all elements, smaller by the
C * h * w of the latents or views; a loss weight means nothing without saying which. Each view has its own t (stratified, see
`schedule.sample_t`) and its own noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vp3d.config.schema import GuidanceConfig
from vp3d.diffusion.cfg import Branch, branch_weights, combine, rescale_std
from vp3d.diffusion.perp_neg import perp_neg, view_negatives
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.sampling import ddim_step
from vp3d.diffusion.schedule import (
    add_noise,
    epsilon_from_x0,
    sample_t,
    sds_weight,
    t_bounds,
    x0_from_epsilon,
)
from vp3d.diffusion.text import TextEmbedding
from vp3d.errors import UserError
from vp3d.guidance.condition import Condition
from vp3d.guidance.view_gate import gate_weight
from vp3d.types import Camera

OTHERS: tuple[Branch, Branch] = ("other_1", "other_2")  # Perp-Neg's negatives


@dataclass(frozen=True)
class Estimate:
    """What the prior says of a batch of noised latents; no gradient.

    t [B] int64; noise, the guided noise e_hat and the clean latents x0 it stands for [B, 4, h, w]; weight [B] is w(t), x0_weight
    [B] w(t) alpha / sigma; lam [B] the strength of the image branch.
    """

    t: Tensor
    noise: Tensor
    e_hat: Tensor
    x0: Tensor
    weight: Tensor
    x0_weight: Tensor
    lam: Tensor

    @property
    def grad(self) -> Tensor:
        """w(t) * (e_hat - e), [B, 4, h, w]."""
        return self.weight[:, None, None, None] * (self.e_hat - self.noise)


@dataclass(frozen=True)
class Target:
    """Where an estimate pulls B views, for the steps that it serves; no graph.

    target [B, C, h, w] is x0 as latents, or as the views' rgb in [0, 1] where the error is one of pixels; weight [B] is
    w(t) alpha / sigma.
    """

    target: Tensor
    weight: Tensor

    def grad(self, seen: Tensor) -> Tensor:
        """weight * (seen - target) of latents or views as they are now, [B, C, h, w]; no graph."""
        return self.weight[:, None, None, None] * (seen.detach() - self.target)


def sds_loss(latents: Tensor, grad: Tensor, normalize: str) -> Tensor:
    """A scalar whose gradient by `latents` is `grad` / B ("sum") or `grad` / number of elements ("mean").

    latents (or views), grad [B, C, h, w], any range. Its value is half the mean squared gradient and means nothing to a user.
    """
    square = 0.5 * (latents - (latents - grad).detach()) ** 2
    if normalize == "sum":
        return square.sum() / len(latents)
    if normalize == "mean":
        return square.mean()
    raise UserError(f'guidance.normalize is "{normalize}": use "sum" or "mean"')


class Guidance:
    """VP-SDS on rendered views: holds the prior and the settings, no state of the run."""

    def __init__(self, prior: Prior, config: GuidanceConfig) -> None:
        self.prior = prior
        self.config = config

    def __call__(
        self,
        rgb: Tensor,
        camera: Camera,
        condition: Condition,
        progress: float,
        generator: torch.Generator,
    ) -> tuple[dict[str, Tensor], Target]:
        """The unweighted losses {"sds": scalar} of B views rgb [B, 3, H, W] in [0, 1], composited over their background.

        progress in [0, 1] drives the schedules of t and lambda; t and noise are drawn from `generator`. With them comes where
        the views are pulled, for `again`.
        """
        in_latents = self.config.space == "latents"
        with torch.set_grad_enabled(in_latents):
            latents = self.prior.encode_images(rgb)
        estimate = self.estimate(latents.detach(), camera, condition, progress, generator)
        if in_latents:
            pull = Target(estimate.x0, estimate.x0_weight)
            return {"sds": sds_loss(latents, estimate.grad, self.config.normalize)}, pull
        pull = Target(self.picture(estimate.x0, rgb.shape[-2:]), estimate.x0_weight)
        return {"sds": sds_loss(rgb, pull.grad(rgb), self.config.normalize)}, pull

    def again(self, rgb: Tensor, pull: Target) -> dict[str, Tensor]:
        """The losses of the same B views a step later, rgb [B, 3, H, W] in [0, 1], without asking the prior anew."""
        seen = self.prior.encode_images(rgb) if self.config.space == "latents" else rgb
        return {"sds": sds_loss(seen, pull.grad(seen), self.config.normalize)}

    @torch.no_grad()
    def picture(self, latents: Tensor, size: Sequence[int]) -> Tensor:
        """What latents [B, 4, h, w] show, as rgb [B, 3, *size] in [0, 1]."""
        rgb = self.prior.decode(latents)
        return (
            rgb
            if rgb.shape[-2:] == size
            else F.interpolate(rgb, size=tuple(size), mode="bilinear", antialias=True)
        )

    @torch.no_grad()
    def estimate(
        self,
        latents: Tensor,
        camera: Camera,
        condition: Condition,
        progress: float,
        generator: torch.Generator,
    ) -> Estimate:
        """Noise the clean latents [B, 4, h, w] and ask the prior for the guided noise."""
        config, prior, table = self.config, self.prior, self.prior.alpha_bar
        low, high = t_bounds(config.t_min, config.t_max, progress, len(table))
        t = sample_t(len(latents), low, high, generator).to(prior.device)
        noise = prior.noise(len(latents), generator)
        noised = add_noise(latents, noise, table[t])
        image, lam = self._image_branch(camera, condition, progress)
        e_hat = self._guided_noise(noised, t, camera, condition, image, lam)
        x, level, epsilon = noised, t, e_hat
        for left in range(config.denoise_steps - 1, 0, -1):
            lower = t * left // config.denoise_steps
            x, level = ddim_step(x, epsilon, table[level], table[lower]), lower
            epsilon = self._guided_noise(x, level, camera, condition, image, lam)
        x0 = x0_from_epsilon(x, epsilon, table[level])
        if config.denoise_steps > 1:
            e_hat = epsilon_from_x0(noised, x0, table[t])
        weight, ratio = sds_weight(table[t], config.weighting), (table[t] / (1.0 - table[t])).sqrt()
        return Estimate(t, noise, e_hat, x0, weight, weight * ratio, lam)

    def _guided_noise(
        self,
        noised: Tensor,
        t: Tensor,
        camera: Camera,
        condition: Condition,
        image: Tensor | None,
        lam: Tensor,
    ) -> Tensor:
        """e_hat [B, 4, h, w] of latents noised to t [B]; image and lam [B] as `_image_branch` gives them."""
        config, prior, alpha_bar = self.config, self.prior, self.prior.alpha_bar[t]
        weights = branch_weights(
            config.mode,
            config.guidance_scale,
            config.text_scale,
            config.image_scale,
            image is not None,
        )
        text = condition.text_for(camera.azimuth_deg, camera.elevation_deg)
        texts: dict[Branch, TextEmbedding] = {
            b: condition.null if b == "null" else text for b in weights
        }
        strength = config.perp_neg * (1.0 - weights.get("null", 0.0))  # share * s
        if strength > 0.0:
            texts["null"] = condition.null
            texts |= self._negatives(camera, condition)
        predictions = prior.predict_branches(texts, noised, t, image, lam)
        e_hat = combine(predictions, weights)
        conditioned = predictions[
            list(weights)[-1]
        ]  # weights run from the least to the most conditioned branch
        if strength > 0.0:
            others = [predictions[branch] for branch in OTHERS]
            against = view_negatives(camera.azimuth_deg)[1].to(prior.device)
            e_hat = e_hat - strength * perp_neg(predictions["null"], conditioned, others, against)
        if config.rescale > 0.0:
            x0, reference = (
                x0_from_epsilon(noised, epsilon, alpha_bar) for epsilon in (e_hat, conditioned)
            )
            e_hat = epsilon_from_x0(noised, rescale_std(x0, reference, config.rescale), alpha_bar)
        return e_hat

    def _negatives(self, camera: Camera, condition: Condition) -> dict[Branch, TextEmbedding]:
        """The texts that Perp-Neg holds against B views: the prompt as told for two neighbouring ones."""
        azimuths = view_negatives(camera.azimuth_deg)[0]
        told = [condition.text_for(azimuth, camera.elevation_deg) for azimuth in azimuths.unbind(1)]
        return dict(zip(OTHERS, told, strict=True))

    def _image_branch(
        self, camera: Camera, condition: Condition, progress: float
    ) -> tuple[Tensor | None, Tensor]:
        """Image tokens, or None where no view uses them, and lambda per view [B]."""
        lam = self.config.lam.at(progress) * gate_weight(self.config.lam_gate, camera.azimuth_deg)
        if condition.image is None or not bool((lam != 0.0).any()):
            return None, torch.zeros_like(lam).to(self.prior.device)
        return condition.image, lam.to(self.prior.device)

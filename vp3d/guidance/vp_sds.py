"""VP-SDS: score distillation conditioned on the text and on the visual prompt.

Sources: VP3D (arXiv 2403.17001), DreamFusion (arXiv 2209.14988).

    z        = encode(render)                      latents of the view
    z_t      = alpha_t z + sigma_t e               noised with e ~ N(0, 1)
    grad_z   = w(t) * (e_hat(z_t; t, y, v) - e)    the VP-SDS gradient

e_hat is the guided noise (diffusion/cfg.py), with Perp-Neg as an option (diffusion/perp_neg.py).
The visual prompt v enters through the gated attention of diffusion/image_prompt.py. Its strength
lambda is `lam` at the run's progress times `lam_gate` at the camera's azimuth. lambda = 0 runs the
same code as plain SDS and gives the same bits.

Loss. The gradient reaches autograd as an MSE against a detached target,
0.5 * (z - stop(z - grad_z))^2, and flows through `encode_images` only. The denoiser runs without
gradient. `normalize` is "sum", over elements, divided by B (as in DreamFusion), or "mean", over
all elements, which is smaller by the C * h * w of the latents or views. The weight of the loss
depends on this choice.

More denoising steps. With `denoise_steps` N > 1, N deterministic guided steps lead from z_t to x0,
and e_hat is the noise that corresponds to that x0. ReconFusion (arXiv 2312.02981, section 4.3)
samples its target in this way. N = 1 is score distillation.

Pixels. With `space` "pixels", no encoder is between the error and the field. x0, the clean latents
of e_hat, is decoded, and the view x is compared with it (HiFA, arXiv 2305.18766):

    grad_x = w(t) * alpha_t / sigma_t * (x - decode(x0))

Reused estimates. One estimate may serve several steps of the field. Its x0 is kept as a `Target`,
and later renderings of the same views are compared with it. Instruct-NeRF2NeRF (arXiv 2303.12789)
also keeps edited pictures for many steps.

Every view has its own t (stratified, `schedule.sample_t`) and its own noise.
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

# The two branches of Perp-Neg: the same prompt with the words of two neighbouring views.
PERP_NEG_BRANCHES: tuple[Branch, Branch] = ("other_1", "other_2")


@dataclass(frozen=True)
class Estimate:
    """The prior's estimate for a batch of B noised latents, without gradient.

    Attributes:
        t: `[B]` int64, timesteps.
        noise: `[B, 4, h, w]`, the noise e that was added.
        e_hat: `[B, 4, h, w]`, the guided noise.
        x0: `[B, 4, h, w]`, the clean latents that correspond to `e_hat`.
        weight: `[B]`, w(t).
        x0_weight: `[B]`, w(t) * alpha_t / sigma_t, the weight of an error in x0.
        lam: `[B]`, lambda, the strength of the image branch.
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
        """The VP-SDS gradient w(t) * (e_hat - e), `[B, 4, h, w]`."""
        return self.weight[:, None, None, None] * (self.e_hat - self.noise)


@dataclass(frozen=True)
class Target:
    """What B views are compared with for as long as an estimate is in use, without gradient.

    Attributes:
        target: `[B, C, h, w]`: x0 as latents, or decoded as rgb in [0, 1] if `space` is "pixels".
        weight: `[B]`, w(t) * alpha_t / sigma_t.
    """

    target: Tensor
    weight: Tensor

    def grad(self, current: Tensor) -> Tensor:
        """weight * (current - target) for the latents or views of this step, `[B, C, h, w]`."""
        return self.weight[:, None, None, None] * (current.detach() - self.target)


def sds_loss(latents: Tensor, grad: Tensor, normalize: str) -> Tensor:
    """A scalar with a given gradient; its value, half the mean squared gradient, has no meaning.

    Args:
        latents: `[B, C, h, w]`, latents or views, any range.
        grad: `[B, C, h, w]`, the gradient of one view.
        normalize: "sum" or "mean".

    Returns:
        A scalar. Its gradient by `latents` is `grad` / B for "sum", and `grad` / number of elements
        for "mean".

    Raises:
        UserError: `normalize` is neither.
    """
    square = 0.5 * (latents - (latents - grad).detach()) ** 2
    if normalize == "sum":
        return square.sum() / len(latents)
    if normalize == "mean":
        return square.mean()
    raise UserError(f'guidance.normalize is "{normalize}": use "sum" or "mean"')


class Guidance:
    """VP-SDS on rendered views. It holds the prior and the settings, but no state of the run."""

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
        """The VP-SDS loss of rendered views, by a new estimate of the prior.

        Args:
            rgb: `[B, 3, H, W]` in [0, 1], views composited over their background.
            camera: The B cameras of the views.
            condition: The encoded prompts.
            progress: Of the run, in [0, 1]; sets the schedules of t and lambda.
            generator: Source of t and of the noise.

        Returns:
            The unweighted losses, {"sds": scalar}, and the target for `reuse`.
        """
        in_latents = self.config.space == "latents"
        # In pixel space the encoder only prepares the estimate, so it needs no graph.
        with torch.set_grad_enabled(in_latents):
            latents = self.prior.encode_images(rgb)
        estimate = self.estimate(latents.detach(), camera, condition, progress, generator)
        if in_latents:
            target = Target(estimate.x0, estimate.x0_weight)
            return {"sds": sds_loss(latents, estimate.grad, self.config.normalize)}, target
        target = Target(self.decode_views(estimate.x0, rgb.shape[-2:]), estimate.x0_weight)
        return {"sds": sds_loss(rgb, target.grad(rgb), self.config.normalize)}, target

    def reuse(self, rgb: Tensor, target: Target) -> dict[str, Tensor]:
        """The VP-SDS loss of the same views at a later step, without a new estimate.

        Args:
            rgb: `[B, 3, H, W]` in [0, 1], the views as rendered at this step.
            target: The second result of the call that computed the estimate.

        Returns:
            The unweighted losses, {"sds": scalar}.
        """
        current = self.prior.encode_images(rgb) if self.config.space == "latents" else rgb
        return {"sds": sds_loss(current, target.grad(current), self.config.normalize)}

    @torch.no_grad()
    def decode_views(self, latents: Tensor, size: Sequence[int]) -> Tensor:
        """Decode latents `[B, 4, h, w]` to rgb `[B, 3, *size]` in [0, 1], without gradient."""
        rgb = self.prior.decode(latents)
        if rgb.shape[-2:] == size:
            return rgb
        return F.interpolate(rgb, size=tuple(size), mode="bilinear", antialias=True)

    @torch.no_grad()
    def estimate(
        self,
        latents: Tensor,
        camera: Camera,
        condition: Condition,
        progress: float,
        generator: torch.Generator,
    ) -> Estimate:
        """Noise clean latents and estimate the guided noise, without gradient.

        Args:
            latents: `[B, 4, h, w]`, clean latents of the views.
            camera: The B cameras of the views.
            condition: The encoded prompts.
            progress: Of the run, in [0, 1].
            generator: Source of t, then of the noise.

        Returns:
            The estimate and the values it is based on.
        """
        config, prior, table = self.config, self.prior, self.prior.alpha_bar
        low, high = t_bounds(config.t_min, config.t_max, progress, len(table))
        t = sample_t(len(latents), low, high, generator).to(prior.device)
        noise = prior.noise(len(latents), generator)
        noised = add_noise(latents, noise, table[t])
        image, lam = self._image_branch(camera, condition, progress)
        e_hat = self._guided_noise(noised, t, camera, condition, image, lam)
        # Further guided DDIM steps at evenly spaced levels below each view's own t.
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
        """The guided noise e_hat: classifier-free guidance, then Perp-Neg, then the std rescale.

        Args:
            noised: `[B, 4, h, w]`, latents at noise level t.
            t: `[B]`, timesteps.
            camera: The B cameras.
            condition: The encoded prompts.
            image: Tokens of the visual prompt, or None (see `_image_branch`).
            lam: `[B]`, the strength of the image branch.

        Returns:
            `[B, 4, h, w]`.
        """
        config = self.config
        weights = branch_weights(
            config.mode,
            config.guidance_scale,
            config.text_scale,
            config.image_scale,
            with_image=image is not None,
        )
        text = condition.text_for(camera.azimuth_deg, camera.elevation_deg)
        texts: dict[Branch, TextEmbedding] = {
            branch: condition.null if branch == "null" else text for branch in weights
        }
        # The weight of the null branch is 1 - s, so this is share * s with the guidance scale s.
        perp_neg_scale = config.perp_neg * (1.0 - weights.get("null", 0.0))
        if perp_neg_scale > 0.0:
            texts["null"] = condition.null
            texts |= self._perp_neg_texts(camera, condition)
        # All branches are evaluated in one call of the denoiser.
        predictions = self.prior.predict_branches(texts, noised, t, image, lam)

        e_hat = combine(predictions, weights)
        # `weights` is ordered from the least to the most conditioned branch.
        conditioned = predictions[list(weights)[-1]]
        if perp_neg_scale > 0.0:
            e_hat = e_hat - perp_neg_scale * self._perp_neg(predictions, conditioned, camera)
        if config.rescale > 0.0:
            e_hat = self._rescale(noised, e_hat, conditioned, t)
        return e_hat

    def _perp_neg(
        self, predictions: dict[Branch, Tensor], conditioned: Tensor, camera: Camera
    ) -> Tensor:
        """Perp-Neg's weighted sum `[B, 4, h, w]` for the neighbouring views (arXiv 2304.04968).

        `predictions` are those of all branches, `conditioned` that of the most conditioned one.
        """
        negatives = [predictions[branch] for branch in PERP_NEG_BRANCHES]
        weights = view_negatives(camera.azimuth_deg)[1].to(self.prior.device)
        return perp_neg(predictions["null"], conditioned, negatives, weights)

    def _perp_neg_texts(self, camera: Camera, condition: Condition) -> dict[Branch, TextEmbedding]:
        """The texts of Perp-Neg's branches for B views: the prompt of two neighbouring views."""
        azimuths = view_negatives(camera.azimuth_deg)[0]
        texts = [
            condition.text_for(azimuth, camera.elevation_deg) for azimuth in azimuths.unbind(1)
        ]
        return dict(zip(PERP_NEG_BRANCHES, texts, strict=True))

    def _rescale(self, noised: Tensor, e_hat: Tensor, conditioned: Tensor, t: Tensor) -> Tensor:
        """Guided noise `[B, 4, h, w]` whose x0 has a standard deviation closer to the unguided one.

        `e_hat` and `conditioned` are the guided noise and the noise of the most conditioned branch
        for latents `noised` to level t `[B]`. Against over-saturation (`cfg.rescale_std`).
        """
        alpha_bar = self.prior.alpha_bar[t]
        x0 = x0_from_epsilon(noised, e_hat, alpha_bar)
        reference = x0_from_epsilon(noised, conditioned, alpha_bar)
        x0 = rescale_std(x0, reference, self.config.rescale)
        return epsilon_from_x0(noised, x0, alpha_bar)

    def _image_branch(
        self, camera: Camera, condition: Condition, progress: float
    ) -> tuple[Tensor | None, Tensor]:
        """The image tokens, or None if lambda is 0 for all views, and lambda per view `[B]`."""
        lam = self.config.lam.at(progress) * gate_weight(self.config.lam_gate, camera.azimuth_deg)
        if condition.image is None or not bool((lam != 0.0).any()):
            return None, torch.zeros_like(lam).to(self.prior.device)
        return condition.image, lam.to(self.prior.device)

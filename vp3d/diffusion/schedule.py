"""The noise schedule of a variance-preserving diffusion model: x_t = alpha_t * x0 + sigma_t * e.

alpha_t = sqrt(alpha_bar_t), sigma_t = sqrt(1 - alpha_bar_t); t is an integer in [0, T), 0 the
cleanest. All tensors are float32. Images and latents are [B, C, H, W]; alpha_bar of each sample is
[B] (taken from the table [T] by t).
`v` is the velocity of Salimans and Ho (arXiv 2202.00512): v = alpha_t * e - sigma_t * x0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vp3d.config.schema import Schedule
from vp3d.errors import UserError

# A zero-terminal-SNR table ends at 0, where x0 = (x_t - sigma e) / alpha is undefined
ALPHA_BAR_MIN = 1.0e-6

X0_LIMIT = 10.0  # largest weight of the weighting "x0", reached at alpha_bar 0.01


def betas_from_config(config: Mapping[str, Any]) -> Tensor:
    """The noise added at each step, [T] in (0, 1), float32, from a diffusers scheduler's config."""
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float32)
    steps, kind = int(config["num_train_timesteps"]), config["beta_schedule"]
    start, end = float(config["beta_start"]), float(config["beta_end"])
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    if kind == "squaredcos_cap_v2":  # Nichol and Dhariwal, arXiv 2102.09672, equation 17
        bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        return torch.tensor(
            [min(1 - bar[i + 1] / bar[i], 0.999) for i in range(steps)], dtype=torch.float32
        )
    raise UserError(
        f'the scheduler\'s beta_schedule "{kind}" is not supported: use linear, scaled_linear or'
        " squaredcos_cap_v2"
    )


def alpha_bar_from_config(config: Mapping[str, Any]) -> Tensor:
    """alpha_bar_t = prod(1 - beta), [T] in [ALPHA_BAR_MIN, 1), falling.

    From a diffusers scheduler's config, with `rescale_betas_zero_snr` (Lin et al., arXiv
    2305.08891, algorithm 1).
    """
    bar = torch.cumprod(1.0 - betas_from_config(config), dim=0)
    if config.get("rescale_betas_zero_snr"):
        root = bar.sqrt()
        bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return bar.clamp_min(ALPHA_BAR_MIN)


def alpha_sigma(alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t as [B, 1, 1, 1] in [0, 1], from alpha_bar [B]."""
    bar = alpha_bar[:, None, None, None]
    return bar.sqrt(), (1.0 - bar).sqrt()


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t [B, C, H, W] from x0 and e ~ N(0, 1) of that shape and alpha_bar [B]."""
    alpha, sigma = alpha_sigma(alpha_bar)
    return alpha * x0 + sigma * noise


def x0_from_epsilon(x_t: Tensor, epsilon: Tensor, alpha_bar: Tensor) -> Tensor:
    """x0 = (x_t - sigma e) / alpha; [B, C, H, W] each, alpha_bar [B]."""
    alpha, sigma = alpha_sigma(alpha_bar)
    return (x_t - sigma * epsilon) / alpha


def epsilon_from_x0(x_t: Tensor, x0: Tensor, alpha_bar: Tensor) -> Tensor:
    """e = (x_t - alpha x0) / sigma; [B, C, H, W] each, alpha_bar [B] below 1."""
    alpha, sigma = alpha_sigma(alpha_bar)
    return (x_t - alpha * x0) / sigma


def epsilon_from_v(x_t: Tensor, v: Tensor, alpha_bar: Tensor) -> Tensor:
    """e = alpha v + sigma x_t; [B, C, H, W] each, alpha_bar [B]."""
    alpha, sigma = alpha_sigma(alpha_bar)
    return alpha * v + sigma * x_t


def v_from_epsilon(x_t: Tensor, epsilon: Tensor, alpha_bar: Tensor) -> Tensor:
    """v = alpha e - sigma x0 with x0 from x_t and e; [B, C, H, W] each, alpha_bar [B]."""
    alpha, sigma = alpha_sigma(alpha_bar)
    return alpha * epsilon - sigma * x0_from_epsilon(x_t, epsilon, alpha_bar)


def epsilon_from_output(
    output: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: str
) -> Tensor:
    """The predicted noise from the output of a network.

    Args:
        output: The network's output [B, C, H, W].
        x_t: Its input [B, C, H, W].
        alpha_bar: The noise levels [B].
        prediction_type: What the output is: "epsilon", "v_prediction" or "sample" (x0).

    Returns:
        [B, C, H, W].

    Raises:
        UserError: if the prediction type is unknown.
    """
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return epsilon_from_v(x_t, output, alpha_bar)
    if prediction_type == "sample":
        return epsilon_from_x0(x_t, output, alpha_bar)
    raise UserError(
        f'the scheduler\'s prediction_type "{prediction_type}" is not supported: use epsilon,'
        " v_prediction or sample"
    )


def sds_weight(alpha_bar: Tensor, weighting: str) -> Tensor:
    """The weight w(t) [B] >= 0 of alpha_bar [B] in (0, 1].

    "sigma2" is 1 - alpha_bar (DreamFusion, arXiv 2209.14988); "uniform" is 1; "x0" is sigma /
    alpha, at most X0_LIMIT. With "x0", w(t) * (e_hat - e) is the distance of the latents from the
    estimate of x0 (the x0 loss of MVDream, arXiv 2308.16512). High noise, which decides the layout
    and the visible side, then counts as much as low noise.
    """
    if weighting == "sigma2":
        return 1.0 - alpha_bar
    if weighting == "uniform":
        return torch.ones_like(alpha_bar)
    if weighting == "x0":
        return ((1.0 - alpha_bar) / alpha_bar).sqrt().clamp(max=X0_LIMIT)
    raise UserError(f'guidance.weighting is "{weighting}": use "sigma2", "uniform" or "x0"')


def t_bounds(t_min: Schedule, t_max: Schedule, progress: float, steps: int) -> tuple[int, int]:
    """The lowest and highest timestep, both included, at `progress` in [0, 1].

    The schedules give fractions of T = `steps`, the number of timesteps. UserError if they cross.
    """
    low, high = t_min.at(progress), t_max.at(progress)
    if not 0.0 <= low <= high <= 1.0:
        raise UserError(
            "guidance.t_min and t_max must satisfy 0 <= t_min <= t_max <= 1,"
            f" got {low:g} and {high:g}"
        )
    top = steps - 1
    return min(round(low * steps), top), min(round(high * steps), top)


def sample_t(batch: int, low: int, high: int, generator: torch.Generator) -> Tensor:
    """Timesteps [batch] int64 on the generator's device: stratified, each uniform in [low, high].

    The range is cut into `batch` equal parts; each view draws from one of them. Which view has
    which part is shuffled, because cameras are ordered by azimuth. The mean loss of a step varies
    less than with one t for all views.
    """
    device = generator.device
    stratum = torch.randperm(batch, generator=generator, device=device)
    share = (stratum + torch.rand(batch, generator=generator, device=device)) / batch
    return (low + (share * (high - low + 1)).long()).clamp(max=high)

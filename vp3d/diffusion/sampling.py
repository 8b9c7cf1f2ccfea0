"""The sampling loop of a diffusion model: DDIM from noise to clean latents.

    x0_i    = (x_i - sqrt(1 - a_i) e_i) / sqrt(a_i)
    x_{i+1} = sqrt(a_{i+1}) x0_i + sqrt(1 - a_{i+1} - s_i^2) e_i + s_i z_i
    s_i     = eta sqrt((1 - a_{i+1}) / (1 - a_i)) sqrt(1 - a_i / a_{i+1}),   z_i ~ N(0, I)

(Song et al., arXiv 2010.02502, equations 12 and 16.) a_i is alpha_bar at step i, from the noisiest,
a_0, to a_S = 1; e_i is the predicted noise. eta = 0 is deterministic DDIM, eta = 1 has the noise of
DDPM. The last step adds no noise, because s_{S-1} = 0.

The loop knows no network. `denoise(x, i)` predicts the noise at step i, guidance and conditions
included, so that the same loop draws pictures (`Prior.sample`), is trained through
(`embedded/denoising.py`, AlignProp: arXiv 2310.03739). SVDD (`align/steer.py`), which chooses among
several next states and also steers strings, takes the same `ddim_step`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vp3d.diffusion.schedule import add_noise, alpha_sigma, x0_from_epsilon
from vp3d.errors import UserError

# denoise(x, i): the predicted noise, shaped like x, at step i
Denoise = Callable[[Tensor, int], Tensor]


def ddim_timesteps(train_steps: int, steps: int) -> Tensor:
    """Timesteps of a draw, the noisiest first.

    "Trailing" spacing: the first is the last timestep of training (Lin et al., arXiv 2305.08891,
    table 2).

    Args:
        train_steps: T, the number of timesteps that the model was trained on.
        steps: S, the number of steps of the draw, 1 to T.

    Returns:
        [S] int64 on the CPU, falling, in [0, T).

    Raises:
        UserError: if `steps` is out of range.
    """
    if not 1 <= steps <= train_steps:
        raise UserError(f"cannot sample in {steps} steps: use between 1 and {train_steps}")
    spaced = torch.arange(train_steps, 0, -train_steps / steps, dtype=torch.float64)
    return spaced.round().long()[:steps] - 1


def noise_levels(alpha_bar: Tensor, timesteps: Tensor) -> Tensor:
    """The levels a_0 ... a_S of a draw: alpha_bar [T] at `timesteps` [S], then 1. [S + 1]."""
    return torch.cat([alpha_bar[timesteps], alpha_bar.new_ones(1)])


def ddim_step(
    x_t: Tensor,
    epsilon: Tensor,
    alpha_bar: Tensor,
    alpha_bar_next: Tensor,
    noise: Tensor | None = None,
    eta: float = 0.0,
) -> Tensor:
    """One DDIM step (formulas at the top of this module): x at the next, cleaner level.

    Args:
        x_t: Noisy latents [B, C, H, W].
        epsilon: Their predicted noise [B, C, H, W].
        alpha_bar: The level of `x_t` [B], in (0, 1).
        alpha_bar_next: The next level [B], in (0, 1]; 1 in the last step.
        noise: z ~ N(0, I) in the shape of `x_t`; read only if `eta` is not 0.
        eta: 0 for the deterministic step, 1 for that of DDPM.

    Returns:
        [B, C, H, W].
    """
    x0 = x0_from_epsilon(x_t, epsilon, alpha_bar)
    if eta == 0.0:
        return add_noise(x0, epsilon, alpha_bar_next)
    if noise is None:
        raise ValueError("ddim_step needs noise if eta is not 0")
    variance = (1.0 - alpha_bar_next) / (1.0 - alpha_bar) * (1.0 - alpha_bar / alpha_bar_next)
    variance = (eta**2 * variance)[:, None, None, None]
    alpha, sigma = alpha_sigma(alpha_bar_next)
    remaining = (sigma.square() - variance).clamp_min(0.0).sqrt()
    return alpha * x0 + remaining * epsilon + variance.sqrt() * noise


def sample(
    denoise: Denoise,
    x: Tensor,
    levels: Tensor,
    *,
    grad_steps: int | None = None,
    checkpointed: bool = False,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw clean latents from noise.

    The gradient flows as autograd is set around the call, through the last `grad_steps` steps.

    Args:
        denoise: `denoise(x, i)` predicts the noise [B, C, H, W] of x [B, C, H, W] at step i in
            0 ... S - 1.
        x: Standard normal latents [B, C, H, W] at the level `levels[0]`.
        levels: alpha_bar of the steps [S + 1], rising to 1 (`noise_levels`).
        grad_steps: The number K of last steps that the gradient flows through, 0 to S. The steps
            before them run without graph. None is S.
        checkpointed: Keep no activations of `denoise` and compute it again in the backward pass
            (torch.utils.checkpoint): the value and the gradient are the same. `denoise` must not
            draw random numbers then.
        eta: Share of the noise of DDPM that each step adds, in [0, 1].
        generator: Where that noise is drawn from, on any device; needed if `eta` is not 0.
        on_step: `on_step(done, S)` is called after each step.

    Returns:
        [B, C, H, W].

    Raises:
        ValueError: if the arguments do not fit together.

    Example:
        >>> import torch
        >>> levels = torch.tensor([0.1, 0.5, 1.0])
        >>> sample(lambda x, i: torch.zeros_like(x), torch.ones(1, 4, 2, 2), levels).shape
        torch.Size([1, 4, 2, 2])
    """
    steps = len(levels) - 1
    first_live = 0 if grad_steps is None else steps - grad_steps
    _check(steps, first_live, eta, generator)

    def graph(i: int) -> AbstractContextManager[object]:
        return nullcontext() if i >= first_live else torch.no_grad()

    def predict(x: Tensor, i: int) -> Tensor:
        if not (checkpointed and torch.is_grad_enabled()):
            return denoise(x, i)
        # i is an argument: a closure over a loop variable would be read again, at its last value,
        # when the backward pass repeats the call
        predicted: Tensor = checkpoint(denoise, x, i, use_reentrant=False, preserve_rng_state=False)
        return predicted

    for i in range(steps):
        here, following = levels[i].expand(len(x)), levels[i + 1].expand(len(x))
        with graph(i):
            epsilon = predict(x, i)
            if eta == 0.0 or i + 1 == steps:
                x = ddim_step(x, epsilon, here, following)
            else:
                assert generator is not None  # checked above
                noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
                x = ddim_step(x, epsilon, here, following, noise, eta)
        if on_step is not None:
            on_step(i + 1, steps)
    return x


def _check(steps: int, first_live: int, eta: float, generator: torch.Generator | None) -> None:
    """Raise ValueError for arguments of `sample` that do not fit together."""
    if not 0 <= first_live <= steps:
        raise ValueError(f"grad_steps must be between 0 and the {steps} steps of the draw")
    if eta != 0.0 and generator is None:
        raise ValueError("eta is not 0, so sample needs a generator for the noise of its steps")

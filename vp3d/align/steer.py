"""SVDD on the latents of a diffusion model: proposals, the posterior mean, and DPS.

A proposal is a DDIM step with its own noise (`diffusion/sampling.py`; eta = 1 by default, because
without noise all proposals are alike). Its value by the posterior mean (PM) is the reward of the
picture that the denoiser expects in the end, v = r(D(x0_hat(x))) (Li et al., arXiv 2408.08252,
algorithm 2). The noise that the denoiser predicts for the chosen proposal is also what the next
step needs, so a draw of S steps costs 1 + M (S - 1) calls of the denoiser for each row, and M = 1
is plain sampling.

Rewards are functions `(rgb [R, 3, H, W] in [0, 1], owner [R]) -> [R]`, higher is better; `owner` is
the prompt of each row. They need no gradient but for `dps`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vp3d.align.svdd import Choice, Propose, Value, svdd
from vp3d.diffusion.drawing import Drawing
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.sampling import ddim_step
from vp3d.diffusion.schedule import x0_from_epsilon

PictureReward = Callable[[Tensor, Tensor], Tensor]


class Latents:
    """R noisy latents before a step, each of which belongs to a prompt: a `State` of `svdd`."""

    def __init__(
        self,
        drawing: Drawing,
        x: Tensor,
        step: int = 0,
        owner: Tensor | None = None,
        epsilon: Tensor | None = None,
    ) -> None:
        """Keep the latents.

        Args:
            drawing: The guided denoiser of B prompts.
            x: Latents [R, C, h, w] at the level of `step`.
            step: The step that comes next, 0 to S - 1.
            owner: The prompt of each row [R] int64; None for one row a prompt.
            epsilon: Their predicted noise, if it is known.
        """
        self.drawing, self.x, self.step = drawing, x, step
        self.owner = torch.arange(len(x), device=x.device) if owner is None else owner
        self._epsilon = epsilon

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: Tensor) -> Latents:
        """The rows `index` [R] int64, with their predicted noise if it was computed."""
        index = index.to(self.x.device)
        known = None if self._epsilon is None else self._epsilon[index]
        return Latents(self.drawing, self.x[index], self.step, self.owner[index], known)

    @property
    def level(self) -> Tensor:
        """alpha_bar of the rows [R]."""
        return self.drawing.levels[self.step].expand(len(self.x))

    def epsilon(self) -> Tensor:
        """The predicted noise [R, C, h, w], computed at the first call."""
        if self._epsilon is None:
            self._epsilon = self.drawing(self.x, self.step, self.owner)
        return self._epsilon

    def x0(self) -> Tensor:
        """The posterior mean of the clean latents [R, C, h, w]."""
        return x0_from_epsilon(self.x, self.epsilon(), self.level)

    def finished(self) -> Tensor:
        """The clean latents [R, C, h, w], by the last step, which has no noise."""
        end = torch.ones_like(self.level)
        return ddim_step(self.x, self.epsilon(), self.level, end)


def propose_latents(eta: float = 1.0) -> Propose[Latents]:
    """DDIM steps with the share `eta` in (0, 1] of the noise of DDPM, each proposal with its own.

    Raises:
        ValueError: if `eta` is not above 0; then all proposals are alike.
    """
    if not 0.0 < eta <= 1.0:
        raise ValueError(f"all proposals are alike without noise: use an eta in (0, 1], not {eta}")

    def propose(state: Latents, i: int, copies: int, generator: torch.Generator) -> Latents:
        x, epsilon, here, owner = (
            part.repeat_interleave(copies, 0)
            for part in (state.x, state.epsilon(), state.level, state.owner)
        )
        following = state.drawing.levels[i + 1].expand(len(x))
        noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        x = ddim_step(x, epsilon, here, following, noise, eta)
        return Latents(state.drawing, x, i + 1, owner)

    return propose


def posterior_mean(reward: PictureReward) -> Value[Latents]:
    """The value by the posterior mean: the reward of the picture that is expected in the end.

    A picture that is not finite has the value NaN, whatever a reward says of it.
    """

    def value(state: Latents, i: int) -> Tensor:
        rgb = state.drawing.prior.decode(state.x0())
        finite = rgb.isfinite().flatten(1).all(1)
        found = reward(torch.nan_to_num(rgb), state.owner)
        return torch.where(finite, found, torch.nan)

    return value


@torch.no_grad()
def dps(
    drawing: Drawing,
    x: Tensor,
    reward: PictureReward,
    scale: float,
    generator: torch.Generator,
    eta: float = 1.0,
) -> Tensor:
    """Diffusion posterior sampling, the baseline for rewards that are differentiable.

    Each step is moved along the gradient of r(D(x0_hat(x))) on the latents (Chung et al.,
    arXiv 2209.14687, algorithm 1). The gradient of each row is divided by its root mean square, so
    `scale` does not depend on the units of the reward.

    Args:
        drawing: The guided denoiser of B prompts.
        x: Standard normal latents [B, C, h, w].
        reward: A differentiable reward.
        scale: Length of the move, in standard deviations of a latent, at least 0; 0 is plain
            sampling.
        generator: Draws the noise of the steps.
        eta: Share of the noise of DDPM.

    Returns:
        Clean latents [B, C, h, w].
    """
    owner, steps = torch.arange(len(x), device=x.device), len(drawing.levels) - 1
    for i in range(steps):
        here, following = (drawing.levels[k].expand(len(x)) for k in (i, i + 1))
        with torch.enable_grad():
            live = x.detach().requires_grad_()
            epsilon = drawing(live, i)
            picture = drawing.prior.decode(x0_from_epsilon(live, epsilon, here))
            (gradient,) = torch.autograd.grad(reward(picture, owner).sum(), live)
        size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
        noise = None
        if i + 1 < steps:
            noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        share = eta if noise is not None else 0.0
        x = ddim_step(x, epsilon.detach(), here, following, noise, share)
        x = x + scale * torch.nan_to_num(gradient / size)
    return x


@dataclass(frozen=True)
class Steering:
    """How a draw is steered.

    Attributes:
        m: Proposals for each row and step.
        alpha: Temperature; 0 keeps the best proposal.
        branch: Shares of the steps between which there are proposals.
        eta: Share of the noise of DDPM, in (0, 1].
        shown: Steps whose x0 estimates are kept, for a picture.
    """

    m: int = 8
    alpha: float = 0.0
    branch: tuple[float, float] = (0.0, 1.0)
    eta: float = 1.0
    shown: int = 6


@dataclass(frozen=True)
class Frame:
    """The proposals of one step, for a picture.

    Attributes:
        choice: Their values, and the chosen ones.
        pictures: The x0 estimates of the proposals of the first row [M, 3, H, W] in [0, 1].
    """

    choice: Choice
    pictures: Tensor


@dataclass
class SteeredSampler:
    """Draws pictures by SVDD, where `Prior.sample` draws by DDIM.

    Attributes:
        prior: The model that draws.
        reward_of: The reward of a list of prompts.
        steering: Proposals, temperature and steps.
        value: The value of a state; None for the posterior mean of the reward.
        choices: The choices of the last draw.
        frames: Some of its steps as pictures.
    """

    prior: Prior
    reward_of: Callable[[Sequence[str]], PictureReward]
    steering: Steering = field(default_factory=Steering)
    value: Value[Latents] | None = None
    choices: list[Choice] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)

    @torch.no_grad()
    def sample(
        self,
        prompts: list[str],
        negative: str,
        steps: int,
        guidance_scale: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Draw one picture for each prompt.

        Args:
            prompts: B prompts.
            negative: The negative prompt; may be empty.
            steps: Number S of denoising steps, at least 2.
            guidance_scale: s of joint guidance; 1 is plain conditioning.
            generator: Draws the noise and the choices.

        Returns:
            rgb [B, 3, H, W] in [0, 1].
        """
        self.choices, self.frames = [], []
        drawing = self.prior.drawing(prompts, negative, steps, guidance_scale)
        state = Latents(drawing, self.prior.noise(len(prompts), generator))
        value = self.value or posterior_mean(self.reward_of(prompts))
        plan = self.steering
        state = svdd(
            state,
            steps - 1,
            propose_latents(plan.eta),
            self._recorded(value, steps),
            plan.m,
            plan.alpha,
            generator,
            plan.branch,
            self._keep,
        )
        return self.prior.decode(state.finished())

    def _keep(self, choice: Choice) -> None:
        self.choices.append(choice)
        if self._pictures is not None:
            self.frames.append(Frame(choice, self._pictures))

    def _recorded(self, value: Value[Latents], steps: int) -> Value[Latents]:
        """`value`, which also keeps the estimates of the first row at some of the steps."""
        every = torch.linspace(0, max(steps - 2, 0), self.steering.shown).round().long()
        shown = set(every.tolist())

        def recorded(state: Latents, i: int) -> Tensor:
            values = value(state, i)  # first: it computes the noise that `x0` reads
            self._pictures = None
            if i in shown:
                first = state.rows(torch.arange(self.steering.m))
                self._pictures = self.prior.decode(first.x0()).cpu()
            return values

        return recorded

    _pictures: Tensor | None = field(default=None, init=False, repr=False)


def calls_a_row(steps: int, m: int, branch: tuple[float, float] = (0.0, 1.0)) -> tuple[int, int]:
    """Calls of the denoiser and of the reward for one row, by the posterior mean.

    Args:
        steps: S.
        m: M.
        branch: Shares of the steps between which there are proposals.

    Returns:
        1 + M (S - 1) and M (S - 1) where all steps branch.
    """
    inside = sum(branch[0] <= i / max(steps - 1, 1) < branch[1] for i in range(steps - 1))
    if m == 1:
        return steps, 0
    return 1 + (steps - 1 - inside) + m * inside, m * inside

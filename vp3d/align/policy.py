"""A policy gradient on the sampler, the baseline that needs no gradient of the reward.

(DDPO, Black et al., arXiv 2305.13301, with importance sampling.) Drawing with eta = 1 is a sequence
of Gaussian actions; with x_{i+1} ~ N(mu_i, s_i^2), and the log-density averaged over the elements
as in the authors' code,

    loss = mean max(-A rho, -A clip(rho, 1 - c, 1 + c)),   rho = exp(log p_new - log p_old)

A is the reward less the mean of the same prompt's drawings, over their spread, clipped at 5. The
last step adds no noise and has no density. One update a batch, gradients summed over all steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vp3d.align.learner import Batch, Learner, StepReport, attempt_part, finish_step
from vp3d.diffusion.drawing import Drawing
from vp3d.diffusion.lora import adapters_off
from vp3d.diffusion.sampling import ddim_step, sample
from vp3d.diffusion.text import TextEmbedding

MOST_ADVANTAGE = 5.0


def mean_and_sigma(
    x: Tensor, epsilon: Tensor, level: Tensor, following: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean [B, C, h, w] and deviation (a scalar) of a step with eta = 1.

    Args:
        x: Latents [B, C, h, w].
        epsilon: Their predicted noise.
        level: alpha_bar of the step, a scalar in (0, 1).
        following: alpha_bar after it, in (0, 1).
    """
    here, there = level.expand(len(x)), following.expand(len(x))
    mean = ddim_step(x, epsilon, here, there, torch.zeros_like(x), 1.0)
    variance = (1.0 - following) / (1.0 - level) * (1.0 - level / following)
    return mean, variance.sqrt()


def log_density(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """The Gaussian log-density averaged over the elements [B], of x [B, ...]."""
    z = (x - mean) / sigma
    return (-0.5 * z.square() - sigma.log() - 0.5 * math.log(2.0 * math.pi)).flatten(1).mean(1)


def advantages(rewards: Tensor, prompts: Sequence[str]) -> Tensor:
    """Rewards [B] less the mean of their prompt's, over the spread of their prompt's, clipped [B].

    A prompt that is drawn once takes mean and spread of the batch.
    """
    found = torch.empty_like(rewards)
    for prompt in set(prompts):
        rows = torch.tensor([one == prompt for one in prompts], device=rewards.device)
        group = rewards[rows] if int(rows.sum()) > 1 else rewards
        found[rows] = (rewards[rows] - group.mean()) / (group.std(correction=0) + 1e-6)
    return found.clamp(-MOST_ADVANTAGE, MOST_ADVANTAGE)


def clipped_loss(advantage: Tensor, log_new: Tensor, log_old: Tensor, clip: float) -> Tensor:
    """The clipped surrogate, the mean over rows, of values [B]."""
    ratio = (log_new - log_old).exp()
    return torch.maximum(
        -advantage * ratio, -advantage * ratio.clamp(1.0 - clip, 1.0 + clip)
    ).mean()


def policy_step(learner: Learner, batch: Batch, generator: torch.Generator) -> StepReport:
    """One update by the policy gradient; as all methods (learner.py)."""
    prompts = list(batch.prompts)
    path: list[Tensor] = []
    with torch.no_grad():
        drawing = learner.drawing(prompts)
        x0, olds = _roll_out(drawing, batch.noise, generator, path)
        total, raw = learner.rewards(learner.prior.decode(x0), prompts)
    rewards = {name: float(values.mean()) for name, values in raw.items()}
    keep = len(path) - 1
    if not bool(total.isfinite().all()):
        return StepReport(
            rewards, math.nan, keep, math.nan, None, "a reward is not finite", len(x0)
        )
    advantage = advantages(total, prompts)
    backward = partial(_backward, learner, prompts, drawing, path, olds, advantage)
    while (drift := attempt_part(learner, backward, min(learner.part, len(x0)) > 1)) is None:
        learner.part = max(1, min(learner.part, len(x0)) // 2)
        learner.optimizer.zero_grad(set_to_none=True)  # of the parts that fitted; start again
    norm, skipped = finish_step(learner)
    measured = drift if learner.settings.anchor > 0.0 else None
    return StepReport(rewards, float(total.mean()), keep, norm, measured, skipped, len(x0))


def _backward(
    learner: Learner,
    prompts: Sequence[str],
    drawing: Drawing,
    path: Sequence[Tensor],
    olds: Sequence[Tensor],
    advantage: Tensor,
) -> float:
    """Accumulate the gradient of all steps in parts of `learner.part` rows; returns the drift.

    The last step has no density and is left out. Text encoders that are trained run once: the
    gradient of all parts is gathered at the embeddings.
    """
    count, steps, drift = len(advantage), len(path) - 1, 0.0
    s = learner.settings
    embedded: list[tuple[Tensor, Tensor]] = []
    if learner.trains_text:
        drawing, embedded = _with_leaves(learner.drawing(prompts))
    base = _base_drawing(learner, prompts) if s.anchor > 0.0 else None
    for i in range(steps):
        for start in range(0, count, learner.part):
            rows = torch.arange(start, min(start + learner.part, count), device=advantage.device)
            x = path[i][rows]
            epsilon = drawing(x, i, rows)
            mean, sigma = mean_and_sigma(x, epsilon, drawing.levels[i], drawing.levels[i + 1])
            new = log_density(path[i + 1][rows], mean, sigma)
            losses = {"policy": clipped_loss(advantage[rows], new, olds[i][rows], s.clip_ratio)}
            if base is not None:
                with torch.no_grad(), adapters_off(learner.networks):
                    plain = base(x, i, rows)
                away = (epsilon - plain).square().mean() / steps
                losses["anchor"] = s.anchor * away
                drift += float(away.detach()) * len(rows) / count
            loss = torch.stack(list(losses.values())).sum()
            (loss * (len(rows) / count)).backward()
    live = [(whole, leaf.grad) for whole, leaf in embedded if leaf.grad is not None]
    if live:
        torch.autograd.backward([whole for whole, _ in live], [grad for _, grad in live])
    return drift


def _with_leaves(drawing: Drawing) -> tuple[Drawing, list[tuple[Tensor, Tensor]]]:
    """The drawing with embeddings whose graph ends there, and pairs of an embedding and that leaf.

    Embeddings without a graph stay as they are.
    """
    pairs: list[tuple[Tensor, Tensor]] = []

    def leaf(whole: Tensor) -> Tensor:
        if not whole.requires_grad:
            return whole
        pairs.append((whole, whole.detach().requires_grad_()))
        return pairs[-1][1]

    texts = {
        branch: TextEmbedding(leaf(text.tokens), None if text.pooled is None else leaf(text.pooled))
        for branch, text in drawing.texts.items()
    }
    return replace(drawing, texts=texts), pairs


def _base_drawing(learner: Learner, prompts: Sequence[str]) -> Drawing:
    """The guided denoiser with the embeddings of the base model."""
    with torch.no_grad(), adapters_off(learner.networks):
        return learner.drawing(prompts)


def _roll_out(
    drawing: Drawing, noise: Tensor, generator: torch.Generator, path: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Drawn latents, and the log-density [B] of each step but the last; the states go to `path`."""
    predicted: list[Tensor] = []

    def denoise(x: Tensor, i: int) -> Tensor:
        path.append(x)
        predicted.append(drawing(x, i))
        return predicted[-1]

    x0 = sample(denoise, noise, drawing.levels, eta=1.0, generator=generator)
    olds = []
    for i in range(len(path) - 1):
        levels = drawing.levels[i], drawing.levels[i + 1]
        mean, sigma = mean_and_sigma(path[i], predicted[i], *levels)
        olds.append(log_density(path[i + 1], mean, sigma))
    return x0, olds

"""AlignProp: back-propagate a reward through the sampling of a diffusion model into a LoRA.

(Prabhudesai et al., arXiv 2310.03739; DRaFT, arXiv 2309.17400, is the same idea.) A picture is
drawn by the shared sampler with guidance inside the graph. The gradient of

    L = - mean reward(D(x_S)) + anchor * A

flows through the last K of the S steps; each call of the denoiser is computed again in the backward
pass (checkpointing), so memory grows by one latent a step. K is drawn for each training step
(`Law`): few steps change detail, many change what is drawn. ReFL (ImageReward, arXiv 2304.05977)
stops at a late step instead and scores the picture that the denoiser expects there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vp3d.align.learner import Batch, Learner, StepReport, attempt_part, drift_at, finish_step
from vp3d.align.objectives import check_gradient
from vp3d.diffusion.drawing import Drawing
from vp3d.diffusion.sampling import sample
from vp3d.diffusion.schedule import add_noise, x0_from_epsilon

REFL_FROM = 0.75  # share of the steps after which ReFL stops
Draw = Callable[[Drawing, Tensor, int, torch.Generator], Tensor]


def draw(
    drawing: Drawing,
    x: Tensor,
    keep: int,
    input_gradient: bool = True,
    visit: Callable[[Tensor, int], None] | None = None,
) -> Tensor:
    """Clean latents [B, C, h, w] with a graph through the last `keep` steps, checkpointed.

    Args:
        drawing: The guided denoiser.
        x: Standard normal latents [B, C, h, w].
        keep: K, 0 to S.
        input_gradient: False stops the gradient at the denoiser's input; it then flows along the
            path of the latents only (DRTune, arXiv 2405.00760, stops it likewise).
        visit: Hears the latents and the step of each of the K calls; of the last one if K is 0.
    """
    first = len(drawing.levels) - 1 - max(keep, 1)
    seen: set[int] = set()

    def denoise(x: Tensor, i: int) -> Tensor:
        if visit is not None and i >= first and i not in seen:
            seen.add(i)  # the backward pass calls again
            visit(x.detach(), i)
        return drawing(x if input_gradient else x.detach(), i)

    return sample(denoise, x, drawing.levels, grad_steps=keep, checkpointed=True)


def repeat_last(drawing: Drawing, x0: Tensor, noise: Tensor) -> Tensor:
    """DRaFT-LV: noise drawn latents to the last level, each n times, and clean them with gradient.

    Args:
        drawing: The guided denoiser of B prompts.
        x0: Drawn latents [B, C, h, w].
        noise: Standard normal [n, B, C, h, w].

    Returns:
        [n * B, C, h, w]; row k * B + b belongs to prompt b.
    """
    last = len(drawing.levels) - 2
    owner = torch.arange(len(x0), device=x0.device).repeat(len(noise))
    level = drawing.levels[last].expand(len(owner))
    noisy = add_noise(x0.detach()[owner], noise.flatten(0, 1).to(x0), level)
    epsilon: Tensor = checkpoint(
        drawing, noisy, last, owner, use_reentrant=False, preserve_rng_state=False
    )
    return x0_from_epsilon(noisy, epsilon, level)


def alignprop_step(learner: Learner, batch: Batch, generator: torch.Generator) -> StepReport:
    """One step of AlignProp; as all methods (learner.py)."""
    check_gradient(learner.objectives, "alignprop")
    s = learner.settings
    keep = s.law.draw(s.steps, generator)
    live = 0 if s.repeat_last else keep
    # drawn for the whole batch, so that they do not depend on the parts that fit the memory
    shape = (s.repeat_last, *batch.noise.shape)
    fresh = torch.randn(shape, generator=generator, device=generator.device)
    anchored = int(torch.randint(max(live, 1), (), generator=generator))  # of the live steps

    def pictures(part: Batch, start: int) -> tuple[Tensor, list[str], Tensor | None]:
        drawing = learner.drawing(part.prompts)
        visited: list[tuple[Tensor, int]] = []
        visit = lambda x, i: visited.append((x, i))  # noqa: E731
        x0 = draw(drawing, part.noise, live, s.input_gradient, visit)
        prompts = list(part.prompts)
        if s.repeat_last:
            x0 = repeat_last(drawing, x0, fresh[:, start : start + len(prompts)])
            prompts = prompts * s.repeat_last
        drift = None
        if s.anchor > 0.0:
            drift = drift_at(learner, drawing, part.prompts, *visited[anchored])
        return x0, prompts, drift

    return _accumulate(learner, batch, pictures, max(live, 1))


def refl_step(learner: Learner, batch: Batch, generator: torch.Generator) -> StepReport:
    """One step of ReFL: a random late step, one call of the denoiser with gradient."""
    check_gradient(learner.objectives, "refl")
    steps = learner.settings.steps
    low = min(math.ceil(REFL_FROM * steps), steps - 1)
    stop = int(torch.randint(low, steps, (), generator=generator))

    def pictures(part: Batch, start: int) -> tuple[Tensor, list[str], Tensor | None]:
        drawing = learner.drawing(part.prompts)
        kept: list[Tensor] = []

        def denoise(x: Tensor, i: int) -> Tensor:
            if i == stop:
                kept.append(x)
            return torch.zeros_like(x) if i >= stop else drawing(x, i)

        with torch.no_grad():
            sample(denoise, part.noise, drawing.levels)
        epsilon = drawing(kept[0], stop)
        x0 = x0_from_epsilon(kept[0], epsilon, drawing.levels[stop].expand(len(epsilon)))
        drift = None
        if learner.settings.anchor > 0.0:
            drift = drift_at(learner, drawing, part.prompts, kept[0], stop)
        return x0, list(part.prompts), drift

    return _accumulate(learner, batch, pictures, 1)


# pictures(part, number of its first row): clean latents, their prompts, and the drift
Pictures = Callable[[Batch, int], tuple[Tensor, list[str], Tensor | None]]


def _accumulate(learner: Learner, batch: Batch, pictures: Pictures, keep: int) -> StepReport:
    """Backward passes of the parts of a batch, then one change of the weights."""
    count, start = len(batch.prompts), 0
    usable: list[bool] = []
    raws: list[dict[str, Tensor]] = []
    totals: list[Tensor] = []
    drifts: list[Tensor] = []

    def backward(part: Batch, first: int) -> bool:
        x0, prompts, drift = pictures(part, first)
        rgb = checkpoint(learner.prior.decode, x0, use_reentrant=False, preserve_rng_state=False)
        total, raw = learner.rewards(rgb, prompts)
        losses = {"reward": -total.mean()}
        if drift is not None:
            losses["anchor"] = learner.settings.anchor * drift
            drifts.append(drift.detach())
        loss = torch.stack(list(losses.values())).sum()
        usable.append(bool(loss.isfinite()))
        if usable[-1]:
            (loss * (len(part.prompts) / count)).backward()
        totals.append(total.detach())
        raws.append({name: values.detach() for name, values in raw.items()})
        return True

    while start < count:
        part = batch.rows(start, min(start + learner.part, count))
        size = len(part.prompts)
        if attempt_part(learner, partial(backward, part, start), size > 1) is None:
            learner.part = max(1, size // 2)
            learner.optimizer.zero_grad(set_to_none=True)
            # of the parts that fitted; start the step again
            raws, totals, drifts, usable, start = [], [], [], [], 0
            continue
        start += size
    total = torch.cat(totals)
    rewards = {name: float(torch.cat([r[name] for r in raws]).mean()) for name in raws[0]}
    drift = float(torch.stack(drifts).mean()) if drifts else None
    if not all(usable):
        learner.optimizer.zero_grad(set_to_none=True)
        finite = bool(total.isfinite().all())
        skipped = "the drift is not finite" if finite else "a reward is not finite"
        return StepReport(rewards, math.nan, keep, math.nan, drift, skipped, len(total))
    norm, skipped = finish_step(learner)
    return StepReport(rewards, float(total.mean()), keep, norm, drift, skipped, len(total))

"""What all methods of alignment share: the trained LoRA, its settings, and the report of a step.

A method is a function `(learner, batch, generator) -> StepReport`: it draws, accumulates the
gradient in parts that fit the memory, and calls `finish_step`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from vp3d.align.objectives import Objective, combined, score_all
from vp3d.diffusion.drawing import Drawing
from vp3d.diffusion.lora import adapters_off
from vp3d.diffusion.prior import Prior
from vp3d.errors import UserError
from vp3d.system.out_of_memory import attempt

Done = TypeVar("Done")
JUMP = 100.0  # a gradient's norm over this many times the median of earlier ones is a fault
REMEMBERED = 50  # norms that the median is taken of
LEAST_NORMS = 10  # before a jump is judged
MOST_SKIPPED = 5  # steps in a row without a usable gradient


@dataclass(frozen=True)
class Law:
    """How many last steps K of a draw the gradient flows through.

    `fixed` is always `most`, `uniform` is 1 to `most`; `gaussian` stops tau ~ N(0.84 S, 0.1 S)
    steps, redrawn until 1 <= tau < S, as the authors' code does with N(42, 5) of 50 steps.
    """

    kind: str
    most: int = 1

    def draw(self, steps: int, generator: torch.Generator) -> int:
        """K in 1 to S = `steps` for one training step."""
        if self.kind == "fixed":
            return min(self.most, steps)
        if self.kind == "uniform":
            return int(torch.randint(1, min(self.most, steps) + 1, (), generator=generator))
        if steps == 1:
            return 1
        while True:
            tau = math.floor(0.84 * steps + 0.1 * steps * _normal(generator))
            if 1 <= tau < steps:
                return steps - tau


def _normal(generator: torch.Generator) -> float:
    return float(torch.randn((), generator=generator, dtype=torch.float64))


def parse_law(text: str) -> Law:
    """`fixed:3`, `uniform:5` or `gaussian`; UserError for anything else."""
    kind, colon, number = text.partition(":")
    if text == "gaussian":
        return Law("gaussian")
    if kind in ("fixed", "uniform") and number.isdecimal() and int(number) > 0:
        return Law(kind, int(number))
    raise UserError(f"--k {text}: write fixed:K, uniform:K or gaussian, such as uniform:5")


@dataclass(frozen=True)
class StepSettings:
    """Settings of one training step.

    Attributes:
        steps: S, denoising steps of a drawing.
        guidance_scale: Of the drawing; 1 is plain conditioning.
        negative: The negative prompt.
        law: Truncation of the gradient.
        input_gradient: Whether the gradient also flows into the denoiser's input; False is DRTune's
            stopped input (arXiv 2405.00760).
        repeat_last: n of DRaFT-LV (arXiv 2309.17400): the last step is trained on n fresh noises;
            0 is plain back-propagation.
        anchor: Weight of the drift from the base model.
        clip: Largest norm of the gradient.
        clip_ratio: DDPO: largest change of the probability ratio.
    """

    steps: int = 10
    guidance_scale: float = 1.0
    negative: str = ""
    law: Law = Law("uniform", 5)
    input_gradient: bool = True
    repeat_last: int = 0
    anchor: float = 0.0
    clip: float = 1.0
    clip_ratio: float = 1e-4


@dataclass
class Learner:
    """The LoRA in training.

    Attributes:
        prior: The frozen model, with the adapter attached.
        parameters: The LoRA's matrices, by their keys in a file.
        optimizer: Of the matrices.
        objectives: The rewards, on one scale.
        settings: Of a step.
        part: Pictures whose graph is kept at once; halved when memory runs out.
        norms: Gradient norms of the last steps that had one.
        recompute: Whether rewards are computed again in the backward pass, which saves memory.
    """

    prior: Prior
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    objectives: Sequence[Objective]
    settings: StepSettings
    part: int = 64
    norms: list[float] = field(default_factory=list)
    recompute: bool = False

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that the LoRA changes, by part."""
        parts = {key.partition(".")[0] for key in self.parameters}
        return {part: net for part, net in self.prior.networks.items() if part in parts}

    @property
    def trains_text(self) -> bool:
        """Whether the LoRA also changes a text encoder, so that embeddings have a gradient."""
        return any(part != "unet" for part in self.networks)

    def drawing(self, prompts: Sequence[str]) -> Drawing:
        """The guided denoiser of some prompts; its graph is for one backward pass."""
        s = self.settings
        return self.prior.drawing(
            list(prompts), s.negative, s.steps, s.guidance_scale, text_gradient=self.trains_text
        )

    def rewards(self, rgb: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of scaled rewards `[B]`, and the raw ones by name."""
        raw = score_all(self.objectives, rgb, prompts, self.recompute)
        return combined(self.objectives, raw), raw


@dataclass(frozen=True)
class Batch:
    """B prompts with their initial noise [B, C, h, w]."""

    prompts: Sequence[str]
    noise: Tensor

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` (excluded)."""
        return Batch(self.prompts[start:stop], self.noise[start:stop])


@dataclass(frozen=True)
class StepReport:
    """What a training step did.

    Attributes:
        rewards: Mean of each raw reward by name.
        total: Mean of their weighted sum, on the base's scale.
        keep: K, the steps that the gradient flowed through.
        norm: Norm of the gradient before it was clipped.
        drift: Mean square of the change of the predicted noise; None if not measured.
        skipped: Why the weights were not changed; "" if they were.
        queries: Pictures that were scored.
    """

    rewards: dict[str, float]
    total: float
    keep: int
    norm: float
    drift: float | None = None
    skipped: str = ""
    queries: int = 0


Method = Callable[[Learner, Batch, torch.Generator], StepReport]


def finish_step(learner: Learner) -> tuple[float, str]:
    """Clip the accumulated gradient and change the weights, unless the gradient is faulty.

    Returns:
        The norm, and why the step was skipped or "".
    """
    parameters = list(learner.parameters.values())
    norm = float(nn.utils.clip_grad_norm_(parameters, learner.settings.clip))
    skipped = ""
    if not math.isfinite(norm):
        skipped = "the gradient is not finite"
    elif len(learner.norms) >= LEAST_NORMS and norm > JUMP * statistics.median(learner.norms):
        skipped = f"the gradient's norm jumped to {norm:.3g}"
    if not skipped:
        learner.optimizer.step()
        if norm > 0.0:  # drawings that all score alike, or beyond the hinge, have no gradient
            learner.norms[:] = [*learner.norms, norm][-REMEMBERED:]
    learner.optimizer.zero_grad(set_to_none=True)
    return norm, skipped


def attempt_part(learner: Learner, work: Callable[[], Done], may_shrink: bool) -> Done | None:
    """`work()` with its backward pass, or None when memory ran out and less can be tried.

    Where memory runs out while a checkpoint is computed again, the prior takes fewer images in one
    call, and the checkpoint fails because its graph is another one. The same work then fits.
    """
    prior = learner.prior
    before = prior.max_batch, prior.vae_batch
    try:
        return attempt(work, may_shrink)
    except CheckpointError:
        if (prior.max_batch, prior.vae_batch) == before:
            raise
    return None


def drift_at(
    learner: Learner, drawing: Drawing, prompts: Sequence[str], x: Tensor, step: int
) -> Tensor:
    """A = |e_tuned(x) - e_base(x)|^2, the mean over elements.

    Differentiable with regard to the LoRA; the base is not.

    Args:
        learner: The LoRA.
        drawing: The guided denoiser of the prompts.
        prompts: B prompts.
        x: Latents [B, C, h, w].
        step: The step that they come before.
    """
    tuned = drawing(x, step)
    with torch.no_grad(), adapters_off(learner.networks):
        plain = learner.drawing(prompts) if learner.trains_text else drawing
        base = plain(x, step)
    return (tuned - base).square().mean()

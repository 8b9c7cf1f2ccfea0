"""The training of a LoRA on rewards, step by step, in memory: what `run.py` gives files to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vp3d.align.alignprop import alignprop_step, refl_step
from vp3d.align.guard import Check, Guard, paired_error, sharpness_of, spread_of
from vp3d.align.learner import (
    MOST_SKIPPED,
    Batch,
    Learner,
    Method,
    StepReport,
    StepSettings,
    parse_law,
)
from vp3d.align.objectives import Objective, check_gradient, combined, on_scale, score_all
from vp3d.align.policy import policy_step
from vp3d.config.paths import locate
from vp3d.config.schema import AlignConfig
from vp3d.diffusion.lora import adapters_off, attach, attach_trained
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.sampling import sample
from vp3d.errors import DivergedError, UserError
from vp3d.system.out_of_memory import report_out_of_memory
from vp3d.train.checkpoint import adam_tensors, load_adam
from vp3d.train.generators import make_generator
from vp3d.weights.lora_files import lora_file

METHODS: dict[str, Method] = {
    "alignprop": alignprop_step,
    "refl": refl_step,
    "ddpo": policy_step,
}
SCALE_DRAWINGS = 32  # of the base model, that put the rewards on one scale
SEEDS = 2  # drawings of each validation prompt
LESS_MEMORY = "set --k fixed:1, align.guidance_scale=1 or prior.dtype=bfloat16, or free memory"
HeldOut = Callable[[Tensor, Sequence[str]], Tensor]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts to train on, and others that only the guard sees."""

    training: tuple[str, ...]
    validation: tuple[str, ...]


def step_settings(config: AlignConfig, negative: str) -> StepSettings:
    """The settings of a step, from those of a run."""
    return StepSettings(
        config.steps,
        config.guidance_scale,
        negative,
        parse_law(config.k),
        config.input_gradient == "full",
        config.repeat_last,
        config.anchor,
    )


class Training:
    """A LoRA in training, with its guard.

    Every step draws from generators of its own number, so a training that continues from `state`
    is the one that was not interrupted, bit for bit on a CPU.
    """

    def __init__(
        self,
        prior: Prior,
        config: AlignConfig,
        objectives: Sequence[Objective],
        prompts: Prompts,
        held_out: tuple[str, HeldOut | None] = ("none", None),
        negative: str = "",
        seed: int = 0,
    ) -> None:
        """Attach the LoRA, put the rewards on one scale, and check the base model.

        Args:
            prior: The frozen model; its denoiser gets the adapter.
            config: How to train.
            objectives: The rewards, not yet on one scale.
            prompts: To train on and to validate with.
            held_out: Name and function of a score that is not optimised.
            negative: The negative prompt.
            seed: Of all randomness.
        """
        if config.method != "ddpo":
            check_gradient(objectives, config.method)
        self.prior, self.config, self.prompts, self.seed = prior, config, prompts, seed
        self.held_out = held_out[1]
        with_text = config.text_encoder or bool(config.start)  # a file may have both
        self.networks = prior.networks if with_text else {"unet": prior.unet}
        self.parameters = self._attach()
        settings = step_settings(config, negative)
        optimizer = torch.optim.AdamW(
            self.parameters.values(), config.lr, weight_decay=config.weight_decay
        )
        self.learner = Learner(prior, self.parameters, optimizer, [], settings)
        self.learner.recompute = prior.device.type != "cpu"  # where memory is short
        with adapters_off(self.networks):
            rgb, drawn = self._scale_drawings()
        self.learner.objectives = on_scale(objectives, rgb, drawn)
        self.average = {key: value.detach().clone() for key, value in self.parameters.items()}
        self.guard = Guard(held_out[0], [one.name for one in objectives])
        self.step_number, self.skipped_in_a_row, self.queries = 0, 0, 0
        self._prepare_validation()
        self.best: dict[str, Tensor] = {}

    def step(self) -> StepReport:
        """One training step; DivergedError after `MOST_SKIPPED` steps without a usable gradient."""
        config, number = self.config, self.step_number
        for group in self.learner.optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (number + 1) / max(config.warmup, 1))
        generator = make_generator(self.seed, f"align step {number}")
        with report_out_of_memory("training on one drawing at a time", LESS_MEMORY):
            report = METHODS[config.method](self.learner, self._batch(generator), generator)
        self.queries += report.queries
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if report.skipped else 0
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise DivergedError(
                f"{MOST_SKIPPED} steps in a row were skipped ({report.skipped}): lower align.lr, "
                "or set prior.dtype=float32"
            )
        decay = min(config.ema, (1.0 + number) / (10.0 + number))
        for key, value in self.parameters.items():
            self.average[key].lerp_(value.detach(), 1.0 - decay)
        self.step_number += 1
        return report

    def check(self) -> str:
        """Judge the averaged LoRA on the validation drawings; returns why to stop, or ""."""
        with self.averaged(), torch.no_grad():
            rgb = self.draw_validation()
            raw = score_all(self.learner.objectives, rgb, self.drawn)
            drawing = self.learner.drawing(self.drawn)
            drift = torch.stack(
                [(drawing(x, i) - base).square().mean() for i, x, base in self._anchors]
            ).mean()
        held, error = None, 0.0
        if self._held_base is not None and self.held_out is not None:
            with torch.no_grad():
                values = self.held_out(rgb, self.drawn)
            held, error = float(values.mean()), paired_error(values, self._held_base)
        check = Check(
            self.step_number,
            {name: float(values.mean()) for name, values in raw.items()},
            float(combined(self.learner.objectives, raw).mean()),
            held,
            error,
            spread_of(rgb, self.drawn),
            float(drift),
            sharpness_of(rgb),
        )
        reason = self.guard.add(check)
        if not self.best or self.guard.best() is check:
            self.best = {key: value.clone() for key, value in self.average.items()}
        return reason

    def draw_validation(self) -> Tensor:
        """Drawings [V * SEEDS, 3, H, W] in [0, 1] of the validation prompts, by fixed seeds."""
        with torch.no_grad():
            drawing = self.learner.drawing(self.drawn)
            return self.prior.decode(sample(drawing, self.noise, drawing.levels))

    def draw_training(self, count: int) -> tuple[list[str], Tensor, Tensor]:
        """What the base and the averaged LoRA draw of the first training prompts, by fixed seeds.

        Returns:
            The n <= `count` prompts, and rgb [n, 3, H, W] in [0, 1] of the base and of the LoRA.
        """
        prompts = list(self.prompts.training[:count])
        noise = self.prior.noise(len(prompts), make_generator(self.seed, "align sheet"))

        def drawn() -> Tensor:
            drawing = self.learner.drawing(prompts)
            return self.prior.decode(sample(drawing, noise, drawing.levels))

        with torch.no_grad(), adapters_off(self.networks):
            base = drawn()
        with torch.no_grad(), self.averaged():
            return prompts, base, drawn()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged LoRA instead of the trained one, for the time of a `with` block."""
        with self.weights(self.average):
            yield

    @contextmanager
    def weights(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Other matrices of the LoRA for the time of a `with` block."""
        kept = {key: value.detach().clone() for key, value in self.parameters.items()}
        _copy(self.parameters, tensors)
        try:
            yield
        finally:
            _copy(self.parameters, kept)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a training depends on: tensors, and JSON."""
        names: dict[Tensor, str] = {value: key for key, value in self.parameters.items()}
        tensors = {f"lora.{key}": value.detach() for key, value in self.parameters.items()}
        tensors |= {f"average.{key}": value for key, value in self.average.items()}
        tensors |= {f"best.{key}": value for key, value in self.best.items()}
        tensors |= adam_tensors(self.learner.optimizer, names)
        return tensors, {
            "step": self.step_number,
            "queries": self.queries,
            "skipped": self.skipped_in_a_row,
            "norms": self.learner.norms,
            "part": self.learner.part,
            "guard": self.guard.record(),
        }

    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Inverse of `state`; UserError for a state of another LoRA."""
        found = {key[5:]: value for key, value in tensors.items() if key.startswith("lora.")}
        if {k: v.shape for k, v in found.items()} != {
            k: v.shape for k, v in self.parameters.items()
        }:
            raise UserError("the checkpoint is of a LoRA of another rank or model: start a new run")
        _copy(self.parameters, found)
        self.average = {key: tensors[f"average.{key}"].clone() for key in found}
        best = {key: tensors[f"best.{key}"] for key in found if f"best.{key}" in tensors}
        self.best = {key: value.clone() for key, value in best.items()}
        names: dict[Tensor, str] = {value: key for key, value in self.parameters.items()}
        load_adam(self.learner.optimizer, names, dict(tensors))
        self.step_number, self.queries = int(record["step"]), int(record["queries"])
        self.skipped_in_a_row = int(record["skipped"])
        self.learner.norms[:] = [float(norm) for norm in record["norms"]]
        self.learner.part = int(record["part"])
        self.guard.restore(record["guard"])

    def _attach(self) -> Mapping[str, nn.Parameter]:
        if self.config.start:
            found = attach_trained(self.networks, "align", lora_file(locate(self.config.start)))
            parts = {key.partition(".")[0] for key in found}
            missing = next((part for part in self.networks if part not in parts), None)
            if missing is not None and self.config.text_encoder:
                raise UserError(
                    f"{self.config.start} has no matrices of {missing}, which --text-encoder "
                    "trains: leave --text-encoder out, or start a new LoRA"
                )
            return found
        generator = make_generator(self.seed, "align lora")
        return attach(self.networks, "align", self.config.rank, generator)

    def _batch(self, generator: torch.Generator) -> Batch:
        """Prompts drawn without repetition, each `group` times, and their noise."""
        count = max(1, self.config.batch // self.config.group)
        prompts = self.prompts.training
        order = torch.cat(
            [
                torch.randperm(len(prompts), generator=generator)
                for _ in range(math.ceil(count / len(prompts)))
            ]
        )
        chosen = [prompts[int(i)] for i in order[:count] for _ in range(self.config.group)]
        return Batch(chosen, self.prior.noise(len(chosen), generator))

    def _scale_drawings(self) -> tuple[Tensor, list[str]]:
        prompts = self.prompts.training
        drawn = [prompts[i % len(prompts)] for i in range(SCALE_DRAWINGS)]
        noise = self.prior.noise(len(drawn), make_generator(self.seed, "align scale"))
        with torch.no_grad():
            drawing = self.learner.drawing(drawn)
            return self.prior.decode(sample(drawing, noise, drawing.levels)), drawn

    def _prepare_validation(self) -> None:
        """Fix prompts and noise of the checks, and what the base model draws of them."""
        self.drawn = [prompt for prompt in self.prompts.validation for _ in range(SEEDS)]
        generator = make_generator(self.seed, "align validation")
        self.noise = self.prior.noise(len(self.drawn), generator)
        watched = {self.config.steps // 2, self.config.steps - 1}
        self._anchors: list[tuple[int, Tensor, Tensor]] = []

        def denoise(x: Tensor, i: int) -> Tensor:
            epsilon = drawing(x, i)
            if i in watched:
                self._anchors.append((i, x, epsilon))
            return epsilon

        with torch.no_grad(), adapters_off(self.networks):
            drawing = self.learner.drawing(self.drawn)
            self.base_rgb = self.prior.decode(sample(denoise, self.noise, drawing.levels))
            self._held_base = (
                None if self.held_out is None else self.held_out(self.base_rgb, self.drawn)
            )


def _copy(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for key, value in parameters.items():
            value.copy_(tensors[key])

"""One training loop for every embedded model.

AdamW or Muon, warm-up and cosine, an average of the weights (EMA), progress with the remaining
time, and checkpoints. Batches depend on (seed, step, process) alone, so a resumed training sees the
batches that an uninterrupted one would have seen. Under `torchrun` each process draws its own
batches and the gradients are averaged; process 0 alone reports and writes. Checkpoints are
safetensors (weights, EMA, optimiser moments) with the step in the header; nothing is pickled.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vp3d.system.torch_compat import multiplies_bfloat16

import numpy as np
import torch
import torch.distributed as processes
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vp3d.embedded.muon import Muon
from vp3d.errors import UserError
from vp3d.system.files import atomic_write

T = TypeVar("T")
MOMENTS = ("exp_avg", "exp_avg_sq")
AID = "aid_"  # how the names of auxiliary heads begin; no model is saved with them


@dataclass(frozen=True)
class Plan:
    """Hyperparameters of one training.

    Muon updates the parameters of two dimensions or more whose name matches the pattern `muon`;
    AdamW updates all others.
    """

    steps: int  # updates
    lr: float  # peak learning rate
    batch: int = 64  # pictures
    weight_decay: float = 0.01
    warmup: int = 100  # steps
    ema_share: float = 0.03  # half-life of the EMA, as a share of the steps
    clip: float = 1.0  # largest norm of the gradient
    save_every_s: float = 120.0  # seconds between checkpoints
    seed: int = 0
    muon: str = "(?!)"  # matches nothing
    hold: float = 0.0  # share of the steps after the warm-up at the peak rate
    watch_every_s: float = 1200.0  # seconds between calls of the watcher, if there is one


def rate(plan: Plan, step: int) -> float:
    """Learning rate of `step`: linear warm-up, the peak for a while, then cosine to zero."""
    if step < plan.warmup:
        return plan.lr * (step + 1) / plan.warmup
    first = plan.warmup + plan.hold * (plan.steps - plan.warmup)
    if step < first:
        return plan.lr
    progress = (step - first) / max(plan.steps - first, 1)
    return plan.lr * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def fit(
    name: str,
    model: nn.Module,
    losses: Callable[[np.random.Generator, torch.Generator], dict[str, Tensor]],
    plan: Plan,
    folder: Path,
    watch: Callable[[dict[str, Tensor], int], None] | None = None,
) -> dict[str, Tensor]:
    """Train the parameters of `model` that require gradients.

    Args:
        name: Names the checkpoint and the progress lines.
        model: The model, trained in place.
        losses: `losses(rng, generator)` draws a batch and returns named scalars. The sum of those
            named `loss*` is minimised; all are printed.
        plan: Number of steps, learning rate and so on.
        folder: Where the checkpoint is.
        watch: Called from time to time (`Plan.watch_every_s`) with the EMA and the steps so far.

    Returns:
        The EMA of the trained parameters by name, on the CPU.

    Raises:
        FloatingPointError: if the loss is not finite.
        UserError: if the checkpoint is of a model of other sizes.
    """
    device, rank = next(model.parameters()).device, process_rank()
    named = {k: p for k, p in model.named_parameters() if p.requires_grad}
    if processes.is_initialized():  # gradients may only be averaged over equal weights
        for parameter in named.values():
            processes.broadcast(parameter.detach(), src=0)
    ema = {k: p.detach().clone() for k, p in named.items()}
    optimizers = new_optimizers(named, plan)
    path = folder / f"{name}.safetensors"
    first = _load(path, named, ema, optimizers) if path.exists() else 0
    if first >= plan.steps:
        sys.stderr.write(
            f"{name}: the checkpoint already has {first} steps; use --fresh to train again,"
            " --more STEPS to train longer\n"
        )
        return {k: v.cpu() for k, v in ema.items()}
    decay = 0.5 ** (1.0 / max(plan.ema_share * plan.steps, 1.0))
    started = saved = printed = watched = time.monotonic()
    for step in range(first, plan.steps):
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = rate(plan, step)
        rng = np.random.default_rng([plan.seed, step, rank])
        generator = torch.Generator(device=device).manual_seed(
            (rank << 40) + plan.seed * 1_000_003 + step
        )
        values = losses(rng, generator)
        total = torch.stack([v for k, v in values.items() if k.startswith("loss")]).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"{name}: the loss is not finite at step {step}; run the same command again to"
                " continue from the last checkpoint"
            )
        for parameter in named.values():
            parameter.grad = None
        total.backward()
        average_gradients(list(named.values()))
        torch.nn.utils.clip_grad_norm_(named.values(), plan.clip)
        with half_precision(device):
            for optimizer in optimizers:
                optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(ema.values()),
                list(named.values()),
                1.0 - min(decay, (1.0 + step) / (10.0 + step)),
            )
        now = time.monotonic()
        if rank:
            continue
        if now - printed > 10.0 or step == plan.steps - 1:
            printed = now
            left = (now - started) / (step + 1 - first) * (plan.steps - step - 1)
            numbers = "  ".join(f"{k} {float(v.detach()):.4f}" for k, v in values.items())
            sys.stderr.write(
                f"{name} {step + 1}/{plan.steps}  {numbers}  seen {(step + 1) * plan.batch}"
                f"  eta {left / 60:.1f} min\n"
            )
        if now - saved > plan.save_every_s:
            saved = now
            _save(path, step + 1, named, ema, optimizers)
        if watch and now - watched > plan.watch_every_s:
            watched = now
            watch(ema, step + 1)
    if not rank:
        _save(path, plan.steps, named, ema, optimizers)
    return {k: v.cpu() for k, v in ema.items()}


@contextmanager
def half_precision(device: torch.device) -> Iterator[None]:
    """Compute convolutions and matrix products in bfloat16 if that is faster on `device`.

    Weights and gradients stay float32. A CPU without bfloat16 instructions would emulate them. On a
    CPU the backward pass of fused attention is eight times slower in bfloat16 than in float32, so
    the plain kernel is used.
    """
    faster = multiplies_bfloat16(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=faster):
        if faster and device.type == "cpu":
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield


def new_optimizers(named: dict[str, nn.Parameter], plan: Plan) -> list[torch.optim.Optimizer]:
    """AdamW and, if the plan's pattern matches any parameter, Muon."""
    inner = {k for k, p in named.items() if p.ndim > 1 and re.match(plan.muon, k)}
    rest = [p for k, p in named.items() if k not in inner]
    found: list[torch.optim.Optimizer] = []
    if rest:
        found.append(
            torch.optim.AdamW(rest, lr=plan.lr, weight_decay=plan.weight_decay, betas=(0.9, 0.99))
        )
    if inner:
        found.append(
            Muon([named[k] for k in sorted(inner)], lr=plan.lr, weight_decay=plan.weight_decay)
        )
    return found


def process_rank() -> int:
    """Number of this process under `torchrun`; 0 if there is only one."""
    return processes.get_rank() if processes.is_initialized() else 0


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace every gradient by its mean over all processes, in one message, in place.

    Does nothing if there is only one process.
    """
    if not processes.is_initialized():
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    mean = nn.utils.parameters_to_vector(gradients)
    processes.all_reduce(mean)
    sizes = [p.numel() for p in parameters]
    for parameter, part in zip(
        parameters, (mean / processes.get_world_size()).split(sizes), strict=True
    ):
        parameter.grad = part.view_as(parameter)


def first_process_first(make: Callable[[], T]) -> T:
    """The result of `make`, called in process 0 first so that the others find its files."""
    if process_rank():
        processes.barrier()
    result = make()
    if processes.is_initialized() and not process_rank():
        processes.barrier()
    return result


def _save(
    path: Path,
    step: int,
    named: dict[str, nn.Parameter],
    ema: dict[str, Tensor],
    optimizers: list[torch.optim.Optimizer],
) -> None:
    tensors = {f"model/{k}": v.detach() for k, v in named.items()} | {
        f"ema/{k}": v for k, v in ema.items()
    }
    states = {p: state for optimizer in optimizers for p, state in optimizer.state.items()}
    for key, parameter in named.items():
        tensors |= {
            f"{m}/{key}": states[parameter][m] for m in MOMENTS if m in states.get(parameter, {})
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        save_file(
            {k: v.contiguous().cpu() for k, v in tensors.items()},
            temporary,
            metadata={"step": str(step)},
        )


def _load(
    path: Path,
    named: dict[str, nn.Parameter],
    ema: dict[str, Tensor],
    optimizers: list[torch.optim.Optimizer],
) -> int:
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    with safe_open(path, framework="pt") as file, torch.no_grad():
        step, known = int(file.metadata()["step"]), set(file.keys())
        added = {k for k in named if k.startswith(AID) and f"model/{k}" not in known}
        if not all(_has(file, known, k, p) for k, p in named.items() if k not in added):
            raise UserError(
                f"the checkpoint {path} is of a model of other sizes, as of other nouns: train"
                " again with --fresh, or into another folder with --data"
            )
        for key, parameter in named.items():
            if key in added:
                continue  # an auxiliary head that was added since starts untrained
            parameter.copy_(file.get_tensor(f"model/{key}"))
            ema[key].copy_(file.get_tensor(f"ema/{key}"))
            moments = {
                m: file.get_tensor(f"{m}/{key}").to(parameter.device)
                for m in MOMENTS
                if f"{m}/{key}" in known
            }
            if moments:
                owner[parameter].state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return step


def _has(file: Any, known: set[str], key: str, parameter: Tensor) -> bool:
    """Whether the checkpoint `file` with the tensors `known` has `parameter` in the same shape."""
    stored = f"model/{key}"
    return stored in known and file.get_slice(stored).get_shape() == list(parameter.shape)


def use_ema(model: nn.Module, ema: dict[str, Tensor]) -> None:
    """Copy averaged weights into the model, in place; parameters without an average stay."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key in ema:
                parameter.copy_(ema[key])

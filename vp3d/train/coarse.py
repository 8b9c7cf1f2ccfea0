"""The coarse stage: a radiance field optimised from rendered views by guidance, rewards and
regularisers.

Conventions: one random generator for each source of chance (train/generators.py), so that a
change in one does not shift the others. Losses are unweighted scalars in a named dict; the
weights are a dict with the same names; the sum is one line of `Coarse.step`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vp3d.config.schema import CameraConfig, LossConfig, OptimConfig, RenderConfig
from vp3d.errors import OutOfMemoryError
from vp3d.fields.nerf import Field
from vp3d.guidance import reward_term
from vp3d.guidance.condition import Condition
from vp3d.guidance.reward_term import Reward
from vp3d.guidance.vp_sds import Target
from vp3d.render.camera import camera_rays, sample_cameras
from vp3d.render.occupancy import OccupancyGrid
from vp3d.render.volume import DENSE, March, render_rays
from vp3d.train import losses
from vp3d.train.checkpoint import adam_tensors, load_adam
from vp3d.train.estimates import ReusedEstimate, load_reused
from vp3d.types import Camera, Rays, Render, to_images

LEAST_CHUNK = 1024  # samples at once below which halving further is hopeless


class GuidanceCall(Protocol):
    """What the stage asks of its guidance: a `Guidance` or a wrapper."""

    def __call__(
        self,
        rgb: Tensor,
        camera: Camera,
        condition: Condition,
        progress: float,
        generator: torch.Generator,
    ) -> tuple[dict[str, Tensor], Target]:
        """Unweighted losses of views rgb [B, 3, H, W] in [0, 1], and where they are pulled."""
        ...

    def reuse(self, rgb: Tensor, target: Target) -> dict[str, Tensor]:
        """The losses of the same views a step later, rgb [B, 3, H, W] in [0, 1]."""
        ...


@dataclass(frozen=True)
class CoarseSettings:
    """The settings that the coarse stage reads; `identity` holds all its result depends on."""

    optim: OptimConfig
    render: RenderConfig
    camera: CameraConfig
    loss: LossConfig
    guidance_weight: float
    estimate_every: int  # steps of the field that one estimate of the prior serves
    identity: Mapping[str, Any] = field(default_factory=dict)


class Coarse:
    """All that changes while the coarse stage is optimised, and the step that changes it.

    Args:
        config: the settings.
        field: the radiance field to optimise.
        guidance: VP-SDS, or a wrapper of it.
        condition: the encoded prompt and visual prompt.
        rewards: differentiable rewards by name, the name of their loss.
        generators: one for each of `GENERATORS`.
        event: hears, as `RunFolder.event` does, when memory ran out.
        march: finds samples along rays and sums over them.
        encode_less: called with a number of views; the guidance then needs less memory, and it
            returns how many images it takes at once, 0 if it cannot need less
                (`Prior.encode_less`).
    """

    name = "coarse"
    update = (
        "updating the field",
        "free memory on the device, or lower field.resolution or field.log2_table",
    )

    def __init__(
        self,
        config: CoarseSettings,
        field: Field,
        guidance: GuidanceCall,
        condition: Condition,
        rewards: Mapping[str, Reward],
        generators: dict[str, torch.Generator],
        event: Callable[..., None],
        march: March = DENSE,
        encode_less: Callable[[int], int] = lambda views: 0,
    ) -> None:
        self.config = config
        self.identity = config.identity
        self.render_config = config.render
        self.event = event
        self.march = march
        self.encode_less = encode_less
        self.field = field
        self.guidance = guidance
        self.condition = condition
        self.rewards = rewards
        self.generators = generators
        self.device = next(field.parameters()).device
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            field.parameter_groups(config.optim), eps=1.0e-15
        )
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.occupancy = OccupancyGrid(config.render).to(self.device)
        self.reused: ReusedEstimate | None = None
        self.reused_before: ReusedEstimate | None = None
        self.occupancy_before = self._occupancy_tensors()
        self.names: dict[Tensor, str] = {
            parameter: name for name, parameter in field.named_parameters()
        }
        self.regulariser_scale = 1.0
        self.initial = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}

    def step(self, i: int) -> dict[str, Tensor]:
        """Scalars of step `i`.

        They are "loss" (with graph), each unweighted loss by name, each reward's mean as
        "reward_<name>", "opacity" in [0, 1] and "samples", at which the field was
        evaluated.
        """
        config, size = self.config, self.config.render.resolution
        progress = i / config.optim.steps
        weights = self._weights(progress)
        self.occupancy_before, self.reused_before = self._occupancy_tensors(), self.reused
        if i % config.render.occupancy_every == 0:
            self.occupancy.update(self.field, self.generators["jitter"])
        camera, grey = self._views()
        background = grey[:, None, None].expand(-1, size * size, 3).reshape(-1, 3)
        rays = camera_rays(camera, size, size)
        render = self._render(
            rays, self.generators["jitter"], want_normal=weights["orientation"] > 0.0
        )
        rgb = to_images(render.over(background), len(camera), size, size)
        rewards, measured = self._rewards(render, rgb, camera, progress)
        guided, target = self._guide(rgb, camera, grey, progress)
        regularisers = self._regularisers(render, rays, background, target, weights)
        terms = {**guided, **rewards, **regularisers}
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        samples = torch.full_like(loss, float(render.evaluated))
        return {
            "loss": loss,
            **terms,
            **measured,
            "opacity": render.opacity.mean(),
            "samples": samples,
        }

    def health(self, numbers: Mapping[str, float]) -> float:
        """The mean ray opacity in [0, 1], by which the watchdog sees a collapse."""
        return numbers["opacity"]

    def preview(self, camera: Camera, size: int) -> Render:
        """What the cameras see, without jitter: `size` x `size` rays each, row-major; no graph."""
        with torch.no_grad():
            return self._render(camera_rays(camera.to(self.device), size, size), jitter=None)

    def finish(self) -> Field:
        """The optimised field, ready for export."""
        return self.field.requires_grad_(False).eval()

    def set_rates(self, i: int, scale: float) -> None:
        """Set the learning rates of step `i`, times `scale`.

        Each group's rate falls by cosine to the share `lr_final` of itself.
        """
        optim = self.config.optim
        fall = 0.5 * (1.0 + math.cos(math.pi * i / optim.steps))
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * scale * (optim.lr_final + (1.0 - optim.lr_final) * fall)

    def restart(self, regulariser_scale: float) -> None:
        """Return to the initial field with a fresh optimiser.

        The weights of opacity, sparsity and fog are multiplied by `regulariser_scale`.
        """
        self.load_tensors(self.initial, regulariser_scale)

    def shrink(self) -> None:
        """After memory ran out: encode fewer images at once, and if it is one, evaluate half the
        samples at once.

        The occupancy grid and the reused estimate return to their state before the step.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.occupancy.load_state_dict(self.occupancy_before)
        self.reused = self.reused_before
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        images = self.encode_less(self.config.optim.views)
        if images:
            self.event("out_of_memory", images=images)
            return
        optim, render = self.config.optim, self.config.render
        on_all_rays = optim.views * render.resolution**2 * render.samples
        evaluated = math.ceil(
            on_all_rays * self.occupancy.share()
        )  # about: empty cells are skipped
        now = min(self.render_config.chunk, evaluated)
        chunk = now // 2
        if chunk < LEAST_CHUNK:
            raise OutOfMemoryError(
                f"out of memory even with {now:,} samples at once; free memory on the device, or "
                "lower prior.max_batch, optim.views or render.resolution, or set "
                "prior.dtype=float16"
            )
        self._on_out_of_memory(chunk)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that changes while training (any shape and range), live.

        These are the field, the occupancy grid, the estimate still in use and Adam's moments.
        """
        reused = self.reused.tensors() if self.reused else {}
        return {
            **{f"field.{name}": tensor for name, tensor in self.field.state_dict().items()},
            **{f"occupancy.{name}": tensor for name, tensor in self.occupancy.state_dict().items()},
            **{f"held.{name}": tensor for name, tensor in reused.items()},
            **adam_tensors(self.optimizer, self.names),
        }

    def load_tensors(self, tensors: dict[str, Tensor], regulariser_scale: float) -> None:
        """Inverse of `tensors` (any shape and range)."""
        self.regulariser_scale = regulariser_scale
        self.field.load_state_dict(part(tensors, "field."))
        self.occupancy.load_state_dict(part(tensors, "occupancy."))
        self.reused = load_reused(part(tensors, "held."), self.device)
        load_adam(self.optimizer, self.names, tensors)

    def _guide(
        self, rgb: Tensor, camera: Camera, grey: Tensor, progress: float
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The guidance's losses of views rgb `[B, 3, H, W]` over `grey` `[B]`, both in [0, 1].

        They come from the estimate that is still in use, or from a new one. Where the error is
        taken in pixels, its picture comes with them, `[N, 3]` in the order of the rays.
        """
        if self.reused is None:
            generator = self.generators["noise"]
            guided, target = self.guidance(rgb, camera, self.condition, progress, generator)
            steps_left = self.config.estimate_every - 1
        else:
            target, steps_left = self.reused.target, self.reused.steps_left - 1
            guided = self.guidance.reuse(rgb, target)
        self.reused = ReusedEstimate(camera, grey, target, steps_left) if steps_left else None
        in_pixels = target.target.shape == rgb.shape
        return guided, target.target.movedim(1, -1).reshape(-1, 3) if in_pixels else None

    def _views(self) -> tuple[Camera, Tensor]:
        """The cameras of a step and a grey `[B]` in [background_min, background_max] behind each.

        They are those of the estimate that is still in use, or random ones.
        """
        if self.reused is not None:
            return self.reused.camera, self.reused.grey
        config = self.config
        camera, grey = random_views(
            config.optim.views, config.camera, config.render, self.generators
        )
        return camera.to(self.device), grey.to(self.device)

    def _render(
        self, rays: Rays, jitter: torch.Generator | None, want_normal: bool = False
    ) -> Render:
        """The field along `rays`; when memory runs out, with smaller chunks from then on."""
        return render_rays(
            self.field,
            rays,
            self.render_config,
            self.occupancy,
            jitter,
            want_normal,
            self._on_out_of_memory,
            self.march,
        )

    def _occupancy_tensors(self) -> dict[str, Tensor]:
        """A copy of the occupancy grid's tensors (any shape and range)."""
        return {name: tensor.clone() for name, tensor in self.occupancy.state_dict().items()}

    def _on_out_of_memory(self, chunk: int) -> None:
        self.render_config = dataclasses.replace(self.render_config, chunk=chunk)
        self.event("out_of_memory", chunk=chunk)

    def _rewards(
        self, render: Render, rgb: Tensor, camera: Camera, progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss and mean value of each reward; outside its window only the value, for the display.

        rgb `[B, 3, H, W]` in [0, 1] is `render` over the step's background; a reward with a
        background of its own gets the views over that.
        """
        return reward_term.reward_terms(
            self.rewards,
            lambda grey: rgb if grey is None else on_grey(render, grey, rgb.shape),
            camera,
            progress,
        )

    def _regularisers(
        self,
        render: Render,
        rays: Rays,
        background: Tensor,
        target: Tensor | None,
        weights: Mapping[str, float],
    ) -> dict[str, Tensor]:
        """The regularisers whose weight is not zero, unweighted.

        `background` and `target`, what the guidance wants to see, are `[N, 3]` in [0, 1].
        """
        terms: dict[str, Callable[[], Tensor]] = {
            "entropy": lambda: losses.opacity_entropy(render.opacity),
            "sparsity": lambda: losses.sparsity(render.opacity),
            "fog": lambda: losses.fog(render.rgb, render.opacity, background, target),
            "smoothness": lambda: losses.smoothness(self.field),
            "orientation": lambda: losses.orientation(shown_normal(render), rays.directions),
        }
        return {name: term() for name, term in terms.items() if weights[name] != 0.0}

    def _weights(self, progress: float) -> dict[str, float]:
        """The weight of every loss at `progress`."""
        loss = self.config.loss
        return {
            "sds": self.config.guidance_weight,
            **{name: reward.config.weight for name, reward in self.rewards.items()},
            "entropy": loss.opacity.at(progress) * self.regulariser_scale,
            "sparsity": loss.sparsity.at(progress) * self.regulariser_scale,
            "fog": loss.fog.at(progress) * self.regulariser_scale,
            "smoothness": loss.smoothness.at(progress),
            "orientation": loss.orientation.at(progress),
        }


def random_views(
    views: int,
    camera: CameraConfig,
    render: RenderConfig,
    generators: Mapping[str, torch.Generator],
) -> tuple[Camera, Tensor]:
    """Random cameras, and a random grey behind each.

    Args:
        views: How many.
        camera: Their distance, field of view and heights.
        render: The bounds of the greys.
        generators: "camera" and "background".

    Returns:
        The cameras, and `[views]` in [background_min, background_max].
    """
    low, high = render.background_min, render.background_max
    cameras = sample_cameras(views, camera, generators["camera"])
    return cameras, low + (high - low) * torch.rand(views, generator=generators["background"])


def on_grey(render: Render, grey: float, shape: torch.Size) -> Tensor:
    """A Render over a grey of level `grey` in [0, 1], as images of `shape` [B, 3, H, W]."""
    return to_images(render.over(render.rgb.new_full((3,), grey)), shape[0], shape[2], shape[3])


def shown_normal(render: Render) -> Tensor:
    """The normals `[N, 3]` of a Render with `want_normal`; length in [0, 1]."""
    if render.normal is None:
        raise ValueError("this Render has no normals: use render_rays(..., want_normal=True)")
    return render.normal


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors (any shape and range) whose name starts with `prefix`, without it."""
    return {
        name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }

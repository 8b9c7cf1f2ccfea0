"""The coarse stage: a radiance field optimised from rendered views by guidance, rewards and regularisers.

Conventions: one generator for each source of chance (`GENERATORS`), all seeded from the
run's seed, so that a change in one does not shift the others. Losses are unweighted scalars in a named dict; the weights
are a dict with the same names; the sum is one line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from vp3d.config.schema import Config
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


class Coarse:
    """All that changes while the coarse stage is optimised, and the step that changes it.

    `event(kind, **data)`, as `RunFolder.event`, is told when memory ran out; `march` finds samples and sums along rays;
    `encode_less(views)`, as `Prior.encode_less`, has the guidance go on with less memory and says how, or 0 if it cannot.
    """

    def __init__(
        self,
        config: Config,
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
        self.held: ReusedEstimate | None = None
        self.known_held: ReusedEstimate | None = None
        self.known = self._known()
        self.names: dict[Tensor, str] = {
            parameter: name for name, parameter in field.named_parameters()
        }
        self.regulariser_scale = 1.0
        self.initial = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}

    def step(self, i: int) -> dict[str, Tensor]:
        """Scalars of step `i`: "loss" (with graph), each unweighted loss, each reward's mean, "opacity" in [0, 1]."""
        config, progress, size = (
            self.config,
            i / self.config.optim.steps,
            self.config.render.resolution,
        )
        weights = self._weights(progress)
        self.known, self.known_held = self._known(), self.held
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
        guided = self._guide(rgb, camera, grey, progress)
        terms = {
            **guided,
            **rewards,
            **self._regularisers(render, rays, weights),
        }
        loss = torch.stack(
            [weights[name] * reward_term for name, reward_term in terms.items()]
        ).sum()
        samples = torch.full_like(loss, float(len(rays) * config.render.samples))
        return {
            "loss": loss,
            **terms,
            **measured,
            "opacity": render.opacity.mean(),
            "samples": samples,
        }

    def preview(self, camera: Camera, size: int) -> Render:
        """What the cameras see without chance: `size` x `size` rays each, row-major; no graph."""
        with torch.no_grad():
            return self._render(camera_rays(camera.to(self.device), size, size), jitter=None)

    def finish(self) -> Field:
        """The optimised field, ready for export."""
        return self.field.requires_grad_(False).eval()

    def set_rates(self, i: int, scale: float) -> None:
        """Learning rates of step `i`: each group's own, falling by cosine to `lr_final` of itself, times `scale`."""
        optim = self.config.optim
        fall = 0.5 * (1.0 + math.cos(math.pi * i / optim.steps))
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * scale * (optim.lr_final + (1.0 - optim.lr_final) * fall)

    def restart(self, regulariser_scale: float) -> None:
        """Back to the initial field with a fresh optimiser; opacity and sparsity weights times `regulariser_scale`."""
        self.load_tensors(self.initial, regulariser_scale)

    def shrink(self) -> None:
        """After memory ran out: fewer pictures encoded at once, and where it is one at a time, half the samples at once.

        The occupancy grid and the views held are as before the step, and nothing else is kept on the device.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.occupancy.load_state_dict(self.known)
        self.held = self.known_held
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        images = self.encode_less(self.config.optim.views)
        if images:
            self.event("out_of_memory", images=images)
            return
        places = (
            self.config.optim.views * self.config.render.resolution**2 * self.config.render.samples
        )
        now = min(
            self.render_config.chunk, math.ceil(places * self.occupancy.share())
        )  # about as many are evaluated
        chunk = now // 2
        if chunk < LEAST_CHUNK:
            raise OutOfMemoryError(
                f"out of memory even with {now:,} samples at once; free memory on the device, or lower prior.max_batch, "
                "optim.views or render.resolution, or set prior.dtype=float16"
            )
        self._on_out_of_memory(chunk)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that changes while training: field, occupancy grid, views held, Adam (any shape and range), live."""
        return {
            **{f"field.{name}": tensor for name, tensor in self.field.state_dict().items()},
            **{f"occupancy.{name}": tensor for name, tensor in self.occupancy.state_dict().items()},
            **(
                {f"held.{name}": tensor for name, tensor in self.held.tensors().items()}
                if self.held
                else {}
            ),
            **adam_tensors(self.optimizer, self.names),
        }

    def load_tensors(self, tensors: dict[str, Tensor], regulariser_scale: float) -> None:
        """Inverse of `tensors` (any shape and range)."""
        self.regulariser_scale = regulariser_scale
        self.field.load_state_dict(part(tensors, "field."))
        self.occupancy.load_state_dict(part(tensors, "occupancy."))
        self.held = load_reused(part(tensors, "held."), self.device)
        load_adam(self.optimizer, self.names, tensors)

    def _guide(
        self, rgb: Tensor, camera: Camera, grey: Tensor, progress: float
    ) -> dict[str, Tensor]:
        """The guidance's losses of views rgb `[B, 3, H, W]` over `grey` `[B]`, in [0, 1]: by the estimate held, or a new one."""
        if self.held is None:
            guided, pull = self.guidance(
                rgb, camera, self.condition, progress, self.generators["noise"]
            )
            left = self.config.guidance.estimate_every - 1
        else:
            guided, pull, left = (
                self.guidance.reuse(rgb, self.held.pull),
                self.held.pull,
                self.held.left - 1,
            )
        self.held = ReusedEstimate(camera, grey, pull, left) if left else None
        return guided

    def _views(self) -> tuple[Camera, Tensor]:
        """The cameras of a step and a grey `[B]` in [background_min, background_max] behind each: those held, or random ones."""
        if self.held is not None:
            return self.held.camera, self.held.grey
        views, low, high = (
            self.config.optim.views,
            self.config.render.background_min,
            self.config.render.background_max,
        )
        camera = sample_cameras(views, self.config.camera, self.generators["camera"])
        grey = low + (high - low) * torch.rand(views, generator=self.generators["background"])
        return camera.to(self.device), grey.to(self.device)

    def _render(
        self, rays: Rays, jitter: torch.Generator | None, want_normal: bool = False
    ) -> Render:
        """The field along `rays`; when memory runs out, smaller chunks from here on."""
        on_oom = self._on_out_of_memory
        return render_rays(
            self.field,
            rays,
            self.render_config,
            self.occupancy,
            jitter,
            want_normal,
            on_oom,
            self.march,
        )

    def _known(self) -> dict[str, Tensor]:
        """A copy of the occupancy grid's tensors (any shape and range)."""
        return {name: tensor.clone() for name, tensor in self.occupancy.state_dict().items()}

    def _on_out_of_memory(self, chunk: int) -> None:
        self.render_config = dataclasses.replace(self.render_config, chunk=chunk)
        self.event("out_of_memory", chunk=chunk)

    def _rewards(
        self, render: Render, rgb: Tensor, camera: Camera, progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss and mean value of each reward; outside its window only the value, to be shown.

        rgb `[B, 3, H, W]` in [0, 1] is `render` over the step's background; a reward with a ground of its own sees it there.
        """
        terms, values = {}, {}
        for name, reward in self.rewards.items():
            target = reward.target(camera)
            shown = (
                rgb if reward.background is None else on_grey(render, reward.background, rgb.shape)
            )
            terms[name], value = reward_term.reward_term(
                reward.score, shown, target, camera.azimuth_deg, reward.config, progress
            )
            if not reward_term.is_active(reward.config, progress):
                with torch.no_grad():
                    value = reward.score(shown, target).mean()
            if value is not None:
                values[f"reward_{name}"] = value
        return terms, values

    def _regularisers(
        self, render: Render, rays: Rays, weights: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """The regularisers whose weight is not zero, unweighted."""
        terms: dict[str, Callable[[], Tensor]] = {
            "entropy": lambda: losses.opacity_entropy(render.opacity),
            "sparsity": lambda: losses.sparsity(render.opacity),
            "smoothness": lambda: losses.smoothness(self.field),
            "orientation": lambda: losses.orientation(shown_normal(render), rays.directions),
        }
        return {name: reward_term() for name, reward_term in terms.items() if weights[name] != 0.0}

    def _weights(self, progress: float) -> dict[str, float]:
        """The weight of every loss at `progress`."""
        loss, guidance = self.config.loss, self.config.guidance
        return {
            "sds": guidance.weight,
            **{name: reward.config.weight for name, reward in self.rewards.items()},
            "entropy": loss.opacity.at(progress) * self.regulariser_scale,
            "sparsity": loss.sparsity.at(progress) * self.regulariser_scale,
            "smoothness": loss.smoothness.at(progress),
            "orientation": loss.orientation.at(progress),
        }


def on_grey(render: Render, ground: float, shape: torch.Size) -> Tensor:
    """A Render over a grey of level `ground` in [0, 1] as pictures of `shape` [B, 3, H, W], in [0, 1]."""
    return to_images(render.over(render.rgb.new_full((3,), ground)), shape[0], shape[2], shape[3])


def shown_normal(render: Render) -> Tensor:
    """The normals `[N, 3]` of a Render that was asked for them; length in [0, 1]."""
    if render.normal is None:
        raise ValueError("this Render has no normals: call render_rays(..., want_normal=True)")
    return render.normal


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors (any shape and range) whose name starts with `prefix`, without it."""
    return {
        name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }

"""The refine stage: the vertices and the texture of the extracted mesh, optimised from its renders.

What a step compares the renders with is an objective: pictures that the 2D model redraws
(train/refine_views.py) or its score (train/refine_sds.py). The steps are divided into rounds, one
for each of `refine.strengths`. A guard judges every round: the state is kept only if no figure of
the judge is clearly below its highest value so far, the silhouettes are near those of the start,
and few faces turned over. Otherwise the next round begins at the best state so far. So the stage
may return its input.

Conventions: as in train/coarse.py. Faces and texture coordinates never change; a closed mesh stays
closed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vp3d.config.schema import CameraConfig, RefineConfig
from vp3d.errors import OutOfMemoryError
from vp3d.render.camera import ring
from vp3d.render.raster_soft import SoftRender, render_soft
from vp3d.train import mesh_losses
from vp3d.train.checkpoint import adam_tensors, load_adam
from vp3d.train.coarse import part
from vp3d.train.redraw import iou
from vp3d.train.surface_parameters import Start, Surface, mesh_of
from vp3d.types import Camera, Mesh, Render

JUDGED_VIEWS, JUDGED_ELEVATION_DEG = 8, 15.0  # cameras of the guard
FALL = 0.02  # share of a figure of the judge by which it may fall
LEAST_SILHOUETTE = 0.85  # overlap of the silhouettes with those of the start
MOST_TURNED = 0.05  # share of the faces that may look away from where they looked
LR_FINAL = 0.1  # share of the learning rates that is left at the end of a round

# (renders from the guard's B cameras, those cameras) -> figures, higher is better
Judge = Callable[[SoftRender, Camera], Mapping[str, float]]
Draw = Callable[[Camera], SoftRender]  # renders of the mesh as it is, `Objective.size` a side


@dataclass(frozen=True)
class RefineSettings:
    """The settings that the stage reads; `identity` holds all its result depends on."""

    refine: RefineConfig
    camera: CameraConfig
    identity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps of all rounds."""
        return self.refine.steps * len(self.refine.strengths)


class Objective(Protocol):
    """What the renders of a mesh are compared with."""

    size: int  # side of the compared views, pixels
    weights: Mapping[str, float]  # of its losses
    generators: dict[str, torch.Generator]

    def begin(self, draw: Draw, strength: float) -> None:
        """Prepare a round; `draw` renders without graph, `strength` is the highest noise level."""
        ...

    def useful(self) -> bool:
        """Whether the round in progress has anything to compare the renders with."""
        ...

    def terms(self, draw: Draw, progress: float, strength: float) -> dict[str, Tensor]:
        """Unweighted losses of one step, with graph, and values to show that have no weight."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What the steps of a round depend on (any shape and range); {} before the first."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors` (any shape and range)."""
        ...


class Refine:
    """All that changes while a mesh is refined, and the step that changes it.

    Args:
        config: The settings.
        start: The mesh.
        objective: What its renders are compared with.
        judge: Figures of the guard.
        device: Where it is optimised.
        event: Hears, as `RunFolder.event` does, what the guard decided.
        encode_less: As for `Coarse`.
    """

    name = "refine"
    update = (
        "updating the mesh",
        "free memory on the device, or lower refine.texture_size or refine.faces",
    )

    def __init__(
        self,
        config: RefineSettings,
        start: Start,
        objective: Objective,
        judge: Judge,
        device: torch.device | str = "cpu",
        event: Callable[..., None] = lambda kind, **data: None,
        encode_less: Callable[[int], int] = lambda views: 0,
    ) -> None:
        self.config, self.refine, self.identity = config, config.refine, config.identity
        self.start, self.objective, self.judge = start, objective, judge
        self.device, self.event, self.encode_less = torch.device(device), event, encode_less
        self.generators = objective.generators
        self.topology = start.topology(self.device)
        self.surface = Surface(start, self.device)
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            [
                {"params": [self.surface.offset], "lr": self._rate("geometry")},
                {"params": list(self.surface.levels), "lr": self._rate("texture")},
            ],
            eps=1.0e-15,
        )
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.names: dict[Tensor, str] = {p: name for name, p in self.surface.named_parameters()}
        self.best = self.surface.values()
        self.highest: dict[str, float] = {}  # of each figure, over the start and the rounds kept
        self.initial = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}
        self.start_opacity = self._guard_views().opacity

    def step(self, i: int) -> dict[str, Tensor]:
        """Scalars of step `i`: "loss" (with graph), each unweighted loss, and what is shown."""
        number, within = divmod(i, self.refine.steps)
        strength, progress = self.refine.strengths[number], i / self.config.steps
        if within == 0 or not self.objective.tensors():
            self._begin_round(number, strength)
        if not self.objective.useful():  # leaves the mesh as it is
            return {"loss": torch.stack([0.0 * p.sum() for p in self.surface.parameters()]).sum()}
        vertices, texture = self.surface.vertices(), self.surface.texture()

        def draw(camera: Camera) -> SoftRender:
            return self._draw(vertices, texture, camera, self.objective.size)

        compared = self.objective.terms(draw, progress, strength)
        terms = {**compared, **self._regularisers(vertices, texture)}
        weights = {**self.objective.weights, **self._weights()}
        loss = torch.stack([weights[name] * terms[name] for name in weights]).sum()
        return {"loss": loss, **terms}

    def health(self, numbers: Mapping[str, float]) -> None:
        """A mesh cannot collapse as a field does; the guard judges it instead."""
        return None

    def preview(self, camera: Camera, size: int) -> Render:
        """What the cameras see: `size` x `size` rays each, row-major; no graph."""
        with torch.no_grad():
            vertices, texture = self.surface.vertices(), self.surface.texture()
            drawn = self._draw(vertices, texture, camera.to(self.device), size)
        rgb = drawn.rgb.clamp(0.0, 1.0).permute(0, 2, 3, 1).reshape(-1, 3)
        return Render(rgb, drawn.opacity.reshape(-1), torch.zeros_like(drawn.opacity.reshape(-1)))

    def finish(self) -> Mesh:
        """The best mesh, with UVs and texture, without normals."""
        self._keep_best("end")
        return mesh_of(self.start, self.surface.vertices(), self.surface.texture())

    @property
    def unchanged(self) -> bool:
        """Whether the best mesh is the start."""
        return equal(self.best, part(self.initial, "surface."))

    def set_rates(self, i: int, scale: float) -> None:
        """Set the learning rates of step `i`, times `scale`; in each round they fall by cosine."""
        share = (i % self.refine.steps) / self.refine.steps
        fall = LR_FINAL + (1.0 - LR_FINAL) * 0.5 * (1.0 + math.cos(math.pi * share))
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * scale * fall

    def restart(self, regulariser_scale: float) -> None:
        """Return to the mesh of the start."""
        self.load_tensors(self.initial, regulariser_scale)

    def shrink(self) -> None:
        """After memory ran out: encode fewer images at once."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        images = self.encode_less(self.refine.views)
        if not images:
            raise OutOfMemoryError(
                "out of memory while the mesh was refined; free memory on the device, or lower "
                "refine.views, refine.render_size or refine.texture_size"
            )
        self.event("out_of_memory", images=images)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that changes while training (any shape and range), live."""
        highest = {
            name: torch.tensor(value, dtype=torch.float64) for name, value in self.highest.items()
        }
        return {
            **{f"surface.{name}": value for name, value in self.surface.state_dict().items()},
            **{f"best.{name}": value for name, value in self.best.items()},
            **{f"highest.{name}": value for name, value in highest.items()},
            **{f"objective.{name}": value for name, value in self.objective.tensors().items()},
            **adam_tensors(self.optimizer, self.names),
        }

    def load_tensors(self, tensors: dict[str, Tensor], regulariser_scale: float) -> None:
        """Inverse of `tensors`; no regulariser here makes a mesh collapse, so none is scaled."""
        self.surface.load_state_dict(part(tensors, "surface."))
        best = part(tensors, "best.")
        self.best = {name: value.clone().to(self.device) for name, value in best.items()}
        highest = part(tensors, "highest.")
        self.highest = {name: float(value) for name, value in highest.items()}
        self.objective.load_tensors(part(tensors, "objective."))
        load_adam(self.optimizer, self.names, tensors)

    def _begin_round(self, number: int, strength: float) -> None:
        """Judge the round before, and prepare the next one at the best state."""
        if number:
            self._keep_best(str(number))
        self.optimizer.state.clear()
        with torch.no_grad():
            vertices, texture = self.surface.vertices(), self.surface.texture()
            self.objective.begin(
                lambda camera: self._draw(vertices, texture, camera, self.objective.size), strength
            )

    @torch.no_grad()
    def _keep_best(self, round_: str) -> None:
        """Keep the state if the guard finds nothing against it, else return to the best one."""
        current = self.surface.values()
        if equal(current, self.best):
            self.event("guard", round=round_, kept=False, reason="nothing changed")
            return
        drawn = self._guard_views()
        reason = self._unlike_start(drawn.opacity)
        figures = self._figures(drawn)
        if not self.highest:
            self.surface.load_state_dict(self.best)
            self.highest = self._figures(self._guard_views())
            self.surface.load_state_dict(current)
        reason = reason or fallen(self.highest, figures)
        self.event("guard", round=round_, kept=not reason, reason=reason, **figures)
        if reason:
            self.surface.load_state_dict(self.best)
            return
        self.best = current
        self.highest = {name: max(value, figures[name]) for name, value in self.highest.items()}

    @torch.no_grad()
    def _guard_views(self) -> SoftRender:
        """The mesh as it is, from the guard's cameras."""
        vertices, texture = self.surface.vertices(), self.surface.texture()
        return self._draw(vertices, texture, self._guard_cameras(), self.objective.size)

    def _guard_cameras(self) -> Camera:
        camera = self.config.camera
        around = ring(JUDGED_VIEWS, JUDGED_ELEVATION_DEG, camera.distance, camera.fov_deg)
        return around.to(self.device)

    def _figures(self, drawn: SoftRender) -> dict[str, float]:
        """The judge's figures of the guard's views."""
        return dict(self.judge(drawn, self._guard_cameras()))

    def _unlike_start(self, opacity: Tensor) -> str:
        """Why the mesh is too far from the start, "" if it is not.

        opacity `[B, 1, S, S]` is that of the guard's views.
        """
        if not all(bool(torch.isfinite(value).all()) for value in self.surface.values().values()):
            return "it is not finite"
        overlap = float(iou(opacity, self.start_opacity).mean())
        if overlap < LEAST_SILHOUETTE:
            return f"its silhouettes overlap with those of the start by {overlap:.2f} only"
        now, before = (
            mesh_losses.unit_normals(vertices, self.topology.faces)
            for vertices in (self.surface.vertices(), self.surface.base)
        )
        turned = float(((now * before).sum(-1) < 0.0).float().mean())
        return f"{100.0 * turned:.0f} % of its faces turned over" if turned > MOST_TURNED else ""

    def _draw(self, vertices: Tensor, texture: Tensor, camera: Camera, size: int) -> SoftRender:
        """Renders, averaged down to `size` pixels a side."""
        refine = self.refine
        fine = size * max(refine.render_size // size, 1)
        drawn = render_soft(vertices, self.topology, texture, camera, fine, refine.rasterizer)
        return drawn.shrunk(size)

    def _regularisers(self, vertices: Tensor, texture: Tensor) -> dict[str, Tensor]:
        """The regularisers whose weight is not zero, unweighted."""
        edges, sides, faces = self.topology.edges, self.topology.sides, self.topology.faces
        terms: dict[str, Callable[[], Tensor]] = {
            "bending": lambda: mesh_losses.roughness(self.surface.offset, edges),
            "smoothness": lambda: mesh_losses.roughness(vertices, edges),
            "normals": lambda: mesh_losses.normal_consistency(vertices, faces, sides),
            "variation": lambda: mesh_losses.total_variation(texture),
        }
        return {name: terms[name]() for name in self._weights()}

    def _weights(self) -> dict[str, float]:
        """The weights of the regularisers that are not zero."""
        refine = self.refine
        weights = {
            "bending": refine.bending,
            "smoothness": refine.smoothness,
            "normals": refine.normals,
            "variation": refine.variation,
        }
        return {name: weight for name, weight in weights.items() if weight > 0.0}

    def _rate(self, group: str) -> float:
        """The learning rate of "geometry" or "texture"; 0 where the stage may not change it."""
        if self.refine.change not in ("both", group):
            return 0.0
        return self.refine.lr_vertices if group == "geometry" else self.refine.lr_texture


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two surfaces have the same parameters (any shape and range), bit for bit."""
    return all(torch.equal(value, b[name]) for name, value in a.items())


def fallen(before: Mapping[str, float], now: Mapping[str, float]) -> str:
    """Which figure of the judge fell by more than `FALL` of its size, "" if none did."""
    for name, value in before.items():
        if not now[name] >= value - FALL * abs(value):
            return f"{name} fell from {value:.3f} to {now[name]:.3f}"
    return ""

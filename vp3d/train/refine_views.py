"""The objective `refine.method=views`: fit the mesh to pictures that a teacher redraws.

At the start of each round all views are rendered and redrawn (train/redraw.py); its steps then fit
a few of them at a time. A picture can be fitted to convergence with a fixed number of denoiser
calls (the dataset update of Instruct-NeRF2NeRF, arXiv 2303.12789, section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vp3d.config.schema import CameraConfig, RefineConfig
from vp3d.render.camera import orbit
from vp3d.train.redraw import OWN_WEIGHT, Front, Targets, Teacher, usable_targets
from vp3d.train.refine import Draw
from vp3d.types import Camera

VIEWS_AT_ONCE = 8  # renders of a round that are drawn together
# share of the views with a usable picture below which a round changes nothing
LEAST_PICTURES = 0.25


class RedrawnViews:
    """Pictures of all views, and the losses of a few of them.

    Args:
        config: Views, steps and weights.
        camera: Distance and field of view.
        teacher: Redraws the views.
        size: Side of the pictures, pixels.
        grey: Level behind them, in [0, 1].
        tolerance: As for `usable_targets`.
        generators: "noise" for the teacher, "camera" for the choice of views.
        front: The chosen visual prompt, or None.
        device: Where the pictures are kept.
    """

    def __init__(
        self,
        config: RefineConfig,
        camera: CameraConfig,
        teacher: Teacher,
        size: int,
        grey: float,
        tolerance: float,
        generators: dict[str, torch.Generator],
        front: Front | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.teacher, self.front = config, teacher, front
        self.size, self.grey, self.tolerance = size, grey, tolerance
        self.generators, self.device = generators, torch.device(device)
        self.cameras = views_around(config, camera).to(device)
        self.targets: Targets | None = None
        self.weights: Mapping[str, float] = {"color": 1.0, "coverage": config.coverage}

    def begin(self, draw: Draw, strength: float) -> None:
        """Render and redraw all views."""
        parts = [
            draw(self.cameras[n : n + VIEWS_AT_ONCE])
            for n in range(0, len(self.cameras), VIEWS_AT_ONCE)
        ]
        rgb = torch.cat([drawn.over(self.grey).clamp(0.0, 1.0) for drawn in parts])
        own = Targets(rgb, torch.cat([drawn.opacity for drawn in parts]), rgb.new_ones(len(rgb)))
        pictures = self.teacher(rgb, self.cameras, strength, self.generators["noise"])
        self.targets = usable_targets(
            pictures, own, self.cameras, self.grey, self.tolerance, self.front
        )

    def useful(self) -> bool:
        """Whether enough views have a picture."""
        weight = None if self.targets is None else self.targets.weight
        return weight is not None and float(pictures_of(weight)) >= LEAST_PICTURES

    def terms(self, draw: Draw, progress: float, strength: float) -> dict[str, Tensor]:
        """The losses of `refine.views` views, and the share of all views that have a picture.

        "color" is the mean absolute difference of the pictures, "coverage" the mean squared one of
        their masks, both weighted by view.
        """
        targets = self.targets
        if targets is None:
            raise ValueError("begin a round first")
        order = torch.randperm(len(self.cameras), generator=self.generators["camera"])
        chosen = order[: self.config.views].sort().values.to(self.device)
        drawn, weight = draw(self.cameras[chosen]), targets.weight[chosen][:, None, None, None]
        color = (drawn.over(self.grey) - targets.rgb[chosen]).abs()
        coverage = (drawn.opacity - targets.mask[chosen]).square()
        return {
            "color": (weight * color).mean(),
            "coverage": (weight * coverage).mean(),
            "pictures": pictures_of(targets.weight),
        }

    def tensors(self) -> dict[str, Tensor]:
        """The pictures of the round; {} before the first."""
        return {} if self.targets is None else dict(vars(self.targets))

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors` (any shape and range)."""
        copies = {name: value.clone().to(self.device) for name, value in tensors.items()}
        self.targets = Targets(**copies) if copies else None


def pictures_of(weight: Tensor) -> Tensor:
    """The share of views with a picture of the teacher, from the weights `[B]` of `Targets`."""
    return (weight > OWN_WEIGHT).float().mean()


def views_around(config: RefineConfig, camera: CameraConfig) -> Camera:
    """The fixed cameras: `refine.azimuths` at each of `refine.elevations_deg`."""
    azimuths = [360.0 * n / config.azimuths for n in range(config.azimuths)]
    rings = [(azimuth, height) for height in config.elevations_deg for azimuth in azimuths]
    around, heights = ([pair[k] for pair in rings] for k in range(2))
    return orbit(around, heights, camera.distance, camera.fov_deg)

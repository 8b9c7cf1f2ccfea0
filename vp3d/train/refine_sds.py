"""The objective `refine.method=sds`: VP-SDS and the rewards on renders of the mesh.

As the fine stages of VP3D (arXiv 2403.17001) and Magic3D (arXiv 2211.10440, section 3.3) have it:
random cameras, the prior's full resolution, and noise levels up to the strength of the round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vp3d.config.schema import CameraConfig, RefineConfig, RenderConfig
from vp3d.guidance.condition import Condition
from vp3d.guidance.reward_term import Reward, reward_terms
from vp3d.train.coarse import GuidanceCall, random_views
from vp3d.train.refine import Draw


@dataclass(frozen=True)
class SdsSettings:
    """The settings that the objective reads."""

    refine: RefineConfig
    camera: CameraConfig
    render: RenderConfig
    guidance_weight: float
    size: int  # side of the views, pixels: the prior's resolution


class Scored:
    """VP-SDS and rewards on random views.

    Args:
        config: The settings.
        guidance: VP-SDS up to a noise level, for each of `refine.strengths`.
        condition: The encoded prompts and the visual prompt.
        rewards: Differentiable rewards by name, the name of their loss.
        generators: "camera", "background" and "noise".
        device: Where the views are rendered.
    """

    def __init__(
        self,
        config: SdsSettings,
        guidance: Mapping[float, GuidanceCall],
        condition: Condition,
        rewards: Mapping[str, Reward],
        generators: dict[str, torch.Generator],
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.guidance, self.condition = config, guidance, condition
        self.rewards, self.generators, self.device = rewards, generators, torch.device(device)
        self.size, self.started = config.size, False
        self.weights: Mapping[str, float] = {
            "sds": config.guidance_weight,
            **{name: reward.config.weight for name, reward in rewards.items()},
        }

    def begin(self, draw: Draw, strength: float) -> None:
        """A round needs nothing but its strength."""
        self.started = True

    def useful(self) -> bool:
        """The 2D model has a direction for every view."""
        return True

    def terms(self, draw: Draw, progress: float, strength: float) -> dict[str, Tensor]:
        """The losses of `refine.views` random views, and each reward's mean as "reward_<name>"."""
        config = self.config
        camera, grey = random_views(
            config.refine.views, config.camera, config.render, self.generators
        )
        camera = camera.to(self.device)
        drawn = draw(camera)
        rgb = drawn.over(grey).clamp(0.0, 1.0)
        guided, _ = self.guidance[strength](
            rgb, camera, self.condition, progress, self.generators["noise"]
        )

        def shown(background: float | None) -> Tensor:
            return rgb if background is None else drawn.over(background).clamp(0.0, 1.0)

        rewards, measured = reward_terms(self.rewards, shown, camera, progress)
        return {**guided, **rewards, **measured}

    def tensors(self) -> dict[str, Tensor]:
        """Whether a round started: nothing else outlives a step."""
        return {"started": torch.ones(1)} if self.started else {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        self.started = "started" in tensors

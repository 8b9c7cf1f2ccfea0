"""What VP3D says of views that something else rendered: the losses of VP-SDS and of the rewards. Nothing of threestudio here.

Conventions: views come as threestudio has them, `[B, H, W, 3]` in [0, 1], azimuth and elevation in degrees, `fovy` in radians.
Its azimuth is VP3D's: 0 in front of the object, on +x, growing towards +y, z up. Losses are unweighted scalars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from vp3d import build, checks, pipeline
from vp3d.config.loader import build_config
from vp3d.config.paths import locate
from vp3d.config.reader import read_stack
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.guidance.condition import Condition
from vp3d.guidance.reward_term import Reward, reward_term
from vp3d.guidance.vp_sds import Guidance
from vp3d.rewards.build import load_judges
from vp3d.runs.folder import RunFolder
from vp3d.train.generators import make_generator
from vp3d.types import Camera
from vp3d.visual_prompt.make import make_visual_prompt

READ = (
    "image",
    "seed",
    "negative_prompt",
    "output_dir",
    "prior",
    "visual_prompt",
    "guidance",
    "rewards",
)
NO_VIDEO = {"export": {"turntable": "gif"}}  # nothing is exported here, so no ffmpeg is looked for
NO_PICTURE = "no prior draws a visual prompt here: give vp3d.image, or set vp3d.rewards.image_image.weight to 0"


@dataclass
class ViewLosses:
    """The losses of views of one prompt. `guidance` and `condition` are None where only rewards are wanted.

    `noise` draws the time-steps and noises. A reward whose own weight is 0 is not among `rewards`.
    """

    guidance: Guidance | None
    condition: Condition | None
    rewards: dict[str, Reward]
    noise: torch.Generator

    def __call__(
        self, rgb: Tensor, camera: Camera, progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Unweighted losses ("sds" and the rewards' names) of rgb [B, 3, H, W] in [0, 1], and each reward's mean, no graph.

        progress in [0, 1] drives the schedules and the rewards' windows; outside its window a reward's loss is 0.
        """
        losses: dict[str, Tensor] = {}
        if self.guidance is not None and self.condition is not None:
            losses |= self.guidance(rgb, camera, self.condition, progress, self.noise)[0]
        values = {}
        for name, reward in self.rewards.items():
            target = reward.target(camera)
            losses[name], value = reward_term(
                reward.score, rgb, target, camera.azimuth_deg, reward.config, progress
            )
            if value is not None:
                values[name] = value
        return losses, values


def read_settings(file: str, settings: Mapping[str, Any]) -> Config:
    """The Config of a YAML file of VP3D ("" for none) changed by `settings`, VP3D's keys; UserError for those of no effect."""
    idle = next((name for name in settings if name not in READ), None)
    if idle is not None:
        raise UserError(
            f"vp3d.{idle} changes nothing in threestudio, which has its own; the groups read are {', '.join(READ)}"
        )
    return build_config(
        None, [*(read_stack(locate(file)) if file else []), dict(settings), NO_VIDEO]
    )


def as_views(
    rgb: Tensor, elevation: Tensor, azimuth: Tensor, distance: Tensor, fovy: Tensor | None = None
) -> tuple[Tensor, Camera]:
    """threestudio's batch as ours: rgb [B, H, W, 3] as [B, 3, H, W], both in [0, 1], and its cameras [B]."""
    if rgb.ndim != 4 or rgb.shape[-1] != 3 or rgb.shape[1] != rgb.shape[2]:
        raise UserError(
            f"VP3D judges square views [B, H, H, 3], not {tuple(rgb.shape)}: set data.width and data.height alike"
        )
    fov_deg = (
        torch.zeros_like(distance) if fovy is None else torch.rad2deg(fovy)
    )  # no loss here depends on it
    return rgb.float().permute(0, 3, 1, 2), Camera(azimuth, elevation, distance, fov_deg)


def build_losses(config: Config, device: torch.device) -> ViewLosses:
    """VP-SDS and the rewards, for `config.prompt`; the visual prompt and the settings are kept in a run folder of VP3D's."""
    checks.check_request(config, new=True)
    fitted = build.fit_to_device(config, device)
    models = build.load_models(fitted, device)
    run = RunFolder.create(config)
    visual_prompt = pipeline.find_visual_prompt(fitted, models, run, device)
    condition = build.find_condition(fitted, models, visual_prompt)
    rewards = active(build.build_rewards(config, models.judges, visual_prompt.rgb.to(device)))
    return ViewLosses(
        Guidance(models.prior, config.guidance),
        condition,
        rewards,
        make_generator(config.seed, "noise"),
    )


def build_rewards(config: Config, device: torch.device) -> ViewLosses:
    """The rewards alone, to stand beside another guidance: no prior is loaded, so the visual prompt is `config.image`."""
    judges = load_judges(config.rewards, config.prior.manifest, device)
    picture = torch.full(
        (1, 3, 32, 32), config.visual_prompt.ground
    )  # stands in where no reward looks at it
    if config.image:
        generator = make_generator(config.seed, "visual_prompt")
        run = RunFolder.create(config)
        picture = make_visual_prompt(
            Nobody(), judges.text, config.prompt, config, run, generator
        ).rgb
    elif config.rewards.image_image.weight > 0.0:
        raise UserError(NO_PICTURE)
    rewards = active(build.build_rewards(config, judges, picture.to(device)))
    return ViewLosses(None, None, rewards, make_generator(config.seed, "noise"))


class Nobody:
    """The `Sampler` where there is no prior."""

    def sample(
        self,
        prompts: list[str],
        negative: str,
        steps: int,
        guidance_scale: float,
        generator: torch.Generator,
    ) -> NoReturn:
        """Refuse to draw."""
        raise UserError(NO_PICTURE)


def active(rewards: dict[str, Reward]) -> dict[str, Reward]:
    """Those with a weight; how much they count is said by threestudio's `system.loss`."""
    return {name: reward for name, reward in rewards.items() if reward.config.weight > 0.0}

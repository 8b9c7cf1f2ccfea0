"""VP3D's losses of views that another program rendered. This module does not import threestudio.

Conventions: views are in threestudio's layout, `[B, H, W, 3]` in [0, 1]. Azimuth and elevation are
in degrees, `fovy` in radians. threestudio's azimuth equals VP3D's: 0 is in front of the object, on
+x, and it grows towards +y, with z up. Losses are unweighted scalars.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from vp3d import build, checks
from vp3d.config.loader import build_config, get_value
from vp3d.config.paths import locate
from vp3d.config.reader import read_stack
from vp3d.config.schema import Config, PriorConfig
from vp3d.errors import UserError
from vp3d.guidance.condition import Condition
from vp3d.guidance.reward_term import Reward, reward_term
from vp3d.guidance.vp_sds import Guidance
from vp3d.rewards.build import load_judges
from vp3d.runs.folder import RunFolder
from vp3d.runs.journal import Journal
from vp3d.runs.terminal import TerminalDisplay
from vp3d.train.generators import make_generator
from vp3d.types import Camera
from vp3d.visual_prompt.make import VisualPromptRequest, make_visual_prompt

# The keys of VP3D that have an effect in threestudio.
USED_KEYS = (
    "image",
    "seed",
    "negative_prompt",
    "output_dir",
    "prior",
    "visual_prompt",
    "guidance",
    "rewards",
)
# Keys in those groups that `ViewLosses` does not read, dotted; and those that only rewards do not.
GUIDANCE_UNUSED = ("guidance.weight", "guidance.estimate_every")
REWARDS_UNUSED = (
    "guidance",
    "negative_prompt",
    *(
        f"visual_prompt.{key}"
        for key in ("candidates", "steps", "guidance_scale", "words", "prior")
    ),
    *(
        f"prior.{field.name}"
        for field in dataclasses.fields(PriorConfig)
        if field.name not in ("manifest", "resolution")
    ),
)
ELSEWHERE = {  # where a key of no effect has its counterpart
    "guidance.weight": "set lambda_sds in system.loss",
    "guidance.estimate_every": "every step of threestudio has an estimate of its own",
}
# Nothing is exported here. With a GIF turntable, VP3D's checks do not require ffmpeg.
NO_FFMPEG = {"export": {"turntable": "gif"}}
NO_PICTURE = (
    "vp3d-rewards has no prior that could draw a visual prompt: "
    "give vp3d.image, or set vp3d.rewards.image_image.weight to 0"
)


@dataclass
class ViewLosses:
    """The losses of the views of one prompt.

    Attributes:
        guidance: VP-SDS; None if only rewards are used.
        condition: The encoded prompts; None if only rewards are used.
        rewards: The rewards with a weight above 0, by name.
        noise: Source of the timesteps and the noise.
    """

    guidance: Guidance | None
    condition: Condition | None
    rewards: dict[str, Reward]
    noise: torch.Generator

    def __call__(
        self, rgb: Tensor, camera: Camera, progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses and rewards of views.

        Args:
            rgb: `[B, 3, H, W]` in [0, 1].
            camera: The B cameras.
            progress: Of the run, in [0, 1]; sets the schedules and the windows of the rewards.

        Returns:
            Unweighted losses, scalars: "sds" and the names of the rewards (0 outside the window).
            And the mean of each reward inside its window, without gradient.
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


def read_settings(
    file: str, settings: Mapping[str, Any], unused: Sequence[str] = GUIDANCE_UNUSED
) -> Config:
    """VP3D's config for threestudio.

    Args:
        file: A YAML file of VP3D; "" for none. It may hold keys that have no effect here.
        settings: VP3D's keys, which override those of the file.
        unused: Dotted keys that have no effect.

    Returns:
        The config; the prompt is still empty.

    Raises:
        UserError: A key has no effect in threestudio, is unknown or has a wrong value.
    """
    group = next((name for name in settings if name not in USED_KEYS), None)
    if group is not None:
        raise UserError(
            f"vp3d.{group} changes nothing in threestudio, use threestudio's own key; "
            f"the keys of VP3D that are used are {', '.join(USED_KEYS)}"
        )
    layers = read_stack(locate(file)) if file else []
    config = build_config(None, [*layers, dict(settings), NO_FFMPEG])
    without = build_config(None, [*layers, NO_FFMPEG])
    for key in unused:
        if get_value(config, key) != get_value(without, key):
            advice = ELSEWHERE.get(key, "it is not read by this guidance")
            raise UserError(f"vp3d.{key} changes nothing in threestudio: {advice}; leave it out")
    return config


def as_views(
    rgb: Tensor, elevation: Tensor, azimuth: Tensor, distance: Tensor, fovy: Tensor | None = None
) -> tuple[Tensor, Camera]:
    """Convert a batch of threestudio to VP3D's layout.

    Args:
        rgb: `[B, H, H, 3]` in [0, 1].
        elevation: `[B]`, degrees.
        azimuth: `[B]`, degrees.
        distance: `[B]`, from the origin.
        fovy: `[B]`, radians, or None.

    Returns:
        rgb `[B, 3, H, H]` in [0, 1], and the B cameras.

    Raises:
        UserError: The views are not square.
    """
    if rgb.ndim != 4 or rgb.shape[-1] != 3 or rgb.shape[1] != rgb.shape[2]:
        raise UserError(
            f"VP3D needs square views [B, H, H, 3], got {tuple(rgb.shape)}: "
            "set data.width and data.height to the same number"
        )
    # No loss here depends on the field of view.
    fov_deg = torch.zeros_like(distance) if fovy is None else torch.rad2deg(fovy)
    return rgb.float().permute(0, 3, 1, 2), Camera(azimuth, elevation, distance, fov_deg)


def build_losses(config: Config, device: torch.device) -> ViewLosses:
    """VP-SDS and the rewards for `config.prompt`.

    The visual prompt and the settings are kept in a run folder below `config.output_dir`.
    """
    checks.check_request(config, new=True)
    watch = TerminalDisplay().watch
    fitted = build.fit_to_device(config, device)
    models = build.load_models(config, watch)
    journal = Journal(RunFolder.create(config), watch)
    visual_prompt = build.find_visual_prompt(config, fitted, models, journal)
    condition = build.find_condition(config, models.prior, visual_prompt, build.debias(config))
    rewards = active(build.build_rewards(config, models.judges, visual_prompt.rgb.to(device)))
    return ViewLosses(
        Guidance(models.prior, config.guidance),
        condition,
        rewards,
        make_generator(config.seed, "noise"),
    )


def build_rewards(config: Config, device: torch.device) -> ViewLosses:
    """The rewards alone, for use with another guidance.

    No prior is loaded, so the visual prompt must be `config.image`.

    Raises:
        UserError: The image-image reward is on, but there is no `config.image`.
    """
    judges = load_judges(config.rewards, config.prior.manifest, device)
    # A placeholder of any size, for when no reward compares views with a picture.
    picture = torch.full((1, 3, 32, 32), config.visual_prompt.ground)
    if config.image:
        request = VisualPromptRequest(
            config.prompt,
            config.negative_prompt,
            config.image,
            config.prior.resolution,
            config.visual_prompt,
        )
        generator = make_generator(config.seed, "visual_prompt")
        run = RunFolder.create(config)
        picture = make_visual_prompt(NoPrior(), judges.text, request, run, generator).rgb
    elif config.rewards.image_image.weight > 0.0:
        raise UserError(NO_PICTURE)
    rewards = active(build.build_rewards(config, judges, picture.to(device)))
    return ViewLosses(None, None, rewards, make_generator(config.seed, "noise"))


class NoPrior:
    """A `Sampler` that refuses to draw."""

    def sample(
        self,
        prompts: list[str],
        negative: str,
        steps: int,
        guidance_scale: float,
        generator: torch.Generator,
    ) -> NoReturn:
        """Refuse to draw: raise UserError. The arguments are those of `Sampler.sample`."""
        raise UserError(NO_PICTURE)


def active(rewards: dict[str, Reward]) -> dict[str, Reward]:
    """The rewards with a weight above 0; their weights are set in threestudio's `system.loss`."""
    return {name: reward for name, reward in rewards.items() if reward.config.weight > 0.0}

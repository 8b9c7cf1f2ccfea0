"""The classes that threestudio finds by name: thin wrappers around VP3D, for threestudio 0.2.3.

    vp3d-prompt-processor   passes the prompt on, so that threestudio loads no text encoder
    vp3d-guidance           VP-SDS and VP3D's rewards
    vp3d-rewards            any other guidance of threestudio, with VP3D's rewards added

threestudio calls a guidance with rendered views. The guidance returns scalars, and the system
multiplies each `loss_NAME` by its `lambda_NAME`. Ours returns loss_sds, loss_text_image,
loss_image_image and loss_aesthetic, without those of rewards that have weight 0 in `vp3d.rewards`.
It also returns reward_NAME, which is only logged.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.utils.base import BaseObject
from threestudio.utils.config import config_to_primitive

from .views import (
    GUIDANCE_UNUSED,
    REWARDS_UNUSED,
    ViewLosses,
    as_views,
    build_losses,
    build_rewards,
    read_settings,
)

# The keys of a batch that describe the cameras.
CAMERA_KEYS = ("elevation", "azimuth", "camera_distances", "fovy")


@dataclass
class Prompts:
    """What `vp3d-prompt-processor` passes to a guidance."""

    prompt: str
    negative_prompt: str


@threestudio.register("vp3d-prompt-processor")
class VP3DPromptProcessor(BaseObject):
    """Passes the prompt on as text. VP3D encodes it itself, once for each of its view words."""

    @dataclass
    class Config(BaseObject.Config):
        """The keys of `system.prompt_processor`."""

        prompt: str = ""
        negative_prompt: str = ""

    cfg: Config

    def __call__(self) -> Prompts:
        """The prompts; threestudio calls this at every step."""
        return Prompts(self.cfg.prompt, self.cfg.negative_prompt)


@threestudio.register("vp3d-guidance")
class VP3DGuidance(BaseObject):
    """VP-SDS and the rewards on rendered views.

    The models are loaded at the first call, because the prompt is known only then.
    """

    @dataclass
    class Config(BaseObject.Config):
        """The keys of `system.guidance`.

        Attributes:
            vp3d_file: Settings of VP3D: the path of a YAML file, or the name of one in VP3D's
                repository, such as `configs/sd15.yaml`.
            vp3d: VP3D's keys, which override those of the file (vp3d/config/schema.py).
            max_steps: Steps of the run, for VP3D's schedules: `${trainer.max_steps}`.
        """

        vp3d_file: str = ""
        vp3d: dict = field(default_factory=dict)
        max_steps: int = 10000

    cfg: Config
    build = staticmethod(build_losses)
    unused = GUIDANCE_UNUSED

    def configure(self) -> None:
        """Read and check the settings."""
        settings = config_to_primitive(self.cfg.vp3d)
        self.settings = read_settings(self.cfg.vp3d_file, settings, self.unused)
        self.losses: ViewLosses | None = None
        self.progress = 0.0

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Set the progress in [0, 1]; threestudio calls this before every step."""
        self.progress = min(global_step / max(self.cfg.max_steps, 1), 1.0)

    def __call__(
        self,
        rgb: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        fovy: Tensor | None = None,
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """The losses of rendered views.

        Args:
            rgb: `[B, H, H, 3]` in [0, 1].
            prompt_utils: The result of the prompt processor; `prompt` is read, and
                `negative_prompt` if there is one.
            elevation: `[B]`, degrees.
            azimuth: `[B]`, degrees.
            camera_distances: `[B]`.
            fovy: `[B]`, radians.
            rgb_as_latents: Not supported.
            guidance_eval: Not supported.
            **kwargs: The rest of the batch, which is not used.

        Returns:
            Unweighted losses and rewards, all scalars (see the top of this module).

        Raises:
            ValueError: `rgb_as_latents` or `guidance_eval` is set.
        """
        if rgb_as_latents or guidance_eval:
            raise ValueError(
                "VP3D's guidance needs rendered colours: "
                "rgb_as_latents and guidance_eval are not supported"
            )
        # VP3D sets its own precision (prior.dtype), so threestudio's autocast is switched off.
        with torch.autocast(self.device.type, enabled=False):
            if self.losses is None:
                # threestudio's own prompt processors do not pass the negative prompt on.
                negative = getattr(prompt_utils, "negative_prompt", "")
                config = replace(self.settings, prompt=prompt_utils.prompt)
                config.negative_prompt = negative or config.negative_prompt
                self.losses = self.build(config, self.device)
            views, camera = as_views(rgb, elevation, azimuth, camera_distances, fovy)
            losses, values = self.losses(views, camera, self.progress)
        return {f"loss_{name}": loss for name, loss in losses.items()} | {
            f"reward_{name}": value for name, value in values.items()
        }


@threestudio.register("vp3d-rewards")
class VP3DRewards(VP3DGuidance):
    """Another guidance with VP3D's rewards added; `vp3d.image` is the reference picture."""

    @dataclass
    class Config(VP3DGuidance.Config):
        """The keys of `system.guidance`.

        Attributes:
            base_type: Registered name of the other guidance.
            base: Its keys.
        """

        base_type: str = "stable-diffusion-guidance"
        base: dict = field(default_factory=dict)

    cfg: Config
    build = staticmethod(build_rewards)
    unused = REWARDS_UNUSED

    def configure(self) -> None:
        """Read the settings and build the other guidance.

        threestudio finds `base` among the attributes and calls its `update_step` too.
        """
        super().configure()
        self.base = threestudio.find(self.cfg.base_type)(self.cfg.base)

    def __call__(self, rgb: Tensor, prompt_utils: Any, **batch: Any) -> dict[str, Any]:
        """The results of the other guidance, and loss_NAME and reward_NAME of each reward.

        `rgb` is `[B, H, H, 3]` in [0, 1].
        """
        cameras = {name: batch[name] for name in CAMERA_KEYS if name in batch}
        return {
            **self.base(rgb, prompt_utils, **batch),
            **super().__call__(rgb, prompt_utils, **cameras),
        }

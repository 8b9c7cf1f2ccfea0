"""What threestudio finds by name, thin wrappers around VP3D (written after threestudio 0.2.3):

    vp3d-prompt-processor   hands on the prompt; no text encoder of threestudio's is loaded
    vp3d-guidance           VP-SDS and VP3D's rewards
    vp3d-rewards            any other guidance of threestudio, and VP3D's rewards beside it

A guidance is called with rendered views and returns scalars; a system multiplies each `loss_NAME` with its `lambda_NAME`. Ours
returns loss_sds, loss_text_image, loss_image_image and loss_aesthetic (a reward of weight 0 in `vp3d.rewards` is left out), and
reward_NAME, which is logged only.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.utils.base import BaseObject
from threestudio.utils.config import config_to_primitive

from .views import ViewLosses, as_views, build_losses, build_rewards, read_settings

CAMERAS = (
    "elevation",
    "azimuth",
    "camera_distances",
    "fovy",
)  # what of a batch says where views are taken from


@dataclass
class Prompts:
    """What `vp3d-prompt-processor` gives to a guidance."""

    prompt: str
    negative_prompt: str


@threestudio.register("vp3d-prompt-processor")
class VP3DPromptProcessor(BaseObject):
    """The prompt as it stands in the file: VP3D encodes it itself, once for each of its view words."""

    @dataclass
    class Config(BaseObject.Config):
        """The keys of `system.prompt_processor`."""

        prompt: str = ""
        negative_prompt: str = ""

    cfg: Config

    def __call__(self) -> Prompts:
        """Called in every step."""
        return Prompts(self.cfg.prompt, self.cfg.negative_prompt)


@threestudio.register("vp3d-guidance")
class VP3DGuidance(BaseObject):
    """VP-SDS and the rewards on rendered views. The models are read at the first call, which is when the prompt is known."""

    @dataclass
    class Config(BaseObject.Config):
        """The keys of `system.guidance`."""

        vp3d_file: str = (
            ""  # settings of VP3D: a path, or a file of its repository such as configs/sd15.yaml
        )
        vp3d: dict = field(
            default_factory=dict
        )  # and over them: VP3D's keys, see its vp3d/config/schema.py
        max_steps: int = 10000  # of the run, for VP3D's schedules: ${trainer.max_steps}

    cfg: Config
    build = staticmethod(build_losses)

    def configure(self) -> None:
        """Read and check the settings."""
        self.settings = read_settings(self.cfg.vp3d_file, config_to_primitive(self.cfg.vp3d))
        self.losses: ViewLosses | None = None
        self.progress = 0.0

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Called before every step."""
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
        """Unweighted losses (see the top) of views rgb [B, H, H, 3] in [0, 1]; angles [B] in degrees, fovy [B] in radians."""
        if rgb_as_latents or guidance_eval:
            raise ValueError(
                "VP3D's guidance takes rendered colours alone: no rgb_as_latents, no guidance_eval"
            )
        with torch.autocast(
            self.device.type, enabled=False
        ):  # VP3D chooses its precisions itself: prior.dtype
            if self.losses is None:
                negative = getattr(
                    prompt_utils, "negative_prompt", ""
                )  # threestudio's own processors do not tell it
                config = replace(self.settings, prompt=prompt_utils.prompt)
                config.negative_prompt = negative or config.negative_prompt
                self.losses = self.build(config, self.device)
            views, camera = as_views(rgb, elevation, azimuth, camera_distances, fovy)
            losses, values = self.losses(views, camera, self.progress)
        return {f"loss_{name}": loss for name, loss in losses.items()} | {
            f"reward_{name}": v for name, v in values.items()
        }


@threestudio.register("vp3d-rewards")
class VP3DRewards(VP3DGuidance):
    """Another guidance with VP3D's rewards beside its losses; the picture to look like is `vp3d.image`."""

    @dataclass
    class Config(VP3DGuidance.Config):
        """The keys of `system.guidance`."""

        base_type: str = "stable-diffusion-guidance"
        base: dict = field(default_factory=dict)  # the keys of that guidance

    cfg: Config
    build = staticmethod(build_rewards)

    def configure(self) -> None:
        """Make the other guidance, too. It is told of steps by threestudio, which walks through attributes."""
        super().configure()
        self.base = threestudio.find(self.cfg.base_type)(self.cfg.base)

    def __call__(self, rgb: Tensor, prompt_utils: Any, **batch: Any) -> dict[str, Any]:
        """What the other guidance returns of views [B, H, H, 3] in [0, 1], and loss_NAME and reward_NAME of each reward."""
        cameras = {name: batch[name] for name in CAMERAS if name in batch}
        return {
            **self.base(rgb, prompt_utils, **batch),
            **super().__call__(rgb, prompt_utils, **cameras),
        }

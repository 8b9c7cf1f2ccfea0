"""Choose and build the parts of a run: models, field, guidance, rewards and stage.

This is the one place where a config decides which class is used. Everything else is handed the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vp3d.checks import is_drawn
from vp3d.config.schema import Config
from vp3d.diffusion.debias import debiased_prompts
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.prior import Prior
from vp3d.errors import UserError
from vp3d.fields.hashgrid import HashGridField
from vp3d.fields.nerf import Field, build_field
from vp3d.guidance.condition import Condition, build_condition
from vp3d.guidance.reward_term import Reward
from vp3d.guidance.vp_sds import Guidance
from vp3d.prompts import all_views, view_prompts, with_view
from vp3d.render.volume import DENSE, March
from vp3d.rewards.build import Judges, load_judges
from vp3d.rewards.image_image import image_image, image_target
from vp3d.runs.folder import RunFolder
from vp3d.system.console import say
from vp3d.system.memory import fit_to_memory, free_memory_gb
from vp3d.system.out_of_memory import report_out_of_memory
from vp3d.train.coarse import Coarse
from vp3d.train.generators import make_generator, make_generators
from vp3d.visual_prompt.make import (
    VisualPrompt,
    VisualPromptRequest,
    load_visual_prompt,
    make_visual_prompt,
)

LESS_FOR_MODELS = (  # what needs less memory, told when there was too little
    "free memory on the device, set prior.offload_encoders=true or prior.dtype=float16, or take configs/sd15-low-vram.yaml"
)


@dataclass(frozen=True)
class Models:
    """The frozen networks of a run, and the prompt for each of the view words where `guidance.debias` has a say in it."""

    prior: Prior
    judges: Judges
    debiased: dict[str, str]


def resolve_device(backend: str) -> torch.device:
    """The device of `backend`; `auto` takes a GPU where there is one, `cuda` insists on it."""
    if backend == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "backend=cuda, but torch sees no CUDA device here; use backend=auto, or see `launch.py doctor`"
        )
    return torch.device("cuda" if backend != "cpu" and torch.cuda.is_available() else "cpu")


def fit_to_device(config: Config, device: torch.device) -> Config:
    """What a run's parts are built from: `config` itself on a CPU, within the profile of the free memory on a CUDA device."""
    if device.type != "cuda":
        return config
    fitted, profile = fit_to_memory(config, free_memory_gb(device))
    at_once = f"{fitted.render.chunk:,} samples and {fitted.prior.max_batch} images at once"
    say(f"memory profile {profile.name}: {at_once}")
    return fitted


@report_out_of_memory("loading the models", LESS_FOR_MODELS)
def load_models(config: Config, device: torch.device) -> Models:
    """Read and verify every network a run uses."""
    say("loading models")
    guidance = config.guidance
    debiased = (
        debiased_prompts(config.prompt, guidance.debias, guidance.debias_words)
        if guidance.debias
        else {}
    )
    prior = load_prior(config.prior, device, tell_fewer_images)
    judges = load_judges(config.rewards, config.prior.manifest, device)
    judges.text.target(
        [with_view(config.prompt, view) for view in all_views()]
    )  # a prompt it cannot read: say so now
    return Models(prior, judges, debiased)


def tell_fewer_images(count: int, network: str) -> None:
    """Say that memory ran out in a network of the prior, and what it goes on with."""
    say(f"out of memory: going on with {count:,} images in one call of the {network}")


@report_out_of_memory("making the visual prompt", LESS_FOR_MODELS)
def find_visual_prompt(
    config: Config, models: Models, run: RunFolder, device: torch.device
) -> VisualPrompt:
    """The run's visual prompt: as it lies in the folder, else made now."""
    if is_drawn(run):
        return load_visual_prompt(run)
    say(
        "visual prompt: "
        + (f"from {config.image}" if config.image else f"drawing {config.visual_prompt.candidates}")
    )
    generator = make_generator(config.seed, "visual_prompt")
    prior = drawing_prior(config, models, device)
    request = VisualPromptRequest(
        config.prompt,
        config.negative_prompt,
        config.image,
        config.prior.resolution,
        config.visual_prompt,
    )
    return make_visual_prompt(prior, models.judges.text, request, run, generator)


@report_out_of_memory("loading the prior that draws", LESS_FOR_MODELS)
def drawing_prior(config: Config, models: Models, device: torch.device) -> Prior:
    """The prior that draws: `visual_prompt.prior` if it names one (loaded now, for the moment), else the one that distils."""
    if not config.visual_prompt.prior.path or config.image:
        return models.prior
    say(f"loading {config.visual_prompt.prior.path} to draw")
    try:
        return load_prior(config.visual_prompt.prior, device, tell_fewer_images)
    except UserError as error:
        raise UserError(f"visual_prompt.prior: {error}") from error


@report_out_of_memory("encoding the prompt", LESS_FOR_MODELS)
def build_coarse(
    config: Config,
    models: Models,
    visual_prompt: VisualPrompt,
    run: RunFolder,
    device: torch.device,
) -> Coarse:
    """The coarse stage: field, guidance, condition, rewards and generators."""
    condition = find_condition(config, models, visual_prompt)
    if models.debiased:
        run.event("debias", prompts=models.debiased)
    field = make_field(config, device)
    guidance = Guidance(models.prior, config.guidance)
    rewards = build_rewards(config, models.judges, visual_prompt.rgb.to(device))
    march = choose_march(config, device)
    generators, encode_less = make_generators(config.seed), models.prior.encode_less
    return Coarse(
        config, field, guidance, condition, rewards, generators, teller(run), march, encode_less
    )


def find_condition(config: Config, models: Models, visual_prompt: VisualPrompt) -> Condition:
    """The prompts and the visual prompt encoded; a prior without IP-Adapter is not shown the picture."""
    shown = visual_prompt.rgb if config.prior.ip_adapter else None
    return build_condition(
        models.prior, config.prompt, config.negative_prompt, shown, models.debiased
    )


def teller(run: RunFolder) -> Callable[..., None]:
    """`run.event` that also says in one line what the user should know."""

    def tell(kind: str, **data: Any) -> None:
        run.event(kind, **data)
        if kind == "warning":
            say(f"warning: {data['message']}")
        if kind == "out_of_memory":
            at_once = (
                f"{data['images']} picture(s)" if "images" in data else f"{data['chunk']:,} samples"
            )
            say(f"out of memory: going on with {at_once} at once")

    return tell


def choose_march(config: Config, device: torch.device) -> March:
    """Who skips empty space and sums along rays on `device`, as `cuda.compositor` says; ours on a CPU."""
    if device.type != "cuda" or config.cuda.compositor == "torch":
        return DENSE
    from vp3d.render.volume_cuda import nerfacc_march  # GPU-only code: imported only when used

    return nerfacc_march(device)


def make_field(config: Config, device: torch.device) -> Field:
    """The initial field of a run on `device`; a hash grid on a CUDA device looks up by what works fastest there."""
    field = build_field(config.field, make_generator(config.seed, "field")).to(device)
    if isinstance(field, HashGridField) and device.type == "cuda":
        from vp3d.fields.hashgrid_cuda import accelerate  # GPU-only code: imported only when used

        say(accelerate(field, config.cuda))
    return field


def build_rewards(config: Config, judges: Judges, visual_prompt: Tensor) -> dict[str, Reward]:
    """The text-image reward, told the view, the image-image reward for a visual prompt `[1, 3, H, W]` in [0, 1], and looks."""
    prompts = [with_view(config.prompt, view) for view in all_views()]
    text = dict(zip(prompts, judges.text.target(prompts), strict=True))
    image = image_target(visual_prompt, judges.image)
    rewards = {
        "text_image": Reward(
            judges.text.score,
            lambda camera: torch.stack(
                [text[prompt] for prompt in view_prompts(config.prompt, camera)]
            ),
            config.rewards.text_image,
        ),
        "image_image": Reward(
            lambda rgb, target: image_image(rgb, target, judges.image),
            lambda camera: image,
            config.rewards.image_image,
            config.visual_prompt.ground,
        ),
    }
    if judges.aesthetic is not None:
        nothing = torch.zeros(1, 1, device=visual_prompt.device)
        rewards["aesthetic"] = Reward(
            judges.aesthetic.score, lambda camera: nothing, config.rewards.aesthetic
        )
    return rewards

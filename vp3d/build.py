"""Choose and build the parts of a run: models, field, guidance, rewards and stage.

This is the one place where a config decides which class is used. Everything else is handed the
parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vp3d.align.objectives import PictureScore
from vp3d.align.sampler import describe, steered_sampler
from vp3d.align.steer import SteeredSampler
from vp3d.align.svdd import advice
from vp3d.checks import choose_world, is_drawn
from vp3d.config.identity import changed_settings, stage_settings
from vp3d.config.schema import Config, CudaConfig, FieldConfig
from vp3d.diffusion.debias import debiased_prompts
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.prior import Prior
from vp3d.errors import UserError
from vp3d.fields.hashgrid import HashGridField
from vp3d.fields.nerf import Field, build_field
from vp3d.finish import FinishSettings
from vp3d.guidance.condition import Condition, build_condition
from vp3d.guidance.reward_term import Reward
from vp3d.guidance.vp_sds import Guidance
from vp3d.prompt_length import cut_lines
from vp3d.prompts import all_views, strip_view, view_prompts, with_view
from vp3d.refined import RefineRequest
from vp3d.render.volume import DENSE, March
from vp3d.rewards.build import Judges, load_judges
from vp3d.rewards.image_image import image_image, image_target
from vp3d.rewards.text_image import TextImage
from vp3d.runs.events import Candidates, Note, Stage, Warning, Watch
from vp3d.runs.journal import Journal
from vp3d.system.memory import FittedSettings, fit_to_memory, free_memory_gb, profile_for
from vp3d.system.out_of_memory import report_out_of_memory
from vp3d.train import loop
from vp3d.train.coarse import Coarse, CoarseSettings, part
from vp3d.train.generators import make_generator, make_generators
from vp3d.train.redraw import Front
from vp3d.visual_prompt.make import (
    SHEET_FILE,
    VisualPrompt,
    VisualPromptRequest,
    drawing_prompt,
    load_visual_prompt,
    make_visual_prompt,
    write_steering_sheet,
)
from vp3d.weights.locate import JUDGE_LOCATIONS, licence_of

LESS_MEMORY_FOR_MODELS = (  # advice where too little memory was free
    "free memory on the device, set prior.offload_encoders=true or prior.dtype=float16, "
    "or take configs/sd15-low-vram.yaml"
)
LOSS_NAMES = (
    *("sds", "text_image", "image_image", "aesthetic"),
    *("entropy", "sparsity", "fog", "smoothness", "orientation"),
)

JUDGE_CHOICES = ("text_model", "image_model")  # fields of RewardsConfig that choose a judge
NewField = Callable[[FieldConfig, torch.Generator], Field]


@dataclass(frozen=True)
class Models:
    """The frozen networks of a run, from `load_models`; they can be kept between runs.

    Attributes:
        prior: the 2D diffusion model that distils, and draws unless `visual_prompt.prior` is set.
        judges: the reward models.
        device: where they are.
        settings: the settings they were loaded by.
        extra_rewards: rewards of your own by name, added to those of the config.
        new_field: builds the initial radiance field of a run.
    """

    prior: Prior
    judges: Judges
    device: torch.device
    settings: Mapping[str, Any]
    extra_rewards: Mapping[str, Reward] = field(default_factory=dict)
    new_field: NewField = build_field


def resolve_device(backend: str) -> torch.device:
    """The device of `backend`: `auto` takes a GPU if there is one, `cuda` requires it."""
    if backend == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "backend=cuda, but torch finds no CUDA device; use backend=auto, or see `doctor`"
        )
    return torch.device("cuda" if backend != "cpu" and torch.cuda.is_available() else "cpu")


def fit_to_device(config: Config, device: torch.device) -> FittedSettings:
    """The settings of `config` that decide memory: as asked on a CPU, within a profile on CUDA."""
    asked = FittedSettings(config.prior, config.visual_prompt.prior, config.render)
    if device.type != "cuda":
        return asked
    return fit_to_memory(asked, profile_for(config.cuda.memory_gb or free_memory_gb(device)))


def load_models(config: Config, watch: Watch | None = None) -> Models:
    """Read and verify every network a run uses.

    Args:
        config: its groups `prior`, `rewards`, `render`, `backend` and `cuda` are read, and its
            prompt, where it decides between embedded models (`embedded`).
        watch: hears what is loaded.

    Returns:
        The models, to be given to `generate` for any number of prompts, one run at a time.

    Raises:
        MissingWeightsError: a model is not on this machine.
        DamagedFileError: a weight file is not the published one.
        OutOfMemoryError: the models do not fit.
    """
    watch, config = watch or Watch(), choose_world(config)
    device = resolve_device(config.backend)
    return _load_models(config, fit_to_device(config, device), device, watch)


@report_out_of_memory("loading the models", LESS_MEMORY_FOR_MODELS)
def _load_models(
    config: Config, fitted: FittedSettings, device: torch.device, watch: Watch
) -> Models:
    watch.on_event(Stage("load", "loading models"))
    if fitted.profile:
        at_once = f"{fitted.render.chunk:,} samples and {fitted.prior.max_batch} images at once"
        watch.on_event(Note(f"memory profile {fitted.profile}: {at_once}"))
    prior = load_prior(fitted.prior, device, partial(report_fewer_images, watch))
    judges = load_judges(config.rewards, config.prior.manifest, device)
    return Models(prior, judges, device, model_settings(config))


def load_every_model(config: Config, watch: Watch) -> None:
    """Load all that a run reads, the prior that draws included, and drop it: missing weights end
    here.
    """
    models = load_models(config, watch)
    drawing_prior(config, fit_to_device(config, models.device), models, watch)


def model_settings(config: Config) -> dict[str, Any]:
    """The settings that decide which networks are loaded, and where."""
    rewards = config.rewards
    named = {name: getattr(rewards, name) for name in (*JUDGE_LOCATIONS, *JUDGE_CHOICES)}
    return {
        "prior": asdict(config.prior),
        "rewards": {**named, "aesthetic": rewards.aesthetic.weight > 0.0},
        "backend": config.backend,
    }


def use_models(
    models: Models | None, config: Config, fitted: FittedSettings, watch: Watch
) -> Models:
    """The models of a run: those that the caller kept, checked against `config`, or loaded now.

    Raises UserError for kept models that were loaded by other settings.
    """
    if models is None:
        models = _load_models(config, fitted, resolve_device(config.backend), watch)
    changed = changed_settings(models.settings, model_settings(config), {})
    if changed:
        raise UserError(
            f"the models given were loaded with other settings ({', '.join(changed)}); "
            "load them again with load_models(config)"
        )
    models.prior.on_oom = partial(report_fewer_images, watch)
    return models


def cut_notes(config: Config, models: Models) -> list[str]:
    """A line for each prompt that a text encoder does not read to its end, with the words it cuts.

    A prior that only draws is loaded later, in `find_visual_prompt`.
    """
    prompt, negative = config.prompt, config.negative_prompt
    return [
        *cut_lines(prompt, negative, models.prior.text_encoders.fit, "the text encoder"),
        *cut_lines(prompt, "", models.judges.text.fit, "the text-image reward"),
    ]


def report_fewer_images(watch: Watch, count: int, network: str) -> None:
    """Warn that memory ran out in a network of the prior, which continues with fewer images."""
    watch.on_event(
        Warning(f"out of memory: continuing with {count:,} images in one call of the {network}")
    )


@report_out_of_memory("making the visual prompt", LESS_MEMORY_FOR_MODELS)
def find_visual_prompt(
    config: Config,
    fitted: FittedSettings,
    models: Models,
    journal: Journal,
    scores: Mapping[str, PictureScore] | None = None,
) -> VisualPrompt:
    """The run's visual prompt: from its folder if it is there, else drawn or read now.

    `scores` are the caller's own rewards of a steered drawing.
    """
    run, settings = journal.run, config.visual_prompt
    if is_drawn(run):
        return load_visual_prompt(run)
    source = f"from {config.image}" if config.image else f"drawing {settings.candidates}"
    journal.show(Stage("visual_prompt", f"visual prompt: {source}"))
    generator = make_generator(config.seed, "visual_prompt")
    prior = drawing_prior(config, fitted, models, journal.watch)
    if prior is not models.prior:
        name, fit = "the text encoder of the prior that draws", prior.text_encoders.fit
        for line in cut_lines(config.prompt, config.negative_prompt, fit, name):
            journal.warn(line)
    request = VisualPromptRequest(
        config.prompt,
        config.negative_prompt,
        config.image,
        config.prior.resolution,
        settings,
        config.mask,
    )
    sampler = steered(config, prior, models.judges.text, journal, scores)
    found = make_visual_prompt(sampler or prior, models.judges.text, request, run, generator)
    if sampler is not None:
        report_steering(sampler, config, journal)
    for note in found.notes:
        journal.note(note)
    for warning in found.warnings:
        journal.warn(warning)
    sheet = run.visual_prompt / SHEET_FILE
    journal.show(Candidates(sheet, tuple(found.scores), found.chosen))
    return found


def steered(
    config: Config,
    prior: Prior,
    judge: TextImage,
    journal: Journal,
    scores: Mapping[str, PictureScore] | None = None,
) -> SteeredSampler | None:
    """The sampler of `visual_prompt.sampler=svdd`; None for the plain one or a given picture."""
    settings = config.visual_prompt
    if settings.sampler != "svdd" or config.image:
        return None
    journal.note(f"steering the drawing: {describe(settings.svdd)}")
    return steered_sampler(
        prior,
        judge,
        drawing_prompt(config.prompt, settings),
        strip_view(config.negative_prompt),
        settings,
        make_generator(config.seed, "svdd"),
        scores,
    )


def report_steering(sampler: SteeredSampler, config: Config, journal: Journal) -> None:
    """Log every choice of a steered drawing, write its sheet, and warn if alpha does not fit."""
    for choice in sampler.choices:
        names = ("step", "mean", "spread", "effective", "unusable")
        calls = choice.values.numel() if config.visual_prompt.svdd.value == "pm" else 0
        counts = {"denoiser_calls": calls, "reward_calls": calls}
        journal.log("svdd", **{name: getattr(choice, name) for name in names}, **counts)
    if sampler.frames:
        pictures = [frame.pictures for frame in sampler.frames]
        values = [frame.choice.values[0].tolist() for frame in sampler.frames]
        chosen = [int(frame.choice.chosen[0]) for frame in sampler.frames]
        steps = [frame.choice.step for frame in sampler.frames]
        write_steering_sheet(pictures, values, chosen, steps, journal.run.visual_prompt)
    line = advice(sampler.choices, config.visual_prompt.svdd.alpha)
    if line:
        journal.warn(line)


@report_out_of_memory("loading the prior that draws", LESS_MEMORY_FOR_MODELS)
def drawing_prior(config: Config, fitted: FittedSettings, models: Models, watch: Watch) -> Prior:
    """The prior that draws: `visual_prompt.prior` if it is set, loaded now, else the one that
    distils.
    """
    if not fitted.drawing_prior.path or config.image:
        return models.prior
    watch.on_event(Note(f"loading {fitted.drawing_prior.path} to draw"))
    try:
        report = partial(report_fewer_images, watch)
        return load_prior(fitted.drawing_prior, models.device, report)
    except UserError as error:
        raise type(error)(f"visual_prompt.prior: {error}") from error


@report_out_of_memory("encoding the prompt", LESS_MEMORY_FOR_MODELS)
def build_coarse(
    config: Config,
    fitted: FittedSettings,
    models: Models,
    visual_prompt: VisualPrompt,
    journal: Journal,
) -> Coarse:
    """The coarse stage: field, guidance, condition, rewards and generators.

    Args:
        config: the settings as asked.
        fitted: those that decide memory, within what the machine has.
        models: the frozen networks.
        visual_prompt: the chosen picture.
        journal: the run's log and listener.

    Returns:
        The stage, at its first step.
    """
    debiased = debias(config)
    if debiased:
        journal.log("debias", prompts=debiased)
    condition = find_condition(config, models.prior, visual_prompt, debiased)
    initial = make_field(config, models.device, models.new_field, journal.note)
    guidance = Guidance(models.prior, config.guidance)
    rewards = build_rewards(config, models.judges, visual_prompt.rgb.to(models.device))
    return Coarse(
        coarse_settings(config, fitted, models.extra_rewards, models.new_field),
        initial,
        guidance,
        condition,
        {**rewards, **_checked(models.extra_rewards)},
        make_generators(config.seed),
        journal.event,
        choose_march(config.cuda, models.device),
        models.prior.encode_less,
    )


def coarse_settings(
    config: Config,
    fitted: FittedSettings | None = None,
    extra: Mapping[str, Reward] | None = None,
    new_field: NewField = build_field,
) -> CoarseSettings:
    """What the coarse stage reads of a config.

    Args:
        config: the settings as asked.
        fitted: those that decide memory; None takes them as asked.
        extra: rewards that are not in the config, which its result depends on too.
        new_field: what builds the field, if not `build_field`.

    Returns:
        The settings, with all that a checkpoint is compared by in `identity`.
    """
    identity = coarse_identity(config, extra or {}, new_field)
    render = config.render if fitted is None else fitted.render
    guidance = config.guidance
    return CoarseSettings(
        config.optim,
        render,
        config.camera,
        config.loss,
        guidance.weight,
        guidance.estimate_every,
        identity,
    )


def coarse_identity(
    config: Config, extra: Mapping[str, Reward], new_field: NewField = build_field
) -> dict[str, Any]:
    """All settings that the coarse stage's result depends on, with those of the caller's own."""
    own = [[name, asdict(reward.config)] for name, reward in sorted(extra.items())]
    field_of = "" if new_field is build_field else new_field.__qualname__
    return stage_settings(config, Coarse.name) | {"extra_rewards": own, "new_field": field_of}


def identity_of(config: Config, models: Models | None) -> dict[str, Any]:
    """`coarse_identity` with the rewards and the field of `models`; None has none of its own."""
    if models is None:
        return coarse_identity(config, {})
    return coarse_identity(config, models.extra_rewards, models.new_field)


def finish_settings(config: Config) -> FinishSettings:
    """What exporting and reporting read of a config."""
    return FinishSettings(
        config.prompt,
        config.seed,
        config.export,
        config.camera,
        config.render,
        config.prior.resolution,
        config.visual_prompt.ground,
        licence_of(config.prior.path, config.prior.manifest) or f"that of {config.prior.path}",
    )


def _checked(extra: Mapping[str, Reward]) -> dict[str, Reward]:
    """Rewards of the caller's own; UserError for a name that a loss of ours has."""
    taken = next((name for name in extra if name in LOSS_NAMES), None)
    if taken is not None:
        raise UserError(
            f"a reward of your own cannot be called {taken!r}: that loss exists already"
        )
    return dict(extra)


def debias(config: Config) -> dict[str, str]:
    """The prompt for each of the view words where `guidance.debias` drops words of it."""
    guidance = config.guidance
    if not guidance.debias:
        return {}
    return debiased_prompts(config.prompt, guidance.debias, guidance.debias_words)


@report_out_of_memory("preparing the refine stage", LESS_MEMORY_FOR_MODELS)
def refine_request(config: Config, models: Models, visual_prompt: VisualPrompt) -> RefineRequest:
    """What the second stage of a run needs (vp3d/refined.py)."""
    rgb, mask = visual_prompt.rgb.to(models.device), visual_prompt.mask.to(models.device)
    return RefineRequest(
        config.refine,
        config.optim,
        config.camera,
        config.render,
        config.guidance,
        config.prior.resolution,
        config.visual_prompt.cutout_tolerance,
        config.prompt,
        config.seed,
        models.prior,
        find_condition(config, models.prior, visual_prompt, debias(config)),
        {**build_rewards(config, models.judges, rgb), **_checked(models.extra_rewards)},
        Front(rgb, mask),
        models.device,
        refine_identity(config, models),
        finish_settings(config),
    )


def refine_identity(config: Config, models: Models | None) -> dict[str, Any]:
    """All settings that the result of the second stage depends on."""
    return {**identity_of(config, models), "refine": asdict(config.refine)}


def find_condition(
    config: Config, prior: Prior, visual_prompt: VisualPrompt, debiased: Mapping[str, str]
) -> Condition:
    """The prompts and the visual prompt, encoded; a prior without IP-Adapter gets no picture."""
    picture = visual_prompt.rgb if config.prior.ip_adapter else None
    return build_condition(prior, config.prompt, config.negative_prompt, picture, debiased)


def choose_march(cuda: CudaConfig, device: torch.device) -> March:
    """Who skips empty space and sums along rays on `device`: `cuda.compositor`; ours on a CPU."""
    if device.type != "cuda" or cuda.compositor == "torch":
        return DENSE
    from vp3d.render.volume_cuda import nerfacc_march  # GPU-only code: imported only when used

    return nerfacc_march(device)


def make_field(
    config: Config,
    device: torch.device,
    new_field: NewField = build_field,
    note: Callable[[str], None] = lambda text: None,
) -> Field:
    """The initial field of a run on `device`.

    A hash grid on CUDA takes the fastest look-up there.
    """
    initial = new_field(config.field, make_generator(config.seed, "field")).to(device)
    if isinstance(initial, HashGridField) and device.type == "cuda":
        from vp3d.fields.hashgrid_cuda import accelerate  # GPU-only code: imported only when used

        note(accelerate(initial, config.cuda))
    return initial


def load_field(config: Config, journal: Journal, device: torch.device) -> Field:
    """The field of a run's newest checkpoint, with the backends of `config.cuda`.

    Raises UserError if there is no checkpoint, or if it holds a field of another shape.
    """
    run = journal.run
    found = loop.load_checkpoint(journal, Coarse.name)
    if found is None:
        raise UserError(f"{run.path} has no checkpoint yet; resume the run to get one")
    loaded = make_field(config, device, note=journal.note)
    try:
        loaded.load_state_dict(part(found.tensors, "field."))
    except RuntimeError as error:
        raise UserError(
            f"the checkpoint {found.path.name} of {run.path} holds another field than "
            f"field.kind={config.field.kind} with field.resolution={config.field.resolution}: "
            "restore `field` in its config.yaml"
        ) from error
    return loaded.requires_grad_(False).eval()


def build_rewards(config: Config, judges: Judges, visual_prompt: Tensor) -> dict[str, Reward]:
    """The rewards of a config, by name.

    These are the text-image reward with the view words of each camera, the image-image reward for
    a visual prompt `[1, 3, H, W]` in [0, 1], and the aesthetic reward if it is used.
    """
    prompts = [with_view(config.prompt, view) for view in all_views()]
    text = dict(zip(prompts, judges.text.target(prompts), strict=True))
    image = image_target(visual_prompt, judges.image)

    def text_target(camera: Any) -> Tensor:
        return torch.stack([text[prompt] for prompt in view_prompts(config.prompt, camera)])

    def image_score(rgb: Tensor, target: Tensor) -> Tensor:
        return image_image(rgb, target, judges.image)

    rewards = {
        "text_image": Reward(judges.text.score, text_target, config.rewards.text_image),
        "image_image": Reward(
            image_score,
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

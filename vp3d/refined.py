"""The second stage of a run: from the coarse field to a refined mesh.

`build.py` builds the parts of the first stage, this module those of the second. The mesh that it
starts from is kept in the run folder, so that a resumed run continues with the same triangles even
if the atlas would come out otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from vp3d import build, finish
from vp3d.config.migrations import CONFIG_VERSION
from vp3d.config.schema import Config, Schedule
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.view_classifier import guess_views
from vp3d.errors import DamagedFileError
from vp3d.fields.nerf import Field
from vp3d.guidance.reward_term import Reward
from vp3d.guidance.view_gate import gate_weight
from vp3d.guidance.vp_sds import Guidance
from vp3d.runs.events import Note, Stage
from vp3d.runs.journal import Journal
from vp3d.system.out_of_memory import report_out_of_memory
from vp3d.train import checkpoint, loop
from vp3d.train.coarse import GuidanceCall, part
from vp3d.train.generators import make_generator
from vp3d.train.redraw import Front, Redraw
from vp3d.train.refine import Judge, Objective, Refine, RefineSettings
from vp3d.train.refine_sds import Scored, SdsSettings
from vp3d.train.refine_views import RedrawnViews
from vp3d.train.surface_parameters import Start, Surface, load_start, mesh_of, start_of
from vp3d.types import Camera, Mesh
from vp3d.visual_prompt.make import VisualPrompt

# Meshes in the folder of the stage's checkpoints: what it starts from, and what came out.
START_FILE, RESULT_FILE = "start.safetensors", "result.safetensors"
GENERATORS = ("camera", "background", "noise")
JUDGED_GATE = 0.5  # view gate from which a view counts for the image-image reward


def refine(
    start: Start,
    config: Config,
    models: build.Models,
    visual_prompt: VisualPrompt,
    journal: Journal,
) -> tuple[Mesh, bool]:
    """Optimise the mesh, from the run's newest checkpoint if it has one.

    Args:
        start: The mesh of the coarse stage.
        config: The settings of the run.
        models: The frozen networks.
        visual_prompt: The chosen picture.
        journal: The run's log and listener.

    Returns:
        The refined mesh, and whether the run was stopped early.
    """
    stage = build_refine(start, config, models, visual_prompt, journal)
    steps = stage.config.steps
    preview = f"{stage.name}: live preview in {journal.run.preview_file}"
    journal.show(Stage(stage.name, preview, steps))
    optim = dataclasses.replace(config.optim, steps=steps)
    outcome = loop.run(stage, optim, config.camera, journal)
    if not any(event["kept"] for event in journal.run.events("guard")):
        journal.show(Note("refine: no round was better than the mesh itself, which is kept"))
    result = start_of(outcome.result)
    write_mesh(result, RESULT_FILE, journal)
    return mesh_of(result, result.vertices, result.texture), outcome.stopped


@report_out_of_memory("preparing the refine stage", build.LESS_MEMORY_FOR_MODELS)
def build_refine(
    start: Start,
    config: Config,
    models: build.Models,
    visual_prompt: VisualPrompt,
    journal: Journal,
) -> Refine:
    """The refine stage at its first step; arguments as for `refine`."""
    rewards = {
        **build.build_rewards(config, models.judges, visual_prompt.rgb.to(models.device)),
        **models.extra_rewards,
    }
    render, identity = config.render, refine_identity(config, models)
    grey = 0.5 * (render.background_min + render.background_max)
    settings = RefineSettings(config.refine, config.camera, grey, identity)
    return Refine(
        settings,
        start,
        build_objective(config, models, visual_prompt, rewards, grey),
        guard_judge(config, models.prior, rewards),
        models.device,
        journal.event,
        models.prior.encode_less,
    )


def build_objective(
    config: Config,
    models: build.Models,
    visual_prompt: VisualPrompt,
    rewards: Mapping[str, Reward],
    grey: float,
) -> Objective:
    """The objective of `refine.method`.

    Args:
        config: The settings of the run.
        models: The frozen networks.
        visual_prompt: The chosen picture.
        rewards: The rewards of the run.
        grey: Level behind the views that are redrawn, in [0, 1].
    """
    refine, prior, device = config.refine, models.prior, models.device
    condition = build.find_condition(config, prior, visual_prompt, build.debias(config))
    generators = {name: make_generator(config.seed, f"refine {name}") for name in GENERATORS}
    if refine.method == "views":
        return RedrawnViews(
            refine,
            config.camera,
            Redraw(prior, config.guidance, condition, refine.denoise_steps, refine.lam),
            config.prior.resolution,
            grey,
            config.visual_prompt.cutout_tolerance,
            generators,
            Front(visual_prompt.rgb.to(device), visual_prompt.mask.to(device)),
            device,
        )
    low, guidance = Schedule.constant(refine.t_min), dict[float, GuidanceCall]()
    for strength in refine.strengths:
        high = Schedule.constant(max(strength, refine.t_min))
        levels = dataclasses.replace(config.guidance, t_min=low, t_max=high)
        guidance[strength] = Guidance(prior, levels)
    scored = SdsSettings(
        refine, config.camera, render=config.render, guidance_weight=config.guidance.weight,
        size=config.prior.resolution,
    )  # fmt: skip
    return Scored(scored, guidance, condition, rewards, generators, device)


def guard_judge(config: Config, prior: Prior, rewards: Mapping[str, Reward]) -> Judge:
    """What the guard asks: both rewards, and how many views around the back have one face."""

    @torch.no_grad()
    def judge(rgb: Tensor, camera: Camera) -> dict[str, float]:
        found = {}
        for name in ("text_image", "image_image"):
            reward = rewards[name]
            seen = gate_weight(reward.config.gate, camera.azimuth_deg) >= JUDGED_GATE
            score = reward.score(rgb, reward.target(camera))
            found[name] = float(score[seen].mean()) if bool(seen.any()) else float(score.mean())
        generator = make_generator(config.seed, "views")
        guess = guess_views(prior, config.prompt, rgb, generator)
        return {**found, "one_faced": 1.0 - guess.janus}

    return judge


def refine_identity(config: Config, models: build.Models | None) -> dict[str, object]:
    """All that the stage's result depends on."""
    return {**build.identity_of(config, models), "refine": dataclasses.asdict(config.refine)}


def load_or_extract(field: Field, config: Config, journal: Journal, device: torch.device) -> Start:
    """The mesh that the stage starts from: that in the run folder, or the field's surface now."""
    found = read_mesh(START_FILE, journal)
    if found is not None:
        return found
    journal.show(Stage(Refine.name, "extracting the mesh to refine"))
    settings = build.finish_settings(config)
    start = start_of(finish.extract_mesh(field, settings, config.refine, journal, device))
    write_mesh(start, START_FILE, journal)
    return start


def write_mesh(mesh: Start, name: str, journal: Journal) -> None:
    """Write a mesh into the folder of the stage's checkpoints."""
    folder = journal.run.checkpoints(Refine.name)
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"stage": Refine.name, "config_version": CONFIG_VERSION}
    checkpoint.write(folder / name, 0, mesh.tensors(), meta)


def read_mesh(name: str, journal: Journal) -> Start | None:
    """A mesh in the folder of the stage's checkpoints; None where none was written."""
    path = journal.run.checkpoints(Refine.name) / name
    if not path.is_file():
        return None
    try:
        return load_start(checkpoint.load(path).tensors)
    except (ValueError, OSError, KeyError) as error:
        raise DamagedFileError(
            f"{path} is damaged ({error}); delete {path.parent} to refine the mesh again"
        ) from error


def load_mesh(config: Config, journal: Journal) -> Mesh | None:
    """The refined mesh of a run, as far as it is; None for a run without one."""
    if config.refine.method == "none":
        return None
    result = read_mesh(RESULT_FILE, journal)
    if result is not None:
        return mesh_of(result, result.vertices, result.texture)
    start = read_mesh(START_FILE, journal)
    found = None if start is None else loop.load_checkpoint(journal, Refine.name)
    if start is None or found is None:
        return None
    surface = Surface(start)
    surface.load_state_dict(part(found.tensors, "best."))
    return mesh_of(start, surface.vertices(), surface.texture())

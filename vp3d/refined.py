"""The second stage of a run: from the coarse field to a refined mesh.

The mesh that it starts from is kept in the run folder, so that a resumed run continues with the
same triangles even if the atlas would come out otherwise; so is the result, for later exports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vp3d import finish
from vp3d.config.migrations import CONFIG_VERSION
from vp3d.config.schema import (
    CameraConfig,
    GuidanceConfig,
    OptimConfig,
    RefineConfig,
    RenderConfig,
    Schedule,
)
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.view_classifier import guess_views
from vp3d.errors import DamagedFileError
from vp3d.fields.nerf import Field
from vp3d.guidance.condition import Condition
from vp3d.guidance.reward_term import Reward
from vp3d.guidance.view_gate import gate_weight
from vp3d.guidance.vp_sds import Guidance
from vp3d.render.raster_soft import SoftRender
from vp3d.runs.events import Note, Stage
from vp3d.runs.journal import Journal
from vp3d.train import checkpoint, loop
from vp3d.train.coarse import GuidanceCall, part
from vp3d.train.generators import make_generator
from vp3d.train.redraw import Front, Redraw
from vp3d.train.refine import Judge, Objective, Refine, RefineSettings
from vp3d.train.refine_sds import Scored, SdsSettings
from vp3d.train.refine_views import RedrawnViews
from vp3d.train.surface_parameters import Start, Surface, load_start, mesh_of, start_of
from vp3d.types import Camera, Mesh

# Meshes in the folder of the stage's checkpoints: what it starts from, and what came out.
START_FILE, RESULT_FILE = "start.safetensors", "result.safetensors"
OF_START = ("grid", "faces", "texture_size")  # of `refine`
GENERATORS = ("camera", "background", "noise")
JUDGED_GATE = 0.5  # view gate from which a view counts for the image-image reward


@dataclass(frozen=True)
class RefineRequest:
    """What the second stage reads of a run, from `build.refine_request`.

    Attributes:
        refine: Its settings.
        optim: Intervals and limits of the loop; the number of steps is not read.
        camera: Distance, field of view and heights of the views.
        render: The greys behind the views.
        guidance: Scales and weight of the guidance.
        resolution: Side of the prior's pictures, pixels.
        tolerance: Of the cut-out of redrawn views (`redraw.usable_targets`).
        prompt: What the object is.
        seed: Of the run.
        prior: The frozen 2D model.
        condition: The encoded prompts and the visual prompt.
        rewards: The rewards of the run.
        front: The chosen visual prompt.
        device: Where everything is.
        identity: All settings that the result depends on.
        finish: How the mesh is extracted.
    """

    refine: RefineConfig
    optim: OptimConfig
    camera: CameraConfig
    render: RenderConfig
    guidance: GuidanceConfig
    resolution: int
    tolerance: float
    prompt: str
    seed: int
    prior: Prior
    condition: Condition
    rewards: Mapping[str, Reward]
    front: Front
    device: torch.device
    identity: Mapping[str, Any]
    finish: finish.FinishSettings

    @property
    def grey(self) -> float:
        """Level in [0, 1] behind redrawn views, and those of a reward without a grey of its own."""
        return 0.5 * (self.render.background_min + self.render.background_max)


def refine(start: Start, request: RefineRequest, journal: Journal) -> loop.Outcome[Mesh]:
    """Optimise the mesh, from the run's newest checkpoint if it has one.

    Args:
        start: The mesh of the coarse stage.
        request: Settings and parts.
        journal: The run's log and listener.

    Returns:
        The refined mesh, and how far the stage came.
    """
    (journal.run.checkpoints(Refine.name) / RESULT_FILE).unlink(missing_ok=True)
    stage = build_refine(start, request, journal)
    steps = stage.config.steps
    preview = f"{stage.name}: live preview in {journal.run.preview_file}"
    journal.show(Stage(stage.name, preview, steps))
    optim = dataclasses.replace(request.optim, steps=steps)
    outcome = loop.run(stage, optim, request.camera, journal)
    if stage.unchanged:
        journal.show(Note("refine: no round was better than the mesh itself, which is kept"))
    result = start_of(outcome.result)
    write_mesh(result, RESULT_FILE, journal, request.identity)
    return dataclasses.replace(outcome, result=mesh_of(result))


def build_refine(start: Start, request: RefineRequest, journal: Journal) -> Refine:
    """The stage at its first step; arguments as for `refine`."""
    settings = RefineSettings(request.refine, request.camera, request.identity)
    return Refine(
        settings,
        start,
        build_objective(request),
        guard_judge(request),
        request.device,
        journal.event,
        request.prior.encode_less,
    )


def build_objective(request: RefineRequest) -> Objective:
    """The objective of `refine.method`."""
    refine, prior, condition = request.refine, request.prior, request.condition
    generators = {name: make_generator(request.seed, f"refine {name}") for name in GENERATORS}
    if refine.method == "views":
        return RedrawnViews(
            refine,
            request.camera,
            Redraw(prior, request.guidance, condition, refine.denoise_steps, refine.lam),
            request.resolution,
            request.grey,
            request.tolerance,
            generators,
            request.front,
            request.device,
        )
    low, guidance = Schedule.constant(refine.t_min), dict[float, GuidanceCall]()
    for strength in refine.strengths:
        high = Schedule.constant(strength)
        levels = dataclasses.replace(request.guidance, t_min=low, t_max=high)
        guidance[strength] = Guidance(prior, levels)
    settings = SdsSettings(
        refine, request.camera, request.render, request.guidance.weight, request.resolution
    )
    return Scored(settings, guidance, condition, request.rewards, generators, request.device)


def guard_judge(request: RefineRequest) -> Judge:
    """What the guard asks: both rewards, and how many views around the back have one face.

    Each is asked over the grey that it is asked over elsewhere in a run.
    """

    @torch.no_grad()
    def judge(drawn: SoftRender, camera: Camera) -> dict[str, float]:
        def over(grey: float | None) -> Tensor:
            return drawn.over(request.grey if grey is None else grey).clamp(0.0, 1.0)

        found = {}
        for name in ("text_image", "image_image"):
            reward = request.rewards[name]
            seen = gate_weight(reward.config.gate, camera.azimuth_deg) >= JUDGED_GATE
            score = reward.score(over(reward.background), reward.target(camera))
            found[name] = float(score[seen].mean()) if bool(seen.any()) else float(score.mean())
        generator = make_generator(request.seed, "views")
        views = over(request.finish.background)
        guess = guess_views(request.prior, request.prompt, views, generator)
        return {**found, "one_faced": 1.0 - guess.janus}

    return judge


def load_or_extract(field: Field, request: RefineRequest, journal: Journal) -> Start:
    """The mesh that the stage starts from: that in the run folder, or the field's surface now.

    Raises UserError if that in the run folder was extracted with other settings.
    """
    settings = extraction_settings(request)
    found = read_mesh(START_FILE, journal, settings)
    if found is not None:
        return found
    journal.show(Stage(Refine.name, "extracting the mesh to refine"))
    mesh = finish.extract_mesh(field, request.finish, request.refine, journal, request.device)
    start = start_of(mesh)
    write_mesh(start, START_FILE, journal, settings)
    return start


def extraction_settings(request: RefineRequest) -> dict[str, Any]:
    """The settings that the start depends on: those of the coarse stage, and `OF_START`."""
    refine = {name: getattr(request.refine, name) for name in OF_START}
    return {**request.identity, "refine": refine}


def write_mesh(mesh: Start, name: str, journal: Journal, settings: Mapping[str, Any]) -> None:
    """Write a mesh into the folder of the stage's checkpoints, with all that it depends on."""
    folder = journal.run.checkpoints(Refine.name)
    folder.mkdir(parents=True, exist_ok=True)
    meta = {
        "stage": Refine.name,
        "config_version": CONFIG_VERSION,
        "settings": dict(settings),
    }
    checkpoint.write(folder / name, 0, mesh.tensors(), meta)


def read_mesh(
    name: str, journal: Journal, settings: Mapping[str, Any] | None = None
) -> Start | None:
    """A mesh in the folder of the stage's checkpoints; None where none was written.

    Raises DamagedFileError, and UserError if it was written with other settings than `settings`.
    """
    path = journal.run.checkpoints(Refine.name) / name
    if not path.is_file():
        return None
    try:
        found = checkpoint.load(path)
        mesh = load_start(found.tensors)
    except (ValueError, OSError, KeyError) as error:
        raise DamagedFileError(
            f"{path} is damaged ({error}); delete {path.parent} to refine the mesh again"
        ) from error
    if settings is not None:
        loop.check_same_settings(journal.run, path, found.meta, settings)
    return mesh


def load_mesh(journal: Journal) -> Mesh | None:
    """The refined mesh of a run, as far as it is; None for a run without one."""
    result = read_mesh(RESULT_FILE, journal)
    if result is not None:
        return mesh_of(result)
    start = read_mesh(START_FILE, journal)
    found = None if start is None else loop.load_checkpoint(journal, Refine.name)
    if start is None or found is None:
        return None
    surface = Surface(start)
    surface.load_state_dict(part(found.tensors, "best."))
    return mesh_of(start, surface.vertices(), surface.texture())

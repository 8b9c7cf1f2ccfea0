"""The product: a prompt becomes a textured 3D asset in a run folder.

Every model and every part of a run is built here, in plain calls. What a run has finished lies in its folder (visual
prompt, checkpoints) and is taken from there on resume; every random number comes from a generator named by its purpose.
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vp3d.config import Config, CudaConfig, ExportConfig, expand, locate, weight_places
from vp3d.console import Progress, StopFlag, say
from vp3d.diffusion.debias import debiased_prompts
from vp3d.diffusion.prior import Prior, load_prior
from vp3d.errors import Hindered, UserError
from vp3d.evaluate.report import write_report
from vp3d.evaluate.seen_from import seen_from
from vp3d.evaluate.views import VIEWS, require_ffmpeg, ring_frames, write_preview, write_turntable
from vp3d.export.build import export_mesh
from vp3d.export.verify import verify_export
from vp3d.export.writers import WRITERS, fit_to_cube, read_mesh
from vp3d.fields.hashgrid import HashGridField
from vp3d.fields.nerf import Field, build_field
from vp3d.guidance import Condition, Guidance, build_condition
from vp3d.out_of_memory import told_out_of_memory
from vp3d.prompts import (
    all_views,
    check_negative_prompt,
    check_prompt,
    is_in_grammar,
    load_vocabulary,
    view_prompts,
    with_view,
)
from vp3d.render.camera import camera_rays, orbit
from vp3d.render.volume import DENSE, March, OccupancyGrid, render_rays
from vp3d.rewards.build import Judges, load_judges
from vp3d.rewards.image_image import image_image, image_target
from vp3d.run_folder import RunFolder, changed_weights, check_output
from vp3d.train import loop
from vp3d.train.coarse import Coarse, Reward, make_generator, make_generators, part
from vp3d.train.memory import fit_to_memory, free_memory_gb
from vp3d.types import Asset, Camera, to_images
from vp3d.visual_prompt import VisualPrompt, load_visual_prompt, make_visual_prompt, read_reference
from vp3d.weights import check_fetched, find_weights

REFERENCE_SIZE = 128  # pixels of a side of the field's own renders that the export is judged by
REFERENCE_RINGS = ((8, 10.0), (4, 35.0))  # (cameras, elevation in degrees) of those renders
REFERENCE_GROUND = 1.0  # grey behind them, [0, 1]
OUTSIDE_GRAMMAR = (
    "the prompt is outside the grammar that the embedded models were trained on, so the result may not follow it; inside are, "
    'for example, "a red sphere with yellow stripes", "a purple chair with brown legs" and "a pink cone on a green cylinder"'
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


def generate(config: Config, resume_from: Path | None = None) -> Asset:
    """Make the asset `config` asks for, in a new run folder, or go on with the run in `resume_from`."""
    device = resolve_device(config.backend)
    begun = None if resume_from is None else RunFolder.open(resume_from)
    check_request(config, new=begun is None, drawn=begun is not None and is_drawn(begun))
    if begun is not None:
        check_same_weights(begun, config)
    fitted = fit_to_device(config, device)
    models = load_models(fitted, device)
    run = RunFolder.create(config) if begun is None else begun
    with run.lock():
        run.event(
            "start",
            prompt=config.prompt,
            seed=config.seed,
            device=str(device),
            resumed=begun is not None,
        )
        if begun is None and is_outside_grammar(config):
            teller(run)("warning", message=OUTSIDE_GRAMMAR)
        visual_prompt = find_visual_prompt(fitted, models, run, device)
        stage = build_coarse(fitted, models, visual_prompt, run, device)
        with (
            StopFlag() as stop,
            Progress(config.optim.steps, "coarse", run.path / "preview.png") as bar,
        ):
            outcome = loop.run(stage, config, run, stop, bar.show, say)
        asset = export_field(outcome.result, config, run, device)
        try:
            look_around(asset, models.prior, config, run)
        except (
            Hindered
        ) as trouble:  # the asset is there: it gets its pictures and its report all the same
            teller(run)("warning", message=f"no Janus score: {trouble}")
        present(asset, config, run)
        run.event("done", steps=outcome.steps, stopped=outcome.stopped, **asset.figures)
    if outcome.stopped:
        say(
            f"stopped: this asset is cut short at step {outcome.steps} of {config.optim.steps}; to go on: {resume_command(run)}"
        )
    return asset


def resume_command(run: RunFolder) -> str:
    """What to type to go on with a run."""
    return f"python launch.py resume {shlex.quote(str(run.path))}"


def export_run(run_dir: Path, config: Config) -> Asset:
    """Make the files of a run again from its newest checkpoint, with the `export` settings of `config`; they are kept."""
    check_video(config.export)
    run = RunFolder.open(run_dir)
    with run.lock():
        device = resolve_device(config.backend)
        run.event("start", prompt=config.prompt, device=str(device), only="export")
        asset = export_field(load_field(run, device, config.cuda), config, run, device)
        run.keep_export(dataclasses.replace(config.export, formats=exported_formats(run)))
        present(asset, config, run)
    return asset


def render_path(path: Path, config: ExportConfig) -> Path:
    """Write a turntable of a mesh file (beside it) or of a run (into it, its settings kept); returns the video's path."""
    check_video(config)
    run = RunFolder.open(path) if path.is_dir() else None
    mesh = fit_to_cube(read_mesh(path if run is None else exported(run)))
    camera = Config().camera if run is None else run.config().camera
    frames = ring_frames(mesh, config.turntable_frames, config.turntable_size, camera)
    name = f"turntable.{config.turntable}"
    if run is None:
        return write_turntable(
            frames, path.with_name(f"{path.stem}_{name}"), warn=say, replaces=False
        )
    with run.lock():
        turn = {
            key: getattr(config, key) for key in ("turntable", "turntable_frames", "turntable_size")
        }
        run.keep_export(dataclasses.replace(run.config().export, **turn))
        return write_turntable(frames, run.path / name, warn=say)


def exported(run: RunFolder) -> Path:
    """The best mesh file of a run: the first format of `WRITERS` that is there."""
    kinds = exported_formats(run)
    if kinds:
        return run.path / f"model.{kinds[0]}"
    raise UserError(f"{run.path} has no mesh yet; `launch.py resume {run.path}` finishes it")


def exported_formats(run: RunFolder) -> list[Any]:
    """The formats of `WRITERS` that lie in a run, in their order."""
    return [kind for kind in WRITERS if (run.path / f"model.{kind}").is_file()]


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


def check_request(config: Config, new: bool, drawn: bool = False) -> None:
    """Refuse what cannot work before anything heavy is loaded; a `new` run must also cut out its picture and have a place.

    drawn: the visual prompt is there, so that what would draw it is not needed.
    """
    for prior in (config.prior, config.visual_prompt.prior):
        vocabulary = load_vocabulary(locate(prior.vocabulary)) if prior.vocabulary else None
        check_prompt(config.prompt, vocabulary)
        check_negative_prompt(config.negative_prompt, vocabulary)
    places = [
        (key, place)
        for key, place in weight_places(config)
        if not (drawn and key.startswith("visual_prompt."))
    ]
    check_fetched(places)
    for key, place in places:
        if key.startswith("visual_prompt."):  # loaded late, when there is something to draw
            find_weights(place, key)
    check_video(config.export)
    if config.image and new:
        read_reference(config)
    if new:
        check_output(expand(config.output_dir))


def is_outside_grammar(config: Config) -> bool:
    """Whether a prior of this run knows the prompt's words and was trained on no such sentence."""
    vocabularies = {
        prior.vocabulary for prior in (config.prior, config.visual_prompt.prior) if prior.vocabulary
    }
    return not all(
        is_in_grammar(config.prompt, load_vocabulary(locate(path))) for path in vocabularies
    )


def check_same_weights(run: RunFolder, config: Config) -> None:
    """Refuse to go on with other weights than a run began with: half of it would be another model's, and its manifest untrue."""
    changed = changed_weights(run, config)
    if changed:
        raise UserError(
            f"{changed} is not the weight file that {run.path} began with (see its manifest.json); put that file back, start a "
            f"new run, or take what there is with `launch.py export {shlex.quote(str(run.path))}`"
        )


def check_video(config: ExportConfig) -> None:
    """Refuse to begin a run whose turntable could not be written at its end."""
    if config.turntable == "mp4":
        require_ffmpeg()


@told_out_of_memory("loading the models", LESS_FOR_MODELS)
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


def is_drawn(run: RunFolder) -> bool:
    """Whether a run has its visual prompt: `scores.json` is written last."""
    return (run.visual_prompt / "scores.json").is_file()


@told_out_of_memory("making the visual prompt", LESS_FOR_MODELS)
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
    return make_visual_prompt(prior, models.judges.text, config.prompt, config, run, generator)


@told_out_of_memory("loading the prior that draws", LESS_FOR_MODELS)
def drawing_prior(config: Config, models: Models, device: torch.device) -> Prior:
    """The prior that draws: `visual_prompt.prior` if it names one (loaded now, for the moment), else the one that distils."""
    if not config.visual_prompt.prior.path or config.image:
        return models.prior
    say(f"loading {config.visual_prompt.prior.path} to draw")
    try:
        return load_prior(config.visual_prompt.prior, device, tell_fewer_images)
    except UserError as error:
        raise UserError(f"visual_prompt.prior: {error}") from error


@told_out_of_memory("encoding the prompt", LESS_FOR_MODELS)
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


def load_field(run: RunFolder, device: torch.device, cuda: CudaConfig) -> Field:
    """The field of a run's newest checkpoint, with the backends of `cuda` and not those it was made with."""
    config, found = run.config(), loop.load_checkpoint(run, say)
    if found is None:
        raise UserError(
            f"{run.path} has no checkpoint yet; `launch.py resume {run.path}` goes on with it"
        )
    loop.check_same_config(found, config, run)
    field = make_field(dataclasses.replace(config, cuda=cuda), device)
    field.load_state_dict(part(found.tensors, "field."))
    return field.requires_grad_(False).eval()


@torch.no_grad()
def field_views(
    field: Field, config: Config, camera: Camera, size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The unlit field from B cameras over `REFERENCE_GROUND`: rgb [B, 3, size, size] and opacity [B, 1, size, size] in [0, 1]."""
    rgb, opacity = [], []
    unlit, bounds = (
        dataclasses.replace(config.render, shading="albedo"),
        OccupancyGrid(config.render).to(device),
    )
    for view in range(len(camera)):
        render = render_rays(
            field, camera_rays(camera[view : view + 1].to(device), size, size), unlit, bounds
        )
        rgb.append(
            to_images(render.over(torch.full((3,), REFERENCE_GROUND, device=device)), 1, size, size)
        )
        opacity.append(to_images(render.opacity, 1, size, size))
    return torch.cat(rgb), torch.cat(opacity)


@told_out_of_memory(
    "exporting", "lower export.grid or export.texture_size, then `launch.py export RUN`"
)
def export_field(field: Field, config: Config, run: RunFolder, device: torch.device) -> Asset:
    """Mesh, texture and files of a field; each file is read back and judged against the field's own renders."""
    say("exporting")
    began = time.monotonic()
    azimuths = [360.0 * i / count for count, _ in REFERENCE_RINGS for i in range(count)]
    elevations = [elevation for count, elevation in REFERENCE_RINGS for _ in range(count)]
    cameras = orbit(azimuths, elevations, config.camera.distance, config.camera.fov_deg)
    rgb, opacity = field_views(field, config, cameras, REFERENCE_SIZE, device)
    bounds = OccupancyGrid(config.render).to(device)
    mesh = export_mesh(field, config.export, cameras, opacity, device, teller(run), bounds.contains)
    figures: dict[str, float] = {}
    there = exported_formats(run)  # an older mesh beside this one would mislead
    kinds = sorted({*there, *config.export.formats}, key=list(WRITERS).index)
    for kind in kinds:
        path = run.path / f"model.{kind}"
        WRITERS[kind](mesh, path)
        found = verify_export(path, cameras, rgb, opacity, REFERENCE_GROUND)
        figures |= {f"{kind}_{name}": value for name, value in found.items()}
    run.event("export", seconds=time.monotonic() - began, formats=kinds, **figures)
    return Asset(config.prompt, mesh, run.path, figures)


@told_out_of_memory("looking for a second face", LESS_FOR_MODELS)
def look_around(asset: Asset, prior: Prior, config: Config, run: RunFolder) -> None:
    """Ask the prior from where it sees each of eight views of the mesh, and keep what it says (see evaluate/seen_from.py)."""
    say("looking for a second face")
    frames = ring_frames(
        asset.mesh,
        VIEWS,
        config.prior.resolution,
        config.camera,
        ground=config.visual_prompt.ground,
    )
    rgb = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255.0
    seen = seen_from(prior, config.prompt, rgb, make_generator(config.seed, "views"))
    run.event("views", **dataclasses.asdict(seen))


def present(asset: Asset, config: Config, run: RunFolder) -> None:
    """What the user looks at: the eight views, the turntable and the report."""
    say("preview, turntable and report")
    write_preview(asset.mesh, run.path / "preview.png", config.prompt, config.camera)
    frames = ring_frames(
        asset.mesh, config.export.turntable_frames, config.export.turntable_size, config.camera
    )
    write_turntable(frames, run.path / f"turntable.{config.export.turntable}", warn=say)
    write_report(run, asset)

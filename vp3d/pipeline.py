"""The product: a prompt becomes a textured 3D asset in a run folder.

What a run has finished is in its folder (visual prompt, checkpoints) and is taken from there on
resume; every random number comes from a generator named by its purpose. Nothing here prints: a
caller hears typed events through its `Watch`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vp3d import build, checks, finish, refined
from vp3d.align.objectives import PictureScore
from vp3d.config.schema import Config, ExportConfig
from vp3d.errors import ResourceError, UserError
from vp3d.export.read import fit_to_cube, read_mesh
from vp3d.report.pictures import ring_frames
from vp3d.report.video import write_turntable
from vp3d.runs.events import Done, Stage, Warning, Watch
from vp3d.runs.folder import RunFolder
from vp3d.runs.journal import Journal
from vp3d.train import loop
from vp3d.types import Asset

DONE = ("stage", "steps", "total_steps", "stopped")  # of the last stage that ran


def generate(
    config: Config,
    models: build.Models | None = None,
    watch: Watch | None = None,
    resume_from: Path | None = None,
) -> Asset:
    """Make the asset that `config` asks for, in a new run folder.

    Args:
        config: the request, from `load_config`.
        models: from `load_models`, to be kept between calls; None loads them now.
        watch: hears typed events (runs/events.py) and can ask to stop; None listens to nothing.
        resume_from: a run folder to continue instead; `resume` is the shorter way.

    Returns:
        The asset: its mesh, its run folder, and the figures of every exported file.

    Raises:
        UserError: the request is wrong (code "bad_request"), weights are missing or damaged.
        ResourceError: memory, disk or permissions; also a run folder that is in use.
        EmptyFieldError: the field has no surface. DivergedError: its numbers are not finite.

    Example:
        >>> from vp3d import generate, load_config  # doctest: +SKIP
        >>> asset = generate(load_config("draft", prompt="a red ball"))  # doctest: +SKIP
    """
    called, watch = time.time(), watch or Watch()
    device = build.resolve_device(config.backend)
    existing = None if resume_from is None else RunFolder.open(resume_from)
    drawn = existing is not None and checks.is_drawn(existing)
    config, readings = checks.read_prompts(config)
    checks.check_request(config, new=existing is None, drawn=drawn)
    if existing is not None:
        checks.check_same_weights(existing, config)
        checks.check_unchanged(existing, build.identity_of(config, models))
        checks.check_unchanged(existing, build.refine_identity(config, models), "refine")
    fitted = build.fit_to_device(config, device)
    models = build.use_models(models, config, fitted, watch)
    if existing is not None:  # the branch of a hub id may have moved while it was loaded
        checks.check_same_weights(existing, config)
    run = existing or RunFolder.create(config)
    journal = Journal(run, watch)
    with run.lock():
        journal.log(
            "start",
            prompt=config.prompt,
            seed=config.seed,
            device=str(device),
            resumed=existing is not None,
            called=round(called, 3),
            process_started=watch.process_started,
        )
        cuts = build.cut_notes(config, models) if existing is None else []
        for note in [*readings, *cuts]:
            journal.warn(note)
        if existing is None and checks.is_outside_grammar(config):
            journal.warn(checks.OUTSIDE_GRAMMAR)
        visual_prompt = build.find_visual_prompt(config, fitted, models, journal)
        stage = build.build_coarse(config, fitted, models, visual_prompt, journal)
        preview = f"{stage.name}: live preview in {run.preview_file}"
        journal.show(Stage(stage.name, preview, config.optim.steps))
        live = finish.LiveMesh(journal, device, config.render) if watch.live_mesh else None
        coarse = loop.run(stage, config.optim, config.camera, journal, live or loop.show_nothing)
        settings = build.finish_settings(config)
        last: loop.Outcome[object] = coarse
        if config.refine.method == "none" or coarse.stopped:
            asset = finish.export_field(coarse.result, settings, journal, device)
        else:
            request = build.refine_request(config, models, visual_prompt)
            start = refined.load_or_extract(coarse.result, request, journal)
            last = fine = refined.refine(start, request, journal)
            asset = finish.export_refined(fine.result, settings, journal)
        try:
            finish.compare_views(asset, models.prior, settings, journal)
        except ResourceError as error:  # the asset is complete without its Janus score
            journal.warn(f"no Janus score: {error}")
        finish.present(asset, settings, journal)
        reached = {name: getattr(last, name) for name in DONE}
        journal.log("done", **reached, **asset.figures)
    journal.show(Done(run.path, figures=asset.figures, **reached))
    return asset


def draw(
    config: Config,
    models: build.Models | None = None,
    watch: Watch | None = None,
    scores: Mapping[str, PictureScore] | None = None,
) -> Path:
    """Draw and choose the visual prompt that `config` asks for, and nothing more.

    Args:
        config: the request, from `load_config`.
        models: as in `generate`.
        watch: as in `generate`.
        scores: rewards of your own for `visual_prompt.svdd.reward`, by name: functions
            (rgb [B, 3, H, W] in [0, 1], B prompts) -> [B], higher is better.

    Returns:
        The new run folder, which has `visual_prompt/` complete; `resume` makes the asset from it.

    Raises:
        UserError: as `generate`, and if the request has a picture already.
    """
    watch = watch or Watch()
    if config.image:
        raise UserError("draw draws a picture, but image= gives one: omit it, or use `generate`")
    device = build.resolve_device(config.backend)
    config, readings = checks.read_prompts(config)
    checks.check_request(config, new=True, scores=scores or {})
    fitted = build.fit_to_device(config, device)
    models = build.use_models(models, config, fitted, watch)
    run = RunFolder.create(config)
    journal = Journal(run, watch)
    with run.lock():
        journal.log("start", prompt=config.prompt, device=str(device), only="draw")
        for note in [*readings, *build.cut_notes(config, models)]:
            journal.warn(note)
        if checks.is_outside_grammar(config):
            journal.warn(checks.OUTSIDE_GRAMMAR)
        build.find_visual_prompt(config, fitted, models, journal, scores)
    return run.path


def resume(run_dir: Path, models: build.Models | None = None, watch: Watch | None = None) -> Asset:
    """Continue a stopped or killed run from its newest checkpoint, bit for bit on a CPU.

    Args:
        run_dir: the run folder, of this version or an older one.
        models: as in `generate`; a run with rewards of your own needs them again.
        watch: as in `generate`.

    Returns:
        The finished asset.

    Raises:
        UserError: the settings or weights of the run were changed; the message names them.
    """
    return generate(stored_config(run_dir, watch or Watch()), models, watch, resume_from=run_dir)


def stored_config(run_dir: Path, watch: Watch, overrides: Sequence[str] = ()) -> Config:
    """The config of a run with `key=value` overrides; keys that are unknown today are a warning."""
    return RunFolder.open(run_dir).config(lambda text: watch.on_event(Warning(text)), overrides)


def export_run(run_dir: Path, config: Config, watch: Watch | None = None) -> Asset:
    """Write the files of a run again from its newest checkpoint.

    Args:
        run_dir: the run folder.
        config: the run's config, with the `export` settings to use; they are stored in the run.
        watch: as in `generate`.

    Returns:
        The asset.
    """
    checks.check_video(config.export)
    journal = Journal(RunFolder.open(run_dir), watch or Watch())
    run, settings = journal.run, build.finish_settings(config)
    with run.lock():
        device = build.resolve_device(config.backend)
        journal.log("start", prompt=config.prompt, device=str(device), only="export")
        has_stage = config.refine.method != "none"
        mesh = refined.load_mesh(journal) if has_stage else None
        if mesh is None:
            field = build.load_field(config, journal, device)
            asset = finish.export_field(field, settings, journal, device)
        else:
            asset = finish.export_refined(mesh, settings, journal)
        run.keep_export(dataclasses.replace(config.export, formats=finish.exported_formats(run)))
        finish.present(asset, settings, journal)
    return asset


def export_file(
    path: Path, config: ExportConfig, watch: Watch | None = None, light: str = "kept"
) -> dict[str, Path]:
    """Write a mesh file of any origin in other formats, next to it: `my.glb` -> `my_export.usdz`.

    Args:
        path: a .glb, .gltf, .obj, .ply, .stl or .3mf file.
        config: the export settings; `grid` is not read, and `faces` 0 keeps its triangles.
        watch: hears the light, the figures for printing, warnings and every file.
        light: "kept" leaves the colours as they are; "removed" and "baked" as `export.light`.

    Returns:
        The files by format. `my_export.json` has the figures of all.

    Raises:
        UserError: the file cannot be read, or what is asked for cannot be done with it.
    """
    return finish.export_mesh_file(path, config, watch or Watch(), light)


def render_path(path: Path, config: ExportConfig, watch: Watch | None = None) -> Path:
    """Write a turntable of a mesh file, next to it, or of a run, into it.

    Args:
        path: a .glb, .gltf, .obj, .ply or .stl file, or a run folder.
        config: its turntable settings are read; a run stores them.
        watch: hears a warning if GIF has to replace MP4.

    Returns:
        The path of the video.
    """
    checks.check_video(config)
    watch = watch or Watch()

    def warn(text: str) -> None:
        watch.on_event(Warning(text))

    run = RunFolder.open(path) if path.is_dir() else None
    mesh = fit_to_cube(read_mesh(path if run is None else finish.exported(run)))
    camera = Config().camera if run is None else run.config().camera
    mesh = mesh if run is None else finish.as_drawn(run, mesh)
    frames = ring_frames(mesh, config.turntable_frames, config.turntable_size, camera)
    name = f"turntable.{config.turntable}"
    if run is None:
        video = path.with_name(f"{path.stem}_{name}")
        return write_turntable(frames, video, warn=warn, replaces=False)
    with run.lock():
        keys = ("turntable", "turntable_frames", "turntable_size")
        turntable = {key: getattr(config, key) for key in keys}
        run.keep_export(dataclasses.replace(run.config().export, **turntable))
        return write_turntable(frames, run.path / name, warn=warn)

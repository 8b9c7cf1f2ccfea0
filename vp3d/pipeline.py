"""The product: a prompt becomes a textured 3D asset in a run folder.

Every model and every part of a run is built here, in plain calls. What a run has finished lies in its folder (visual
prompt, checkpoints) and is taken from there on resume; every random number comes from a generator named by its purpose.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from vp3d.build import (
    build_coarse,
    find_visual_prompt,
    fit_to_device,
    load_models,
    resolve_device,
    teller,
)
from vp3d.checks import (
    OUTSIDE_GRAMMAR,
    check_request,
    check_same_weights,
    check_video,
    is_drawn,
    is_outside_grammar,
)
from vp3d.config.schema import Config, ExportConfig
from vp3d.errors import ResourceError
from vp3d.export.read import fit_to_cube, read_mesh
from vp3d.finish import export_field, exported, exported_formats, load_field, look_around, present
from vp3d.report.pictures import ring_frames
from vp3d.report.video import write_turntable
from vp3d.runs.folder import RunFolder
from vp3d.system.console import Progress, StopFlag, say
from vp3d.train import loop
from vp3d.types import Asset


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
            ResourceError
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

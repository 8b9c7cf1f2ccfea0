"""From a finished stage to what the user gets: mesh, files, pictures and report."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vp3d.build import LESS_FOR_MODELS, make_field, teller
from vp3d.config.schema import Config, CudaConfig
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.view_classifier import guess_views
from vp3d.errors import UserError
from vp3d.export.build import export_mesh
from vp3d.export.formats import WRITERS
from vp3d.export.verify import verify_export
from vp3d.fields.nerf import Field
from vp3d.render.camera import camera_rays, orbit
from vp3d.render.occupancy import OccupancyGrid
from vp3d.render.volume import render_rays
from vp3d.report.pictures import VIEWS, ring_frames, write_preview
from vp3d.report.report import write_report
from vp3d.report.video import write_turntable
from vp3d.runs.folder import RunFolder
from vp3d.system.console import say
from vp3d.system.out_of_memory import report_out_of_memory
from vp3d.train import loop
from vp3d.train.coarse import part
from vp3d.train.generators import make_generator
from vp3d.types import Asset, Camera, to_images

REFERENCE_SIZE = 128  # pixels of a side of the field's own renders that the export is judged by
REFERENCE_RINGS = ((8, 10.0), (4, 35.0))  # (cameras, elevation in degrees) of those renders
REFERENCE_GROUND = 1.0  # grey behind them, [0, 1]


def exported(run: RunFolder) -> Path:
    """The best mesh file of a run: the first format of `WRITERS` that is there."""
    kinds = exported_formats(run)
    if kinds:
        return run.path / f"model.{kinds[0]}"
    raise UserError(f"{run.path} has no mesh yet; `launch.py resume {run.path}` finishes it")


def exported_formats(run: RunFolder) -> list[Any]:
    """The formats of `WRITERS` that lie in a run, in their order."""
    return [kind for kind in WRITERS if (run.path / f"model.{kind}").is_file()]


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


@report_out_of_memory(
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
        WRITERS[kind](Asset(config.prompt, mesh, run.path), path)
        found = verify_export(path, cameras, rgb, opacity, REFERENCE_GROUND)
        figures |= {f"{kind}_{name}": value for name, value in found.items()}
    run.event("export", seconds=time.monotonic() - began, formats=kinds, **figures)
    return Asset(config.prompt, mesh, run.path, figures)


@report_out_of_memory("looking for a second face", LESS_FOR_MODELS)
def look_around(asset: Asset, prior: Prior, config: Config, run: RunFolder) -> None:
    """Ask the prior from where it sees each of eight views of the mesh, and keep what it says (see evaluate/guess_views.py)."""
    say("looking for a second face")
    frames = ring_frames(
        asset.mesh,
        VIEWS,
        config.prior.resolution,
        config.camera,
        background=config.visual_prompt.ground,
    )
    rgb = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255.0
    seen = guess_views(prior, config.prompt, rgb, make_generator(config.seed, "views"))
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

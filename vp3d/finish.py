"""From a finished stage to what the user gets: mesh, files, pictures and report."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vp3d import __version__
from vp3d.config.schema import CameraConfig, ExportConfig, RefineConfig, RenderConfig
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.view_classifier import guess_views
from vp3d.errors import UserError, VP3DError
from vp3d.export.build import export_levels
from vp3d.export.deliver import Delivery, Views, drop_old_levels, level_path, prepare
from vp3d.export.foreign import remade
from vp3d.export.formats import WRITERS
from vp3d.export.frame import frame_of
from vp3d.export.glb import write_glb
from vp3d.export.light import light_of, with_light
from vp3d.export.live_mesh import rough_mesh
from vp3d.export.ply import weld
from vp3d.export.read import read_mesh
from vp3d.export.repair import is_watertight
from vp3d.export.surface import unit_normals
from vp3d.fields.nerf import Field
from vp3d.picture_check import FrontCheck, check_front
from vp3d.render.camera import camera_rays, orbit
from vp3d.render.occupancy import OccupancyGrid
from vp3d.render.raster import render_mesh, sample_texture
from vp3d.render.volume import render_rays
from vp3d.report.front_view import FRONT_PICTURES
from vp3d.report.pictures import VIEWS, ring_frames, save_image, write_preview
from vp3d.report.report import write_report
from vp3d.report.video import write_turntable
from vp3d.runs.events import Artifact, Note, Preview, Stage, Warning, Watch
from vp3d.runs.folder import RunFolder
from vp3d.runs.journal import Journal
from vp3d.system.files import write_json
from vp3d.system.out_of_memory import report_out_of_memory
from vp3d.train.coarse import Coarse
from vp3d.train.generators import make_generator
from vp3d.types import Asset, Camera, Mesh, to_images
from vp3d.visual_prompt.make import SCORES_FILE, load_visual_prompt

REFERENCE_SIZE = 128  # pixels of a side of the field's own renders that the export is judged by
REFERENCE_RINGS = ((8, 10.0), (4, 35.0))  # (cameras, elevation in degrees) of those renders
REFERENCE_BACKGROUND = 1.0  # grey behind them, [0, 1]
CUBE_SIDE = 1.6  # longest side of a foreign mesh while it is worked on, world units
LIVE_EVERY_S = 2.0  # shortest time between two live meshes, seconds
LIVE_COST = 40.0  # a live mesh waits this many times what the last one cost: 2.5 % of the time


@dataclass(frozen=True)
class FinishSettings:
    """What exporting and reporting read of a config."""

    prompt: str
    seed: int
    export: ExportConfig
    camera: CameraConfig
    render: RenderConfig
    prior_resolution: int  # pixels of a side
    background: float  # grey behind the views that the prior is asked about, [0, 1]
    licence: str = ""  # of the weights


class LiveMesh:
    """Writes `preview.glb` while a stage is optimised, at most every `LIVE_EVERY_S`.

    Args:
        journal: the run, and the listener that hears a `Preview` of each mesh.
        device: where the field is.
        render: the bounds that the field is rendered with.
    """

    def __init__(self, journal: Journal, device: torch.device, render: RenderConfig) -> None:
        self.journal = journal
        self.device = device
        self.within = OccupancyGrid(render).to(device).contains
        self.next_at = time.monotonic() + LIVE_EVERY_S

    def __call__(self, stage: Any) -> None:
        """Write the mesh of a stage that has a field, if it is time."""
        began = time.monotonic()
        if began < self.next_at or not isinstance(stage, Coarse):
            return
        mesh = rough_mesh(stage.field, self.within, self.device)
        path = self.journal.run.live_mesh_file
        if mesh is not None:
            write_glb(Asset("", mesh, self.journal.run.path, {}), path)
        now = time.monotonic()
        self.next_at = now + max(LIVE_EVERY_S, LIVE_COST * (now - began))
        if mesh is not None:
            self.journal.show(Preview(stage.name, path))


def exported(run: RunFolder) -> Path:
    """The best mesh file of a run: the first format of `WRITERS` that is there."""
    kinds = exported_formats(run)
    if kinds:
        return run.model_file(kinds[0])
    raise UserError(f"{run.path} has no mesh yet; resume the run to get one")


def exported_formats(run: RunFolder) -> list[Any]:
    """The formats of `WRITERS` that a run has, in their order."""
    return [kind for kind in WRITERS if run.model_file(kind).is_file()]


def as_drawn(run: RunFolder, mesh: Mesh) -> Mesh:
    """A run's exported mesh with the light that its last export took out of the colours."""
    light = None
    for event in run.events():
        if event["kind"] in ("mesh", "light"):  # each export logs first its mesh, then its light
            light = light_of(event)
    return mesh if light is None else with_light(mesh, light)


@torch.no_grad()
def field_views(
    field: Field, render: RenderConfig, camera: Camera, size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The unlit field from B cameras over `REFERENCE_BACKGROUND`.

    Args:
        field: the radiance field.
        render: how it is rendered; its shading is not used.
        camera: B cameras.
        size: pixels of a side.
        device: where the field is.

    Returns:
        rgb [B, 3, size, size] and opacity [B, 1, size, size], both in [0, 1].
    """
    rgb, opacity = [], []
    unlit = dataclasses.replace(render, shading="albedo")
    bounds = OccupancyGrid(render).to(device)
    background = torch.full((3,), REFERENCE_BACKGROUND, device=device)
    for view in range(len(camera)):
        rays = camera_rays(camera[view : view + 1].to(device), size, size)
        picture = render_rays(field, rays, unlit, bounds)
        rgb.append(to_images(picture.over(background), 1, size, size))
        opacity.append(to_images(picture.opacity, 1, size, size))
    return torch.cat(rgb), torch.cat(opacity)


@report_out_of_memory(
    "exporting", "lower export.grid or export.texture_size, then export the run again"
)
def export_field(
    field: Field, settings: FinishSettings, journal: Journal, device: torch.device
) -> Asset:
    """Mesh, texture and files of a field.

    Each file is read back and compared with the field's renders.
    """
    journal.show(Stage("export", "exporting"))
    began = time.monotonic()
    cameras = reference_cameras(settings.camera)
    rgb, opacity = field_views(field, settings.render, cameras, REFERENCE_SIZE, device)
    inside = OccupancyGrid(settings.render).to(device).contains
    levels = export_levels(field, settings.export, cameras, opacity, device, journal.event, inside)
    views = Views(cameras, rgb, opacity, REFERENCE_BACKGROUND)
    return write_asset(levels, views, settings, journal, began)


@report_out_of_memory(
    "extracting the mesh", "lower refine.grid or refine.texture_size, then resume the run"
)
def extract_mesh(
    field: Field,
    settings: FinishSettings,
    refine: RefineConfig,
    journal: Journal,
    device: torch.device,
) -> Mesh:
    """The mesh of a field that the refine stage starts from, with UVs and texture."""
    export = dataclasses.replace(
        settings.export,
        grid=refine.grid,
        faces=refine.faces,
        texture_size=refine.texture_size,
        maps=["base"],
        lods=[1.0],
    )
    cameras = reference_cameras(settings.camera)
    opacity = field_views(field, settings.render, cameras, REFERENCE_SIZE, device)[1]
    inside = OccupancyGrid(settings.render).to(device).contains
    return export_levels(field, export, cameras, opacity, device, journal.event, inside)[0]


@report_out_of_memory(
    "exporting", "lower refine.texture_size or export.faces, then export the run again"
)
def export_refined(mesh: Mesh, settings: FinishSettings, journal: Journal) -> Asset:
    """Files of a refined mesh, with normals, vertex colours and maps.

    Each file is read back and compared with renders of the mesh. It keeps its triangles and its
    texture unless `export.faces` asks for fewer triangles.
    """
    journal.show(Stage("export", "exporting"))
    began = time.monotonic()
    texture, uv = mesh.texture, mesh.uv
    if texture is None or uv is None:
        raise ValueError("a refined mesh has UVs and a texture")
    colors = sample_texture(texture, uv)
    mesh = dataclasses.replace(with_welded_normals(mesh), vertex_colors=colors)
    export = dataclasses.replace(settings.export, texture_size=len(texture))
    levels = remade(mesh, export, journal.event)
    figures = {"faces": len(levels[0].faces), "watertight": is_watertight(weld(levels[0]))}
    journal.log("mesh", **figures, atlas="refined")
    cameras = reference_cameras(settings.camera)
    pictures = render_mesh(mesh, cameras, REFERENCE_SIZE, REFERENCE_SIZE, REFERENCE_BACKGROUND)
    views = Views(cameras, *pictures, REFERENCE_BACKGROUND)
    return write_asset(levels, views, settings, journal, began)


def with_welded_normals(mesh: Mesh) -> Mesh:
    """The mesh with vertex normals that are equal on both sides of a seam."""
    positions, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    index = index.reshape(-1)
    normals = unit_normals(Mesh(positions, index[mesh.faces]))
    return dataclasses.replace(mesh, normals=normals[index])


def write_asset(
    levels: list[Mesh], views: Views, settings: FinishSettings, journal: Journal, began: float
) -> Asset:
    """Write the files of a mesh and its levels of detail, and check each against pictures.

    Args:
        levels: The mesh, then its levels of detail.
        views: Pictures of what was exported.
        settings: Prompt, formats and light.
        journal: The run.
        began: When the export began, on the monotonic clock.

    Returns:
        The asset.
    """
    run, extras = journal.run, origin_of(settings)
    delivery = prepare(settings.prompt, levels, settings.export, extras, journal.event)
    lit = None if delivery.light is None else levels[0]
    asset = Asset(settings.prompt, delivery.levels[0], run.path, {}, lit)
    figures = asset.figures
    existing = exported_formats(run)  # an older mesh next to this one would mislead
    kinds = sorted({*existing, *settings.export.formats}, key=list(WRITERS).index)
    for kind in kinds:
        path = run.model_file(kind)
        delivery.write(kind, path)
        found = delivery.check(kind, path, views)
        figures.update({f"{kind}_{name}": value for name, value in found.items()})
        journal.show(Artifact(kind, path))
    write_levels(delivery, run.model_file("glb"), views, asset, journal)
    journal.log("export", seconds=time.monotonic() - began, formats=kinds, **figures)
    return asset


def write_levels(
    delivery: Delivery, path: Path, views: Views, asset: Asset, journal: Journal
) -> None:
    """Write the levels of detail next to the GLB, and check each; older ones are removed.

    The figures of level k are `lod<k>_faces`, and those of `Delivery.check` against the field.
    """
    drop_old_levels(path, len(delivery.levels) - 1)
    for level, mesh in enumerate(delivery.levels[1:], 1):
        file = level_path(path, level)
        delivery.write("glb", file, level)
        found = {"faces": float(len(mesh.faces)), **delivery.check("glb", file, views)}
        asset.figures.update({f"lod{level}_{name}": value for name, value in found.items()})
        journal.show(Artifact(f"lod{level}", file))


def origin_of(settings: FinishSettings) -> dict[str, Any]:
    """What the files say about their origin."""
    return {
        "prompt": settings.prompt,
        "seed": settings.seed,
        "version": __version__,
        "licence": settings.licence,
    }


@report_out_of_memory("exporting", "lower export.texture_size or export.faces, then try again")
def export_mesh_file(path: Path, config: ExportConfig, watch: Watch, light: str) -> dict[str, Path]:
    """`pipeline.export_file`: each file is read back and compared with the mesh of the first."""
    watch.on_event(Stage("export", f"exporting {path.name}"))
    source = read_mesh(path)
    mesh, size, centre = into_cube(source)
    figures: dict[str, Any] = {"source": path.name}

    def event(kind: str, **data: Any) -> None:
        figures.update({} if kind == "warning" else {kind: data})
        watch.on_event(Warning(data["message"]) if kind == "warning" else Note(f"{kind}: {data}"))

    levels = remade(mesh, config, event)
    frame = frame_of(levels[0], config.size_mm, config.size_axis, config.origin, config.up)
    if not config.size_mm:
        frame = frame.in_units(size, centre, millimetres=path.suffix.lower() in (".3mf", ".stl"))
    extras = {"source": path.name, "version": __version__}
    delivery = prepare(path.stem, levels, config, extras, event, light, frame)
    cameras = reference_cameras(CameraConfig())
    rgb, opacity = render_mesh(mesh, cameras, REFERENCE_SIZE, REFERENCE_SIZE, REFERENCE_BACKGROUND)
    views = Views(cameras, rgb, opacity, REFERENCE_BACKGROUND)
    files: dict[str, Path] = {}
    jobs: list[tuple[str, str, int]] = [(kind, kind, 0) for kind in config.formats]
    jobs += [(f"lod{level}", "glb", level) for level in range(1, len(levels))]
    base = path.with_name(f"{path.stem}_export")
    drop_old_levels(base.with_suffix(".glb"), len(levels) - 1)
    for name, kind, level in jobs:
        files[name] = level_path(base.with_name(f"{base.name}.{kind}"), level)
        delivery.write(kind, files[name], level)
        figures[name] = delivery.check(kind, files[name], views)
        watch.on_event(Artifact(name, files[name]))
    write_json(base.with_name(f"{base.name}.json"), figures)
    return files


def into_cube(mesh: Mesh) -> tuple[Mesh, float, np.ndarray]:
    """A mesh scaled into the cube, and the size and centre `[3]` that undo it.

    `vertices * size + centre` are the original ones.
    """
    used = mesh.vertices[np.unique(mesh.faces)].astype(np.float64)
    low, high = used.min(0), used.max(0)
    centre, size = (low + high) / 2.0, max(float((high - low).max()), 1e-12) / CUBE_SIDE
    inside = (mesh.vertices.astype(np.float64) - centre) / size
    return dataclasses.replace(mesh, vertices=inside.astype(np.float32)), size, centre


def reference_cameras(camera: CameraConfig) -> Camera:
    """The cameras that an export is judged from."""
    azimuths = [360.0 * i / count for count, _ in REFERENCE_RINGS for i in range(count)]
    elevations = [elevation for count, elevation in REFERENCE_RINGS for _ in range(count)]
    return orbit(azimuths, elevations, camera.distance, camera.fov_deg)


@report_out_of_memory("looking for a second face", "free memory on the device")
def compare_views(asset: Asset, prior: Prior, settings: FinishSettings, journal: Journal) -> None:
    """Ask the prior which view each of eight views of the mesh shows, and log its answers.

    See diffusion/view_classifier.py; a second face (Janus) shows as a back that looks like a front.
    """
    journal.show(Stage("views", "looking for a second face"))
    frames = ring_frames(
        asset.lit or asset.mesh,
        VIEWS,
        settings.prior_resolution,
        settings.camera,
        background=settings.background,
    )
    rgb = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255.0
    guess = guess_views(prior, settings.prompt, rgb, make_generator(settings.seed, "views"))
    journal.log("views", **dataclasses.asdict(guess))


def compare_front(asset: Asset, settings: FinishSettings, journal: Journal) -> FrontCheck | None:
    """Grade what the front view of the asset shows that its visual prompt does not.

    The pictures are written to the folder of the visual prompt and the grade to the log. A run
    without a visual prompt is not graded. The asset is complete by now, so a failure is a warning.
    """
    run = journal.run
    if not (run.visual_prompt / SCORES_FILE).is_file():
        return None
    try:
        prompt = load_visual_prompt(run)
        camera, ground = settings.camera, settings.background
        found = check_front(asset.lit or asset.mesh, prompt.rgb, prompt.mask, camera, ground)
    except VP3DError as error:
        journal.warn(f"the front view is not compared with the visual prompt: {error}")
        return None
    pictures = (found.prompt, found.render, found.heat)
    for name, picture in zip(FRONT_PICTURES, pictures, strict=True):
        save_image(Image.fromarray(picture), run.visual_prompt / name)
    score = found.score
    journal.log(
        "front_view",
        grade=score.grade,
        local=score.local,
        whole=score.whole,
        seconds=found.seconds,
    )
    return found


def present(asset: Asset, settings: FinishSettings, journal: Journal) -> None:
    """What the user opens: the eight views, the turntable and the report."""
    run, export = journal.run, settings.export
    compare_front(asset, settings, journal)
    journal.show(Stage("report", "preview, turntable and report"))
    mesh = asset.lit or asset.mesh
    write_preview(mesh, run.preview_file, settings.prompt, settings.camera)
    frames = ring_frames(mesh, export.turntable_frames, export.turntable_size, settings.camera)
    video = write_turntable(frames, run.path / f"turntable.{export.turntable}", warn=journal.warn)
    write_report(run, asset)
    for kind, path in (
        ("preview", run.preview_file),
        ("turntable", video),
        ("report", run.path / "report.html"),
    ):
        journal.show(Artifact(kind, path))

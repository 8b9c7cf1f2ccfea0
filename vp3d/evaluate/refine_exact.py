"""The refine stage with a teacher that is right: `python -m vp3d.evaluate.refine_exact FOLDER`.

A blurred mesh of a known scene, as a coarse field leaves it, is fitted to exact pictures of that
scene: of 64 pixels, with noise, cut out like drawn ones. It shows what the machinery can gain; what
the 2D model can teach is another question (`evaluate claims teacher`). The picture has the mesh
before and after, and the true scene.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vp3d.config.schema import CameraConfig, ExportConfig, RefineConfig
from vp3d.errors import UserError
from vp3d.export.surface import vertex_normals
from vp3d.export.verify import psnr
from vp3d.metrics.shapes import SurfaceIndex, inside_points
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.render.raster_soft import SoftRender
from vp3d.report.pictures import labelled, ring_frames, save_image, sheet
from vp3d.system.console import run_program
from vp3d.train import loop
from vp3d.train.generators import make_generator
from vp3d.train.redraw import Teacher
from vp3d.train.refine import Judge, Refine, RefineSettings
from vp3d.train.refine_views import RedrawnViews
from vp3d.train.surface_parameters import start_of
from vp3d.types import Camera, Mesh, to_uint8
from vp3d.worlds.toybox.blurred import ExactTeacher, blurred_mesh, exact_pictures
from vp3d.worlds.toybox.scenes import Spec, parse_caption
from vp3d.worlds.toybox.truth import Fit, Pose, color_errors, distances, truth_of

CAPTIONS = (
    "a red mushroom with a white stem",
    "a yellow chair with red legs",
    "a blue mug with a white handle",
)
GREY, SIZE, NOISE, TOLERANCE = 0.5, 64, 0.03, 0.12
BLUR = 2.2  # cells of the grid that the scene is blurred by
TEXTURE = 256  # texels of a side, of the start and of the result
SHOWN_VIEWS, SHOWN_SIZE = 4, 160  # of the picture


@dataclass(frozen=True)
class Figures:
    """A mesh, where it is, against the true scene.

    Attributes:
        iou: Of the volumes, in [0, 1].
        chamfer: World units.
        color: Median CIEDE2000 over the true surface, in the light of the pictures.
        psnr: On object pixels of six views of 128 pixels, dB.
    """

    iou: float
    chamfer: float
    color: float
    psnr: float


def blurred_start(spec: Spec) -> Mesh:
    """The mesh that is refined: of 3,000 triangles."""
    export = ExportConfig(grid=72, faces=3000, texture_size=TEXTURE, maps=["base"])
    return blurred_mesh(spec, export, BLUR)


def figures(mesh: Mesh, spec: Spec) -> Figures:
    """The figures of a mesh that is where the true scene is."""
    truth, surface = truth_of(spec), SurfaceIndex(mesh)
    inside, volume = inside_points(mesh)
    pose = Pose(0.0, 1.0, np.zeros(3), np.zeros(3))
    camera = ring(6, 15.0, 2.9, 40.0)
    rgb, opacity = render_mesh(mesh, camera, 128, 128, GREY)
    exact = exact_pictures(spec, camera, 128, GREY)
    shown = ((exact - GREY).abs().amax(1, keepdim=True) > 0.02) | (opacity > 0.5)
    shown = shown.expand_as(rgb)
    return Figures(
        Fit(inside, volume, truth).iou(pose, inside),
        distances(surface, truth, pose)["chamfer"],
        float(np.median(color_errors(surface, truth, pose, "made"))),
        psnr(rgb[shown], exact[shown]),
    )


def settings_of(**changes: Any) -> RefineConfig:
    """Three rounds of 40 steps at 128 pixels, with `changes`."""
    small = {"method": "views", "texture_size": TEXTURE, "render_size": 128, "steps": 40}
    return RefineConfig(**{**small, **changes})


def no_figures(drawn: SoftRender, camera: Camera) -> Mapping[str, float]:
    """A judge without an opinion: the guard then looks at shapes only."""
    return {}


def refine_with(
    mesh: Mesh, config: RefineConfig, teacher: Teacher, judge: Judge = no_figures, seed: int = 0
) -> tuple[Mesh, list[dict[str, Any]]]:
    """The refined mesh, and what the guard decided after each round.

    Args:
        mesh: The start.
        config: Settings of the stage.
        teacher: Draws the pictures.
        judge: Figures of the guard.
        seed: Of the noise and of the choice of views.

    Raises:
        UserError: A step was not finite.
    """
    generators = {name: make_generator(seed, name) for name in ("noise", "camera")}
    camera, heard = CameraConfig(), list[dict[str, Any]]()
    stage = Refine(
        RefineSettings(config, camera),
        start_of(mesh),
        RedrawnViews(config, camera, teacher, SIZE, GREY, TOLERANCE, generators),
        judge,
        event=lambda kind, **data: heard.append(data),
    )
    for i in range(stage.config.steps):
        stage.set_rates(i, 1.0)
        _, problem = loop.differentiate(stage, stage.step(i), 1.0)
        problem = problem or loop.apply(stage)
        if problem:
            raise UserError(f"step {i} was not finite: {problem}")
    return vertex_normals(stage.finish()), heard


def measure(caption: str) -> tuple[str, list[np.ndarray]]:
    """Rows of the table for one caption, and the views: before, after, true."""
    spec = parse_caption(caption)
    start = blurred_start(spec)
    began = time.process_time()
    mesh, _ = refine_with(start, settings_of(), ExactTeacher(spec, GREY, NOISE))
    seconds = time.process_time() - began
    rows = []
    for name, shown, cost in (("before", start, ""), ("after", mesh, f"{seconds:.0f}")):
        found = astuple(figures(shown, spec))
        cells = [f"{value:.{digits}f}" for value, digits in zip(found, (3, 4, 2, 1), strict=True)]
        rows.append(f"| {caption} | {name} | {' | '.join(cells)} | {cost} |")
    camera = CameraConfig()
    around = ring(SHOWN_VIEWS, 15.0, camera.distance, camera.fov_deg)
    true = to_uint8(exact_pictures(spec, around, SHOWN_SIZE, GREY))
    own = [ring_frames(m, SHOWN_VIEWS, SHOWN_SIZE, camera, background=GREY) for m in (start, mesh)]
    return "\n".join(rows), [*own, true]


def main() -> None:
    """Print the table and write the picture."""
    if len(sys.argv) != 2:
        raise UserError("give the folder for the picture: FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tiles, lines = [], ["| caption | mesh | IoU | Chamfer | colour | object PSNR | CPU s |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|")
    for caption in CAPTIONS:
        rows, views = measure(caption)
        lines.append(rows)
        for name, frames in zip(("before", "after", "true"), views, strict=True):
            tiles.append([labelled(frame, name) for frame in frames])
    save_image(sheet(tiles, "A mesh fitted to exact pictures of 64 pixels"), folder / "refine.png")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    run_program("vp3d.evaluate.refine_exact", main)

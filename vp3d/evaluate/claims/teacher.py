"""The claim on the refine stage's teacher: are redrawn views nearer to the truth than the mesh?

Only then can a fit to them improve the mesh. Geometry and texture are asked separately.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vp3d.build import Models, debias, find_condition, load_models
from vp3d.config.loader import load_config
from vp3d.config.schema import CameraConfig
from vp3d.errors import UserError
from vp3d.evaluate import toybench
from vp3d.evaluate.claims.frame import (
    Bench,
    Cell,
    Claim,
    Finding,
    Part,
    Table,
    Verdict,
    interval,
    with_interval,
)
from vp3d.evaluate.runner import Settings, Task, find_mesh
from vp3d.export.verify import psnr
from vp3d.metrics.colors import ciede2000
from vp3d.metrics.shapes import moved
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.runs.folder import RunFolder
from vp3d.train.generators import make_generator
from vp3d.train.redraw import Redraw, explained, iou
from vp3d.types import Camera, Mesh
from vp3d.visual_prompt.cutout import border_flood
from vp3d.visual_prompt.make import load_visual_prompt
from vp3d.worlds.toybox.scenes import parse_caption
from vp3d.worlds.toybox.truth import Truth, compare, lit, rotation, truth_of

PROMPTS = 9
VIEWS, ELEVATION_DEG = 12, 15.0
STRENGTHS = (0.2, 0.35, 0.5)  # noise levels, as a share of all
STEPS = (1, 4)  # denoising steps; one step is the direction of VP-SDS
LAMS = (0.0, 0.6)  # strength of the visual prompt
MESH = "mesh"
FIGURES = {  # figure -> what it is called; higher is better, but for the last two
    "iou": "silhouette IoU",
    "psnr": "object PSNR, dB",
    "direction": "direction to the truth, cosine",
    "color": "colour, CIEDE2000",
    "shift": "disagreement, pixels",
}


@dataclass(frozen=True)
class Arm:
    """How views are redrawn."""

    strength: float
    steps: int
    lam: float

    @property
    def name(self) -> str:
        """As in the table."""
        words = "with" if self.lam else "without"
        return f"{self.strength:g}, {self.steps} step(s), {words} visual prompt"


ARMS = tuple(Arm(*values) for values in product(STRENGTHS, STEPS, LAMS))


@dataclass(frozen=True)
class Views:
    """Pictures of one object over a grey.

    Attributes:
        rgb: `[B, 3, S, S]` in [0, 1].
        mask: `[B, 1, S, S]` in [0, 1].
    """

    rgb: Tensor
    mask: Tensor


def chosen_tasks() -> list[Task]:
    """Every second prompt of toybench mini."""
    return toybench.suite_tasks("mini", 1)[::2][:PROMPTS]


@lru_cache(maxsize=1)
def _models() -> Models:
    return load_models(load_config("standard"))


def measure_prompt(work: Path, task: Task) -> dict[str, dict[str, float]]:
    """The figures of the mesh's own views and of each arm, means over the views.

    The asset is generated, or taken from the work folder.
    """
    settings = Settings(work / "assets", "standard", world="toybox")
    found = find_mesh(settings, task)
    if found.mesh is None or found.folder is None:
        raise UserError(f"{task.prompt!r} has no mesh to measure: {found.reason}")
    config, truth = settings.config(task), truth_of(parse_caption(task.prompt))
    compared = compare(found.mesh, truth)
    if compared is None:
        raise UserError(f"{task.prompt!r}: its mesh encloses nothing")
    camera = cameras(config.camera)
    grey, size = 0.5 * (config.render.background_min + config.render.background_max), 64
    own = Views(*pictures(found.mesh, camera, size, grey))
    pose = compared.pose
    true = true_views(truth, pose.yaw_deg, pose.scale, pose.shift, camera, size, grey)
    result = {MESH: view_figures(own, own, true, camera)}
    prior, device = _models().prior, _models().device
    visual_prompt = load_visual_prompt(RunFolder(found.folder))
    condition = find_condition(config, prior, visual_prompt, debias(config))
    for arm in ARMS:
        redraw = Redraw(prior, config.guidance, condition, arm.steps, arm.lam)
        noise = make_generator(task.seed, "teacher")
        drawn = redraw(own.rgb.to(device), camera.to(device), arm.strength, noise).cpu()
        tolerance = config.visual_prompt.cutout_tolerance
        masks = torch.stack([border_flood(picture, tolerance) for picture in drawn])
        result[arm.name] = view_figures(Views(drawn, masks), own, true, camera)
    return result


def cameras(config: CameraConfig) -> Camera:
    """The cameras of the measurement."""
    return ring(VIEWS, ELEVATION_DEG, config.distance, config.fov_deg)


def pictures(mesh: Mesh, camera: Camera, size: int, grey: float) -> tuple[Tensor, Tensor]:
    """Unlit renders `[B, 3, size, size]` over a grey, and their opacity `[B, 1, size, size]`."""
    return render_mesh(mesh, camera, size, size, grey, supersample=4)


def true_views(
    truth: Truth,
    yaw_deg: float,
    scale: float,
    shift: np.ndarray,
    camera: Camera,
    size: int,
    grey: float,
) -> Views:
    """The true object where the mesh is, in the light that its pictures had.

    Args:
        truth: The true scene.
        yaw_deg: Of the pose of the mesh (`truth.Pose`).
        scale: Of the pose.
        shift: Of the pose `[3]`.
        camera: B cameras.
        size: Side of the pictures.
        grey: Level behind them.

    Returns:
        Its pictures.
    """
    back = rotation(yaw_deg).T / scale
    there = moved(lit(truth.mesh, yaw_deg), back, -back @ shift)
    return Views(*pictures(there, camera, size, grey))


def view_figures(shown: Views, own: Views, true: Views, camera: Camera) -> dict[str, float]:
    """How near pictures are to the truth, and to each other.

    Args:
        shown: The pictures.
        own: The renders of the mesh.
        true: The renders of the true object.
        camera: The B cameras.

    Returns:
        A number for each of `FIGURES`.
    """
    inside = (shown.mask > 0.5) | (true.mask > 0.5)
    both = ((shown.mask > 0.5) & (true.mask > 0.5))[:, 0]
    every = inside.expand_as(shown.rgb)
    colors = ciede2000(*(views.rgb.permute(0, 2, 3, 1)[both].numpy() for views in (shown, true)))
    change, wanted = shown.rgb - own.rgb, true.rgb - own.rgb
    cosine = F.cosine_similarity(change.flatten(1), wanted.flatten(1), dim=1)
    return {
        "iou": float(iou(shown.mask, true.mask).mean()),
        "psnr": psnr(shown.rgb[every], true.rgb[every]),
        "direction": float(cosine.mean()),
        "color": float(np.median(colors)) if len(colors) else 100.0,
        "shift": disagreement(shown.mask, true.mask, camera),
    }


def disagreement(mask: Tensor, true: Tensor, camera: Camera) -> float:
    """How far the silhouettes are from the true ones after the best movement of the object.

    The root mean square of the distances of their centroids, in pixels; views where nothing is
    shown are left out.
    """
    side = mask.shape[-1]
    axis = torch.arange(side) + 0.5
    places = []
    for picture in (mask, true):
        weight = (picture[:, 0] > 0.5).double()
        total = weight.sum((1, 2)).clamp_min(1e-9)
        x = (weight.sum(1) * axis).sum(1) / total
        y = (weight.sum(2) * axis).sum(1) / total
        places.append(torch.stack([x, y], -1))
    kept = ((mask > 0.5).flatten(1).any(1)) & ((true > 0.5).flatten(1).any(1))
    if int(kept.sum()) < 3:
        return float(side)
    shift = places[0] - places[1]
    left = (shift - explained(shift, camera, side, kept))[kept]
    return float(left.square().sum(-1).mean().sqrt())


def measure(bench: Bench) -> Finding:
    """The figures of every prompt, then those of all."""
    settings = {"arms": [arm.name for arm in ARMS], "views": VIEWS, "version": 1}
    parts: list[Part] = [
        (
            f"prompt-{task.key}",
            {**settings, "prompt": task.prompt, "seed": task.seed},
            partial(measure_prompt, bench.folder, task),
        )
        for task in chosen_tasks()
    ]
    return finding(bench.every(parts))


def finding(records: Sequence[Mapping[str, Mapping[str, float]]]) -> Finding:
    """What the figures of the prompts decide.

    Args:
        records: For each prompt the figures of `MESH` and of the arms.

    Returns:
        The table, and whether any arm is nearer to the truth than the mesh.
    """
    names = [name for name in records[0] if name != MESH]
    verdicts = [
        _verdict(records, names, key, f"Redrawn views are nearer to the truth in {what}")
        for key, what in (("iou", "silhouette (IoU)"), ("psnr", "colour (object PSNR)"))
    ]
    may = [
        part
        for part, verdict in zip(("geometry", "texture"), verdicts, strict=True)
        if verdict.holds
    ]
    verdicts.append(Verdict("What the stage may change", " and ".join(may) or "nothing", None))
    rows: list[list[Cell]] = [
        [name, *(float(np.mean([record[name][key] for record in records])) for key in FIGURES)]
        for name in (MESH, *names)
    ]
    table = Table("Means over prompts and views", ("pictures", *FIGURES.values()), rows)
    notes = [
        f"{len(records)} prompts of toybench mini, preset standard, {VIEWS} views of 64 pixels; "
        "differences are paired by prompt, with the 95 % interval of the mean.",
        "The best of several arms is chosen on the prompts that it is measured on.",
        "The direction is the cosine between what a picture changes and what it should change; one "
        "step is the direction of VP-SDS in pixels.",
        "Disagreement is what no common movement of the object explains of the centroids.",
    ]
    return Finding(verdicts, [table], notes)


def _verdict(
    records: Sequence[Mapping[str, Mapping[str, float]]],
    names: Sequence[str],
    key: str,
    statement: str,
) -> Verdict:
    """The statement for the arm with the largest mean gain over the mesh."""
    gains = {name: [r[name][key] - r[MESH][key] for r in records] for name in names}
    best = max(gains, key=lambda name: float(np.mean(gains[name])))
    if len(records) < 2:
        return Verdict(statement, f"{gains[best][0]:+.3f} ({best}), one prompt", False)
    low = interval(gains[best])[1]
    return Verdict(statement, f"{with_interval(gains[best])} ({best})", low > 0.0)


CLAIM = Claim(
    "teacher",
    "Is the 2D model a better picture of the object than the mesh?",
    "The refine stage can fit a mesh to views that the 2D model redraws. That helps only where "
    "these views are nearer to the truth than the mesh. Finished assets of toybench are rendered "
    "from all around and redrawn at several strengths, in one or more denoising steps, with and "
    "without the visual prompt. Everything is compared with the true scene at the pose of the "
    "asset.",
    measure,
)

"""Toybench: 72 prompts whose true scene is known exactly (`assets/prompts/toybench_*.txt`).

Each asset is compared with the true scene (`worlds/toybox/truth.py`, `worlds/toybox/janus.py`), and
is judged given nothing but its prompt (`worlds/toybox/prompt_check.py`). Two upper bounds are
measured the same way: the visual prompts, and exact renders of the true scenes. The second is the
best result that the judge and CLIP allow.

A failure ("empty", "nan", "no mesh", or "solid": more than `MAX_FILLED_SHARE` of the cube is
filled) counts 0 in every share. Distances and colour errors are means over the assets that have a
mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vp3d.config.paths import ASSETS, MANIFEST, ROOT
from vp3d.config.schema import CameraConfig
from vp3d.errors import UserError
from vp3d.evaluate.html import FPS, FRAMES, SIDE, true_turntable, write_asset_turntable
from vp3d.evaluate.prompt_file import read_suite, with_seeds
from vp3d.evaluate.runner import (
    FoundAsset,
    Record,
    Settings,
    Task,
    asset_task,
    find_assets,
    find_mesh,
    key_of,
)
from vp3d.evaluate.statistics import Figure
from vp3d.metrics.attribute_judge import Judge, load_judge
from vp3d.metrics.attributes import JUDGE_BACKGROUND
from vp3d.prompts import strip_view
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.report.pictures import (
    BACKGROUND,
    ELEVATION_DEG,
    labelled,
    resized,
    ring_frames,
    save_image,
    sheet,
)
from vp3d.report.video import write_turntable
from vp3d.rewards.encoders import ClipEncoder, load_clip
from vp3d.system.console import say
from vp3d.types import Mesh, to_uint8
from vp3d.worlds.toybox.data import DISTANCE, FOV_DEG
from vp3d.worlds.toybox.janus import janus_figures
from vp3d.worlds.toybox.prompt_check import (
    VIEWS,
    azimuths,
    expected_views,
    r_precision,
    true_pictures,
    true_rgb,
    verdict,
)
from vp3d.worlds.toybox.scenes import Spec, parse_caption
from vp3d.worlds.toybox.truth import LIGHTS, compare, truth_of

SETS = ("single", "parts", "relation")
MINI = 6  # prompts of each set in the subset `mini`
MAX_FILLED_SHARE = 0.55  # of the cube [-1, 1]^3; no object of this world comes near it
JUDGED_SIZE = 128  # pixels of a side of a judged view
SHOWN_SIZE, SHOWN_VIEWS = 96, 8  # pixels of a side of a view in the picture, and their number
EXPECTED_SIZE = 64  # pixels of a side of the render that says which attributes are visible
BLANK = 250  # grey of an empty tile, 0 to 255

# Figures of `truth.compare` that describe the pose and not the quality.
POSE: tuple[str, ...] = ("yaw_deg", "scale", "shift", "light", "volume")

# The weights that a record depends on, each with its manifest.
JUDGES = tuple((str(ASSETS / name), str(MANIFEST)) for name in ("judge", "measuring_clip"))

FAILURE_FIGURES = dict.fromkeys(
    ("all", "objects", "colors", "r_precision", "iou", "fscore", "view_agreement"), 0.0
)

FIGURES = {
    "all": Figure("all attributes"),
    "objects": Figure("objects"),
    "colors": Figure("colours"),
    "parts": Figure("parts, pattern"),
    "relation": Figure("relation"),
    "r_precision": Figure("CLIP R-precision"),
    "iou": Figure("IoU", share=False),
    "fscore": Figure("F-score"),
    "chamfer": Figure("Chamfer", share=False),
    "color_error": Figure("colour error, CIEDE2000", share=False),
    "view_agreement": Figure("view agreement"),
    "janus": Figure("Janus score", share=False, counted=True),
    "two_faced": Figure("Janus rate", counted=True),
    "seconds": Figure("seconds", share=False),
}


@dataclass(frozen=True)
class Judges:
    """The loaded judges.

    Attributes:
        judge: names objects, colours, patterns and relations.
        clip: the CLIP that only measures; the rewards have another.
        texts: caption -> unit text features `[D]`, for R-precision.
    """

    judge: Judge
    clip: ClipEncoder
    texts: dict[str, Tensor]


@lru_cache(maxsize=1)
def judges() -> Judges:
    """The embedded judges, loaded once a process; the captions are those of the complete suite."""
    clip = load_clip(str(ASSETS / "measuring_clip"), str(MANIFEST))
    entries = [entry for name in SETS for entry in read_suite(suite_file(name))]
    prompts = list(dict.fromkeys(entry.prompt for entry in entries))
    texts = dict(zip(prompts, clip.text(prompts), strict=True))
    return Judges(load_judge(ASSETS / "judge", MANIFEST), clip, texts)


def suite_file(name: str) -> Path:
    """The prompt file of a set."""
    return ROOT / "assets" / "prompts" / f"toybench_{name}.txt"


def suite_tasks(subset: str, seeds: int) -> list[Task]:
    """The tasks of the suite.

    Args:
        subset: "all", or "mini" for the first `MINI` prompts of each set.
        seeds: how many seeds each prompt has: its own and those after it.

    Returns:
        The tasks, set by set.
    """
    found = []
    for name in SETS:
        entries = read_suite(suite_file(name))[: MINI if subset == "mini" else None]
        for number, prompt, seed in with_seeds(entries, seeds):
            key = f"{name}-{key_of(number, prompt, seed)}"
            found.append(Task(name, prompt, seed, key))
    return found


def tuning_tasks(seeds: int) -> list[Task]:
    """The tasks on which settings are tuned, by set as in `suite_tasks`; toybench has none of them.

    Args:
        seeds: how many seeds each prompt has: its own and those after it.
    """
    found = []
    entries = read_suite(ROOT / "assets" / "prompts" / "tuning.txt")
    for number, prompt, seed in with_seeds(entries, seeds):
        key = f"tuning-{key_of(number, prompt, seed)}"
        found.append(Task(set_of(parse_caption(prompt)), prompt, seed, key))
    return found


def set_of(spec: Spec) -> str:
    """The set of toybench that a scene belongs to."""
    return "relation" if spec.relation else "parts" if spec.accent else "single"


def folder_tasks(folder: Path) -> list[Task]:
    """The tasks of a folder of meshes, set by set.

    Raises:
        UserError: a prompt is not a caption of the toybox.
    """
    tasks = []
    for number, (written, seed, path) in enumerate(find_assets(folder), 1):
        prompt = strip_view(written)  # the spelling that a run uses for the same prompt
        try:
            spec = parse_caption(prompt)
        except ValueError as error:
            raise UserError(
                f"{path.name}: {error}; name the file by its caption, as in 'a-red-sphere.glb'"
            ) from error
        tasks.append(asset_task(number, set_of(spec), prompt, seed, path))
    return sorted(tasks, key=lambda task: SETS.index(task.group))


def judge_asset(settings: Settings, task: Task) -> Record:
    """Generates or reads the task's asset, judges it and draws it.

    Returns:
        The record: "figures" of the asset, "drawn" of its visual prompt, "true" of the exact
        scene, and the pose that `truth.compare` found.
    """
    spec, found = parse_caption(task.prompt), find_mesh(settings, task)
    applicable = {"parts": bool(spec.accent), "relation": bool(spec.relation)}
    figures: dict[str, Any] = FAILURE_FIGURES | {
        name: 0.0 for name, applies in applicable.items() if applies
    }
    failure, reason, pose = found.failure, found.reason, None
    if found.mesh is not None:
        compared = measure(found.mesh, spec, LIGHTS if task.source else LIGHTS[:1])
        pose = {key: compared.pop(key) for key in POSE if key in compared}
        failure = failed(found.mesh, pose)
        reason = f"the mesh is {failure}" if failure else ""
        if not failure:
            figures = compared | by_prompt(views_of(found.mesh), task.prompt)
        write_pictures(found, spec, settings.result(task))
    return {
        "set": task.group,
        "prompt": task.prompt,
        "seed": task.seed,
        "failure": failure,
        "reason": reason,
        "source": str(found.folder or task.source),
        "figures": figures | {"seconds": found.seconds},
        "pose": pose,
        "drawn": drawn(found, spec),
        "true": by_prompt(true_views(spec), task.prompt),
    }


def failed(mesh: Mesh, pose: dict[str, Any]) -> str:
    """The kind of failure of a mesh, "" if there is none.

    Args:
        mesh: the mesh.
        pose: what `truth.compare` found of it; without "volume" the mesh encloses nothing.

    Returns:
        "empty" for a mesh that encloses nothing, "nan" for colours that are not numbers, "solid"
        for a mesh that fills more than `MAX_FILLED_SHARE` of the cube.
    """
    if "volume" not in pose:
        return "empty"
    if mesh.vertex_colors is not None and not np.isfinite(mesh.vertex_colors).all():
        return "nan"
    return "solid" if pose["volume"] > 8.0 * MAX_FILLED_SHARE else ""


def measure(mesh: Mesh, spec: Spec, lights: tuple[str, ...]) -> dict[str, Any]:
    """Compares a mesh with its true scene.

    Args:
        mesh: the mesh.
        spec: the true scene.
        lights: the lights of `truth.LIGHTS` that its colours may contain.

    Returns:
        The figures of `truth.compare` and `janus.janus_figures`; nothing for a mesh without volume.
    """
    truth = truth_of(spec)
    found = compare(mesh, truth, lights)
    if found is None:
        return {}
    return {**found.figures, **janus_figures(found, truth)}


def views_of(mesh: Mesh) -> Tensor:
    """The judged views `[24, 3, S, S]` in [0, 1] of a mesh: unlit, on the judge's background."""
    cameras = ring(VIEWS, ELEVATION_DEG, DISTANCE, FOV_DEG)
    return render_mesh(mesh, cameras, JUDGED_SIZE, JUDGED_SIZE, JUDGE_BACKGROUND)[0]


def true_views(spec: Spec) -> Tensor:
    """The same views `[24, 3, S, S]` in [0, 1] of the true scene."""
    return true_rgb(true_pictures(spec, azimuths(VIEWS), JUDGE_BACKGROUND, JUDGED_SIZE))


@torch.no_grad()
def by_prompt(rgb: Tensor, prompt: str) -> dict[str, Any]:
    """What the judge and CLIP find in views rgb `[24, 3, H, H]` in [0, 1], given the prompt only.

    Returns:
        The shares of `prompt_check.verdict`, and "r_precision".
    """
    known, spec = judges(), parse_caption(prompt)
    texts = known.texts
    if prompt not in texts:
        texts = texts | {prompt: known.clip.text([prompt])[0]}
    pictures = true_pictures(spec, azimuths(VIEWS), JUDGE_BACKGROUND, EXPECTED_SIZE)
    return {
        **verdict(known.judge, rgb, spec, expected_views(pictures)),
        "r_precision": r_precision(known.clip, rgb, prompt, texts),
    }


def drawn(found: FoundAsset, spec: Spec) -> dict[str, Any] | None:
    """The judge's figures of the visual prompt, taken for a front view; None if there is none."""
    picture = visual_prompt(found)
    if picture is None:
        return None
    rgb = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255.0
    front = true_pictures(spec, [0.0], JUDGE_BACKGROUND, EXPECTED_SIZE)
    return dict(verdict(judges().judge, rgb, spec, expected_views(front)))


def visual_prompt(found: FoundAsset) -> np.ndarray | None:
    """The cut-out visual prompt of the run, uint8 `[H, W, 3]`; None if there is none."""
    path = None if found.folder is None else found.folder / "visual_prompt" / "cutout.png"
    if path is None or not path.is_file():
        return None
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def write_pictures(found: FoundAsset, spec: Spec, result: Path) -> None:
    """Writes the picture and the turntables of asset and true object next to `result`."""
    true = to_uint8(true_rgb(true_pictures(spec, azimuths(SHOWN_VIEWS), BACKGROUND, SHOWN_SIZE)))
    write_views(found, true, "true object", result.with_suffix(".png"))
    write_asset_turntable(found, result)
    turn = to_uint8(true_rgb(true_pictures(spec, azimuths(FRAMES), BACKGROUND, SIDE)))
    write_turntable(turn, true_turntable(result).with_suffix(".mp4"), FPS, warn=say)


def write_views(found: FoundAsset, true: np.ndarray | None, name: str, path: Path) -> None:
    """Draws rows of eight views: the visual prompt and the asset, above the true object.

    Args:
        found: The asset; nothing is written without a mesh.
        true: Views of the true object [8, `SHOWN_SIZE`, `SHOWN_SIZE`, 3] uint8; None for no row.
        name: Label of the true object.
        path: The PNG file.
    """
    if found.mesh is None:
        return
    camera = CameraConfig(distance=DISTANCE, fov_deg=FOV_DEG)
    own = ring_frames(found.mesh, SHOWN_VIEWS, SHOWN_SIZE, camera)
    blank = np.full((SHOWN_SIZE, SHOWN_SIZE, 3), BLANK, np.uint8)
    first, title = blank, "asset"
    if (picture := visual_prompt(found)) is not None:
        first, title = resized(picture, SHOWN_SIZE), "visual prompt"
    labels = [f"{azimuth:.0f}°" for azimuth in azimuths(SHOWN_VIEWS)]
    rows = [[labelled(first, title), *map(labelled, own, labels)]]
    if true is not None:
        rows.append([labelled(blank, name), *map(labelled, true, labels)])
    save_image(sheet(rows), path)

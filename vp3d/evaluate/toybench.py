"""Toybench: 72 prompts whose right answer is known exactly (`assets/prompts/toybench_*.txt`).

Each asset is held against the true scene (`toybox/truth.py`, `toybox/janus.py`) and against nothing but its prompt
(`toybox/verdict.py`). Beside the assets stand two ceilings, measured the same way: the visual prompts as the judge sees them,
and exact renders of the true scenes, which are what judge and CLIP can get right at all.

A failure (`empty`, `nan`, `no mesh`, or `solid`: more than `SOLID` of the cube is filled) counts 0 in every share; distances
and colours are told of the meshes there are.
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
from vp3d.evaluate.html import FPS, FRAMES, SIDE, true_turn, write_turn
from vp3d.evaluate.prompt_file import read_suite
from vp3d.evaluate.runner import (
    Found,
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
from vp3d.metrics.attributes import JUDGE_GROUND
from vp3d.prompts import strip_view
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.report.pictures import (
    ELEVATION_DEG,
    GROUND,
    labelled,
    resized,
    ring_frames,
    save_image,
    sheet,
    to_uint8,
)
from vp3d.report.video import write_turntable
from vp3d.rewards.encoders import ClipEncoder, load_clip
from vp3d.system.console import say
from vp3d.types import Mesh
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
SOLID = 0.55  # share of the cube [-1, 1]^3 that no object of this world comes near
SIZE, SHOWN, SHOWN_VIEWS = 128, 96, 8  # pixels of a judged and of a shown view, shown views
POSE: tuple[str, ...] = (
    "yaw_deg",
    "scale",
    "shift",
    "light",
    "volume",
)  # of the figures, what is no quality
JUDGES = tuple(
    (str(ASSETS / name), str(MANIFEST)) for name in ("judge", "clip")
)  # weights that a result depends on
NOTHING = {
    "all": 0.0,
    "objects": 0.0,
    "colors": 0.0,
    "r_precision": 0.0,
    "iou": 0.0,
    "fscore": 0.0,
    "view_agreement": 0.0,
}

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
    """What judges: the toybox's judge, CLIP, and CLIP's features of every caption a view may be taken for."""

    judge: Judge
    clip: ClipEncoder
    texts: dict[str, Tensor]


@lru_cache(maxsize=1)
def judges() -> Judges:
    """The embedded judges, loaded once a process; the captions are those of the whole suite."""
    clip = load_clip(str(ASSETS / "clip"), str(MANIFEST))
    prompts = list(
        dict.fromkeys(entry.prompt for name in SETS for entry in read_suite(suite_file(name)))
    )
    return Judges(
        load_judge(ASSETS / "judge", MANIFEST),
        clip,
        dict(zip(prompts, clip.text(prompts), strict=True)),
    )


def suite_file(name: str) -> Path:
    """The prompt file of a set."""
    return ROOT / "assets" / "prompts" / f"toybench_{name}.txt"


def suite_tasks(subset: str, seeds: int) -> list[Task]:
    """The tasks of the suite, `all` or its subset `mini`; each prompt with its own seed and the `seeds` - 1 after it."""
    found = []
    for name in SETS:
        entries = read_suite(suite_file(name))[: MINI if subset == "mini" else None]
        for number, entry in enumerate(entries, 1):
            for seed in range(entry.seed, entry.seed + seeds):
                found.append(
                    Task(name, entry.prompt, seed, f"{name}-{key_of(number, entry.prompt, seed)}")
                )
    return found


def folder_tasks(folder: Path) -> list[Task]:
    """The tasks of a folder of meshes; UserError for a name that is no caption of the toybox."""
    tasks = []
    for number, (written, seed, path) in enumerate(find_assets(folder), 1):
        prompt = strip_view(written)  # the spelling that a run takes for the same prompt
        try:
            spec = parse_caption(prompt)
        except ValueError as error:
            raise UserError(
                f"{path.name}: {error}; name the file by its caption, as in 'a-red-sphere.glb'"
            ) from error
        group = "relation" if spec.relation else "parts" if spec.accent else "single"
        tasks.append(asset_task(number, group, prompt, seed, path))
    return sorted(tasks, key=lambda task: SETS.index(task.group))


def judge_asset(settings: Settings, task: Task) -> Record:
    """The record of one asset: figures, those of its visual prompt (`drawn`) and of the exact scene (`true`), and a picture."""
    spec, found = parse_caption(task.prompt), find_mesh(settings, task)
    asked = {"parts": bool(spec.accent), "relation": bool(spec.relation)}
    figures: dict[str, Any] = NOTHING | {name: 0.0 for name, told in asked.items() if told}
    failure, reason, pose = found.failure, found.reason, None
    if found.mesh is not None:
        compared = measure(found.mesh, spec, LIGHTS if task.source else LIGHTS[:1])
        pose = {key: compared.pop(key) for key in POSE if key in compared}
        failure = failed(found.mesh, pose)
        reason = f"the mesh is {failure}" if failure else ""
        if not failure:
            figures = compared | by_prompt(views_of(found.mesh), task.prompt)
        picture(found, task.prompt, settings.result(task).with_suffix(".png"))
        write_turn(found, settings.result(task))
        turn = to_uint8(true_rgb(true_pictures(spec, azimuths(FRAMES), GROUND, SIDE)))
        write_turntable(turn, true_turn(settings.result(task)).with_suffix(".mp4"), FPS, warn=say)
    return {
        "set": task.group, "prompt": task.prompt, "seed": task.seed, "failure": failure, "reason": reason,
        "source": str(found.folder or task.source), "figures": figures | {"seconds": found.seconds}, "pose": pose,
        "drawn": drawn(found, spec), "true": by_prompt(true_views(spec), task.prompt),
    }  # fmt: skip


def failed(mesh: Mesh, pose: dict[str, Any]) -> str:
    """ "empty" for a mesh that encloses nothing, "solid" for one that fills the cube, "nan" for colours that are no numbers."""
    if "volume" not in pose:
        return "empty"
    if mesh.vertex_colors is not None and not np.isfinite(mesh.vertex_colors).all():
        return "nan"
    return "solid" if pose["volume"] > 8.0 * SOLID else ""


def measure(mesh: Mesh, spec: Spec, lights: tuple[str, ...]) -> dict[str, Any]:
    """The mesh against its true scene: the figures of `truth.compare` and `janus.janus_figures`; nothing for one without volume."""
    truth = truth_of(spec)
    found = compare(mesh, truth, lights)
    if found is None:
        return {}
    return {**found.figures, **janus_figures(found, truth)}


def views_of(mesh: Mesh) -> Tensor:
    """The judged views [24, 3, S, S] in [0, 1] of a mesh, unlit, on the judge's ground."""
    return render_mesh(
        mesh, ring(VIEWS, ELEVATION_DEG, DISTANCE, FOV_DEG), SIZE, SIZE, JUDGE_GROUND
    )[0]


def true_views(spec: Spec) -> Tensor:
    """The same views of the true scene."""
    return true_rgb(true_pictures(spec, azimuths(VIEWS), JUDGE_GROUND, SIZE))


@torch.no_grad()
def by_prompt(rgb: Tensor, prompt: str) -> dict[str, Any]:
    """What judge and CLIP say of the 24 views rgb [24, 3, H, H] in [0, 1], given nothing but the prompt."""
    known, spec = judges(), parse_caption(prompt)
    texts = (
        known.texts
        if prompt in known.texts
        else known.texts | {prompt: known.clip.text([prompt])[0]}
    )
    expected = expected_views(true_pictures(spec, azimuths(VIEWS), JUDGE_GROUND, 64))
    return {
        **verdict(known.judge, rgb, spec, expected),
        "r_precision": r_precision(known.clip, rgb, prompt, texts),
    }


def drawn(found: Found, spec: Spec) -> dict[str, Any] | None:
    """What the judge says of the run's visual prompt, taken for a front view; None where there is none."""
    shown = visual_prompt(found)
    if shown is None:
        return None
    rgb = torch.from_numpy(shown).permute(2, 0, 1)[None].float() / 255.0
    return dict(
        verdict(
            judges().judge, rgb, spec, expected_views(true_pictures(spec, [0.0], JUDGE_GROUND, 64))
        )
    )


def visual_prompt(found: Found) -> np.ndarray | None:
    """The run's visual prompt, uint8 [H, W, 3], as it was cut out; None where there is none."""
    path = None if found.folder is None else found.folder / "visual_prompt" / "cutout.png"
    if path is None or not path.is_file():
        return None
    with Image.open(path) as shown:
        return np.array(shown.convert("RGB"))


def picture(found: Found, prompt: str, path: Path) -> None:
    """Two rows of eight views, the asset above the true object, after the visual prompt where there is one."""
    if found.mesh is None:
        return
    spec, camera = parse_caption(prompt), CameraConfig(distance=DISTANCE, fov_deg=FOV_DEG)
    own = ring_frames(found.mesh, SHOWN_VIEWS, SHOWN, camera)
    true = to_uint8(true_rgb(true_pictures(spec, azimuths(SHOWN_VIEWS), GROUND, SHOWN)))
    first, title = np.full((SHOWN, SHOWN, 3), 250, np.uint8), "asset"
    if (shown := visual_prompt(found)) is not None:
        first, title = resized(shown, SHOWN), "visual prompt"
    labels = [f"{azimuth:.0f}°" for azimuth in azimuths(SHOWN_VIEWS)]
    above = [labelled(first, title), *(labelled(v, t) for v, t in zip(own, labels, strict=True))]
    blank = np.full_like(first, 250)
    below = [
        labelled(blank, "true object"),
        *(labelled(v, t) for v, t in zip(true, labels, strict=True)),
    ]
    save_image(sheet([above, below]), path)

"""The household suite: 72 prompts (`assets/prompts/household.txt`), judged from outside.

The outside judge (`metrics/photo_judge.py`) was trained on photographs. It names eight views of
each asset; the mean over the views counts. The same is measured of the drawing that the asset was
made from, and of the true meshes in the same cameras on the same background: the ceiling. The
figure to quote is the share of that ceiling (`share_of_ceiling`).

Shapes and colours are compared with the nearest true mesh of the caption (`library_truth`), and
apart with the nearest one that no training has (`iou_held_out`): what was only memorised is nearer
to the meshes of the training. Prompts are in four sets: "noun", "colour", "relation", and "held
out" for pairs of colour and noun that no caption of the training has. Own judge and R-precision are
measured where the household's models are.

The small library of the repository has a few nouns; `--library` names a folder with all of them
(`python -m vp3d.worlds.household_pack`). Figures of a noun without meshes are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vp3d.config.paths import ROOT
from vp3d.errors import UserError
from vp3d.evaluate.html import write_asset_turntable
from vp3d.evaluate.intervals import mean_interval
from vp3d.evaluate.prompt_file import read_suite, with_seeds
from vp3d.evaluate.prompt_tasks import hash_of
from vp3d.evaluate.results_folder import WeightSource
from vp3d.evaluate.runner import (
    Record,
    Settings,
    Task,
    asset_task,
    find_assets,
    find_mesh,
    key_of,
    record_head,
)
from vp3d.evaluate.statistics import Figure
from vp3d.evaluate.toybench import SHOWN_SIZE, SHOWN_VIEWS, visual_prompt, write_views
from vp3d.metrics.attribute_judge import Judge, judge_views, load_judge
from vp3d.metrics.attributes import JUDGE_BACKGROUND, PASS_SHARE, check_view
from vp3d.metrics.photo_judge import CLASSES, PhotoJudge, load_photo_judge, photo_judge_file
from vp3d.prompts import strip_view
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.report.pictures import BACKGROUND, ELEVATION_DEG
from vp3d.rewards.encoders import ClipEncoder, load_clip
from vp3d.types import Mesh
from vp3d.worlds.household import HOUSEHOLD, HOUSEHOLD_PART
from vp3d.worlds.library import TABLE, Library, held_out_names, read_table
from vp3d.worlds.library_captions import LibrarySpec, parse_caption
from vp3d.worlds.library_data import scene_of
from vp3d.worlds.library_truth import Match, nearest, true_pictures, true_specs
from vp3d.worlds.toybox.data import DISTANCE, FOV_DEG, to_tensor
from vp3d.worlds.toybox.prompt_check import r_precision
from vp3d.worlds.toybox.scenes import is_held_out

PROMPTS = ROOT / "assets" / "prompts" / "household.txt"
MANIFEST = HOUSEHOLD / "MANIFEST.json"
VIEWS, SIZE = 8, 128  # judged views, pixels of a side
MOST_TRUE = 6  # true meshes of a prompt whose pictures are judged
OUTSIDE = ("outside_top1", "outside_top5")
FIGURES = {
    "outside_top1": Figure("outside judge, top 1"),
    "outside_top5": Figure("outside judge, top 5"),
    "passed": Figure("own judge, 6 of 8 views"),
    "objects": Figure("own judge, objects"),
    "colors": Figure("own judge, colours"),
    "r_precision": Figure("CLIP R-precision"),
    "iou": Figure("silhouette IoU", share=False),
    "iou_held_out": Figure("silhouette IoU, held-out meshes", share=False, counted=True),
    "depth_error": Figure("depth error", share=False),
    "color_error": Figure("colour error, CIEDE2000", share=False),
    "view_agreement": Figure("view agreement"),
    "janus": Figure("Janus score", share=False, counted=True),
    "two_faced": Figure("Janus rate", counted=True),
    "seconds": Figure("seconds", share=False),
}


def own_models() -> tuple[WeightSource, ...]:
    """The judges of the household's models, as far as they are there."""
    names = [name for name in ("judge", "measuring_clip") if (HOUSEHOLD / name).is_dir()]
    return tuple((str(HOUSEHOLD / name), str(MANIFEST)) for name in names)


def judge_sources() -> list[WeightSource]:
    """All weights that a record depends on; the outside judge is converted if it is new.

    Raises:
        UserError: The outside judge is not installed.
    """
    outside()
    return [(str(photo_judge_file().parent), ""), *own_models()]


@lru_cache(maxsize=1)
def outside() -> PhotoJudge:
    """The outside judge, loaded once a process."""
    return load_photo_judge()


@lru_cache(maxsize=1)
def own_judge() -> Judge | None:
    """The judge of the household's models; None if it is not there."""
    folder = HOUSEHOLD / "judge"
    return load_judge(folder, MANIFEST) if folder.is_dir() else None


@lru_cache(maxsize=1)
def measuring_clip() -> tuple[ClipEncoder, dict[str, Tensor]] | None:
    """The measuring CLIP and the text features of the suite; None if it is not there."""
    folder = HOUSEHOLD / "measuring_clip"
    if not folder.is_dir():
        return None
    clip = load_clip(str(folder), str(MANIFEST))
    prompts = [entry.prompt for entry in read_suite(PROMPTS)]
    return clip, dict(zip(prompts, clip.text(prompts), strict=True))


@lru_cache(maxsize=2)
def library_of(folder: Path) -> Library:
    """The true meshes, opened once a process."""
    return Library(folder)


@lru_cache(maxsize=1)
def nouns() -> frozenset[str]:
    """Every noun of the household's table."""
    return frozenset(row.noun for row in read_table(HOUSEHOLD / TABLE))


def suite_tasks(seeds: int) -> list[Task]:
    """The tasks of the suite, set by set; each prompt has its own seed and those after it."""
    found = []
    for number, prompt, seed in with_seeds(read_suite(PROMPTS), seeds):
        group = set_of(parse_caption(prompt, nouns()))
        key = f"{key_of(number, prompt, seed)}-{hash_of(group, prompt, seed)}"
        found.append(Task(group, prompt, seed, key))
    return found


def folder_tasks(folder: Path) -> list[Task]:
    """The tasks of a folder of meshes or runs.

    Raises:
        UserError: A prompt is not a caption of the household.
    """
    tasks = []
    for number, (written, seed, path) in enumerate(find_assets(folder), 1):
        prompt = strip_view(written)
        try:
            group = set_of(parse_caption(prompt, nouns()))
        except ValueError as error:
            raise UserError(
                f"{path.name}: {error}; name the file by its caption, as in 'a-red-armchair.glb'"
            ) from error
        tasks.append(asset_task(number, group, prompt, seed, path))
    return tasks


def set_of(spec: LibrarySpec) -> str:
    """The set that a caption belongs to."""
    if any(part.color and is_held_out(part.color, part.noun) for part in (spec, spec.second)):
        return "held out"
    return "relation" if spec.relation else "colour" if spec.color else "noun"


def judge_asset(settings: Settings, task: Task, library: Path = HOUSEHOLD_PART) -> Record:
    """Generates or reads the task's asset, judges it and draws it next to the nearest true mesh.

    Returns:
        The record: "figures" of the asset, "drawn" of the picture it was made from, "true" of the
        true meshes, and "nearest", the name of the nearest one.
    """
    spec, found = parse_caption(task.prompt, nouns()), find_mesh(settings, task)
    meshes = library_of(library)
    specs = true_specs(meshes, spec)
    figures = failure_figures(spec, bool(specs))
    name = ""  # of the nearest mesh
    if found.mesh is not None:
        figures = by_pictures(views_of(found.mesh), spec, task.prompt)
        matches = nearest(found.mesh, meshes, specs)
        figures |= shape_figures(matches, spec)
        name = matches[0].spec.mesh if matches else ""
        true = nearest_pictures(meshes, matches)
        write_views(found, true, name, settings.result(task).with_suffix(".png"))
        write_asset_turntable(found, settings.result(task))
    drawing = visual_prompt(found)
    return {
        **record_head(task, found),
        "figures": figures | {"seconds": found.seconds},
        "nearest": name,
        "drawn": None if drawing is None else by_pictures(to_tensor(drawing[None]), spec, ""),
        "true": true_figures(meshes, specs, spec, task.prompt),
    }


def nearest_pictures(library: Library, matches: Sequence[Match]) -> np.ndarray | None:
    """`SHOWN_VIEWS` views [8, S, S, 3] uint8 of the nearest true mesh; None if there is none."""
    if not matches:
        return None
    scene = scene_of(library, matches[0].spec)
    return true_pictures(scene, SHOWN_VIEWS, BACKGROUND, SHOWN_SIZE)


def failure_figures(spec: LibrarySpec, has_truth: bool) -> dict[str, Any]:
    """What counts 0 after a failure: each share that would have been measured, and the IoU."""
    blank = by_pictures(torch.full((1, 3, SIZE, SIZE), JUDGE_BACKGROUND), spec, "")
    figures = {name: 0.0 for name, value in blank.items() if value is not None}
    return figures | (dict.fromkeys(("iou", "view_agreement"), 0.0) if has_truth else {})


def shape_figures(matches: Sequence[Match], spec: LibrarySpec) -> dict[str, Any]:
    """The figures of the nearest true mesh, and the IoU with the nearest held-out one."""
    if not matches:
        return {}
    figures = matches[0].figures()
    if not spec.color:  # a mesh may have other colours of its own
        figures["color_error"] = None
    new = held_out_names(read_table(HOUSEHOLD / TABLE))
    unseen = [m.iou for m in matches if m.spec.mesh in new and m.spec.mesh_b in {"", *new}]
    return figures | {"iou_held_out": unseen[0] if unseen else None}


def true_figures(
    library: Library, specs: Sequence[LibrarySpec], spec: LibrarySpec, prompt: str
) -> dict[str, Any]:
    """What the judges say of the true meshes of a caption: means over at most `MOST_TRUE`."""
    if not specs:
        return {}
    step = max(len(specs) // MOST_TRUE, 1)
    found = []
    for one in specs[::step][:MOST_TRUE]:
        rgb = to_tensor(true_pictures(scene_of(library, one), VIEWS, JUDGE_BACKGROUND, SIZE))
        found.append(by_pictures(rgb, spec, prompt))
    return {
        name: None if value is None else float(np.mean([row[name] for row in found]))
        for name, value in found[0].items()
    }


def views_of(mesh: Mesh) -> Tensor:
    """The judged views `[8, 3, S, S]` in [0, 1] of a mesh: unlit, on the judge's background."""
    cameras = ring(VIEWS, ELEVATION_DEG, DISTANCE, FOV_DEG)
    return render_mesh(mesh, cameras, SIZE, SIZE, JUDGE_BACKGROUND)[0]


@torch.no_grad()
def by_pictures(rgb: Tensor, spec: LibrarySpec, prompt: str) -> dict[str, Any]:
    """What the judges find in pictures rgb `[B, 3, H, W]` in [0, 1] of one thing.

    Args:
        rgb: the pictures.
        spec: the caption.
        prompt: the caption in words, for R-precision; "" leaves that out.

    Returns:
        A value for each figure that the pictures alone decide; None for one that does not apply.
    """
    figures: dict[str, Any] = dict.fromkeys((*OUTSIDE, "passed", "objects", "colors"))
    if spec.noun in CLASSES and not spec.relation:
        said = outside().judge(rgb, spec.noun)
        figures |= dict(zip(OUTSIDE, (float(said.top1), float(said.top5)), strict=True))
    judge = own_judge()
    if judge is not None and spec.noun in judge.values["object_a"]:
        figures |= named_shares(judge, rgb, spec)
    known = measuring_clip()
    if known is not None and prompt in known[1]:
        figures["r_precision"] = r_precision(known[0], rgb, prompt, known[1])
    return figures


def named_shares(judge: Judge, rgb: Tensor, spec: LibrarySpec) -> dict[str, Any]:
    """Shares of pictures in which the household's judge names objects and colours right."""
    values = {
        "object_a": spec.noun,
        "color_a": spec.color,
        "relation": spec.relation or "none",
        "object_b": spec.noun_b or "none",
        "color_b": spec.color_b,
    }
    expected = {k: v for k, v in values.items() if v and k in judge.values}
    found = [check_view(named, expected) for named in judge_views(judge, rgb)]
    names = ("objects", "colors", "right")
    shares = {name: float(np.mean([view[name] for view in found])) for name in names}
    passed = float(shares.pop("right") >= PASS_SHARE)
    has_color = spec.color or spec.color_b
    return {"passed": passed, **shares, "colors": shares["colors"] if has_color else None}


def share_of_ceiling(
    records: Sequence[Record], part: str, name: str = "outside_top5"
) -> dict[str, float] | None:
    """The mean of a figure as a share of its mean over the true meshes, over prompts with both.

    The interval is that of the mean of `figure - share * ceiling`, divided by the mean ceiling
    (the delta method): it covers as `mean_interval` does, where the ceiling is well known.

    Returns:
        "share", "low", "high" and "count" (prompts); None for fewer than two prompts or a ceiling
        of 0.
    """
    rows: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        own, true = (record.get(part) or {}).get(name), (record.get("true") or {}).get(name)
        if own is not None and true is not None:
            rows.setdefault(record["prompt"], []).append((float(own), float(true)))
    pairs = torch.tensor([np.mean(v, axis=0).tolist() for v in rows.values()], dtype=torch.float64)
    if len(pairs) < 2 or float(pairs[:, 1].mean()) <= 0.0:
        return None
    ceiling = float(pairs[:, 1].mean())
    share = float(pairs[:, 0].mean()) / ceiling
    rest = pairs[:, 0] - share * pairs[:, 1]
    low, high = mean_interval(rest, torch.Generator().manual_seed(0))
    ends = {"low": max(share + low / ceiling, 0.0), "high": share + high / ceiling}
    return {"share": share, **ends, "count": float(len(pairs))}


def ceiling_lines(records: Sequence[Record]) -> list[str]:
    """A line for drawings and one for assets: their share of the ceiling of the outside judge."""
    lines = []
    for part, label in (("drawn", "drawings"), ("figures", "assets")):
        found = share_of_ceiling(records, part)
        if found is not None:
            lines.append(
                f"{label}: {found['share']:.0%} of the ceiling [{found['low']:.0%}, "
                f"{found['high']:.0%}] (outside judge, top 5, {found['count']:.0f} prompts)"
            )
    return lines

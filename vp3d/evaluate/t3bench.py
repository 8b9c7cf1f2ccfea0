"""T3Bench's protocol: quality, and alignment if a grader is chosen.

The assets are generated here or read from a folder. The prompts are the user's own copy: text files
with one prompt a line (T3Bench's `data/prompt_single.txt` and so on). A set has the name of its
file, with its folder if two files have one name. `vp3d/metrics/t3bench.py` has the protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from vp3d.config.paths import ASSETS, MANIFEST, locate
from vp3d.config.schema import CameraConfig, RewardsConfig
from vp3d.errors import UserError
from vp3d.evaluate.html import write_asset_turntable
from vp3d.evaluate.prompt_file import read_suite
from vp3d.evaluate.prompt_tasks import file_tasks, set_names
from vp3d.evaluate.results_folder import WeightSource
from vp3d.evaluate.runner import (
    Record,
    Settings,
    Task,
    asset_task,
    find_assets,
    find_mesh,
    record_head,
)
from vp3d.evaluate.statistics import Figure
from vp3d.metrics.attribute_judge import load_judge
from vp3d.metrics.scorers import (
    ChatEndpoint,
    ClipScorer,
    ImageRewardScorer,
    JudgeCaptioner,
    WordGrader,
)
from vp3d.metrics.t3bench import SIZE, Captioner, Grader, Scorer, alignment, quality
from vp3d.prompts import strip_view
from vp3d.report.pictures import labelled, ring_frames, save_image, sheet
from vp3d.rewards.encoders import load_clip
from vp3d.rewards.imagereward import load_imagereward
from vp3d.types import Mesh
from vp3d.worlds.toybox.scenes import words

SCORERS, GRADERS = ("clip", "imagereward"), ("none", "judge", "endpoint")
SHOWN_VIEWS, SHOWN_SIZE = 8, 96  # views in the picture, and their pixels of a side
FIGURES = {
    "quality": Figure("quality", share=False),
    "alignment": Figure("alignment", share=False),
    "average": Figure("average", share=False),
    "seconds": Figure("seconds", share=False),
}


@dataclass(frozen=True)
class Protocol:
    """Scorer and grader by name, so that they can be passed to another process.

    Attributes:
        scorer: one of `SCORERS`.
        grader: one of `GRADERS`.
        endpoint: URL of the server of the grader "endpoint".
        endpoint_model: its model.
        size: pixels of a side of the scored pictures.
    """

    scorer: str = "clip"
    grader: str = "none"
    endpoint: str = ""
    endpoint_model: str = ""
    size: int = SIZE


@lru_cache(maxsize=1)
def scorer_of(name: str, location: str, manifest: str, device: str) -> Scorer:
    """Loads a scorer, once a process.

    Args:
        name: one of `SCORERS`.
        location: its weights.
        manifest: the manifest that covers them, "" for none.
        device: where it runs.

    Returns:
        The scorer.
    """
    if name == "imagereward":
        return ImageRewardScorer(load_imagereward(location, device))
    return ClipScorer(load_clip(location, manifest, device))


def weight_sources(protocol: Protocol, rewards: RewardsConfig, manifest: str) -> list[WeightSource]:
    """The weights that scores and grades depend on, the scorer's first.

    Args:
        protocol: the scorer and the grader.
        rewards: names the weights of the scorers.
        manifest: the manifest that covers CLIP.
    """
    scorer = (rewards.imagereward, "")
    if protocol.scorer != "imagereward":
        scorer = (rewards.clip, manifest)
    if protocol.grader == "judge":
        return [scorer, (str(ASSETS / "judge"), str(MANIFEST))]
    return [scorer]


def configured_scorer(protocol: Protocol, settings: Settings) -> Scorer:
    """The protocol's scorer with the configured weights; on the GPU if there is one."""
    config = settings.config()
    location, manifest = weight_sources(protocol, config.rewards, config.prior.manifest)[0]
    on_gpu = config.backend != "cpu" and torch.cuda.is_available()
    return scorer_of(protocol.scorer, location, manifest, "cuda" if on_gpu else "cpu")


@lru_cache(maxsize=1)
def grader_of(protocol: Protocol) -> tuple[Captioner, Grader] | None:
    """Captioner and grader, or None for the grader "none"."""
    if protocol.grader == "endpoint":
        chat = ChatEndpoint(protocol.endpoint, protocol.endpoint_model)
        return chat, chat
    if protocol.grader == "judge":
        return JudgeCaptioner(load_judge(ASSETS / "judge", MANIFEST)), WordGrader()
    return None


def prompt_tasks(files: Sequence[Path], seeds: int) -> list[Task]:
    """A task for each prompt of each file and each of `seeds` seeds.

    Raises:
        UserError: no file is given, or one cannot be read.
    """
    if not files:
        raise UserError(
            "--suite t3bench needs --prompts FILE (your own copy, one prompt a line) "
            "or --assets DIR; give one of them"
        )
    located = [locate(str(file)) for file in files]
    set_names(located)  # refuses a file that is given twice
    return file_tasks({file: list(enumerate(read_suite(file), 1)) for file in located}, seeds)


def folder_tasks(folder: Path) -> list[Task]:
    """The tasks of a folder of meshes, as one set."""
    return [asset_task(n, folder.name, *found) for n, found in enumerate(find_assets(folder), 1)]


def check_protocol(protocol: Protocol, tasks: Sequence[Task], settings: Settings) -> None:
    """Loads scorer and grader before any asset is generated.

    Raises:
        UserError: weights are missing, or the grader "judge" does not know a word of a prompt.
    """
    configured_scorer(protocol, settings)
    grader_of(protocol)
    if protocol.grader != "judge":
        return
    known = set(words())
    for task in tasks:
        if not set(strip_view(task.prompt).replace(",", " ").split()) <= known:
            raise UserError(
                f"--grader judge knows only the toybox's words, not {task.prompt!r}; "
                "use --grader endpoint or none"
            )


def judge_with(protocol: Protocol) -> partial[Record]:
    """`judge_asset` for this protocol."""
    return partial(judge_asset, protocol)


def judge_asset(protocol: Protocol, settings: Settings, task: Task) -> Record:
    """Generates or reads the task's asset, scores it and draws it.

    Returns:
        The record: quality, alignment and their average; a missing mesh is scored as black
        pictures.
    """
    found = find_mesh(settings, task)
    scorer, grader = configured_scorer(protocol, settings), grader_of(protocol)
    figures: dict[str, Any] = dict(quality(found.mesh, task.prompt, scorer, protocol.size))
    if grader is not None:
        figures |= alignment(found.mesh, task.prompt, *grader)
        figures["average"] = 0.5 * (figures["quality"] + figures["alignment"])
    captions = figures.pop("captions", None)
    if found.mesh is not None:
        write_views(found.mesh, settings.result(task).with_suffix(".png"))
        write_asset_turntable(found, settings.result(task))
    return {
        **record_head(task, found),
        "figures": figures | {"seconds": found.seconds},
        "captions": captions,
    }


def write_views(mesh: Mesh, path: Path) -> None:
    """Draws eight views of an asset in a row."""
    views = ring_frames(mesh, SHOWN_VIEWS, SHOWN_SIZE, CameraConfig())
    save_image(sheet([[labelled(view, f"{45 * i}°") for i, view in enumerate(views)]]), path)

"""T3Bench's protocol on assets made here or lying in a folder: quality, and alignment where someone captions and grades.

The prompts are the user's own copy: text files with one prompt a line (T3Bench's `data/prompt_single.txt` and so on); a set is
named after its file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from vp3d.config.paths import ASSETS, MANIFEST, locate
from vp3d.config.schema import CameraConfig, Config
from vp3d.errors import UserError
from vp3d.evaluate.html import write_turn
from vp3d.evaluate.prompt_file import read_suite
from vp3d.evaluate.results_folder import Location
from vp3d.evaluate.runner import Record, Settings, Task, asset_task, find_assets, find_mesh, key_of
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
FIGURES = {
    "quality": Figure("quality", share=False),
    "alignment": Figure("alignment", share=False),
    "average": Figure("average", share=False),
    "seconds": Figure("seconds", share=False),
}


@dataclass(frozen=True)
class Protocol:
    """Who scores and grades, by name, so that it can travel to another process; `size` pixels a side of the scored pictures."""

    scorer: str = "clip"
    grader: str = "none"
    endpoint: str = ""
    endpoint_model: str = ""
    size: int = SIZE


@lru_cache(maxsize=1)
def scorer_of(name: str, place: str, manifest: str, device: str) -> Scorer:
    """The scorer called `name`, its weights at `place`, loaded once a process."""
    if name == "imagereward":
        return ImageRewardScorer(load_imagereward(place, device))
    return ClipScorer(load_clip(place, manifest, device))


def locations_of(protocol: Protocol, config: Config) -> list[Location]:
    """The weights that scores and grades depend on, the scorer's first."""
    if protocol.scorer == "imagereward":
        scorer = (config.rewards.imagereward, "")
    else:
        scorer = (config.rewards.clip, config.prior.manifest)
    return (
        [scorer, (str(ASSETS / "judge"), str(MANIFEST))] if protocol.grader == "judge" else [scorer]
    )


def configured_scorer(protocol: Protocol, config: Config) -> Scorer:
    """The scorer of `protocol` with the weights that the configuration names; on the GPU where there is one."""
    place, manifest = locations_of(protocol, config)[0]
    on_gpu = config.backend != "cpu" and torch.cuda.is_available()
    return scorer_of(protocol.scorer, place, manifest, "cuda" if on_gpu else "cpu")


@lru_cache(maxsize=1)
def grader_of(protocol: Protocol) -> tuple[Captioner, Grader] | None:
    """Captioner and grader, or None when nobody was asked for."""
    if protocol.grader == "endpoint":
        chat = ChatEndpoint(protocol.endpoint, protocol.endpoint_model)
        return chat, chat
    if protocol.grader == "judge":
        return JudgeCaptioner(load_judge(ASSETS / "judge", MANIFEST)), WordGrader()
    return None


def prompt_tasks(files: Sequence[Path], seeds: int) -> list[Task]:
    """A task for each prompt of each file and each of `seeds` seeds."""
    if not files:
        raise UserError(
            "--suite t3bench needs --prompts FILE (your own copy, one prompt a line), or --assets DIR"
        )
    found = []
    for file in files:
        for number, entry in enumerate(read_suite(locate(str(file))), 1):
            for seed in range(entry.seed, entry.seed + seeds):
                found.append(
                    Task(
                        file.stem,
                        entry.prompt,
                        seed,
                        f"{file.stem}-{key_of(number, entry.prompt, seed)}",
                    )
                )
    return found


def folder_tasks(folder: Path) -> list[Task]:
    """The tasks of a folder of meshes, as one set."""
    return [asset_task(n, folder.name, *found) for n, found in enumerate(find_assets(folder), 1)]


def check_protocol(protocol: Protocol, tasks: Sequence[Task], settings: Settings) -> None:
    """Load who scores and grades, so that what is missing is told before anything is made."""
    config = settings.config()
    configured_scorer(protocol, config)
    grader_of(protocol)
    if protocol.grader == "judge":
        known = set(words())
        strange = next(
            (
                t.prompt
                for t in tasks
                if not set(strip_view(t.prompt).replace(",", " ").split()) <= known
            ),
            None,
        )
        if strange is not None:
            raise UserError(
                f"--grader judge knows the toybox's words alone, not {strange!r}; use --grader endpoint or none"
            )


def judge_with(protocol: Protocol) -> partial[Record]:
    """`judge_asset` for this protocol."""
    return partial(judge_asset, protocol)


def judge_asset(protocol: Protocol, settings: Settings, task: Task) -> Record:
    """The record of one asset: quality, alignment and their average; a missing mesh is scored as black pictures."""
    found, config = find_mesh(settings, task), settings.config()
    scorer, grader = configured_scorer(protocol, config), grader_of(protocol)
    figures: dict[str, Any] = dict(quality(found.mesh, task.prompt, scorer, protocol.size))
    if grader is not None:
        figures |= alignment(found.mesh, task.prompt, *grader)
        figures["average"] = 0.5 * (figures["quality"] + figures["alignment"])
    captions = figures.pop("captions", None)
    if found.mesh is not None:
        picture(found.mesh, settings.result(task).with_suffix(".png"))
        write_turn(found, settings.result(task))
    return {
        "set": task.group, "prompt": task.prompt, "seed": task.seed, "failure": found.failure, "reason": found.reason,
        "source": str(found.folder or task.source), "figures": figures | {"seconds": found.seconds}, "captions": captions,
    }  # fmt: skip


def picture(mesh: Mesh, path: Path) -> None:
    """Eight views of an asset in a row."""
    views = ring_frames(mesh, 8, 96, CameraConfig())
    save_image(sheet([[labelled(view, f"{45 * i}°") for i, view in enumerate(views)]]), path)

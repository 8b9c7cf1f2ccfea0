"""Make one candidate of an asset of a batch, score it and draw it."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

from vp3d.batch.attempts import KilledTooOftenError, noted_attempt
from vp3d.build import Models, load_models
from vp3d.checks import read_prompts
from vp3d.config.schema import CameraConfig
from vp3d.evaluate.gallery import join_tiles
from vp3d.evaluate.runner import (
    FoundAsset,
    Record,
    Settings,
    Task,
    find_mesh,
    read_record,
    record_head,
)
from vp3d.jobs.best_of import SIDE, text_score
from vp3d.jobs.locks import Lock, try_lock
from vp3d.report.pictures import AZIMUTHS, VIEWS, labelled, ring_frames, save_image
from vp3d.runs.terminal import TerminalDisplay

SHOWN = (0, 1, 4, 6)  # which of the views are on the page
LOOK_S = 1.0  # between two attempts at a lock


def make_asset(settings: Settings, task: Task) -> Record:
    """The record of the task's run, which is made, continued, or read if another process made it.

    A request that cannot work, a run that collapses and one that kills its process again and again
    are failures with a reason; they stop no other run.

    Raises:
        ResourceError: memory or disk space ran out.
    """
    lock = wait_for_lock(settings.folder / "locks" / f"{task.key}.lock")
    try:
        done = read_record(settings, task)
        if done is not None:
            return done
        with noted_attempt(settings.runs(task)):
            return record_of(settings, task)
    except KilledTooOftenError as error:
        return failed(task, FoundAsset(None, "killed", str(error)))
    finally:
        lock.release()


def wait_for_lock(path: Path) -> Lock:
    """The lock of a run; another process that works on the same run is waited for."""
    while (lock := try_lock(path)) is None:
        time.sleep(LOOK_S)
    return lock


def record_of(settings: Settings, task: Task) -> Record:
    """Make the asset, draw it for the page, and score it."""
    models = kept_models(settings)
    found = find_mesh(settings, task, models)
    if found.mesh is None or found.folder is None:
        return failed(task, found)
    views = ring_frames(found.mesh, VIEWS, SIDE, CameraConfig())
    picture = join_tiles([labelled(views[n], f"{AZIMUTHS[n]:.0f} degrees") for n in SHOWN])
    save_image(picture, settings.result(task).with_suffix(".jpg"))
    prompt = read_prompts(settings.config(task))[0].prompt  # as the run read it
    score = text_score(found.mesh, prompt, models.judges.text)
    return {
        **record_head(task, found),
        "source": found.folder.relative_to(settings.folder).as_posix(),
        "figures": {"seconds": found.seconds, "score": score},
    }


def failed(task: Task, found: FoundAsset) -> Record:
    """The record of a run without a mesh."""
    return {**record_head(task, found), "source": "", "figures": {}}


@lru_cache(maxsize=1)
def kept_models(settings: Settings) -> Models:
    """The models of the runs, loaded once a process."""
    with TerminalDisplay() as display:
        return load_models(settings.config(), display.watch)

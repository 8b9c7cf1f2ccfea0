"""Make each run once: a finished one is reused, a stopped or killed one is resumed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from vp3d import build, finish, pipeline
from vp3d.checks import changed_weights, read_prompts
from vp3d.config.schema import Config
from vp3d.errors import EmptyFieldError, VP3DError
from vp3d.export.read import read_mesh
from vp3d.report.report import time_spent
from vp3d.runs.events import Note, Warning, Watch
from vp3d.runs.folder import RunFolder
from vp3d.types import Mesh


@dataclass(frozen=True)
class Made:
    """A finished run: its folder, its mesh read back from the file, and the seconds it took."""

    folder: Path
    mesh: Mesh
    seconds: float
    finished: bool = True  # False for a run that was stopped early


def make(
    config: Config,
    work: Path,
    watch: Watch | None = None,
    models: build.Models | None = None,
    may_stop: bool = False,
) -> Made:
    """The one run of `config` below the folder `work`: finished, else resumed, else new.

    Runs of other settings in `work` are left alone, and unfinished ones of other weights too. The
    folder may have been moved since.

    Args:
        config: the request; its `output_dir` is replaced by `work`.
        work: the folder of runs.
        watch: hears the events of `generate`.
        models: from `load_models`, to be kept between calls; None loads them now.
        may_stop: return a run that was stopped early too, `finished` False.

    Returns:
        The run.

    Raises:
        KeyboardInterrupt: the run was stopped early; it is resumed next time.
        VP3DError: what `generate` raises.
    """
    watch = watch or Watch()
    config = dataclasses.replace(config, output_dir=str(work))
    wanted = read_prompts(config)[0]  # a run records its prompt in the words of its priors
    mine = [
        run
        for run in found_runs(work, watch)
        if dataclasses.replace(run.config(), output_dir=str(work)) == wanted
    ]
    done = next((run for run in mine if is_finished(run)), None)
    if done is None:
        started = [run for run in mine if not changed_weights(run, config)]
        newest = started[-1].path if started else None
        asset = pipeline.generate(config, models, watch, resume_from=newest)
        done = RunFolder.open(asset.run_dir)
    finished = is_finished(done)
    if not finished and not may_stop:
        watch.on_event(Note(f"stopped in {done.path}; run the same command again to resume it"))
        raise KeyboardInterrupt
    mesh, seconds = read_mesh(finish.exported(done)), time_spent(done.events())
    return Made(done.path, mesh, seconds, finished)


def found_runs(work: Path, watch: Watch | None = None) -> list[RunFolder]:
    """The runs below `work`, oldest first.

    A folder whose config cannot be read is skipped; `watch` hears a warning that names it.
    """
    found = []
    for path in sorted(work.glob("*/config.yaml")):
        try:
            run = RunFolder.open(path.parent)
            run.config()
        except VP3DError as error:
            if watch is not None:
                watch.on_event(Warning(f"skipping {path.parent}: {error}"))
            continue
        found.append(run)
    return found


def is_finished(run: RunFolder) -> bool:
    """Whether the run came to its end: its last "done" event says that it was not stopped early."""
    done = run.events("done")
    return bool(done) and not done[-1].get("stopped") and any(run.path.glob("model.*"))


def failure_of(error: VP3DError, work: Path) -> str:
    """The kind of a run's failure: "empty" (no surface), "nan" (not finite), else "no mesh"."""
    if isinstance(error, EmptyFieldError):
        return "empty"
    kinds = ("failed", "refine_failed")
    diverged = any(run.events(kind) for run in found_runs(work) for kind in kinds)
    return "nan" if diverged else "no mesh"

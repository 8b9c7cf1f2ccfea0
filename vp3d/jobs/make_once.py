"""Make each run once: a finished one is reused, a stopped or killed one is resumed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from vp3d import build, finish, pipeline
from vp3d.checks import changed_weights
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


def make(config: Config, work: Path, watch: Watch | None = None) -> Made:
    """The one run of `config` below the folder `work`: finished, else resumed, else new.

    Runs of other settings in `work` are left alone, and unfinished ones of other weights too. The
    folder may have been moved since.

    Args:
        config: the request; its `output_dir` is replaced by `work`.
        work: the folder of runs.
        watch: hears the events of `generate`.

    Returns:
        The finished run.

    Raises:
        KeyboardInterrupt: the run was stopped early; it is resumed next time.
        VP3DError: what `generate` raises.
    """
    watch = watch or Watch()
    done = make_or_stop(config, work, watch)
    if not is_finished(done):
        watch.on_event(Note(f"stopped in {done.path}; run the same command again to resume it"))
        raise KeyboardInterrupt
    return Made(done.path, read_mesh(finish.exported(done)), time_spent(done.events()))


def make_or_stop(
    config: Config, work: Path, watch: Watch, models: build.Models | None = None
) -> RunFolder:
    """`make` for a caller that may stop the run: the run's folder, finished or stopped early.

    Args:
        config: as in `make`.
        work: as in `make`.
        watch: hears the events of `generate`, and stops it.
        models: from `load_models`, to be kept between calls.

    Returns:
        The run's folder; `is_finished` says whether the run came to its end.
    """
    config = dataclasses.replace(config, output_dir=str(work))
    mine = [
        run
        for run in found_runs(work, watch)
        if dataclasses.replace(run.config(), output_dir=str(work)) == config
    ]
    done = next((run for run in mine if is_finished(run)), None)
    if done is not None:
        return done
    started = [run for run in mine if not changed_weights(run, config)]
    newest = started[-1].path if started else None
    asset = pipeline.generate(config, models, watch, resume_from=newest)
    return RunFolder.open(asset.run_dir)


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
    return "nan" if any(run.events("failed") for run in found_runs(work)) else "no mesh"

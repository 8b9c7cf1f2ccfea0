"""Many runs, each made once: a finished one is taken as it is, a stopped or killed one goes on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from vp3d import finish, pipeline
from vp3d.checks import changed_weights
from vp3d.config.schema import Config
from vp3d.errors import EmptyFieldError, VP3DError
from vp3d.export.read import read_mesh
from vp3d.report.report import time_spent
from vp3d.runs.folder import RunFolder
from vp3d.system.console import say
from vp3d.types import Mesh


@dataclass(frozen=True)
class Made:
    """A finished run: its folder, its mesh read back from the file, and the seconds it took."""

    folder: Path
    mesh: Mesh
    seconds: float


def make(config: Config, work: Path) -> Made:
    """The one run of `config` below the folder `work`: the finished one, else the unfinished one continued, else a new one.

    Runs of other settings in `work` are left alone, unfinished ones of other weights too. Ctrl-C, which makes a run export
    what there is, is a KeyboardInterrupt here: a run that was cut short is not what was asked for, and goes on next time.
    """
    config = dataclasses.replace(config, output_dir=str(work))
    mine = [run for run in found_runs(work) if run.config() == config]
    done = next((run for run in mine if is_finished(run)), None)
    if done is None:
        begun = [run for run in mine if not changed_weights(run, config)]
        asset = pipeline.generate(config, resume_from=begun[-1].path if begun else None)
        done = RunFolder.open(asset.run_dir)
        if not is_finished(done):
            say(f"stopped in {done.path}; the same command goes on with it")
            raise KeyboardInterrupt
    return Made(done.path, read_mesh(finish.exported(done)), time_spent(done.events()))


def found_runs(work: Path) -> list[RunFolder]:
    """The runs below `work`, oldest first; a folder without a readable configuration is none."""
    return [RunFolder.open(path.parent) for path in sorted(work.glob("*/config.yaml"))]


def is_finished(run: RunFolder) -> bool:
    """Whether the run came to its end: its last word is "done" and it was not stopped before its steps were."""
    done = run.events("done")
    return bool(done) and not done[-1].get("stopped") and any(run.path.glob("model.*"))


def failure_of(error: VP3DError, work: Path) -> str:
    """The kind of a run's failure: "empty" (no surface), "nan" (numbers not finite), else "no mesh"."""
    if isinstance(error, EmptyFieldError):
        return "empty"
    return "nan" if any(run.events("failed") for run in found_runs(work)) else "no mesh"

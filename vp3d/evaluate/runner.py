"""Runs the tasks of a suite once each, in one process or several, and keeps one JSON for each.

A folder of results holds `suite.json` (what was asked: a folder keeps one suite with one set of settings and weights),
`results/<key>.json` with the date and the commit it was made at, and, where meshes are made here, `runs/<key>/<run folder>`.
A result that is there is not made again; delete it to have it made.
With several processes the runs' own lines go to `logs/`, and the machine's cores are shared out among them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numba
import torch

from vp3d.build import load_every_model
from vp3d.checks import check_request
from vp3d.config.loader import load_config
from vp3d.config.paths import ROOT
from vp3d.config.schema import Config
from vp3d.errors import ResourceError, UserError, VP3DError
from vp3d.evaluate.results_folder import Location, keep_to, run_locations, weights_of
from vp3d.export.read import SUFFIXES, fit_to_cube, read_mesh
from vp3d.finish import exported
from vp3d.jobs.make_once import failure_of, make
from vp3d.report.report import time_spent
from vp3d.runs.folder import RunFolder, slug
from vp3d.runs.provenance import git_state
from vp3d.runs.terminal import TerminalDisplay
from vp3d.system.console import clock, say
from vp3d.system.files import plain, sha256_file, write_json
from vp3d.types import Mesh

Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One asset: its set, prompt and seed, its name in the folder, and the mesh or run it is read from ("" to make it)."""

    group: str
    prompt: str
    seed: int
    key: str
    source: str = ""


@dataclass(frozen=True)
class Settings:
    """How assets are made and where everything is kept; `overrides` are key=value words, `files` YAML configurations."""

    folder: Path
    preset: str = "standard"
    files: tuple[Path, ...] = ()
    overrides: tuple[str, ...] = ()

    def config(self, task: Task | None = None) -> Config:
        """The configuration of a run; of `task`, or of none in particular."""
        config = load_config(self.preset, list(self.files), list(self.overrides))
        if task is not None:
            config.prompt, config.seed = task.prompt, task.seed
        return config

    def result(self, task: Task) -> Path:
        """Where the task's record is kept."""
        return self.folder / "results" / f"{task.key}.json"


@dataclass(frozen=True)
class Found:
    """The mesh of a task, or why there is none. `folder` is its run, if it has one; `failure` "" when all went well."""

    mesh: Mesh | None
    failure: str = ""
    reason: str = ""
    folder: Path | None = None
    seconds: float | None = None


Judge = Callable[[Settings, Task], Record]  # makes or finds the task's asset and judges it


def key_of(number: int, prompt: str, seed: int) -> str:
    """A name for a task's files: "03-a-purple-chair-s103"."""
    return f"{number:02d}-{slug(prompt)}-s{seed}"


def find_mesh(settings: Settings, task: Task) -> Found:
    """Make the task's asset, or read it from its source; a mistake or a collapse is a failure with its reason, not an end.

    What only hinders, as too little memory, says nothing of the asset: it is raised.
    """
    work = settings.folder / "runs" / task.key
    try:
        if not task.source:
            with TerminalDisplay() as display:
                made = make(settings.config(task), work, display.watch)
            return Found(made.mesh, folder=made.folder, seconds=made.seconds)
        source = Path(task.source)
        if not source.is_dir():
            return Found(fit_to_cube(read_mesh(source)))
        run = RunFolder(source)
        return Found(
            fit_to_cube(read_mesh(exported(run))),
            folder=source,
            seconds=time_spent(run.events()) or None,
        )
    except ResourceError:
        raise
    except VP3DError as error:
        return Found(None, failure_of(error, work), str(error))


def find_assets(folder: Path) -> list[tuple[str, int, Path]]:
    """(prompt, seed, path) of every mesh file and run folder in `folder`, by name.

    A run folder tells its prompt and seed in its config.yaml. The name of a mesh file is its prompt, words joined by `-` or `_`,
    a number before it and `-s7` (the seed) behind it if need be: `03-a-red-sphere-s7.glb`.
    """
    if not folder.is_dir():
        raise UserError(
            f"--assets {folder} is not a folder; give one that holds mesh files or run folders"
        )
    found = []
    for path in sorted(folder.iterdir()):
        if (path / "config.yaml").is_file():
            config = RunFolder(path).config()
            found.append((config.prompt, config.seed, path))
        elif path.suffix.lower() in SUFFIXES:
            found.append((*_named(path.stem), path))
    if not found:
        raise UserError(
            f"--assets {folder} holds no run folders and no files ending in {', '.join(SUFFIXES)}"
        )
    return found


def _named(stem: str) -> tuple[str, int]:
    words = stem.replace("_", "-").split("-")
    seed = words[-1].removeprefix("s")
    words, number = (
        (words[:-1], int(seed)) if words[-1].startswith("s") and seed.isdecimal() else (words, 0)
    )
    return " ".join(words[1:] if words and words[0].isdecimal() else words), number


def asset_task(number: int, group: str, prompt: str, seed: int, path: Path) -> Task:
    """The task of an asset that is there; its key changes with the mesh, so that a changed mesh is judged anew.

    A run without a mesh yet is a task too: it fails, and is judged once it has one.
    """
    return Task(
        group, prompt, seed, f"{key_of(number, prompt, seed)}-{_state(path)}", str(path.absolute())
    )


def _state(path: Path) -> str:
    try:
        return sha256_file(path if path.is_file() else exported(RunFolder(path)))[:8]
    except UserError:
        return "unfinished"


def lock_to_settings(
    settings: Settings, suite: Mapping[str, Any], judges: Iterable[Location]
) -> None:
    """Take the folder for a suite of these settings, judged by the weights at `judges`; UserError when it holds another's."""
    config = settings.config()
    made = [] if suite.get("assets") else run_locations(config)
    keep_to(settings.folder, {**suite, "config": config, "weights": weights_of([*made, *judges])})


def read_record(settings: Settings, task: Task) -> Record | None:
    """The finished record of a task, or None where there is none, it is damaged, or it is another prompt's of the same name."""
    try:
        record = json.loads(settings.result(task).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    mine = isinstance(record, dict) and (record.get("prompt"), record.get("seed")) == (
        task.prompt,
        task.seed,
    )
    return record if mine and "figures" in record else None


def run_tasks(
    tasks: Sequence[Task], settings: Settings, judge: Judge, jobs: int = 1
) -> list[Record]:
    """The record of every task, in order; what is not there yet is made and judged by `judge` in up to `jobs` processes."""
    records: dict[str, Record | None] = {task.key: read_record(settings, task) for task in tasks}
    missing = [task for task in tasks if records[task.key] is None]
    to_make = [task for task in missing if not task.source]
    for task in to_make:
        check_request(settings.config(task), new=True)
    if to_make:  # weights that are missing must end the suite, not become a failure of every asset
        with TerminalDisplay() as display:
            load_every_model(settings.config(), display.watch)
        torch.cuda.empty_cache()  # of what was loaded to see whether it loads: the device is for those who make the assets
    say(
        f"{len(tasks)} assets, {len(tasks) - len(missing)} of them done; results in {settings.folder}"
    )
    work = partial(_one, settings, judge, git_state(ROOT))
    done = (
        map(work, missing)
        if jobs == 1 or len(missing) < 2
        else _several(work, missing, settings.folder / "logs", jobs)
    )
    began = time.monotonic()
    for number, (key, record) in enumerate(done, 1):
        records[key] = record
        left = (time.monotonic() - began) / number * (len(missing) - number)
        told = f"{record['failure']} ({record['reason']})" if record["failure"] else "judged"
        say(f"{number}/{len(missing)} {record['prompt']}: {told}, {clock(left)} left")
    return [kept for task in tasks if (kept := records[task.key]) is not None]


def _one(
    settings: Settings, judge: Judge, git: dict[str, Any] | None, task: Task
) -> tuple[str, Record]:
    record = plain(judge(settings, task) | {"date": time.strftime("%Y-%m-%d"), "git": git})
    write_json(settings.result(task), record)
    return task.key, record


def _several(
    work: Callable[[Task], tuple[str, Record]], tasks: Sequence[Task], logs: Path, jobs: int
) -> Iterator[tuple[str, Record]]:
    """As `map`, in processes of their own, in the order they finish; UserError when the system kills one of them."""
    logs.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(
        min(jobs, len(tasks)), get_context("spawn"), _start_process, (str(logs), threads)
    )
    try:
        for future in as_completed([pool.submit(work, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            f"one of {jobs} processes was killed, perhaps for want of memory; what was finished is kept in {logs.parent}, "
            "and the same command goes on, with fewer --jobs if need be"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process(logs: str, threads: int) -> None:
    sys.stderr = (Path(logs) / f"{os.getpid()}.txt").open("a", encoding="utf-8", buffering=1)
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))

"""Runs each task of a suite once, in one process or several, and writes a JSON record for each.

A folder of results contains:

    suite.json                    the suite, its settings and weights; a folder keeps to one set
    results/<key>.json            the record of a task, with its date and commit
    runs/<key>/<run folder>       the run, if the asset was generated here
    logs/                         the output of the processes, if there are several

A task with a record is not run again; delete the record to repeat it. Several processes share the
machine's cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vp3d.build import Models, load_every_model
from vp3d.checks import check_request, choose_world, in_world
from vp3d.config.loader import load_config
from vp3d.config.paths import ROOT
from vp3d.config.schema import Config
from vp3d.engine.pool import ALONE, Pool
from vp3d.errors import ResourceError, UserError, VP3DError
from vp3d.evaluate.results_folder import (
    SUITE_FILE,
    WeightSource,
    hash_sources,
    lock_folder,
    run_weight_sources,
)
from vp3d.export.read import SUFFIXES, fit_to_cube, read_mesh
from vp3d.finish import exported
from vp3d.jobs.make_once import failure_of, make
from vp3d.report.report import time_spent
from vp3d.runs.folder import RunFolder, slug
from vp3d.runs.provenance import git_state, machine_name
from vp3d.runs.terminal import TerminalDisplay
from vp3d.system.console import clock, say
from vp3d.system.files import JsonError, plain, read_json_object, sha256_file, write_json
from vp3d.types import Mesh
from vp3d.weights.locate import weight_locations

Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One asset to judge.

    Attributes:
        group: the prompt set it belongs to; each set is a column of the table.
        prompt: the prompt.
        seed: the seed of the run.
        key: the name of its files in the folder of results.
        source: the mesh file or run folder to read; "" to generate the asset.
        image: the reference picture of the run; "" for none, None to keep that of the settings.
        former_key: the key that older versions gave it; "" for the same one.
    """

    group: str
    prompt: str
    seed: int
    key: str
    source: str = ""
    image: str | None = None
    former_key: str = ""


@dataclass(frozen=True)
class Settings:
    """How assets are generated, and the folder of results.

    Attributes:
        folder: the folder of results.
        preset: the preset of the runs.
        files: YAML configurations.
        overrides: key=value words.
        world: the embedded world whose models make the assets, where the configuration names no
            other ones; "" takes for each prompt that whose words it uses.
        light: `export.light` where neither files nor overrides set it: the true scenes of the
            suites are lit in the same way; "" leaves it as `generate` has it.
    """

    folder: Path
    preset: str = "standard"
    files: tuple[Path, ...] = ()
    overrides: tuple[str, ...] = ()
    world: str = ""
    light: str = "baked"

    def config(self, task: Task | None = None) -> Config:
        """The configuration of the runs, with the prompt, seed and picture of `task` if given."""
        base = {"export": {"light": self.light}} if self.light else {}
        config = load_config(self.preset, self.files, self.overrides, base)
        if task is not None:
            config.prompt, config.seed = task.prompt, task.seed
            config.image = config.image if task.image is None else task.image
        return in_world(config, self.world) if self.world else choose_world(config)

    def result(self, task: Task) -> Path:
        """The path of the task's record."""
        return self.folder / "results" / f"{task.key}.json"

    def runs(self, task: Task) -> Path:
        """The folder of the task's runs; that of an older version if there is one."""
        former = self.folder / "runs" / task.former_key
        own = self.folder / "runs" / task.key
        return former if task.former_key and former.is_dir() and not own.exists() else own


@dataclass(frozen=True)
class FoundAsset:
    """The asset of a task, or why there is none.

    Attributes:
        mesh: the mesh, None after a failure.
        failure: the kind of failure, "" if there is none.
        reason: the failure in words.
        folder: the run folder, if the asset has one.
        seconds: how long the run took, if that is known.
    """

    mesh: Mesh | None
    failure: str = ""
    reason: str = ""
    folder: Path | None = None
    seconds: float | None = None


def record_head(task: Task, found: FoundAsset) -> Record:
    """What the record of an asset says in every suite; its figures follow."""
    return {
        "set": task.group,
        "prompt": task.prompt,
        "seed": task.seed,
        "failure": found.failure,
        "reason": found.reason,
        "source": str(found.folder or task.source),
    }


Judge = Callable[[Settings, Task], Record]  # generates or reads the task's asset and judges it


def key_of(number: int, prompt: str, seed: int) -> str:
    """A name for a task's files: "03-a-purple-chair-s103"."""
    return f"{number:02d}-{slug(prompt)}-s{seed}"


def find_mesh(settings: Settings, task: Task, models: Models | None = None) -> FoundAsset:
    """Generates the task's asset, or reads it from its source; `models` are those that are kept.

    A user error or a collapsed run is a failure of the asset, with its reason. A lack of memory or
    disk space says nothing about the asset, so it is raised.

    Raises:
        ResourceError: memory or disk space ran out.
    """
    work = settings.runs(task)
    try:
        if not task.source:
            with TerminalDisplay() as display:
                made = make(settings.config(task), work, display.watch, models)
            return FoundAsset(made.mesh, folder=made.folder, seconds=made.seconds)
        source = Path(task.source)
        if not source.is_dir():
            return FoundAsset(fit_to_cube(read_mesh(source)))
        run = RunFolder(source)
        mesh = fit_to_cube(read_mesh(exported(run)))
        return FoundAsset(mesh, folder=source, seconds=time_spent(run.events()) or None)
    except ResourceError:
        raise
    except VP3DError as error:
        return FoundAsset(None, failure_of(error, work), str(error))


def find_assets(folder: Path) -> list[tuple[str, int, Path]]:
    """(prompt, seed, path) of every mesh file and run folder in `folder`, sorted by name.

    `folder` may also be that of an earlier `evaluate`; its runs are taken then.
    A run folder has its prompt and seed in its config.yaml. The name of a mesh file is its prompt
    with the words joined by `-` or `_`. A number before the prompt is ignored, `-s7` after it is
    the seed: `03-a-red-sphere-s7.glb`.

    Raises:
        UserError: `folder` is not a folder, or has neither meshes nor runs.
    """
    if not folder.is_dir():
        raise UserError(
            f"--assets {folder} is not a folder; give one that holds mesh files or run folders"
        )
    found = []
    suite = (folder / SUITE_FILE).is_file()
    for path in sorted(folder.glob("runs/*/*") if suite else folder.iterdir()):
        if (path / "config.yaml").is_file():
            config = RunFolder(path).config()
            found.append((config.prompt, config.seed, path))
        elif path.suffix.lower() in SUFFIXES:
            found.append((*_prompt_of_name(path.stem), path))
    if not found:
        raise UserError(
            f"--assets {folder} holds no run folders and no files ending in {', '.join(SUFFIXES)}; "
            "give another folder"
        )
    return found


def _prompt_of_name(stem: str) -> tuple[str, int]:
    """Prompt and seed in the name of a mesh file."""
    words = stem.replace("_", "-").split("-")
    seed, last = 0, words[-1].removeprefix("s")
    if words[-1].startswith("s") and last.isdecimal():
        words, seed = words[:-1], int(last)
    return " ".join(words[1:] if words and words[0].isdecimal() else words), seed


def asset_task(number: int, group: str, prompt: str, seed: int, path: Path) -> Task:
    """The task of an asset that exists.

    The key contains a hash of the mesh, so a changed mesh is judged again. A run without a mesh is
    a task too: it fails, and is judged again when it has one.

    Args:
        number: the position of the asset in its folder, for the key.
        group: its prompt set.
        prompt: its prompt.
        seed: its seed.
        path: its mesh file or run folder.

    Returns:
        The task, with the absolute path as its source.
    """
    key = f"{key_of(number, prompt, seed)}-{_mesh_hash(path)}"
    return Task(group, prompt, seed, key, str(path.absolute()))


def _mesh_hash(path: Path) -> str:
    try:
        return sha256_file(path if path.is_file() else exported(RunFolder(path)))[:8]
    except UserError:
        return "unfinished"


def lock_to_settings(
    settings: Settings, suite: Mapping[str, Any], judges: Iterable[WeightSource]
) -> None:
    """Reserves the folder of results for this suite, these settings and these weights.

    Args:
        settings: the folder, and how its assets are generated.
        suite: what else identifies the results; with "assets", no weights of runs are read.
        judges: the weights of the judges.

    Raises:
        UserError: the folder has results of another suite, of other settings or weights.
    """
    config, sources = settings.config(), list(judges)
    if not suite.get("assets"):
        locations = weight_locations(config)
        runs = run_weight_sources(locations, config.prior, config.visual_prompt.prior)
        sources = [*runs, *sources]
    request = {**suite, "config": config, "weights": hash_sources(sources)}
    lock_folder(settings.folder, request)


def read_record(settings: Settings, task: Task) -> Record | None:
    """The finished record of a task.

    Returns:
        None if there is no record, it is damaged, or it is that of another prompt or seed.
    """
    try:
        record = read_json_object(settings.result(task))
    except JsonError:
        return None
    if not isinstance(record.get("figures"), dict):
        return None
    same = (record.get("prompt"), record.get("seed")) == (task.prompt, task.seed)
    return record if same else None


def run_tasks(
    tasks: Sequence[Task],
    settings: Settings,
    judge: Judge,
    pool: Pool = ALONE,
    refuse: bool = True,
    on_record: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Runs the tasks that have no record yet, and returns the records of all.

    Args:
        tasks: the tasks of the suite.
        settings: how assets are generated, and the folder of results.
        judge: generates or reads the asset of a task and judges it. It is pickled for
            other processes.
        pool: what runs the tasks.
        refuse: a request that cannot work ends the suite before anything is generated; False
            leaves it to `judge` to record that.
        on_record: hears each record that is new, in the order in which they are finished.

    Returns:
        The records, in the order of `tasks`.

    Raises:
        UserError: a request is refused, or weights are missing; nothing has been generated then.
            Or two tasks have one key.
    """
    check_keys(tasks)
    records: dict[str, Record | None] = {task.key: read_record(settings, task) for task in tasks}
    missing = [task for task in tasks if records[task.key] is None]
    generated = [task for task in missing if not task.source]
    for task in generated if refuse else []:
        # `judge` writes there, not to the folder that the configuration names
        config = replace(settings.config(task), output_dir=str(settings.folder / "runs"))
        check_request(config, new=True)
    if generated:
        _check_models(settings)
    done = len(tasks) - len(missing)
    say(f"{len(tasks)} assets, {done} of them done; results in {settings.folder}")
    work = partial(_run_task, settings, judge, git_state(ROOT))
    start = time.monotonic()
    results = pool.map(work, missing, settings.folder / "logs")
    for number, (key, record) in enumerate(results, 1):
        records[key] = record
        left = (time.monotonic() - start) / number * (len(missing) - number)
        outcome = f"{record['failure']} ({record['reason']})" if record["failure"] else "judged"
        say(f"{number}/{len(missing)} {record['prompt']}: {outcome}, {clock(left)} left")
        if on_record is not None:
            on_record(record)
    return [kept for task in tasks if (kept := records[task.key]) is not None]


def check_keys(tasks: Sequence[Task]) -> None:
    """Refuses tasks that would share a record.

    Raises:
        UserError: two tasks have one key; the message names them.
    """
    owner: dict[str, Task] = {}
    for task in tasks:
        first = owner.setdefault(task.key, task)
        if first is not task:
            raise UserError(
                f"{task.group}: {task.prompt!r} and {first.group}: {first.prompt!r} would share "
                f"the result {task.key}; rename a prompt file or leave one prompt out"
            )


def _check_models(settings: Settings) -> None:
    """Loads the models once: missing weights must end the suite, not fail every asset."""
    with TerminalDisplay() as display:
        load_every_model(settings.config(), display.watch)
    torch.cuda.empty_cache()  # the runs need the memory


def _run_task(
    settings: Settings, judge: Judge, git: dict[str, Any] | None, task: Task
) -> tuple[str, Record]:
    made = {"date": time.strftime("%Y-%m-%d"), "git": git, "machine": machine_name()}
    record = plain(judge(settings, task) | made)
    write_json(settings.result(task), record)
    return task.key, record

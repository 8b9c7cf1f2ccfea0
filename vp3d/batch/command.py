"""What `launch.py batch` does: a prompt file -> runs -> `batch.jsonl` and a page of all assets.

`generate --candidates` is a batch of one asset (candidates.py).
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vp3d.batch.assets import Asset, assets_of, read_prompts, shard_of
from vp3d.batch.make import make_asset
from vp3d.batch.publish import LINES, PAGE, append_line, line_of, publish, read_records
from vp3d.config.loader import load_config
from vp3d.engine.local import in_processes
from vp3d.engine.ray_tasks import LOCAL, check_ray, in_ray
from vp3d.errors import UserError
from vp3d.evaluate.runner import Record, Settings, Task, Work, lock_to_settings, run_tasks
from vp3d.system.console import say


@dataclass(frozen=True)
class BatchOptions:
    """What a batch makes, and where.

    Attributes:
        seeds: assets for each prompt.
        best_of: candidates for each asset, of which the text reward chooses one.
        shard: (i, n) for every n-th asset from i on.
        engine: "local" for processes of this machine, or "ray".
        workers: the number of processes.
        address: the Ray cluster; "local" starts Ray on this machine.
        gpus: the share of a GPU that a Ray task takes.
    """

    seeds: int = 1
    best_of: int = 1
    shard: tuple[int, int] = (0, 1)
    engine: str = "local"
    workers: int = 1
    address: str = LOCAL
    gpus: float = 0.0


def run_batch(prompts: Path, settings: Settings, options: BatchOptions) -> list[dict[str, Any]]:
    """Make the assets of a prompt file (`make_assets`)."""
    every = assets_of(read_prompts(prompts), options.seeds, options.best_of)
    return make_assets(every, settings, options)


def make_assets(
    every: Sequence[Asset], settings: Settings, options: BatchOptions
) -> list[dict[str, Any]]:
    """Make the assets that are not finished, and publish all that are.

    A second call with the same arguments makes nothing again. SIGTERM and Ctrl-C leave each run at
    a checkpoint.

    Args:
        every: the assets, of all shards.
        settings: how the assets are made; its folder may be shared by shards and machines.
        options: how many, which of them, and by what.

    Returns:
        The lines of `batch.jsonl` of this shard's assets that are finished.

    Raises:
        UserError: two assets are the same, the folder has assets of other settings or weights, or
            weights or Ray are missing; nothing has been made then.
        ResourceError: memory or disk space ran out.
    """
    settings = as_generate(settings)
    mine = shard_of(every, *options.shard)
    _check(every, settings, options)
    lock_to_settings(settings, {"suite": "batch"}, ())
    tasks = [task for asset in mine for task in asset.candidates]
    with sigterm_as_ctrl_c():
        try:
            run_tasks(
                tasks,
                settings,
                make_asset,
                engine=partial(_run, settings, options),
                refuse=False,
                on_record=partial(_note, mine, settings),
            )
        finally:
            publish(every, settings)
    say(f"{settings.folder / LINES}, {settings.folder / PAGE}")
    lines = (line_of(asset, read_records(asset, settings), settings.folder) for asset in mine)
    return [line for line in lines if line is not None]


def as_generate(settings: Settings) -> Settings:
    """The same settings, with the light that `generate` would leave in or take out of the colours.

    The suites of `evaluate` keep the light in by default, as their true scenes have it.
    """
    light = load_config(settings.preset, settings.files, settings.overrides).export.light
    return replace(settings, overrides=(*settings.overrides, f"export.light={light}"))


def _check(every: Sequence[Asset], settings: Settings, options: BatchOptions) -> None:
    """Refuse what cannot work, and two lines that ask for the same run."""
    if options.engine == "ray":
        check_ray()
        if 0.0 < options.gpus < 1.0 and not settings.config().cuda.memory_gb:
            raise UserError(
                f"--gpus {options.gpus:g} puts several runs on a GPU, but Ray does not divide its "
                "memory: say how much each may take, as cuda.memory_gb=8"
            )
    owner: dict[str, Task] = {}
    for task in (task for asset in every for task in asset.candidates):
        if owner.setdefault(task.key, task) is not task:
            raise UserError(
                f"{task.prompt!r} with seed {task.seed} is asked for twice, by two lines or by "
                "seeds that overlap; change a seed or leave a line out"
            )


def _run(
    settings: Settings, options: BatchOptions, work: Work, missing: Sequence[Task]
) -> Iterable[tuple[str, Record]]:
    """The engine of `options`."""
    if options.engine == "ray":
        return in_ray(work, missing, options.workers, options.address, options.gpus)
    if options.workers == 1:
        return map(work, missing)
    return in_processes(work, missing, settings.folder / "logs", options.workers, None)


def _note(assets: Sequence[Asset], settings: Settings, record: Record) -> None:
    """Append the line of the record's asset, once its last candidate is finished."""
    made = (record["prompt"], record["seed"])
    for asset in assets:
        if any((task.prompt, task.seed) == made for task in asset.candidates):
            line = line_of(asset, read_records(asset, settings), settings.folder)
            if line is not None:
                append_line(settings.folder, line)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """What Slurm, Docker and a spot machine send before they kill is taken as a Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

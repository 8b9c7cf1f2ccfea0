"""What `launch.py batch` does: a prompt file -> runs -> `batch.jsonl` and a page of all assets.

`generate --candidates` is a batch of one asset (candidates.py).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vp3d.batch.assets import Asset, assets_of, read_prompts, shard_of
from vp3d.batch.make import make_asset
from vp3d.batch.publish import LINES, PAGE, append_line, line_of, publish, read_records
from vp3d.engine.pool import Pool
from vp3d.errors import UserError
from vp3d.evaluate.runner import Record, Settings, Task, lock_to_settings, run_tasks
from vp3d.system.console import say

MOST_RUNS = 1_000_000  # of a batch
RESTARTING = Pool(restarts=None)  # a process that dies is replaced, without limit


@dataclass(frozen=True)
class BatchOptions:
    """What a batch makes, and where.

    Attributes:
        seeds: assets for each prompt.
        best_of: candidates for each asset, of which the text reward chooses one.
        shard: (i, n) for every n-th asset from i on.
        pool: what makes them.
    """

    seeds: int = 1
    best_of: int = 1
    shard: tuple[int, int] = (0, 1)
    pool: Pool = RESTARTING


def run_batch(prompts: Path, settings: Settings, options: BatchOptions) -> list[dict[str, Any]]:
    """Make the assets of a prompt file (`make_assets`)."""
    entries = read_prompts(prompts)
    runs = len(entries) * options.seeds * options.best_of
    if runs > MOST_RUNS:
        raise UserError(
            f"{len(entries):,} prompts, {options.seeds:,} seeds and the best of {options.best_of:,}"
            f" are {runs:,} runs; a batch takes at most {MOST_RUNS:,}: split the prompt file"
        )
    every = assets_of(entries, options.seeds, options.best_of)
    return make_assets(every, settings, options.shard, options.pool)


def make_assets(
    every: Sequence[Asset],
    settings: Settings,
    shard: tuple[int, int] = (0, 1),
    pool: Pool = RESTARTING,
) -> list[dict[str, Any]]:
    """Make the assets that are not finished, and publish all that are.

    A second call with the same arguments makes nothing again. SIGTERM and Ctrl-C leave each run at
    a checkpoint.

    Args:
        every: the assets, of all shards.
        settings: how the assets are made; its folder may be shared by shards and machines.
        shard: (i, n) for every n-th asset from i on.
        pool: what makes them.

    Returns:
        The lines of `batch.jsonl` of this shard's assets that are finished.

    Raises:
        UserError: two assets are the same, the folder has assets of other settings or weights, or
            weights or Ray are missing; nothing has been made then.
        ResourceError: memory or disk space ran out.
    """
    mine = shard_of(every, *shard)
    _check(every, settings, pool)
    lock_to_settings(settings, {"suite": "batch"}, ())
    tasks = [task for asset in mine for task in asset.candidates]
    owners = {(task.prompt, task.seed): asset for asset in mine for task in asset.candidates}
    with sigterm_as_ctrl_c():
        try:
            run_tasks(
                tasks,
                settings,
                make_asset,
                pool,
                refuse=False,
                on_record=partial(_note, owners, settings),
            )
        finally:
            publish(every, settings)
    say(f"{settings.folder / LINES}, {settings.folder / PAGE}")
    lines = (line_of(asset, read_records(asset, settings), settings.folder) for asset in mine)
    return [line for line in lines if line is not None]


def _check(every: Sequence[Asset], settings: Settings, pool: Pool) -> None:
    """Refuse what cannot work, and two lines that ask for the same run."""
    pool.check(settings.config().cuda.memory_gb)
    owner: dict[str, Task] = {}
    for task in (task for asset in every for task in asset.candidates):
        if owner.setdefault(task.key, task) is not task:
            raise UserError(
                f"{task.prompt!r} with seed {task.seed} is asked for twice, by two lines or by "
                "seeds that overlap; change a seed or leave a line out"
            )


def _note(owners: Mapping[tuple[str, int], Asset], settings: Settings, record: Record) -> None:
    """Append the line of the record's asset, once its last candidate is finished.

    Args:
        owners: prompt and seed of a candidate -> its asset.
        settings: has the folder.
        record: that of a candidate that was finished just now.
    """
    asset = owners[record["prompt"], record["seed"]]
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

"""Measure an acceptance row of batches: `python -m tests.batch.soak c1 [--engine ray] ...`.

c1  kill -9 of workers: every asset is made, with the bytes of --engine local and of one process
c2  kill -9 of the command when half is done: the same command makes nothing twice
c3  two workers against one with all cores, and what the engine costs
c4  shards are disjoint and together the whole
c5  a prompt that always fails leaves the others, and one line

Each prints PASS or FAIL with its figures, and exits with 0 or 1. Assets are drafts of the gallery's
prompts; --tiny makes them by tiny models, to try the row itself; key=value words change the runs.
Batches that are timed are kept in --work and not made again, so c1 and c3 share some. c3 needs a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.helpers.tiny_batch import LONG, tiny_settings
from vp3d.config.paths import ROOT
from vp3d.evaluate.prompt_file import read_suite
from vp3d.system.files import write_json

LEAST_SPEEDUP, MOST_OVERHEAD = 1.7, 0.03
SHARE_KILLED = 0.7  # of the time without kills, in which the kills are spread
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
Spans = Sequence[tuple[float, float]]  # from and to, in seconds of the clock
Row = tuple[bool, str]  # whether it passes, and its figures


@dataclass(frozen=True)
class Bench:
    """What is made, and where.

    Attributes:
        root: the folder of all batches.
        words: the settings of the runs on the command line.
        prompts: lines of prompt files.
        engine: "local" or "ray".
        workers: of the engine.
        kills: of workers, in c1.
        pause: mean seconds between two kills; 0 spreads them over the time without kills.
        shards: in c4.
    """

    root: Path
    words: tuple[str, ...]
    prompts: tuple[str, ...]
    engine: str
    workers: int = 2
    kills: int = 20
    pause: float = 0.0
    shards: int = 4

    def command(self, name: str, *more: str, prompts: Sequence[str] = ()) -> list[str]:
        """The command of the batch `name` in the folder of that name."""
        file = self.root / f"{name}.txt"
        file.write_text("".join(f"{line}\n" for line in prompts or self.prompts))
        words = ["batch", str(file), "--work", str(self.root / name), *self.words, *more]
        return [sys.executable, str(ROOT / "launch.py"), *words]

    def by_engine(self, name: str, engine: str = "") -> list[str]:
        """The same by an engine, that of the row by default."""
        return self.command(name, "--engine", engine or self.engine, "--workers", str(self.workers))

    def environment(self, threads: int = 0) -> dict[str, str]:
        """The environment of a batch; 0 threads leaves their number to it."""
        kept = {key: value for key, value in os.environ.items() if key not in THREADS}
        return kept | dict.fromkeys(THREADS if threads else (), str(threads))

    def timed(self, name: str, command: list[str], threads: int = 0) -> dict[str, float]:
        """When a batch began and how many seconds it took; it is made if that is not known."""
        file, same = self.root / f"{name}.json", [*self.prompts, *command]
        if not file.is_file() or json.loads(file.read_text())["same"] != same:
            shutil.rmtree(self.root / name, ignore_errors=True)
            began, start = time.time(), time.monotonic()
            subprocess.run(command, check=True, cwd=self.root, env=self.environment(threads))
            seconds = time.monotonic() - start
            write_json(file, {"began": began, "seconds": seconds, "same": same})
        found: dict[str, float] = json.loads(file.read_text())
        return found

    def one_by_one(self) -> dict[str, float]:
        """All in one process with the threads of a worker, on which the bytes depend."""
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        return self.timed("one-by-one", self.command("one-by-one"), threads)


def records(work: Path) -> dict[str, dict[str, Any]]:
    """Key -> record of each run that is finished."""
    return {path.stem: json.loads(path.read_text()) for path in work.glob("results/*.json")}


def meshes(work: Path) -> dict[str, bytes]:
    """Key -> bytes of the GLB of each run that succeeded."""
    return {
        key: (work / record["source"] / "model.glb").read_bytes()
        for key, record in records(work).items()
        if not record["failure"]
    }


def times(work: Path) -> dict[str, list[int]]:
    """Key -> when the record and the mesh of each run that succeeded were written."""
    return {
        key: [
            path.stat().st_mtime_ns
            for path in (work / f"results/{key}.json", work / record["source"] / "model.glb")
        ]
        for key, record in records(work).items()
        if not record["failure"]
    }


def workers_of(driver: int) -> list[psutil.Process]:
    """The processes below a command that make assets."""
    found = []
    try:
        below = psutil.Process(driver).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for process in below:
        try:
            words = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "spawn_main" in words or (words.startswith("ray::") and "IDLE" not in words):
            found.append(process)
    return found


def kill_some(driver: subprocess.Popen[bytes], work: Path, count: int, pause: float) -> int:
    """Kill a random worker, up to `count` times, while the command runs.

    Args:
        driver: the command.
        work: its folder; the first kill comes when a run has been taken.
        count: how many kills.
        pause: mean seconds between two.

    Returns:
        How many were killed.
    """
    choose, killed = random.Random("soak"), 0
    while driver.poll() is None and not list(work.glob("locks/*")):
        time.sleep(0.05)
    while driver.poll() is None and killed < count:
        time.sleep(pause * (0.5 + choose.random()))
        workers = workers_of(driver.pid)
        if workers:
            os.kill(choose.choice(workers).pid, signal.SIGKILL)
            killed += 1
    driver.wait()
    return killed


def c1(bench: Bench) -> Row:
    """Workers are killed."""
    alone = bench.one_by_one()["seconds"]
    usual, others = alone / bench.workers, ["one-by-one"]
    if bench.engine != "local":
        usual = bench.timed("local", bench.by_engine("local", "local"))["seconds"]
        others.append("local")
    shutil.rmtree(bench.root / "killed", ignore_errors=True)
    driver = subprocess.Popen(bench.by_engine("killed"), cwd=bench.root, env=bench.environment())
    start = time.monotonic()
    pause = bench.pause or SHARE_KILLED * usual / max(bench.kills, 1)
    kills = kill_some(driver, bench.root / "killed", bench.kills, pause)
    seconds = time.monotonic() - start
    found = meshes(bench.root / "killed")
    equal = {
        name: sum(found.get(key) == mesh for key, mesh in meshes(bench.root / name).items())
        for name in others
    }
    count = len(bench.prompts)
    passed = set(equal.values()) == {count} and len(found) == count and kills == bench.kills
    same = ", ".join(f"{number} with the bytes of {name}" for name, number in equal.items())
    return passed, (
        f"{kills} of {bench.kills} kills, {len(found)} of {count} assets, {same}; {seconds:.0f} s, "
        f"without kills about {usual:.0f} s, {alone:.0f} s one by one"
    )


def c2(bench: Bench) -> Row:
    """The command is killed when half is done."""
    work, count = bench.root / "driver", len(bench.prompts)
    shutil.rmtree(work, ignore_errors=True)
    command = bench.by_engine("driver")
    driver = subprocess.Popen(command, cwd=bench.root, env=bench.environment())
    while len(records(work)) < count // 2 and driver.poll() is None:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    before = times(work)
    done = len(before)
    again = subprocess.run(command, cwd=bench.root, env=bench.environment(), check=False)
    after = times(work)
    redone = sum(after.get(key) != before[key] for key in before)
    folders = len(list(work.glob("runs/*/*/config.yaml")))
    passed = redone == 0 and folders == len(meshes(work)) == count and again.returncode == 0
    return passed and 0 < done < count, (
        f"killed with {done} of {count} assets finished; the same command redid {redone} of them "
        f"and finished {len(meshes(work))} of {count}, in {folders} run folders"
    )


def c3(bench: Bench) -> Row:
    """Two workers against one."""
    one = bench.timed("all-threads", bench.command("all-threads"))
    many = bench.timed(bench.engine, bench.by_engine(bench.engine))
    speedup = one["seconds"] / many["seconds"]
    first = min(start for start, _ in spans(bench.root / "all-threads")) - one["began"]
    share = lost_share(
        spans(bench.root / bench.engine), many["began"] + first, many["seconds"], bench.workers
    )
    return speedup >= LEAST_SPEEDUP and share <= MOST_OVERHEAD, (
        f"{bench.workers} workers {many['seconds']:.0f} s, one with all cores "
        f"{one['seconds']:.0f} s: {speedup:.2f} times the throughput (at least {LEAST_SPEEDUP}); "
        f"overhead {100.0 * share:.1f} % of the workers' time (at most "
        f"{100.0 * MOST_OVERHEAD:.0f}), after the {first:.1f} s in which any batch starts"
    )


def spans(work: Path) -> list[tuple[float, float]]:
    """From when to when each run of a batch was worked on, by its lock and its record."""
    return [
        ((work / "locks" / f"{key}.lock").stat().st_mtime, path.stat().st_mtime)
        for key, path in ((path.stem, path) for path in work.glob("results/*.json"))
    ]


def lost_share(found: Spans, began: float, seconds: float, workers: int) -> float:
    """The share of the workers' time in which one did not work though an asset was waiting.

    Args:
        found: from when to when each asset was worked on.
        began: when the workers could have started.
        seconds: how long the batch took.
        workers: how many there are.
    """
    last = max(start for start, _ in found)  # from then on none is waiting
    busy = sum(max(min(end, last) - max(start, began), 0.0) for start, end in found)
    return (workers * (last - began) - busy) / (workers * seconds)


def c4(bench: Bench) -> Row:
    """Each shard in a folder of its own."""
    found = []
    for index in range(bench.shards):
        name = f"shard-{index}"
        bench.timed(name, bench.command(name, "--shard", f"{index}/{bench.shards}"))
        made = records(bench.root / name).values()
        found.append([f"{record['prompt']} seed={record['seed']}" for record in made])
    every = sum(found, [])
    passed = sorted(every) == sorted(bench.prompts)
    return passed and len(set(every)) == len(every), (
        f"{bench.shards} shards of {', '.join(str(len(part)) for part in found)} assets, "
        f"{len(set(every))} different ones of the {len(bench.prompts)} in the file, "
        f"{len(every) - len(set(every))} made twice"
    )


def c5(bench: Bench) -> Row:
    """A prompt that always fails, in the middle."""
    work, count = bench.root / "failing", len(bench.prompts)
    shutil.rmtree(work, ignore_errors=True)
    lines = [*bench.prompts]
    lines[count // 2] = LONG
    words = ("--engine", bench.engine, "--workers", str(bench.workers))
    command = bench.command("failing", *words, prompts=lines)
    done = subprocess.run(
        command, cwd=bench.root, env=bench.environment(), check=False, stderr=subprocess.PIPE
    )
    said = [line for line in done.stderr.decode().splitlines() if " failed: " in line]
    good = len(meshes(work))
    return good == count - 1 and len(said) == 1 and done.returncode == 1, (
        f"{good} of {count} assets, exit code {done.returncode}, lines that say so: {len(said)} "
        f"(...{said[0][-60:] if said else ''})"
    )


ROWS: dict[str, Callable[[Bench], Row]] = {"c1": c1, "c2": c2, "c3": c3, "c4": c4, "c5": c5}


def prompt_lines(count: int, tiny: bool) -> tuple[str, ...]:
    """`count` lines of a prompt file, each another asset."""
    if tiny:
        return tuple(f"a red sphere seed={number}" for number in range(count))
    gallery = read_suite(ROOT / "assets" / "prompts" / "gallery.txt")
    chosen = [gallery[number % len(gallery)] for number in range(count)]
    rounds = [number // len(gallery) for number in range(count)]
    return tuple(
        f"{entry.prompt} seed={entry.seed + 1000 * extra}"
        for entry, extra in zip(chosen, rounds, strict=True)
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("row", choices=ROWS)
    made.add_argument("words", nargs="*", metavar="key=value", help="settings of the runs")
    made.add_argument("--engine", default="local", choices=("local", "ray"))
    made.add_argument("--assets", type=int, default=24)
    made.add_argument("--kills", type=int, default=20, help="c1: of workers")
    made.add_argument("--pause", type=float, default=0.0, help="c1: seconds between kills")
    made.add_argument("--shards", type=int, default=4, help="c4: how many")
    made.add_argument("--tiny", action="store_true", help="by tiny models, in seconds")
    made.add_argument("--work", type=Path, help="folder of the batches (a new one)")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure a row; 0 if it passes."""
    options = parser().parse_intermixed_args(argv)
    root = (options.work or Path(tempfile.mkdtemp(prefix="vp3d-batch-"))).absolute()
    root.mkdir(parents=True, exist_ok=True)
    words = ["--preset", "draft"]
    if options.tiny:
        words = ["--config", str(tiny_settings(root, steps=12).files[0])]
    bench = Bench(
        root,
        (*words, *options.words),
        prompt_lines(options.assets, options.tiny),
        options.engine,
        kills=options.kills,
        pause=options.pause,
        shards=options.shards,
    )
    passed, figures = ROWS[options.row](bench)
    kind = "tiny runs" if options.tiny else "drafts"
    sys.stdout.write(
        f"{options.row.upper()} {'PASS' if passed else 'FAIL'} ({options.engine}, {kind}): "
        f"{figures}; {root}\n"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

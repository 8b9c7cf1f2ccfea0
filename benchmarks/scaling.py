"""Many prompts on many preempted GPUs, simulated: `python -m benchmarks.scaling`.

A discrete-event simulation of `launch.py batch`: each GPU takes the next asset, is taken away at
random (exponential times, mean --mean-up hours), comes back after --down minutes, loads the models
again, and the asset that it worked on continues anywhere from its last checkpoint. The times of a
run are arguments; docs/explanation/scaling.md says where its figures were measured.

The rule that the table is compared with is that of Young (1974) and Daly (2006): the interval
between checkpoints of the least loss is sqrt(2 c M) for checkpoints of c seconds and a mean of M
seconds between failures.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vp3d.evaluate.statistics import text_table
from vp3d.system.console import run_program

HOUR = 3600.0


@dataclass(frozen=True)
class Run:
    """What one asset takes on one GPU.

    Attributes:
        draw_s: seconds until the visual prompt is on disk; repeated if it was not finished.
        steps: optimisation steps.
        step_s: seconds of a step.
        every: steps between checkpoints; 0 for none.
        checkpoint_s: seconds to write a checkpoint.
        export_s: seconds from the last step to the finished folder; repeated if not finished.
    """

    draw_s: float
    steps: int
    step_s: float
    every: int
    checkpoint_s: float
    export_s: float

    def checkpoints(self, done: int) -> int:
        """Checkpoints from step `done` to the end; none is written at the last step."""
        return 0 if not self.every else (self.steps - 1) // self.every - done // self.every

    def seconds(self, drawn: bool, done: int) -> float:
        """Seconds that are left of an asset."""
        steps = (self.steps - done) * self.step_s + self.checkpoints(done) * self.checkpoint_s
        return (0.0 if drawn else self.draw_s) + steps + self.export_s

    def kept(self, drawn: bool, done: int, spent: float) -> tuple[bool, int]:
        """What is on disk after `spent` seconds of work: the drawing, and the steps kept."""
        if not drawn:
            if spent < self.draw_s:
                return False, 0
            spent -= self.draw_s
        if not self.every:
            return True, 0
        segment = self.every * self.step_s + self.checkpoint_s
        whole = min(int((spent + 1e-9) / segment), self.checkpoints(done))
        return True, done + whole * self.every


@dataclass(frozen=True)
class Fleet:
    """The machines.

    Attributes:
        gpus: how many; each works on one asset.
        mean_up_s: mean seconds until a GPU is taken away; infinite for never.
        down_s: seconds until it is back.
        load_s: seconds from its start to the first asset: imports and models.
    """

    gpus: int
    mean_up_s: float
    down_s: float
    load_s: float


@dataclass
class Spent:
    """What the GPUs did, in GPU seconds, and when the last asset was finished."""

    makespan: float = 0.0
    useful: float = 0.0  # drawing, steps and export that count
    checkpoints: float = 0.0  # writing those that count
    lost: float = 0.0  # work that a kill threw away
    loading: float = 0.0
    idle: float = 0.0  # up, but no asset was left to take
    kills: int = 0
    finished: int = 0

    def up(self) -> float:
        """All GPU seconds that are paid for."""
        return self.useful + self.checkpoints + self.lost + self.loading + self.idle


@dataclass
class Gpu:
    """A GPU of the simulation.

    Attributes:
        life: counts its starts; an event of an earlier life is void.
        since: when it began what it does now.
        state: "down", "loading", "idle" or "busy".
        job: what it works on: whether the asset is drawn, and the steps that are kept.
    """

    life: int = 0
    since: float = 0.0
    state: str = "down"
    job: tuple[bool, int] = (False, 0)


class Simulation:
    """`assets` on a fleet; `run()` once."""

    def __init__(self, assets: int, run: Run, fleet: Fleet, seed: int = 0) -> None:
        self.assets, self.work, self.fleet = assets, run, fleet
        self.kills = random.Random(f"kills-{seed}")
        self.waiting = deque([(False, 0)] * assets)
        self.gpus = [Gpu() for _ in range(fleet.gpus)]
        self.spent, self.now = Spent(), 0.0
        self.events: list[tuple[float, int, int, str]] = []

    def run(self) -> Spent:
        """What was spent until the last asset was finished."""
        for number in range(len(self.gpus)):
            self.plan(0.0, number, "start")
        while self.spent.finished < self.assets:
            self.now, number, life, kind = heapq.heappop(self.events)
            if life == self.gpus[number].life:
                getattr(self, f"on_{kind}")(number, self.gpus[number])
        for gpu in self.gpus:
            self.close(gpu)
        self.spent.makespan = self.now
        return self.spent

    def plan(self, after: float, number: int, kind: str) -> None:
        """Plan an event of a GPU's present life."""
        if after < math.inf:
            event = (self.now + after, number, self.gpus[number].life, kind)
            heapq.heappush(self.events, event)

    def enter(self, gpu: Gpu, state: str) -> None:
        """The GPU ends what it did, and begins something else."""
        gpu.state, gpu.since = state, self.now

    def close(self, gpu: Gpu) -> None:
        """Count the time that a GPU loaded or waited."""
        if gpu.state in ("loading", "idle"):
            name = {"loading": "loading", "idle": "idle"}[gpu.state]
            setattr(self.spent, name, getattr(self.spent, name) + self.now - gpu.since)

    def on_start(self, number: int, gpu: Gpu) -> None:
        """The machine is there: it loads, and will be taken away."""
        self.enter(gpu, "loading")
        mean = self.fleet.mean_up_s
        self.plan(self.kills.expovariate(1.0 / mean) if mean < math.inf else mean, number, "kill")
        self.plan(self.fleet.load_s, number, "ready")

    def on_ready(self, number: int, gpu: Gpu) -> None:
        """Nothing to do: take the next asset."""
        self.close(gpu)
        if not self.waiting:
            self.enter(gpu, "idle")
            return
        gpu.job = self.waiting.popleft()
        self.enter(gpu, "busy")
        self.plan(self.work.seconds(*gpu.job), number, "done")

    def on_done(self, number: int, gpu: Gpu) -> None:
        """The asset is finished."""
        written = self.work.checkpoints(gpu.job[1]) * self.work.checkpoint_s
        self.spent.finished += 1
        self.spent.checkpoints += written
        self.spent.useful += self.now - gpu.since - written
        self.on_ready(number, gpu)

    def on_kill(self, number: int, gpu: Gpu) -> None:
        """The machine is taken away; another GPU continues its asset from what is on disk."""
        self.spent.kills += 1
        self.close(gpu)
        if gpu.state == "busy":
            self.interrupt(gpu)
        gpu.life += 1
        self.enter(gpu, "down")
        self.plan(self.fleet.down_s, number, "start")
        free = next((n for n, other in enumerate(self.gpus) if other.state == "idle"), None)
        if self.waiting and free is not None:
            self.on_ready(free, self.gpus[free])

    def interrupt(self, gpu: Gpu) -> None:
        """Put the asset back, with what is kept of it."""
        drawn, done = gpu.job
        elapsed = self.now - gpu.since
        now_drawn, now_done = self.work.kept(drawn, done, elapsed)
        written = (now_done - done) // (self.work.every or 1) * self.work.checkpoint_s
        useful = (now_done - done) * self.work.step_s
        useful += self.work.draw_s if now_drawn and not drawn else 0.0
        self.spent.useful += useful
        self.spent.checkpoints += written
        self.spent.lost += elapsed - useful - written
        self.waiting.appendleft((now_drawn, now_done))


def best_interval(run: Run, mean_up_s: float) -> float:
    """Steps between checkpoints by Young's rule, sqrt(2 c M)."""
    return math.sqrt(2.0 * run.checkpoint_s * mean_up_s) / run.step_s


def parser() -> argparse.ArgumentParser:
    """The command line; its defaults are the table of docs/explanation/scaling.md."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--assets", type=int, default=10_000)
    made.add_argument("--gpus", type=int, default=64)
    made.add_argument("--steps", type=int, default=5000)
    made.add_argument("--step-s", type=float, default=0.392, help="seconds of a step")
    made.add_argument("--draw-s", type=float, default=30.0, help="seconds to draw and choose")
    made.add_argument("--export-s", type=float, default=18.0, help="seconds of export and report")
    made.add_argument(
        "--load-s", type=float, default=60.0, help="seconds from start to first asset"
    )
    made.add_argument("--down-s", type=float, default=300.0, help="seconds until a GPU is back")
    made.add_argument("--checkpoint-mb", type=float, default=201.0)
    made.add_argument(
        "--disk-mb-s", type=float, default=100.0, help="a node's share of the storage"
    )
    made.add_argument(
        "--asset-mb", type=float, default=15.0, help="a finished folder, no checkpoint"
    )
    made.add_argument("--mean-up", type=float, nargs="+", default=[1.0, 4.0, 24.0], help="hours")
    made.add_argument("--every", type=int, nargs="+", default=[0, 25, 50, 100, 200, 400, 1000])
    made.add_argument("--seed", type=int, default=0)
    return made


def rows_of(options: argparse.Namespace) -> list[list[str]]:
    """A row for each mean time between kills and each interval, and one without kills."""
    write_s = options.checkpoint_mb / options.disk_mb_s
    run = Run(options.draw_s, options.steps, options.step_s, 0, write_s, options.export_s)
    rows = []
    for hours in [*options.mean_up, math.inf]:
        fleet = Fleet(options.gpus, hours * HOUR, options.down_s, options.load_s)
        for every in options.every:
            spent = Simulation(options.assets, replace(run, every=every), fleet, options.seed).run()
            up = spent.up()
            rows.append(
                [
                    "never" if hours == math.inf else f"{hours:g} h",
                    str(every or "none"),
                    f"{spent.makespan / HOUR:.1f}",
                    f"{spent.finished / (spent.makespan / HOUR):.0f}",
                    *(
                        f"{100.0 * part / up:.1f}"
                        for part in (spent.lost, spent.checkpoints, spent.loading, spent.idle)
                    ),
                    str(spent.kills),
                ]
            )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, Young's interval and the storage."""
    options = parser().parse_args(argv)
    write_s = options.checkpoint_mb / options.disk_mb_s
    run = Run(options.draw_s, options.steps, options.step_s, 0, write_s, options.export_s)
    title = f"{options.assets} assets on {options.gpus} GPUs, {run.seconds(False, 0):.0f} s each"
    header = ["mean up", "every", "hours", "assets/h", "lost %", "ckpt %", "load %", "idle %"]
    print(text_table([*header, "kills"], rows_of(options), title))
    for hours in options.mean_up:
        print(
            f"Young, {hours:g} h: a checkpoint every {best_interval(run, hours * HOUR):.0f} steps"
        )
    finished = options.assets * options.asset_mb / 1000.0
    kept = options.assets * 2 * options.checkpoint_mb / 1000.0
    print(f"storage: {finished:.0f} GB of results; {kept:.0f} GB of checkpoints, two an asset")


if __name__ == "__main__":
    run_program("scaling", main)

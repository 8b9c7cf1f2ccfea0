"""The worker processes of one machine: started, watched, replaced, and asked to leave.

No torch here: the workers load it. Whoever holds a `WorkerPool` may die at any moment; its workers
notice, leave their jobs at a checkpoint, and the next pool on the same data folder continues them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vp3d.jobs.store import Store
from vp3d.jobs.work import sync

WATCH_S = 0.25  # between two looks at the processes
STOP_S = 12.0  # how long workers may take to leave before they are killed
LAST_LINES = 40  # of a dead worker's log that are kept with its job
RESTART_S = (0.0, 1.0, 5.0, 15.0)  # pause before the nth restart in a row without being ready


class WorkerProcess:
    """One worker: its process, its log, and whether it is ready."""

    def __init__(self, data: Path, name: str, environment: dict[str, str], nice: int) -> None:
        self.name = name
        self.ready = threading.Event()
        self.log = data / "workers" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "vp3d.jobs.worker", "--data", str(data), "--name", name]
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*command, "--nice", str(nice)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, **environment},
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        if self.process.stdout is not None and self.process.stdout.readline() == b"ready\n":
            self.ready.set()

    def ask_to_leave(self) -> None:
        """Close its standard input."""
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()

    def last_lines(self) -> list[str]:
        """The end of what it wrote."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        return text.splitlines()[-LAST_LINES:]


class WorkerPool:
    """Keeps `count` workers alive on the jobs of a store.

    Args:
        store: the job store.
        count: how many workers.
        environments: variables of each worker, such as the GPU it may use.
        nice: added to the niceness of the workers, so that a service answers while they work.
    """

    def __init__(
        self,
        store: Store,
        count: int,
        environments: Callable[[int], dict[str, str]] = lambda index: {},
        nice: int = 0,
    ) -> None:
        self.store, self.count, self.environments, self.nice = store, count, environments, nice
        self.workers: dict[int, WorkerProcess] = {}
        self.failures = dict.fromkeys(range(count), 0)
        self.next_start = dict.fromkeys(range(count), 0.0)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Start the workers and the thread that watches them."""
        self.thread.start()

    def is_ready(self) -> bool:
        """Whether a worker can take a job."""
        return any(
            worker.ready.is_set() and worker.process.poll() is None
            for worker in list(self.workers.values())
        )

    def stop(self) -> None:
        """Ask all workers to leave at their next checkpoint; kill those that do not."""
        self.stopping.set()
        self.thread.join(2.0 * WATCH_S + 5.0)
        workers = list(self.workers.values())
        for worker in workers:
            worker.ask_to_leave()
        until = time.monotonic() + STOP_S
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(until - time.monotonic(), 0.1))
            if worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait()

    def _watch(self) -> None:
        while not self.stopping.is_set():
            for index in range(self.count):
                self._keep(index)
            for job in self.store.sweep():
                sync(self.store, job)
            self.stopping.wait(WATCH_S)

    def _keep(self, index: int) -> None:
        """Start worker `index` if it does not run, and note how it died."""
        worker = self.workers.get(index)
        now = time.monotonic()
        if worker is not None and worker.process.poll() is None:
            return
        if worker is not None:
            worker.ask_to_leave()
            self.store.note_death(worker.name, worker.last_lines())
            failed = 0 if worker.ready.is_set() else self.failures[index] + 1
            self.failures[index] = failed
            self.next_start[index] = now + RESTART_S[min(failed, len(RESTART_S) - 1)]
            del self.workers[index]
        if now >= self.next_start[index]:
            name = f"worker-{index}"
            self.workers[index] = WorkerProcess(
                self.store.data, name, self.environments(index), self.nice
            )


def count_devices() -> int:
    """How many CUDA devices there are, without loading torch; 0 on a machine without a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len([path for path in Path("/proc/driver/nvidia/gpus").glob("*") if path.is_dir()])


def worker_environment(index: int, count: int, devices: int) -> dict[str, str]:
    """The variables of worker `index` of `count`: its own GPU, or its share of the cores."""
    if devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(n) for n in range(devices)]
        return {"CUDA_VISIBLE_DEVICES": names[index % len(names)].strip()}
    if count == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // count, 1))}

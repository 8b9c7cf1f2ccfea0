"""`map` in several processes of this machine; `evaluate`, the claims and `batch` run on it.

The processes are in a group of their own, so a Ctrl-C of the terminal reaches this process alone,
which passes it on once: each process stops its run after the step and exports what there is. A
second Ctrl-C ends them at once. A process whose parent died leaves by itself, so the same command
can be given again at any time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numba
import torch

from vp3d.errors import UserError

EXIT_KILLED = 128 + signal.SIGTERM  # exit code of a process that SIGTERM ended
LEAVE_S = 2.0  # from SIGTERM, or the death of the parent, to the end of a process

interrupted = threading.Event()  # in a process: no further item is taken

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    logs: Path,
    jobs: int,
    restarts: int | None = 0,
) -> Iterator[Result]:
    """`map(work, items)` in several processes, in the order in which they finish.

    Args:
        work: what is done with an item; it and the items are pickled.
        items: the items.
        logs: the folder of the processes' output.
        jobs: the number of processes; they share the cores.
        restarts: how often in a row, without a result in between, a killed process is replaced and
            its item taken again; None for no limit.

    Yields:
        The results.

    Raises:
        UserError: the system killed a process, and there are no restarts left.
    """
    logs.mkdir(parents=True, exist_ok=True)
    left, failures = dict(enumerate(items)), 0
    while left:
        try:
            for number, result in _in_one_pool(work, left, logs, jobs):
                del left[number]
                failures = 0
                yield result
        except BrokenProcessPool as error:
            failures += 1
            if restarts is None or failures <= restarts:
                continue
            raise UserError(
                f"one of {jobs} processes was killed, perhaps because memory ran out; finished "
                f"results are kept in {logs.parent}; run the same command again to resume, "
                "with fewer --jobs if memory is short"
            ) from error


def _in_one_pool(
    work: Callable[[Item], Result], items: dict[int, Item], logs: Path, jobs: int
) -> Iterator[tuple[int, Result]]:
    """Number and result of each item, as they finish; BrokenProcessPool if a process was killed."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with _safe_path():
        pool = ProcessPoolExecutor(
            min(jobs, len(items)), get_context("spawn"), start_process, (str(logs), threads)
        )
        task, futures = partial(_until_interrupted, work), {}
        try:
            for number, item in items.items():
                futures[pool.submit(task, item)] = number
            for future in as_completed(list(futures)):
                yield futures[future], future.result()
        except (KeyboardInterrupt, GeneratorExit):  # here, or in what takes the results
            _end_at_a_checkpoint(pool, list(futures))
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _safe_path() -> Iterator[None]:
    """Each process starts as `python -c`, which would import from the current folder."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]  # this process may start others
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def _end_at_a_checkpoint(pool: ProcessPoolExecutor, futures: Sequence[Future[Any]]) -> None:
    """Pass a Ctrl-C on, wait for the items that are being worked on, and end the processes.

    The pool alone would wait for ever for a process that was interrupted while it started. Another
    Ctrl-C ends the wait.
    """
    # Cancelled here and not by the pool's thread: `wait` never returns for what is cancelled later.
    working = [future for future in futures if not future.cancel()]
    pool.shutdown(wait=False)
    _signal_processes(signal.SIGINT)
    try:
        wait(working)
    finally:
        _signal_processes(signal.SIGKILL)
        for process in active_children():
            process.join()


def _signal_processes(number: int) -> None:
    """Send a signal to each process of the pool."""
    for process in active_children():
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)


def start_process(logs: str, threads: int) -> None:
    """What each process does first."""
    sys.stderr = (Path(logs) / f"{os.getpid()}.txt").open(
        "a", encoding="utf-8", errors="backslashreplace", buffering=1
    )
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, _on_sigint_between_items)
    signal.signal(signal.SIGTERM, on_sigterm)
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()


def _until_interrupted(work: Callable[[Item], Result], item: Item) -> Result:
    """`work(item)`; KeyboardInterrupt at a Ctrl-C, and for each item that was queued behind it."""
    if interrupted.is_set():
        raise KeyboardInterrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return work(item)
    except KeyboardInterrupt:
        interrupted.set()
        raise
    finally:
        signal.signal(signal.SIGINT, _on_sigint_between_items)


def _on_sigint_between_items(number: int, frame: FrameType | None) -> None:
    interrupted.set()


def on_sigterm(number: int, frame: FrameType | None) -> None:
    """End like a Ctrl-C, so that `finally` blocks run, but within `LEAVE_S`."""
    timer = threading.Timer(LEAVE_S, os._exit, (EXIT_KILLED,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _leave_with_the_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

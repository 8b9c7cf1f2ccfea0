"""`map` on a Ray cluster, or on this machine by Ray's own processes. Needs the extra `ray`.

Ray Core tasks, not Ray Data: an item takes minutes and resumes inside, from its own checkpoints in
a folder that all nodes see. A task whose process or node dies is started again without limit.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numba
import torch

from vp3d.errors import ResourceError, UserError, in_one_line

LOCAL = "local"  # the address that starts Ray on this machine, for this process alone
LOCAL_ENVIRONMENT = {  # read when ray is imported, by the processes that it starts too
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # without it, Linux too: the loopback address alone
    "RAY_USAGE_STATS_ENABLED": "0",
}

Item = TypeVar("Item")
Result = TypeVar("Result")


def check_ray() -> None:
    """Refuse to work without Ray."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("--engine ray needs a package that is not installed: pip install vp3d[ray]")


def in_ray(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    address: str = LOCAL,
    gpus: float = 0.0,
) -> Iterator[Result]:
    """`map(work, items)` as Ray tasks, in the order in which they finish.

    Args:
        work: what is done with an item; it and the items are pickled, and every node has this
            program installed.
        items: the items.
        workers: tasks at once on this machine; a cluster decides by itself.
        address: `LOCAL`, or that of a cluster ("auto", "ray://host:port").
        gpus: the share of a GPU that each task takes.

    Yields:
        The results.

    Raises:
        UserError: Ray is missing, or there is no cluster at `address`.
        ResourceError: Ray did not start on this machine.
    """
    check_ray()
    if address == LOCAL:
        os.environ.update(LOCAL_ENVIRONMENT)
    import ray

    _connect(address, workers)
    try:
        threads = max(1, (os.cpu_count() or 1) // workers) if address == LOCAL else 1
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=-1)(_limited)
        waiting = [task.remote(threads, work, item) for item in items]
        while waiting:
            done, waiting = ray.wait(waiting)
            yield _result(done[0])
    finally:
        ray.shutdown()


def _connect(address: str, workers: int) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == LOCAL:
        try:
            ray.init(address=LOCAL, num_cpus=workers, include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises a plain one when its processes start too slowly
            raise ResourceError(
                f"Ray did not start: {in_one_line(error)} Try again when the machine is less busy, "
                "or use --engine local"
            ) from error
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"there is no Ray cluster at {address}: {in_one_line(error)}") from error


def _limited(threads: int, work: Callable[[Item], Result], item: Item) -> Result:
    """`work(item)` with as many threads as the task has cores."""
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    return work(item)


def _result(reference: Any) -> Any:
    """The result of a task, or the exception that it raised."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error

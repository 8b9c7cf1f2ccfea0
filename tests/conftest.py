"""Shared by every test: no network, no window, Ctrl-C that works, and any order.

GPU tests run only where there is a GPU. `--shuffle` runs the files, and the tests in each, in a
random order; the seed is printed, and `--shuffle-seed=SEED` repeats it. Without it, the folders
whose files take longest come first, so that no process of `make test` is left alone with them.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vp3d.types import Asset

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
LONGEST_FIRST = ("end_to_end", "embedded", "test_api.py", "examples", "evaluate", "runs")

# A shell starts background jobs with SIGINT ignored. Python and the programs that the tests start
# would inherit that, and Ctrl-C would do nothing.
ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
if ignored and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", action="store_true", help="run in a random order")
    parser.addoption("--shuffle-seed", type=int, metavar="SEED", help="run in this order")


def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed, or take that of the process that started this worker of pytest-xdist."""
    workerinput = getattr(config, "workerinput", None)
    if workerinput is not None:
        config.option.shuffle_seed = workerinput["shuffle_seed"]
    elif config.option.shuffle and config.option.shuffle_seed is None:
        config.option.shuffle_seed = time.time_ns() // 1000 % 1_000_000
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist is there
        config.option.loadscopereorder = False  # keep the order of this file


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the seed on to a worker."""
    node.workerinput["shuffle_seed"] = node.config.option.shuffle_seed


def pytest_report_header(config: pytest.Config) -> str | None:
    seed = config.option.shuffle_seed
    return None if seed is None else f"random order: --shuffle-seed={seed}"


def shuffle(items: list[pytest.Item], seed: int) -> None:
    """Shuffle the files and the tests in each, in place; the tests of a file stay together."""
    order = random.Random(seed)
    by_file: dict[object, list[pytest.Item]] = {}
    for item in items:
        by_file.setdefault(item.path, []).append(item)
    files = list(by_file.values())
    order.shuffle(files)
    for tests in files:
        order.shuffle(tests)
    items[:] = [item for tests in files for item in tests]


def longest_first(items: list[pytest.Item]) -> None:
    """Sort by the folders of `LONGEST_FIRST`, in place; the rest keeps its order after them."""

    def rank(item: pytest.Item) -> int:
        parts = item.path.parts
        ranks = [n for n, name in enumerate(LONGEST_FIRST) if name in parts]
        return min(ranks, default=len(LONGEST_FIRST))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Asset:
    """A whole tiny run, made once for every test that reads one.

    Whoever changes files works on a copy of its folder.
    """
    import torch

    from tests.helpers.tiny_run import tiny_config
    from vp3d import pipeline

    torch.set_num_threads(1)
    return pipeline.generate(tiny_config(tmp_path_factory.mktemp("finished")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.option.shuffle_seed
    if seed is None:
        longest_first(items)
    else:
        shuffle(items, seed)
    skip_without_gpu(items)


def skip_without_gpu(items: list[pytest.Item]) -> None:
    """Mark GPU tests as skipped where torch sees no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

"""Shared by every test: no network, no window, Ctrl-C that works, and any order.

GPU tests run only where there is a GPU. `--shuffle` runs the files, and the tests in each, in a
random order; the seed is printed, and `--shuffle-seed=SEED` repeats it.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vp3d.types import Asset

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
SEED_VARIABLE = "VP3D_TEST_SEED"  # hands a random seed on to the workers of pytest-xdist

# A shell starts background jobs with SIGINT ignored. Python and the programs that the tests start
# would inherit that, and Ctrl-C would do nothing.
ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
if ignored and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", action="store_true", help="run in a random order")
    parser.addoption("--shuffle-seed", type=int, metavar="SEED", help="run in this order")


def pytest_report_header(config: pytest.Config) -> str | None:
    seed = shuffle_seed(config)
    return None if seed is None else f"random order: --shuffle-seed={seed}"


def shuffle_seed(config: pytest.Config) -> int | None:
    """The seed of the order; None for the order of the files."""
    asked: int | None = config.getoption("--shuffle-seed")
    if asked is None and config.getoption("--shuffle"):
        drawn = str(time.time_ns() // 1000 % 1_000_000)
        asked = int(os.environ.setdefault(SEED_VARIABLE, drawn))
    return asked


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
    seed = shuffle_seed(config)
    if seed is not None:
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

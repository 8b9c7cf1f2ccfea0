"""A run in a process of its own, to be killed.

Its process is forked from one that has imported this module, and with it the product and the
libraries: a fresh Python process would import for seconds before it does anything.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
import torch

from vp3d import pipeline
from vp3d.config.loader import load_config
from vp3d.config.paths import ROOT
from vp3d.runs.terminal import TerminalDisplay


@contextmanager
def process_context() -> Iterator[ForkServerContext]:
    """Where processes are made. The first one starts the process that the others are forked of."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        yield context


def start(context: ForkServerContext, config: Path, stderr: Path) -> ForkServerProcess:
    """Start the run that the file `config` describes; its messages go to the file `stderr`."""
    process = context.Process(target=run, args=(config, stderr))
    process.start()
    return process


def run(config: Path, stderr: Path) -> None:
    """In the process: the run as the command line makes it."""
    with stderr.open("wb") as messages, Path(os.devnull).open("wb") as nowhere:
        os.dup2(messages.fileno(), 2)
        os.dup2(nowhere.fileno(), 1)
    torch.set_num_threads(1)
    with TerminalDisplay() as display:
        pipeline.generate(load_config(None, [config], []), watch=display.watch)

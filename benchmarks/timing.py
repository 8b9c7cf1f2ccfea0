"""What all benchmarks share: clock, warm-up and medians, peak memory, options, table and JSON.

Conventions: seconds in records, milliseconds in tables, mebibytes for memory. Each number is the
median of `--repeats` calls after `--warmup` calls that are not counted. On a GPU the clock waits
for the device. `--clock cpu` counts the processor time of this process instead of wall time: for a
machine that is busy with other work, with one thread and without a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import torch
from torch import Tensor

from vp3d.build import resolve_device
from vp3d.config.paths import ROOT
from vp3d.errors import UserError
from vp3d.evaluate.statistics import circumstances, text_table
from vp3d.system.console import Parser
from vp3d.system.files import write_json

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
SAMPLE_INTERVAL_S = 0.002  # between two readings of the resident memory
MIB = 2.0**20
PAGE_WIDTH = 150  # characters of a line of the table


@dataclass(frozen=True)
class Bench:
    """How to time.

    Attributes:
        device: where the work runs.
        clock: a name of `CLOCKS`.
        repeats: how many calls the median is of.
        warmup: calls before that, not counted.
    """

    device: torch.device
    clock: str = "wall"
    repeats: int = 5
    warmup: int = 2

    def now(self) -> float:
        """Seconds since a fixed moment, after the device has finished all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return CLOCKS[self.clock]()

    def seconds(self, work: Callable[[], object]) -> float:
        """Median seconds of a call of `work`."""
        for _ in range(self.warmup):
            work()
        durations = []
        for _ in range(self.repeats):
            start = self.now()
            work()
            durations.append(self.now() - start)
        return statistics.median(durations)

    def passes(self, forward: Callable[[], Tensor]) -> dict[str, float]:
        """Median seconds of `forward`, which returns a scalar.

        Returns:
            "forward" without a graph, "both" with the backward pass.
        """
        with torch.no_grad():
            alone = self.seconds(forward)
        return {"forward": alone, "both": self.seconds(lambda: forward().backward())}

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Most memory in use during one call of `work`.

        Returns:
            Bytes: on a GPU, of the device; on a CPU, resident memory beyond that before the call.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            work()
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device)
        return _resident_growth(work)


@dataclass(frozen=True)
class Table:
    """A table in plain text.

    Attributes:
        title: the line above it.
        header: the names of its columns.
        rows: its cells.
        notes: the lines below it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def _resident_growth(work: Callable[[], object]) -> int:
    """Largest resident memory of this process during `work`, less that before it.

    A thread reads it every `SAMPLE_INTERVAL_S` seconds.
    """
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)  # glibc keeps freed memory; what `work` takes of that would not be measured
    process, finished = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    samples = [before]

    def watch() -> None:
        while not finished.wait(SAMPLE_INTERVAL_S):
            samples.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        work()
        samples.append(process.memory_info().rss)
    finally:
        finished.set()
        watcher.join()
    return max(samples) - before


def new_parser(
    name: str, doc: str, repeats: int = 5, warmup: int = 2, count: str = "repeats"
) -> Parser:
    """A parser with the options that every benchmark has.

    Args:
        name: the module, as in `python -m benchmarks.NAME`.
        doc: its docstring, which --help prints.
        repeats: the default number of repeats.
        warmup: the default number of calls before them.
        count: what the median is over, and the name of the option for `repeats`.

    Returns:
        The parser; add more options to it.
    """
    parser = Parser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, default = parser.add_argument, f"outputs/benchmarks/{name}.json"
    counted = {"dest": "repeats", "type": positive, "default": repeats, "metavar": "N"}
    add(f"--{count}", **counted, help=f"{count} the median is of ({repeats})")
    before = f"{count} before that, not counted ({warmup})"
    add("--warmup", type=int, default=warmup, metavar="N", help=before)
    add("--threads", type=positive, metavar="N", help="CPU threads of torch (its own choice)")
    add("--clock", choices=CLOCKS, default="wall", help="cpu: processor time (wall)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run (auto)")
    add("--write", type=Path, metavar="FILE", help=f"the JSON ({default})")
    return parser


def positive(text: str) -> int:
    """A whole number of 1 or more, as the value of an option."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return number


def prepare(options: argparse.Namespace) -> Bench:
    """The Bench of parsed options; sets torch's threads.

    Raises:
        UserError: an option is wrong, or there is no such device.
    """
    if options.warmup < 0:
        raise UserError(f"--warmup {options.warmup} is negative; give 0 or more")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    if options.clock == "cpu" and device.type == "cuda":
        raise UserError(
            "--clock cpu does not count the work of a GPU; use --clock wall or --device cpu"
        )
    return Bench(device, options.clock, options.repeats, options.warmup)


def about() -> dict[str, Any]:
    """`circumstances`, the processor, torch's threads, and the load (of other programs too)."""
    load = psutil.getloadavg()[0]
    return {
        **circumstances(),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "load": round(load, 2),
    }


def cpu_model() -> str:
    """The name of the processor."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine_line(facts: Mapping[str, Any], bench: Bench) -> str:
    """The circumstances in one line."""
    commit = str((facts["git"] or {}).get("commit", "none"))[:10]
    where = facts["cuda"] if bench.device.type == "cuda" else f"{facts['cpu']}, {facts['machine']}"
    busy = f"{facts['threads']} thread(s), load {facts['load']:g}, {bench.clock} clock"
    return f"{where}; {busy}; torch {facts['torch']}; {facts['date']}, commit {commit}"


def report(
    options: argparse.Namespace, bench: Bench, name: str, table: Table, results: object
) -> None:
    """Prints a table and writes the JSON of a benchmark.

    Args:
        options: the command line; --write names the JSON file.
        bench: how it was timed.
        name: the module of the benchmark.
        table: what to print, below the line of the machine.
        results: what to write, with the circumstances.
    """
    facts = about()
    text = text_table(table.header, table.rows, table.title, PAGE_WIDTH)
    sys.stdout.write("\n".join([machine_line(facts, bench), text, *table.notes]).rstrip() + "\n")
    path = options.write or ROOT / "outputs" / "benchmarks" / f"{name}.json"
    settings = {key: value for key, value in vars(options).items() if key != "write"}
    record = {
        "about": facts,
        "device": str(bench.device),
        "settings": settings,
        "results": results,
        "notes": table.notes,
    }
    write_json(path, record)


def ms(seconds: float) -> str:
    """Seconds as milliseconds for a table."""
    value = 1.0e3 * seconds
    return f"{value:.0f}" if value >= 100.0 else f"{value:.1f}" if value >= 1.0 else f"{value:.3f}"


def multiple(seconds: float | None, base: float | None) -> str:
    """`seconds` as a multiple of `base` for a table; a dash if one of them is missing."""
    return "–" if seconds is None or not base else f"{seconds / base:.2f} x"


def find_nerfacc() -> tuple[ModuleType | None, str]:
    """The nerfacc package.

    The batched functions of its releases are plain torch. Later versions may build kernels at the
    first call, so one call is tried.

    Returns:
        The module and "", or None and the reason.
    """
    try:
        import nerfacc

        sigma = torch.ones(1, 2)
        nerfacc.rendering(sigma - 1.0, sigma, rgb_sigma_fn=lambda *_: (torch.ones(1, 2, 3), sigma))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        return None, f"nerfacc does not work here ({reason}): pip install nerfacc"
    return nerfacc, ""

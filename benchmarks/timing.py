"""What every timing here shares: the clock, warm-up and medians, peak memory, the common options, the table and the JSON.

Conventions: seconds inside, milliseconds in tables, mebibytes for memory. Each number is the median of `--repeats` calls after
`--warmup` calls that are not counted. On a GPU the clock waits for it. `--clock cpu` counts this process's processor time
instead of the wall's: for a machine that is busy with something else, with one thread and without a GPU.
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
LOOK_EVERY_S = 0.002  # between two looks at the resident memory
MIB = 2.0**20
PAGE_WIDTH = 150  # characters of a line of the table


@dataclass(frozen=True)
class Bench:
    """How to time: on which device, by which clock, how often."""

    device: torch.device
    clock: str = "wall"
    repeats: int = 5
    warmup: int = 2

    def now(self) -> float:
        """Seconds, from a beginning of its own, once the device has done all it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return CLOCKS[self.clock]()

    def seconds(self, work: Callable[[], object]) -> float:
        """Median seconds of a call of `work`."""
        for _ in range(self.warmup):
            work()
        times = []
        for _ in range(self.repeats):
            begin = self.now()
            work()
            times.append(self.now() - begin)
        return statistics.median(times)

    def passes(self, forward: Callable[[], Tensor]) -> dict[str, float]:
        """Median seconds of `forward`, which gives a scalar: "forward" without a graph, "both" with its backward pass."""
        with torch.no_grad():
            alone = self.seconds(forward)
        return {"forward": alone, "both": self.seconds(lambda: forward().backward())}

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Most memory in use during one call of `work`: of the device; on a CPU, resident memory beyond what was there before."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            work()
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device)
        return _resident_growth(work)


def _resident_growth(work: Callable[[], object]) -> int:
    """Largest resident memory of this process during `work`, less that before it; looked at every few milliseconds."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(
            0
        )  # glibc keeps freed memory for later: what `work` then takes from it would not be seen
    process, over = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    seen = [before]

    def look() -> None:
        while not over.wait(LOOK_EVERY_S):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        work()
        seen.append(process.memory_info().rss)
    finally:
        over.set()
        watcher.join()
    return max(seen) - before


def new_parser(
    name: str, doc: str, repeats: int = 5, warmup: int = 2, count: str = "repeats"
) -> Parser:
    """A parser for `python -m benchmarks.NAME` that shows the module's words, with the options every benchmark has.

    `count` is the word for what the median is of.
    """
    parser = Parser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    counted = f"{count} the median is of ({repeats})"
    parser.add_argument(
        f"--{count}", dest="repeats", type=positive, default=repeats, metavar="N", help=counted
    )
    parser.add_argument(
        "--warmup",
        type=int,
        default=warmup,
        metavar="N",
        help=f"{count} before that, not counted ({warmup})",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads torch may use (its own choice)"
    )
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time, for busy machines (wall)",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run (auto)"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help=f"the JSON (outputs/benchmarks/{name}.json)"
    )
    return parser


def positive(text: str) -> int:
    """A whole number of 1 or more, as an option's value."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return number


def prepare(options: argparse.Namespace) -> Bench:
    """The Bench of parsed options; sets torch's threads."""
    if options.warmup < 0:
        raise UserError(f"--warmup {options.warmup}: give 0 or more")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    if options.clock == "cpu" and device.type == "cuda":
        raise UserError(
            "--clock cpu does not see what a GPU does: use --clock wall, or --device cpu"
        )
    return Bench(device, options.clock, options.repeats, options.warmup)


def about() -> dict[str, Any]:
    """When, from which commit, on what machine, and how busy it was (its load before and now counts other programs too)."""
    load = psutil.getloadavg()[0]
    return {
        **circumstances(),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "load": round(load, 2),
    }


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine_line(facts: Mapping[str, Any], bench: Bench) -> str:
    """One line on the circumstances, to stand above a table."""
    commit = str((facts["git"] or {}).get("commit", "none"))[:10]
    where = facts["cuda"] if bench.device.type == "cuda" else f"{facts['cpu']}, {facts['machine']}"
    busy = f"{facts['threads']} thread(s), load {facts['load']:g}, {bench.clock} clock"
    return f"{where}; {busy}; torch {facts['torch']}; {facts['date']}, commit {commit}"


def tell(
    options: argparse.Namespace,
    bench: Bench,
    name: str,
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    results: object,
    notes: Sequence[str] = (),
) -> None:
    """Print the table with the machine's line and the notes, and write `results` with the circumstances as JSON."""
    facts = about()
    table = text_table(header, rows, title, PAGE_WIDTH)
    sys.stdout.write("\n".join([machine_line(facts, bench), table, *notes]).rstrip() + "\n")
    path = options.write or ROOT / "outputs" / "benchmarks" / f"{name}.json"
    settings = {key: value for key, value in vars(options).items() if key != "write"}
    write_json(
        path,
        {
            "about": facts,
            "device": str(bench.device),
            "settings": settings,
            "results": results,
            "notes": notes,
        },
    )


def ms(seconds: float) -> str:
    """Seconds as milliseconds for a table."""
    value = 1.0e3 * seconds
    return f"{value:.0f}" if value >= 100.0 else f"{value:.1f}" if value >= 1.0 else f"{value:.3f}"


def times(seconds: float | None, base: float | None) -> str:
    """`seconds` as a multiple of `base` for a table; a dash where one is not had."""
    return "–" if seconds is None or not base else f"{seconds / base:.2f} x"


def find_nerfacc() -> tuple[ModuleType | None, str]:
    """The nerfacc package and "", or None and why not.

    The batched functions of its releases are plain torch and build nothing; later ones may want to, so one is tried.
    """
    try:
        import nerfacc

        sigma = torch.ones(1, 2)
        nerfacc.rendering(sigma - 1.0, sigma, rgb_sigma_fn=lambda *_: (torch.ones(1, 2, 3), sigma))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return (
            None,
            f"nerfacc does not work here ({' '.join(str(error).split())[:200]}): pip install nerfacc",
        )
    return nerfacc, ""

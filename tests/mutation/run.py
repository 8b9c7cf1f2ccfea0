"""Run the tests against one-line mutants of the package: `python -m tests.mutation.run [GROUP]`.

Each group has source files and the tests that must notice a change of them. The tests of a group
run once without a change, then for each mutant, those with the module's name first, until the first
failure. A mutant that no test notices survives: kill it with a test, or list it in `survivors.md`
with the reason why the change means nothing. The sources are changed in a copy of the checkout.
Each run is a fork of a process that has imported the libraries, so that a mutant takes only the
time of its tests.

Results are kept in `outputs/mutants/results.jsonl`. A killed mutant is not run again until its
source changes, a survivor also when the tests of its group change. So a run that was stopped, or
that ended after `--minutes`, continues with the same command.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.mutate import Mutant, mutants

ROOT = Path(__file__).parents[2]
SURVIVORS = Path(__file__).with_name("survivors.md")
RESULTS = ROOT / "outputs" / "mutants" / "results.jsonl"
LOG, LOG_LINES = "pytest.log", 25  # in the copy; lines shown if the tests fail without a change
NOT_RUN = (  # starts processes that import everything again, and tests nothing of the export
    "tests/export/test_uv.py::test_processes_of_a_suite_import_nothing_from_the_current_folder",
)
LEAST_TIMEOUT_S = 20.0  # processor time of a mutant's tests ...
TIMEOUT_FACTOR = 5.0  # ... and at least this many times what they take without a change
WALL_FACTOR = 20.0  # seconds by the clock for each of processor time: others use the machine too


@dataclass(frozen=True)
class Group:
    """Sources, and the tests that must notice a change of them.

    Attributes:
        sources: files or folders of the package.
        tests: files or folders.
    """

    sources: tuple[str, ...]
    tests: tuple[str, ...]

    def files(self) -> list[str]:
        """The Python files, relative to the checkout, but those that need a GPU."""
        found: list[str] = []
        for source in self.sources:
            path = ROOT / source
            files = [path] if path.is_file() else sorted(path.glob("*.py"))
            found += [file.relative_to(ROOT).as_posix() for file in files]
        return [name for name in found if not name.endswith(("_cuda.py", "_triton.py"))]

    def test_files(self, root: Path = ROOT) -> list[Path]:
        """The files of its tests in a checkout."""
        found: list[Path] = []
        for test in self.tests:
            path = root / test
            found += [path] if path.is_file() else sorted(path.rglob("test_*.py"))
        return found

    def tests_of(self, source: str, root: Path = ROOT) -> list[str]:
        """The test files that name the module; they most often notice a mutant.

        They are those of the checkout that runs: a file that was added since the copy was made
        would be missing there, and pytest would fail, as if the mutant had been noticed.
        """
        stem, module = Path(source).stem, source.removesuffix(".py").replace("/", ".")
        found = self.test_files(root)
        named = [file for file in found if stem in file.stem]
        named = named or [file for file in found if module in file.read_text(encoding="utf-8")]
        return [file.relative_to(root).as_posix() for file in named]

    def test_hash(self, root: Path = ROOT) -> str:
        """A hash of the tests of a checkout."""
        digest = hashlib.sha256()
        for test in self.tests:
            path = root / test
            for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
                digest.update(file.read_bytes())
        return digest.hexdigest()[:16]


GROUPS = {
    "guidance": Group(("vp3d/guidance",), ("tests/guidance", "tests/diffusion/test_perp_neg.py")),
    "schedule": Group(("vp3d/diffusion/schedule.py",), ("tests/diffusion/test_schedule.py",)),
    "cfg": Group(("vp3d/diffusion/cfg.py",), ("tests/diffusion/test_cfg.py",)),
    "sampling": Group(("vp3d/diffusion/sampling.py",), ("tests/diffusion/test_sampling.py",)),
    "perp_neg": Group(("vp3d/diffusion/perp_neg.py",), ("tests/diffusion/test_perp_neg.py",)),
    "resize": Group(("vp3d/rewards/resize.py",), ("tests/rewards/test_resize.py",)),
    "rewards": Group(
        ("vp3d/rewards",), ("tests/rewards", "tests/diffusion/test_no_code_of_a_folder.py")
    ),
    "render": Group(("vp3d/render",), ("tests/render",)),
    "watchdog": Group(("vp3d/train/watchdog.py",), ("tests/train/test_watchdog.py",)),
    "loop": Group(("vp3d/train/loop.py",), ("tests/train/test_loop.py",)),
    "train": Group(("vp3d/train",), ("tests/train",)),
    "export": Group(("vp3d/export",), ("tests/export",)),
    "statistics": Group(
        ("vp3d/evaluate/intervals.py", "vp3d/evaluate/statistics.py"),
        ("tests/evaluate/test_statistics.py", "tests/evaluate/test_intervals.py"),
    ),
    "prompt_check": Group(
        ("vp3d/worlds/toybox/prompt_check.py",), ("tests/worlds/toybox/test_prompt_check.py",)
    ),
    "janus": Group(("vp3d/worlds/toybox/janus.py",), ("tests/worlds/toybox/test_janus.py",)),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the groups, prints a line for each survivor, and the shares.

    Returns:
        1 if a mutant survived for which `survivors.md` has no reason, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.run", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"any of {', '.join(GROUPS)}")
    parser.add_argument("--minutes", type=float, default=30.0, help="time for all groups (30)")
    parser.add_argument("--sample", type=int, help="only the first so many of each group's order")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the mutants (0)")
    options = parser.parse_args(argv)
    unknown = [name for name in options.groups if name not in GROUPS]
    if unknown:
        parser.error(f"there is no group {unknown[0]!r}; there are: {', '.join(GROUPS)}")
    end = time.monotonic() + 60.0 * options.minutes
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = copy_checkout(Path(folder) / "checkout")
        prepare(copy)
        for name in options.groups or GROUPS:
            run_group(name, copy, end, options.sample, options.seed)
    return report(options.groups or list(GROUPS))


def run_group(name: str, copy: Path, end: float, sample: int | None, seed: int) -> None:
    """Runs the mutants of a group that have no valid result yet, until `end` (monotonic)."""
    group, done = GROUPS[name], read_results()
    waiting = [
        (path, source, mutant)
        for path, source, mutant in drawn(group, sample, seed)
        if not is_valid(done.get(key_of(path, source, mutant)), group)
    ]
    if not waiting or time.monotonic() >= end:
        return
    preload(group)
    started = cpu_s()
    sys.dont_write_bytecode = False  # the run without a change compiles, for all others
    unchanged = run_tests(copy, group.tests, 600.0)
    sys.dont_write_bytecode = True
    if unchanged != "survived":
        lines = (copy / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        sys.stdout.write(f"{name}: the tests fail without a change; nothing was run\n")
        sys.stdout.write("".join(f"    {line}\n" for line in lines[-LOG_LINES:]))
        return
    tests_hash = group.test_hash(copy)  # those of the checkout may change during the run
    timeout_s = max(LEAST_TIMEOUT_S, TIMEOUT_FACTOR * (cpu_s() - started))
    for number, (path, source, mutant) in enumerate(waiting, 1):
        if time.monotonic() >= end:
            return
        write_source(copy / path, mutant.apply(source))
        outcome = "survived"
        for tests in dict.fromkeys((tuple(group.tests_of(path, copy)), group.tests)):
            if outcome == "survived" and tests:
                outcome = run_tests(copy, tests, timeout_s)
        write_source(copy / path, source)
        key = key_of(path, source, mutant)
        keep({"key": key, "group": name, "outcome": outcome, "tests": tests_hash})
        if outcome == "survived":
            sys.stdout.write(f"{name} {number}/{len(waiting)}: {outcome}: {key}\n")
            sys.stdout.flush()


def drawn(group: Group, sample: int | None, seed: int) -> list[tuple[str, str, Mutant]]:
    """A group's mutants in the order of `seed`, or the first `sample` of them.

    It does not depend on what has run, so a run that was stopped continues with the same sample.
    """
    found = list(all_mutants(group))
    random.Random(seed).shuffle(found)  # a run that ends early has seen some of every file
    return found[:sample]


def all_mutants(group: Group) -> Iterator[tuple[str, str, Mutant]]:
    """(path, source, mutant) of every mutant of a group."""
    for path in group.files():
        source = (ROOT / path).read_text(encoding="utf-8")
        for mutant in mutants(source):
            yield path, source, mutant


def key_of(path: str, source: str, mutant: Mutant) -> str:
    """A mutant as survivors.md names it: path, the text of its line, and the change.

    Of several equal changes in equal lines, the later ones have a number.
    """
    text = source.splitlines()[mutant.line - 1].strip().replace("|", "¦")
    change = f"{mutant.change}".replace("\n", " ").replace("|", "¦")
    twins = [
        other
        for other in mutants_of(source)
        if other.change == mutant.change
        and source.splitlines()[other.line - 1].strip().replace("|", "¦") == text
    ]
    number = twins.index(mutant) + 1
    return f"{path} | `{text}` | {change}" + (f" no. {number}" if number > 1 else "")


KEPT_ALIVE: list[object] = []
_MUTANTS: dict[str, list[Mutant]] = {}


def mutants_of(source: str) -> list[Mutant]:
    """`mutants`, computed once for each source."""
    if source not in _MUTANTS:
        _MUTANTS[source] = mutants(source)
    return _MUTANTS[source]


def is_valid(result: dict[str, str] | None, group: Group) -> bool:
    """Whether a stored result need not be repeated."""
    if result is None:
        return False
    return result["outcome"] != "survived" or result["tests"] == group.test_hash()


def read_results() -> dict[str, dict[str, str]]:
    """The newest result of each mutant, by its key."""
    if not RESULTS.is_file():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {row["key"]: row for row in rows}


def keep(row: dict[str, str]) -> None:
    """Adds a result."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def read_reasons() -> dict[str, str]:
    """Key -> reason of the survivors that change nothing that matters."""
    if not SURVIVORS.is_file():
        return {}
    rows = [line.strip("| \n") for line in SURVIVORS.read_text(encoding="utf-8").splitlines()]
    found = {}
    for row in rows:
        if row.startswith("vp3d/"):
            key, _, reason = row.rpartition(" | ")
            found[key] = reason
    return found


def report(groups: Sequence[str]) -> int:
    """Prints what survived, with its reason, and how many were killed of each group."""
    results, reasons, unexplained = read_results(), read_reasons(), 0
    total: Counter[str] = Counter()
    for name in groups:
        keys = [key_of(*found) for found in all_mutants(GROUPS[name])]
        outcomes = {key: results[key]["outcome"] for key in keys if key in results}
        for key, outcome in outcomes.items():
            if outcome == "survived":
                unexplained += key not in reasons
                sys.stdout.write(f"survived: {key}: {reasons.get(key, 'NO REASON')}\n")
        count = Counter(outcomes.values())
        total += count
        sys.stdout.write(f"{name}: {summary(count)}; {len(keys) - len(outcomes)} not run\n")
    sys.stdout.write(f"all: {summary(total)}; {unexplained} survivors without a reason\n")
    return 1 if unexplained else 0


def summary(count: Counter[str]) -> str:
    """How many mutants were killed: "90 of 100 killed (90 %)"."""
    run = sum(count.values())
    killed = run - count["survived"]
    return f"{killed} of {run} killed ({100 * killed / run:.1f} %)" if run else "none run"


def copy_checkout(copy: Path) -> Path:
    """A copy of the checkout's files, in which sources can be changed; weights are links."""
    words = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        source, target = ROOT / name, copy / name
        if not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("assets/"):
            target.symlink_to(source)
        else:
            shutil.copyfile(source, target)
    return copy


def prepare(copy: Path) -> None:
    """Makes the copy the checkout that forks import from."""
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    os.environ["NUMBA_CACHE_DIR"] = str(copy / "numba")  # checked against the time of each source
    sys.path.insert(0, str(copy))
    os.chdir(copy)


def preload(group: Group) -> None:
    """Imports what a group's sources and tests import, then forgets the package and the tests.

    So a fork, which imports the copy's package, finds the libraries loaded.
    """
    import vp3d.system.torch_compat  # before torchvision

    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)  # a fork has none of its parent's threads
    KEPT_ALIVE.append(vp3d.system.torch_compat)  # owns operators that torchvision registered
    wanted = [file.removesuffix(".py").replace("/", ".") for file in group.files()]
    for test in group.test_files():
        for node in ast.parse(test.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted.append(node.module)
            elif isinstance(node, ast.Import):
                wanted += [alias.name for alias in node.names]
    for name in dict.fromkeys(wanted):
        with contextlib.suppress(ImportError):  # an extra that only some tests need
            importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] in ("vp3d", "tests")]:
        if not name.startswith("tests.mutation"):
            del sys.modules[name]


def write_source(path: Path, text: str) -> None:
    """Writes a changed source."""
    path.write_text(text, encoding="utf-8")


def run_tests(copy: Path, tests: Sequence[str], timeout_s: float) -> str:
    """Runs tests in a fork, for so much processor time: "killed", "survived" or "timeout"."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (int(timeout_s), int(timeout_s) + 5))
        _child(copy, tests)
    end = time.monotonic() + WALL_FACTOR * timeout_s
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return {0: "survived", -signal.SIGXCPU: "timeout"}.get(code, "killed")
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "timeout"


def cpu_s() -> float:
    """Processor seconds of the children that have ended, theirs included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _child(copy: Path, tests: Sequence[str]) -> None:
    """Runs pytest on the copy and ends the process with its exit code."""
    code = 99
    try:
        log = os.open(copy / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        import pytest

        words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:anyio"]
        words += ["--timeout", "0", "--rootdir", str(copy)]  # the time is limited by the caller
        words += [word for test in NOT_RUN for word in ("--deselect", test)]
        with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
            code = int(pytest.main([*words, "--basetemp", str(Path(folder) / "t"), *tests]))
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())

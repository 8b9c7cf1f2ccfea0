"""The random order of `--shuffle`, and Ctrl-C in a job of the background."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import conftest
from vp3d.config.paths import ROOT


class Item:
    """What the order reads of a test."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = Path(path), name


def names(seed: int) -> list[tuple[Path, str]]:
    items = [Item(f"f{n // 5}", f"t{n}") for n in range(30)]
    conftest.shuffle(items, seed)  # type: ignore[arg-type]
    return [(item.path, item.name) for item in items]


def test_the_longest_come_first_and_the_rest_keep_their_order() -> None:
    files = ["tests/a/x.py", "tests/embedded/y.py", "tests/a/z.py", "tests/end_to_end/x.py"]
    items = [Item(name, "t") for name in files]
    conftest.longest_first(items)  # type: ignore[arg-type]
    assert [item.path.as_posix() for item in items] == [files[n] for n in (3, 1, 0, 2)]


def test_a_seed_is_an_order_that_keeps_files_together() -> None:
    assert names(1) == names(1) != names(2) != names(3)
    assert sorted(names(1)) == sorted(names(4))
    files = [path for path, _ in names(1)]
    changes = sum(a != b for a, b in zip(files, files[1:], strict=False))
    assert changes == 5, "each file is one block"
    assert [name for path, name in names(1) if path == Path("f0")] != [f"t{n}" for n in range(5)]


TESTS = """
import os, signal, subprocess, sys
import pytest

@pytest.mark.parametrize("n", range(6))
def test_n(n):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)

def test_child():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "KeyboardInterrupt" in done.stderr
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a shell with trap")
def test_the_suite_may_run_with_ctrl_c_ignored_and_prints_its_seed(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(Path(conftest.__file__).read_text(encoding="utf-8"))
    (tmp_path / "test_n.py").write_text(TESTS)
    command = f"trap '' INT; {sys.executable} -m pytest -p no:cacheprovider -v --rootdir {tmp_path}"
    runs = []
    for word in ("--shuffle -n 2 --dist loadfile", "--shuffle-seed=7", "--shuffle-seed=7"):
        runs.append(
            subprocess.run(
                ["sh", "-c", f"{command} {word} {tmp_path}"],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=120,
            )
        )
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stdout[-2000:]
    assert "random order: --shuffle-seed=" in runs[0].stdout
    assert "7 passed" in runs[0].stdout
    order = [[line for line in run.stdout.splitlines() if "::test" in line] for run in runs]
    assert order[1] == order[2] and len(order[1]) == 7

"""Items in several processes: killed ones are taken again, Ctrl-C ends them, orphans leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vp3d.engine.local import in_processes
from vp3d.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def die_once(item: tuple[Path, int]) -> int:
    """Kill this process the first time that the item is taken."""
    folder, number = item
    note = folder / str(number)
    if not note.exists():
        note.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die(item: int) -> int:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def nap(item: tuple[Path, int]) -> int:
    """Say that the item is being worked on, then take a minute."""
    folder, number = item
    (folder / f"{number}-{os.getpid()}").touch()
    time.sleep(60.0)
    return number


def test_the_item_of_a_killed_process_is_taken_again(tmp_path: Path) -> None:
    items = [(tmp_path, number) for number in range(3)]
    found = list(in_processes(die_once, items, tmp_path / "logs", 2, restarts=None))
    assert sorted(found) == [0, 1, 2]


def test_a_process_that_always_dies_ends_the_work_once_the_restarts_are_used_up(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match="one of 2 processes was killed"):
        list(in_processes(die, [1, 2], tmp_path / "logs", 2, restarts=1))


def started(folder: Path, count: int) -> list[int]:
    """The ids of the processes that work on an item, once there are `count`."""
    until = time.monotonic() + 100.0
    while len(found := list(folder.glob("*-*"))) < count:
        assert time.monotonic() < until, "no process took an item"
        time.sleep(0.05)
    return [int(path.name.split("-")[1]) for path in found]


def lives(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_ctrl_c_ends_the_items_and_those_that_were_queued_behind_them(tmp_path: Path) -> None:
    items = [(tmp_path, number) for number in range(6)]

    def interrupt() -> None:
        started(tmp_path, 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        list(in_processes(nap, items, tmp_path / "logs", 2))
    assert len(list(tmp_path.glob("*-*"))) == 2
    assert not any(lives(pid) for pid in started(tmp_path, 2))


def test_processes_leave_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from pathlib import Path\n"
        "from tests.engine.test_local import nap\n"
        "from vp3d.engine.local import in_processes\n"
        f"here = Path({str(tmp_path)!r})\n"
        "if __name__ == '__main__':\n"
        "    list(in_processes(nap, [(here, 0), (here, 1)], here / 'logs', 2))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(program)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    pids = started(tmp_path, 2)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 30.0
    while any(lives(pid) for pid in pids):
        assert time.monotonic() < until, "a process outlived its parent"
        time.sleep(0.1)

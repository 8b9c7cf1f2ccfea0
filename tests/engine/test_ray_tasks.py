"""Items as Ray tasks on this machine. Skipped where Ray is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import psutil
import pytest

from tests.engine.test_local import die_once
from vp3d.engine.ray_tasks import check_ray, in_ray
from vp3d.errors import ResourceError, UserError

WITHOUT = importlib.util.find_spec("ray") is None
needs_ray = pytest.mark.skipif(WITHOUT, reason="needs ray: pip install 'vp3d[ray]'")


def refuse(item: int) -> int:
    """Fail with an error of the program."""
    raise ResourceError(f"no disk for {item}")


@pytest.mark.skipif(not WITHOUT, reason="ray is installed")
def test_without_ray_one_line_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"pip install vp3d\[ray\]"):
        check_ray()


def where_it_listens(item: int) -> list[str]:
    """The addresses on which processes of this user's Ray listen, from inside a task."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if "raylet" in words or "gcs_server" in words or words.startswith("ray::"):
            found += [c.laddr.ip for c in process.net_connections("tcp") if c.status == "LISTEN"]
    return found


@needs_ray
@pytest.mark.slow
def test_on_one_machine_it_listens_on_the_loopback_address_alone() -> None:
    (found,) = in_ray(where_it_listens, [0], 1)
    assert found and set(found) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@needs_ray
@pytest.mark.slow
def test_a_killed_task_is_taken_again_and_an_error_keeps_its_type(tmp_path: Path) -> None:
    items = [(tmp_path, number) for number in range(3)]
    assert sorted(in_ray(die_once, items, 2)) == [0, 1, 2]
    with pytest.raises(ResourceError, match="no disk for 7"):
        list(in_ray(refuse, [7], 1))

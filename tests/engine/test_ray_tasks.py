"""Items as Ray tasks on this machine. Skipped where Ray is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

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


@needs_ray
@pytest.mark.slow
def test_a_killed_task_is_taken_again_and_an_error_keeps_its_type(tmp_path: Path) -> None:
    items = [(tmp_path, number) for number in range(3)]
    assert sorted(in_ray(die_once, items, 2)) == [0, 1, 2]
    with pytest.raises(ResourceError, match="no disk for 7"):
        list(in_ray(refuse, [7], 1))

"""Atlases: valid, without overlaps, on time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh

from vp3d.export import uv
from vp3d.export.uv import Unwrap, is_atlas, unwrap, unwrap_cells, unwrap_xatlas
from vp3d.types import Mesh

ROOT = Path(__file__).resolve().parents[2]


def ball(subdivisions: int = 2) -> tuple[np.ndarray, np.ndarray]:
    body = trimesh.creation.icosphere(subdivisions=subdivisions)
    return np.asarray(body.vertices, np.float32), np.asarray(body.faces, np.int64)


def coverage(atlas: Unwrap, size: int) -> np.ndarray:
    """Number of triangles that contain each of size x size sample points: int `[size, size]`."""
    axis = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    count = np.zeros((size, size), int)
    for a, b, c in atlas.uv[atlas.faces].astype(np.float64):
        sides = [
            (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0])
            for p, q in ((a, b), (b, c), (c, a))
        ]
        count += np.all([s > 1e-12 for s in sides], 0) | np.all([s < -1e-12 for s in sides], 0)
    return count


@pytest.mark.parametrize("method", ["xatlas", "cells"])
def test_atlas_is_valid_and_nothing_overlaps(method: str) -> None:
    vertices, faces = ball()
    atlas = unwrap(vertices, faces, 256, 60.0 if method == "xatlas" else 0.0)
    assert atlas.method == method and is_atlas(atlas, faces)
    covered = coverage(atlas, 200)
    assert covered.max() == 1 and covered.mean() > 0.3


@pytest.mark.parametrize(("count", "size"), [(1, 16), (2, 16), (3, 16), (999, 64), (20_000, 64)])
def test_cells_stay_apart_for_any_count(count: int, size: int) -> None:
    """Triangles have area, do not touch, and stay in their half of their cell."""
    faces = np.arange(3 * count).reshape(-1, 3)
    atlas = unwrap_cells(faces, size)
    assert is_atlas(atlas, faces) and len(atlas.uv) == 3 * count
    side = int(np.ceil(np.sqrt((count + 1) // 2)))
    corners = atlas.uv[atlas.faces].astype(np.float64) * side
    cell = np.floor(corners.mean(1))
    local = corners - cell[:, None]
    assert (local > 0).all() and (local < 1).all()
    upper = local.mean(1).sum(-1) > 1
    assert ((local.sum(-1) > 1) == upper[:, None]).all()
    assert len(np.unique(np.c_[cell, upper], axis=0)) == count


def test_deadline_of_zero_or_too_short_falls_back() -> None:
    vertices, faces = ball(5)
    assert unwrap(vertices, faces, 64, 0.0).method == "cells"
    start = time.monotonic()
    assert unwrap(vertices, faces, 64, 0.01).method == "cells"
    assert time.monotonic() - start < 5.0


def test_a_child_that_dies_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    vertices, faces = ball(0)
    assert unwrap_xatlas(vertices, faces, 64, 30.0) is None
    assert unwrap(vertices, faces, 64, 30.0).method == "cells"


def test_xatlas_is_deterministic() -> None:
    vertices, faces = ball(2)
    first, second = (unwrap_xatlas(vertices, faces, 128, 60.0) for _ in range(2))
    assert first is not None and second is not None
    np.testing.assert_array_equal(first.uv, second.uv)
    np.testing.assert_array_equal(first.faces, second.faces)


def test_is_atlas_refuses_other_triangles_and_bad_uvs() -> None:
    _, faces = ball(0)
    good = unwrap_cells(faces, 64)
    assert not is_atlas(Unwrap(good.mapping[::-1], good.faces, good.uv, "cells"), faces)
    assert not is_atlas(Unwrap(good.mapping, good.faces, good.uv + 1, "cells"), faces)
    assert not is_atlas(Unwrap(good.mapping, good.faces, good.uv * np.nan, "cells"), faces)
    assert not is_atlas(Unwrap(good.mapping[:-3], good.faces[:-1], good.uv[:-3], "cells"), faces)


@pytest.mark.parametrize(("deadline", "kinds"), [(60.0, ["warning", "mesh"]), (0.0, ["mesh"])])
def test_our_own_atlas_is_warned_of_where_xatlas_was_asked_for(
    deadline: float,
    kinds: list[str],
    export: Callable[..., Mesh],
    balls: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uv, "unwrap_xatlas", lambda *_: None)
    events: list[tuple[str, dict[str, object]]] = []
    export(
        balls(((0.0, 0.0, 0.0), 0.6)),
        event=lambda kind, **data: events.append((kind, data)),
        unwrap_deadline_s=deadline,
    )
    assert [kind for kind, _ in events] == kinds and events[-1][1]["atlas"] == "cells"
    assert deadline == 0.0 or "xatlas failed or took more than 60 s" in str(events[0][1]["message"])


@pytest.mark.parametrize("size", [16, 64, 512])
@pytest.mark.parametrize("deadline_s", [60.0, 0.0])
def test_uvs_stay_half_a_texel_inside(size: int, deadline_s: float) -> None:
    atlas = unwrap(*ball(), size, deadline_s)
    half = 0.5 / size - 1e-6
    assert atlas.uv.min() >= half and atlas.uv.max() <= 1.0 - half
    assert atlas.uv.max() - atlas.uv.min() > 0.8


def test_inset_is_a_shrinking_about_the_middle() -> None:
    corners = np.float32([[0, 0], [1, 1], [0.5, 0.5]])
    found = uv.inset(Unwrap(np.arange(3), np.array([[0, 1, 2]]), corners, "cells"), 50)
    np.testing.assert_allclose(found.uv, [[0.01, 0.01], [0.99, 0.99], [0.5, 0.5]], atol=1e-6)


TRAPS = (
    *("xatlas", "numpy", "signal", "tempfile", "dataclasses", "vp3d", "json", "sitecustomize"),
    *("usercustomize", "encodings", "os", "subprocess", "pathlib", "multiprocessing", "pickle"),
)


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules that shadow others; the file that they would write."""
    ran = tmp_path / "elsewhere" / "ran"
    ran.parent.mkdir()
    (tmp_path / "here").mkdir()
    for name in TRAPS:
        code = f"open({str(ran)!r}, 'w').close()\nraise SystemExit(3)\n"
        (tmp_path / "here" / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path / "here")
    return ran


@pytest.mark.parametrize("path", [None, "", ":", ".", "../here", "{root}:", ":{root}", ".:{root}"])
def test_the_child_imports_nothing_from_the_current_folder(
    path: str | None, trapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path.format(root=ROOT))
    vertices, faces = ball(1)
    assert unwrap(vertices, faces, 64, 60.0).method == "xatlas"
    assert not trapped.exists()


def test_an_absolute_entry_of_pythonpath_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"a:{ROOT}::./b")
    assert uv.child_environment()["PYTHONPATH"] == str(ROOT)
    monkeypatch.setenv("PYTHONPATH", "")
    assert "PYTHONPATH" not in uv.child_environment()


def test_the_trap_catches_a_child_that_looks_there(trapped: Path) -> None:
    subprocess.run([sys.executable, "-c", "import xatlas"], capture_output=True)
    assert trapped.exists()


def test_processes_of_a_suite_import_nothing_from_the_current_folder(
    trapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They start as `python -c`, with the current folder in front of the standard library."""
    program = tmp_path / "program.py"
    program.write_text(
        "from vp3d.evaluate.runner import in_processes\n"
        "from pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    print(sorted(in_processes(abs, [1, -2], Path('../logs'), 2)))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(
        [sys.executable, "-P", str(program)], capture_output=True, text=True, timeout=200
    )
    assert done.stdout == "[1, 2]\n", done.stderr[-2000:]
    assert not trapped.exists()


def test_the_child_does_not_look_beside_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without -P the modules of vp3d/export would come before those of the environment."""
    commands: list[list[str]] = []

    def note(command: list[str], **_: object) -> None:
        commands.append(command)
        raise OSError

    monkeypatch.setattr(uv.subprocess, "run", note)
    assert unwrap_xatlas(*ball(0), 64, 60.0) is None
    assert commands[0][:2] == [sys.executable, "-P"]

"""Atlases: valid, without overlaps, on time."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import trimesh

from vp3d.export import uv
from vp3d.export.uv import Unwrap, is_atlas, unwrap, unwrap_cells, unwrap_xatlas
from vp3d.types import Mesh


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

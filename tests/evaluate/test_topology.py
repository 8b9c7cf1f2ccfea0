"""Through holes: Euler numbers by hand, and the table of folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from tests.helpers.assets import asset_of
from vp3d.errors import UserError
from vp3d.evaluate import topology
from vp3d.export.formats import WRITERS
from vp3d.metrics.shapes import euler_number
from vp3d.types import Mesh


def mesh_of(body: trimesh.Trimesh) -> Mesh:
    return Mesh(np.asarray(body.vertices, np.float32), np.asarray(body.faces, np.int64))


RING = trimesh.creation.torus(0.6, 0.2)
DISC = trimesh.creation.cylinder(0.6, 0.2)


@pytest.mark.parametrize(
    ("body", "right"),
    [
        (trimesh.creation.icosphere(subdivisions=2), 2),
        (RING, 0),
        (RING + RING.copy().apply_translation([3, 0, 0]), 0),
        (DISC + DISC.copy().apply_translation([3, 0, 0]), 4),
        (RING + DISC.copy().apply_translation([3, 0, 0]), 2),
    ],
)
def test_euler_number(body: trimesh.Trimesh, right: int) -> None:
    assert euler_number(mesh_of(body)) == right


def test_seams_and_faces_without_area_do_not_count() -> None:
    split = mesh_of(RING)
    corners = split.vertices[split.faces].reshape(-1, 3)
    faces = np.arange(len(corners)).reshape(-1, 3)
    assert euler_number(Mesh(corners, np.r_[faces, [[0, 0, 1]]])) == 0


@pytest.mark.parametrize(
    ("prompt", "right"),
    [("a cyan ring", 0), ("a red mug", 0), ("a red ball", None), ("a red cone", 2)],
)
def test_true_scenes(prompt: str, right: int | None) -> None:
    if right is None:
        with pytest.raises(ValueError, match="not a toybox caption"):
            topology.true_euler(prompt)
    else:
        assert topology.true_euler(prompt) == right


def test_table_of_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, body in (("before", DISC), ("after", RING)):
        (tmp_path / name).mkdir()
        for color in ("cyan", "red"):
            file = tmp_path / name / f"a-{color}-ring.glb"
            shape = RING if color == "red" else body
            WRITERS["glb"](asset_of(mesh_of(shape)), file)
    (tmp_path / "after" / "a-lovely-day.glb").write_bytes(b"")
    (tmp_path / "after" / "a-blue-ring.glb").write_bytes(b"")
    topology.main([str(tmp_path / "before"), str(tmp_path / "after")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| prompt | seed | true | before | after |"
    assert lines[2:] == [
        "| a blue ring | 0 | 0 |  | no mesh |",
        "| a cyan ring | 0 | 0 | 2 | 0 |",
        "| a red ring | 0 | 0 | 0 | 0 |",
        "| Euler number right | | | 1 of 2 | 2 of 3 |",
    ]


def test_folders_without_toybox_prompts_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a-dragon.glb").write_bytes(b"")
    with pytest.raises(UserError, match="no asset of a toybox prompt"):
        topology.main([str(tmp_path)])

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vp3d.config.schema import CameraConfig
from vp3d.errors import UserError
from vp3d.evaluate.gallery import (
    FIGURES,
    GalleryRow,
    asset_table,
    join_tiles,
    record_of,
    row_tiles,
    write_csv,
    write_sheet,
)
from vp3d.evaluate.prompt_file import SuitePrompt, parse_suite, read_suite
from vp3d.evaluate.runner import FoundAsset, Task
from vp3d.evaluate.statistics import ALL_SETS, cell, summarise
from vp3d.metrics.attribute_judge import Judge
from vp3d.metrics.attributes import PASS_SHARE, check_view, most_named, score_asset
from vp3d.report.pictures import sheet
from vp3d.types import Mesh

SINGLE = {"object_a": "cube", "color_a": "red", "accent_a": "none", "pattern": "plain"}
SINGLE |= {"object_b": "none", "color_b": "none", "relation": "none"}
PAIR = SINGLE | {"object_b": "ball", "color_b": "blue", "relation": "on"}
HEADS = {
    "object_a": ["ball", "cube"],
    "color_a": ["red", "blue"],
    "accent_a": ["none", "red"],
    "pattern": ["plain", "stripes"],
    "object_b": ["none", "ball", "cube"],
    "color_b": ["none", "red", "blue"],
    "relation": ["none", "on", "next to"],
}


def cube(front: tuple[float, float, float], back: tuple[float, float, float]) -> Mesh:
    """A cube whose half at +x has the colour `front`, the other one `back`."""
    corners = (
        np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32) * 0.45
    )
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    colors = np.where(corners[:, :1] > 0, [front], [back]).astype(np.float32)
    return Mesh(corners, faces, vertex_colors=colors)


class RedOrBlue(Judge):
    """A judge that answers "cube" and red or blue, whichever prevails in the picture."""

    def forward(self, rgb: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits by the mean colour."""
        logits = {name: torch.zeros(len(rgb), len(values)) for name, values in self.values.items()}
        logits["object_a"][:, 1] = 1.0
        logits["color_a"] = rgb.mean((2, 3))[:, (0, 2)]
        return logits


def test_suite_lines() -> None:
    text = "# a suite\n\na red cube seed=7\n a blue ball   # seed=9\na green cone seed=0 # last\n"
    found = parse_suite(text)
    assert found == [
        SuitePrompt("a red cube", 7),
        SuitePrompt("a blue ball", 0),
        SuitePrompt("a green cone", 0),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a cube\na ball seed=x", "line 2: seed=x"),
        ("a cube seed=-1", "line 1"),
        ("# -", "no prompts"),
        ("seed=3", "no prompt"),
        (
            f"a cube seed={2**62}\na ball seed={2**62 + 1}",
            "line 2: seed 4611686018427387905 is above",
        ),
        ("a cube seed=" + "9" * 5000, "line 1: seed 9+ is above"),
    ],
)
def test_suite_mistakes_name_the_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_suite(text)


def test_suite_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompt file"):
        read_suite(tmp_path / "absent.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        read_suite(tmp_path / "binary.txt")


def test_a_view_needs_objects_and_colours() -> None:
    assert check_view(PAIR, PAIR)["right"]
    wrong_color, wrong_object = PAIR | {"color_b": "red"}, PAIR | {"object_a": "ball"}
    assert check_view(wrong_color, PAIR) | {
        "right": False,
        "objects": True,
        "colors": False,
    } == check_view(wrong_color, PAIR)
    assert (
        not check_view(wrong_object, PAIR)["objects"]
        and not check_view(wrong_object, PAIR)["right"]
    )
    other_detail = check_view(PAIR | {"pattern": "stripes"}, PAIR)
    assert other_detail["right"] and not other_detail["pattern"]
    assert not check_view(PAIR, SINGLE)["right"]  # an object too many


def test_next_to_may_be_named_in_either_order_but_on_may_not() -> None:
    next_to = PAIR | {"relation": "next to"}
    swapped = {"object_a": "ball", "color_a": "blue", "object_b": "cube", "color_b": "red"}
    assert check_view(next_to | swapped, next_to)["right"]
    assert not check_view(PAIR | swapped, PAIR)["right"]
    wrong_colors = {"color_a": "red", "color_b": "blue"}  # each on the other object
    crossed = next_to | swapped | wrong_colors
    assert check_view(crossed, next_to)["right"] is False


def test_score_of_a_real_mesh_by_its_views() -> None:
    judge = RedOrBlue(HEADS, (8, 8))
    expected = {"object_a": "cube", "color_a": "red"}
    red = score_asset(judge, cube((0.9, 0.1, 0.1), (0.9, 0.1, 0.1)), expected)
    assert red["passed"] and red["right"] == red["objects"] == 1.0 and len(red["views"]) == 8
    half = score_asset(judge, cube((0.9, 0.1, 0.1), (0.1, 0.1, 0.9)), expected)
    right = {view["azimuth_deg"]: view["right"] for view in half["views"]}
    assert right[0.0] and right[45.0] and right[315.0]
    assert not (right[135.0] or right[180.0] or right[225.0])
    assert half["objects"] == 1.0 and half["right"] < PASS_SHARE and not half["passed"]
    with pytest.raises(ValueError, match="color_a=mauve"):
        score_asset(judge, cube((1, 0, 0), (1, 0, 0)), {"color_a": "mauve"})


@pytest.fixture(scope="module")
def rows() -> list[GalleryRow]:
    judge = RedOrBlue(HEADS, (8, 8))
    meshes = [cube((0.9, 0.1, 0.1), back) for back in ((0.9, 0.1, 0.1), (0.1, 0.1, 0.9))]
    prompts = [("a red cube", 1), ("a red cube, with a rather long story about it", 2)]
    prompt_picture = np.full((64, 64, 3), (10, 200, 10), np.uint8)
    return [
        GalleryRow(
            *prompt, score_asset(judge, mesh, SINGLE | {"object_b": "none"}), mesh, visual_prompt
        )
        for prompt, mesh, visual_prompt in zip(prompts, meshes, (prompt_picture, None), strict=True)
    ]


def test_table_and_files(rows: list[GalleryRow], tmp_path: Path) -> None:
    records = [
        record_of(
            Task("gallery", row.prompt, row.seed, "key"),
            FoundAsset(row.mesh, seconds=12.5),
            row.score,
        )
        for row in rows
    ]
    text = asset_table(records)
    assert "8/8" in text and "FAIL" in text and "red cube" in text
    passed = summarise(records, FIGURES)["figures"][ALL_SETS]["passed"]
    assert cell(passed, FIGURES["passed"]) == "50 % [0, 100] 50"
    assert [passed[key] for key in ("mean", "low", "high")] == [0.5, 0.0, 1.0]
    write_csv(records, tmp_path / "gallery.csv")
    with (tmp_path / "gallery.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [r["passed"] for r in lines] == ["True", "False"] and lines[0]["seed"] == "1"
    assert lines[0]["seconds"] == "12.5" and float(lines[0]["right"]) == 1.0
    assert [len(record["views"]) for record in records] == [8, 8]
    assert records[0]["named"] == most_named(rows[0].score) == "red cube"


def test_a_failed_asset_counts_nothing_in_every_share(tmp_path: Path) -> None:
    task = Task("gallery", "a red cube", 1, "key")
    record = record_of(task, FoundAsset(None, "empty", "no surface"), None)
    assert {record["figures"][key] for key in FIGURES if key != "seconds"} == {0.0}
    assert "FAIL" in asset_table([record]) and "empty" in asset_table([record])
    write_csv([record], tmp_path / "gallery.csv")
    assert "False" in (tmp_path / "gallery.csv").read_text()
    failed = GalleryRow("a red cube", 1, None, None)
    assert len(row_tiles(failed, CameraConfig(), 64)) == 2


def test_gallery_has_a_row_an_asset(rows: list[GalleryRow], tmp_path: Path) -> None:
    tiles = [row_tiles(row, CameraConfig(), 64) for row in rows]
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for of_row, path in zip(tiles, paths, strict=True):
        join_tiles(of_row).save(path)
    write_sheet([*paths, tmp_path / "missing.png"], tmp_path / "gallery.png", "two cubes")
    picture = np.asarray(Image.open(tmp_path / "gallery.png")).astype(int)
    assert np.array_equal(picture, np.asarray(sheet(tiles, "two cubes")))
    green = (np.abs(picture - (10, 200, 10)) <= 2).all(2)
    assert 0.9 * 64 * 64 < green.sum() <= 64 * 64  # the one visual prompt, with its corners rounded
    write_sheet(paths[:1], tmp_path / "one.png", "one cube")
    assert Image.open(tmp_path / "one.png").height < picture.shape[0] - 64

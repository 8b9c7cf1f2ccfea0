"""The front view against the visual prompt: the grade, its files and its part of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from vp3d.build import finish_settings
from vp3d.config.loader import load_config
from vp3d.config.schema import CameraConfig
from vp3d.errors import UserError
from vp3d.evaluate.front_views import is_right, page, row
from vp3d.finish import compare_front
from vp3d.picture_check import SIZE, check_front
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.report.front_view import FRONT_PICTURES, ZERO_LINE
from vp3d.report.pictures import ELEVATION_DEG
from vp3d.report.report import front_view
from vp3d.runs.events import Warning, Watch
from vp3d.runs.folder import RunFolder
from vp3d.runs.journal import Journal
from vp3d.system.files import write_json
from vp3d.types import Asset, Mesh, to_uint8

GROUND = 0.7
CAMERA = CameraConfig()


def solid(shape: trimesh.Trimesh, color: tuple[float, float, float]) -> Mesh:
    colors = np.tile(np.array(color, np.float32), (len(shape.vertices), 1))
    vertices = np.asarray(shape.vertices, np.float32)
    return Mesh(vertices, np.asarray(shape.faces), vertex_colors=colors)


BALL = solid(trimesh.creation.icosphere(3, 0.4), (0.8, 0.1, 0.1))
BLUE_BOX = solid(trimesh.creation.box((0.7, 0.7, 0.7)), (0.1, 0.2, 0.8))


def drawn(mesh: Mesh, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """A visual prompt that shows the mesh exactly, but further away."""
    camera = ring(1, ELEVATION_DEG, CAMERA.distance + 0.5, CAMERA.fov_deg)
    rgb, mask = render_mesh(mesh, camera, size, size, GROUND)
    return rgb, mask


def test_an_asset_like_its_prompt_invents_nothing_and_another_object_does() -> None:
    rgb, mask = drawn(BALL)
    same = check_front(BALL, rgb, mask, CAMERA, GROUND)
    other = check_front(BLUE_BOX, rgb, mask, CAMERA, GROUND)
    assert same.score.grade < 2.0 < 4.0 < other.score.grade
    assert same.seconds > 0.0
    for picture in (same.render, same.prompt, same.heat):
        assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    # the same frame: the object further away is as large as the near one, on the same grey
    shown = [np.abs(p.astype(int) - p[0, 0]).max(-1) > 40 for p in (same.render, same.prompt)]
    assert abs(shown[0].sum() / shown[1].sum() - 1.0) < 0.05
    assert same.render[0, 0].tolist() == same.prompt[0, 0].tolist() == [round(255 * GROUND)] * 3


def test_a_front_view_without_an_object_is_refused_in_one_line() -> None:
    rgb, mask = drawn(BALL)
    with pytest.raises(UserError, match="shows no object"):
        check_front(BALL, rgb, torch.zeros_like(mask), CAMERA, GROUND)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    words = ["prompt=a red sphere", f"output_dir={tmp_path}"]
    return RunFolder.create(load_config(None, [], words))


def write_prompt(run: RunFolder) -> None:
    rgb, mask = drawn(BALL)
    picture = Image.fromarray(to_uint8(rgb)[0])
    for name in ("candidate_0.png", "chosen.png", "cutout.png"):
        picture.save(run.visual_prompt / name)
    Image.fromarray(to_uint8(mask)[0, ..., 0]).save(run.visual_prompt / "mask.png")
    write_json(run.visual_prompt / "scores.json", {"scores": [0.3], "chosen": 0})


def test_a_finished_run_has_grade_pictures_and_section(run: RunFolder) -> None:
    write_prompt(run)
    asset = Asset("a red sphere", BALL, run.path, {})
    run.event("export", seconds=1.0)
    found = compare_front(asset, finish_settings(run.config()), Journal(run, Watch()))
    assert found is not None and found.score.grade < 1.5  # edges are found within a pixel
    logged = [event for event in run.events() if event["kind"] == "front_view"]
    assert [event["grade"] for event in logged] == [pytest.approx(found.score.grade)]
    markup = front_view(run, list(run.events()))
    assert f"Grade {found.score.grade:.1f} of 5" in markup
    assert f"took {found.seconds:.1f} s" in markup
    assert markup.count("data:image/png") == len(FRONT_PICTURES) == 3
    run.event("export", seconds=1.0)  # a new mesh that was not graded
    assert front_view(run, list(run.events())) == ""


def test_a_run_without_a_visual_prompt_says_so(run: RunFolder) -> None:
    asset = Asset("a red sphere", BALL, run.path, {})
    assert compare_front(asset, finish_settings(run.config()), Journal(run, Watch())) is None
    assert "has no visual prompt" in front_view(run, list(run.events()))


def test_a_damaged_visual_prompt_is_a_warning_and_no_end_of_the_run(run: RunFolder) -> None:
    write_prompt(run)
    (run.visual_prompt / "mask.png").write_bytes(b"no picture")
    heard: list[object] = []
    asset = Asset("a red sphere", BALL, run.path, {})
    journal = Journal(run, Watch(on_event=heard.append))
    assert compare_front(asset, finish_settings(run.config()), journal) is None
    warnings = [event.message for event in heard if isinstance(event, Warning)]
    assert len(warnings) == 1 and "not compared with the visual prompt" in warnings[0]


@pytest.mark.parametrize(
    ("grade", "words"),
    [
        (ZERO_LINE.high + 0.01, "above that range"),
        (ZERO_LINE.median, "within that range"),
        (ZERO_LINE.low - 0.01, "below that range"),
    ],
)
def test_a_grade_is_compared_with_the_zero_line(run: RunFolder, grade: float, words: str) -> None:
    write_prompt(run)
    run.event("front_view", grade=grade, local=0.1, whole=0.1, seconds=0.5)
    assert words in front_view(run, list(run.events()))


def test_the_zero_line_is_that_of_the_page() -> None:
    text = (Path(__file__).parents[2] / "docs/results/front_views.md").read_text(encoding="utf-8")
    line = next(x for x in text.splitlines() if x.startswith("| all, right"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    low, high = cells[3].split(" to ")
    assert cells[1] == str(ZERO_LINE.assets)
    assert [float(cells[2]), float(low), float(high)] == [
        ZERO_LINE.median,
        ZERO_LINE.low,
        ZERO_LINE.high,
    ]


def test_rows_of_the_page_by_hand() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 1.0, 2.0, 3.0, 4.0, 5.0, 3.0]
    assert row("x", values) == "| x | 11 | 3.00 | 1.00 to 5.00 |"
    assert row("y", []) == "| y | 0 | | |"
    assert is_right({"right": 1.0}) and not is_right({"all": 0.9375, "objects": 1.0})
    assert "is 0.987." in page(["| x |"], "facts", 0.9871)

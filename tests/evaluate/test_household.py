"""The household suite: its prompts, the nearest true mesh, the ceiling, and the verb."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.helpers.assets import asset_of
from vp3d.cli import main
from vp3d.errors import UserError
from vp3d.evaluate import household
from vp3d.evaluate.household import (
    PROMPTS,
    SIZE,
    folder_tasks,
    named_shares,
    share_of_ceiling,
    suite_tasks,
)
from vp3d.evaluate.prompt_file import read_suite
from vp3d.evaluate.toybench import SHOWN_SIZE
from vp3d.export.glb import write_glb
from vp3d.metrics.attribute_judge import Judge
from vp3d.metrics.photo_judge import PhotoJudge
from vp3d.report.pictures import GAP
from vp3d.types import Mesh
from vp3d.worlds.household import HOUSEHOLD, HOUSEHOLD_PART, NOUNS, library_world
from vp3d.worlds.library import TABLE, Library, held_out_names, read_table
from vp3d.worlds.library_captions import caption, parse_caption
from vp3d.worlds.library_truth import nearest, true_specs
from vp3d.worlds.mesh_library import LibraryMesh
from vp3d.worlds.toybox.prompt_check import azimuths
from vp3d.worlds.toybox.scenes import is_held_out


@pytest.fixture(scope="module")
def library() -> Library:
    """The meshes that the repository has."""
    return Library(HOUSEHOLD_PART)


def mesh_of(true: LibraryMesh, turn_deg: float = 0.0) -> Mesh:
    """A library mesh as an asset: corners of its own for each face, coloured by its material."""
    corners = true.triangles.ravel()
    c, s = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
    turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=np.float32)
    return Mesh(
        true.position[corners] @ turn.T,
        np.arange(len(corners), dtype=np.int32).reshape(-1, 3),
        true.normal[corners] @ turn.T,
        np.repeat(true.materials[true.material, :3], 3, axis=0).astype(np.float32),
    )


def test_a_third_of_the_prompts_is_held_out_and_none_of_the_rest() -> None:
    entries = read_suite(PROMPTS)
    specs = [parse_caption(entry.prompt, NOUNS) for entry in entries]
    assert [caption(spec) for spec in specs] == [entry.prompt for entry in entries]
    assert len({e.prompt for e in entries}) == len({e.seed for e in entries}) == 72
    held_out = [bool(s.color) and is_held_out(s.color, s.noun) for s in specs]
    assert sum(held_out) == 24
    groups = [task.group for task in suite_tasks(1)]
    assert [groups.count(g) for g in ("noun", "colour", "relation", "held out")] == [24, 16, 8, 24]
    assert len({task.key for task in suite_tasks(2)}) == 144
    assert not [s for s in specs if s.relation and s.color_b and is_held_out(s.color_b, s.noun_b)]


def test_the_small_library_is_small_free_and_has_held_out_meshes(library: Library) -> None:
    size = sum(path.stat().st_size for path in HOUSEHOLD_PART.rglob("*") if path.is_file())
    assert size <= 2_000_000 and {row.licence for row in library.rows} == {"CC0-1.0"}
    table = read_table(HOUSEHOLD / TABLE)
    assert set(library.rows) <= set(table)
    names = {path.stem for path in (HOUSEHOLD_PART / "meshes").iterdir()}
    assert names == {row.name for row in library.rows}
    assert {"armchair_1", "lamp_1"} <= names & held_out_names(table)
    credits = (HOUSEHOLD_PART / "ATTRIBUTION.md").read_text()
    assert all(name in credits for name in names) and "publicdomain/zero" in credits


@pytest.mark.parametrize("turn_deg", [0.0, 90.0])
def test_a_mesh_of_the_library_is_nearest_to_itself(library: Library, turn_deg: float) -> None:
    specs = true_specs(library, parse_caption("an armchair", NOUNS))
    assert [s.mesh for s in specs] == ["armchair_1", "armchair_2", "armchair_3"]
    asset = mesh_of(library.mesh("armchair_2"), turn_deg)
    asset = replace(asset, vertices=asset.vertices * np.float32(0.7) + np.float32(0.1))
    first, second, *_ = nearest(asset, library, specs)
    assert first.spec.mesh == "armchair_2" and first.iou > 0.97 > 0.9 > second.iou
    assert first.steps == (0 if turn_deg == 0.0 else 18), "turned back by 90 degrees: 24 - 6 steps"
    figures = first.figures()
    assert figures["depth_error"] < 0.03
    if turn_deg == 0.0:
        assert figures["view_agreement"] > 0.9 and figures["janus"] < 0.2


def test_true_meshes_are_those_that_the_caption_may_mean(library: Library) -> None:
    def names(text: str) -> list[tuple[str, bool]]:
        specs = true_specs(library, parse_caption(text, household.nouns()))
        return [(s.mesh, s.painted) for s in specs]

    wooden = [row.name for row in library.rows if row.noun == "table" and row.material == "wooden"]
    assert [name for name, _ in names("a wooden table")] == wooden
    assert all(painted for _, painted in names("a purple armchair"))
    assert names("a hamburger") == []
    pairs = true_specs(library, parse_caption("a cup on a table", household.nouns()))
    assert {(s.mesh, s.mesh_b) for s in pairs} == {("cup_1", f"table_{n}") for n in (1, 2, 3)}
    assert azimuths(4) == [0.0, 90.0, 180.0, 270.0]


def test_the_share_of_the_ceiling_is_a_ratio_of_means_with_an_interval() -> None:
    def record(prompt: str, own: float, true: float | None) -> dict[str, object]:
        return {
            "prompt": prompt,
            "figures": {"outside_top5": own},
            "true": {"outside_top5": true},
        }

    records = [record(f"p{i}", float(i % 2), 0.8) for i in range(20)]
    records += [record("not judged", 1.0, None)]
    found = share_of_ceiling(records, "figures")
    assert found is not None and found["share"] == pytest.approx(0.5 / 0.8)
    assert found["low"] < 0.625 < found["high"] and found["count"] == 20
    assert 0.2 < found["high"] - found["low"] < 0.8
    assert share_of_ceiling(records[:1], "figures") is None
    same = share_of_ceiling([record(f"p{i}", i / 9, i / 9) for i in range(10)], "figures")
    assert same == {"share": 1.0, "low": 1.0, "high": 1.0, "count": 10.0}


def test_the_own_judge_is_asked_for_what_the_caption_names() -> None:
    judge = Judge(dict(library_world(HOUSEHOLD, known=NOUNS).heads), size=SIZE).eval()
    rgb = torch.zeros(2, 3, SIZE, SIZE)
    named = named_shares(judge, rgb, parse_caption("a sofa", NOUNS))
    assert set(named) == {"passed", "objects", "colors"} and named["colors"] is None
    assert named["objects"] in (0.0, 1.0)
    colored = named_shares(judge, rgb, parse_caption("a red mug on a table", NOUNS))
    assert colored["colors"] in (0.0, 1.0)


class Sofa(nn.Module):
    """Says "studio couch" of every picture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full((len(x),), 831), 1000).float()


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outside judge that takes everything for a sofa."""
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path / "models"))
    (tmp_path / "models" / "photo-judge").mkdir(parents=True)
    (tmp_path / "models" / "photo-judge" / "efficientnet_lite0.safetensors").write_bytes(b"x")
    monkeypatch.setattr(household, "load_photo_judge", lambda: PhotoJudge(Sofa()))
    household.outside.cache_clear()
    household.own_judge.cache_clear()


@pytest.mark.usefixtures("outside")
def test_the_verb_judges_a_folder_of_meshes(
    library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    for name, mesh in (("an-armchair", "armchair_1"), ("a-crate", "crate_1"), ("a-car", "box_1")):
        true = mesh_of(library.mesh(mesh))
        write_glb(asset_of(true), assets / f"{name}.glb")
    words = ["evaluate", "--suite", "household", "--assets", str(assets), "--work", str(tmp_path)]
    assert main.main(words) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    rows = {row["prompt"]: row for row in summary["records"]}
    armchair, crate, car = (rows[p]["figures"] for p in ("an armchair", "a crate", "a car"))
    assert armchair["outside_top1"] == 1.0 and crate["outside_top5"] == 0.0
    assert armchair["iou"] == armchair["iou_held_out"] > 0.95, "armchair_1 is the held-out one"
    assert crate["iou"] > 0.95 and crate["iou_held_out"] is None
    assert "iou" not in car and car["outside_top5"] == 0.0, "the small library has no car"
    assert rows["an armchair"]["true"]["outside_top5"] == 1.0
    assert "assets: 100% of the ceiling" in printed and "silhouette IoU" in printed
    pictures = [Image.open(path) for path in (tmp_path / "results").glob("*.png")]
    one_row, *two_rows = sorted(picture.height for picture in pictures)
    tile = SHOWN_SIZE + 22  # with its label
    assert two_rows == [one_row + tile + GAP] * 2, "the car has no true mesh to be shown below it"
    assert (tmp_path / "index.html").is_file()


@pytest.mark.usefixtures("outside")
def test_requests_that_cannot_work_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a-red-dragon.glb").touch()
    with pytest.raises(UserError, match="not a caption of this world"):
        folder_tasks(tmp_path)
    words = ["--work", str(tmp_path / "work")]
    for more, reason in (
        ([], "models of the household are not here"),
        (["--library", str(tmp_path)], "no library of meshes"),
    ):
        if more or not (HOUSEHOLD / "world.json").is_file():
            with pytest.raises(UserError, match=reason):
                main.dispatch(["evaluate", "--suite", "household", *words, *more])

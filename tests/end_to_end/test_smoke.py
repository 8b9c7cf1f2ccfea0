"""The real entry point, few steps, on tiny random models: every file of the run folder is there and
opens.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from vp3d import build, pipeline
from vp3d.cli.main import main
from vp3d.config.loader import load_config
from vp3d.errors import ResourceError, UserError
from vp3d.runs.folder import RunFolder
from vp3d.train.checkpoint import load
from vp3d.types import Asset


@pytest.fixture
def asset(finished_run: Asset) -> Asset:
    return finished_run


def test_glb_is_one_textured_mesh_with_normals_and_uv(asset: Asset) -> None:
    scene = trimesh.load_scene(asset.run_dir / "model.glb", process=False)
    (mesh,) = scene.geometry.values()
    assert 0 < len(mesh.faces) <= 400
    assert mesh.visual.material.baseColorTexture.size == (32, 32)
    assert mesh.visual.uv.min() >= 0.0 and mesh.visual.uv.max() <= 1.0
    assert np.allclose(np.linalg.norm(mesh.vertex_normals, axis=1), 1.0, atol=1e-3)


@pytest.mark.parametrize("kind", ["obj", "ply", "stl"])
def test_other_formats_hold_the_same_surface(asset: Asset, kind: str) -> None:
    mesh = trimesh.load_mesh(asset.run_dir / f"model.{kind}")
    assert len(mesh.faces) == len(asset.mesh.faces)
    assert np.allclose(
        mesh.bounds[1] - mesh.bounds[0], np.ptp(asset.mesh.vertices, axis=0), atol=1e-4
    )


def test_pictures_and_video_open(asset: Asset) -> None:
    with Image.open(asset.run_dir / "preview.png") as preview:
        assert np.asarray(preview).std() > 1.0
    frames = iio.imread(asset.run_dir / "turntable.mp4", plugin="FFMPEG")
    assert len(frames) == 4 and frames.shape[1:] == (32, 32, 3)


def test_report_stands_alone(asset: Asset) -> None:
    text = (asset.run_dir / "report.html").read_text(encoding="utf-8")
    assert asset.prompt in text and "<html" in text.lower() and 'src="http' not in text


def test_run_folder_tells_what_was_done(asset: Asset) -> None:
    run = RunFolder.open(asset.run_dir)
    assert run.config().optim.steps == 12
    manifest = json.loads((run.path / "provenance.json").read_text())
    assert any(
        name.endswith(".safetensors") and len(digest) == 64
        for name, digest in manifest["weights"].items()
    )
    kinds = {event["kind"] for event in run.events()}
    assert {"start", "visual_prompt", "step", "checkpoint", "mesh", "export", "done"} <= kinds
    last = run.events("step")[-1]
    assert last["step"] == 12 and 0.0 < last["opacity"] < 1.0
    assert {
        "reward_text_image",
        "reward_image_image",
        "samples_per_s",
        "eta_s",
        "sds",
    } <= last.keys()
    for name in ("chosen.png", "cutout.png", "sheet.png"):
        with Image.open(run.visual_prompt / name) as picture:
            picture.load()
    checkpoints = sorted(run.checkpoints("coarse").iterdir())
    assert [load(path).meta["loop"]["step"] for path in checkpoints] == [10, 12]
    leftovers = [path.name for path in run.path.rglob(".*") if path.name != ".lock"]
    assert leftovers == []


def test_figures_of_the_reloaded_exports(asset: Asset) -> None:
    assert asset.figures["glb_iou"] > 0.85 and asset.figures["stl_iou"] > 0.85
    assert asset.figures["glb_psnr"] > 15.0


def test_export_again_with_other_settings(asset: Asset, tmp_path: Path) -> None:
    folder = shutil.copytree(asset.run_dir, tmp_path / "run")
    config = RunFolder.open(folder).config()
    config.export.faces, config.export.formats = 100, ["glb"]
    again = pipeline.export_run(folder, config)
    assert len(again.mesh.faces) <= 100
    kept = RunFolder.open(folder).config()
    assert kept.export.faces == 100 and kept.export.formats == ["glb", "obj", "ply", "stl"], (
        "what was used, for the next export"
    )
    assert "faces: 100\n" in (folder / "report.html").read_text(encoding="utf-8")
    config.export.formats = kept.export.formats
    assert kept == config
    assert len(trimesh.load_mesh(folder / "model.stl").faces) <= 100, (
        "what lies there is made anew, or it would be stale"
    )
    assert len(next(iter(trimesh.load_scene(folder / "model.glb").geometry.values())).faces) <= 100
    (folder / "model.glb").unlink()
    assert pipeline.render_path(folder, config.export) == folder / "turntable.mp4", (
        "another format will do"
    )


def test_export_of_an_edited_run_is_refused(asset: Asset, tmp_path: Path) -> None:
    folder = shutil.copytree(asset.run_dir, tmp_path / "run")
    settings = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        settings.replace("  resolution: 20\n", "  resolution: 24\n")
    )
    config = RunFolder.open(folder).config()
    assert config.field.resolution == 24
    with pytest.raises(UserError, match="holds another field than .*field.resolution=24"):
        pipeline.export_run(folder, config)


def test_place_is_tried_before_models_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(build, "_load_models", lambda *_: pytest.fail("models were loaded first"))
    config = load_config(
        None, [], ["prompt=a sphere", f"output_dir={tmp_path / 'file'}", "prior.vocabulary="]
    )
    with pytest.raises(ResourceError, match="cannot write"):
        pipeline.generate(config)


def test_render_a_mesh_file_writes_beside_it(asset: Asset, tmp_path: Path) -> None:
    (tmp_path / "ball.stl").write_bytes((asset.run_dir / "model.stl").read_bytes())
    config = RunFolder.open(asset.run_dir).config()
    video = pipeline.render_path(tmp_path / "ball.stl", config.export)
    assert video.parent == tmp_path and len(iio.imread(video, plugin="FFMPEG")) == 4


def test_render_of_a_run_keeps_its_settings(
    asset: Asset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(asset.run_dir, tmp_path / "run")
    (folder / "turntable.mp4").unlink()
    assert (
        main(["render", str(folder)]) == 0
        and capsys.readouterr().out == f"{folder / 'turntable.mp4'}\n"
    )
    assert len(iio.imread(folder / "turntable.mp4", plugin="FFMPEG")) == 4
    before = RunFolder.open(folder).config()
    assert main(["render", str(folder), "export.turntable_frames=6"]) == 0
    kept = RunFolder.open(folder).config()
    assert kept.export.turntable_frames == 6, "what the turntable was made with"
    kept.export.turntable_frames = before.export.turntable_frames
    assert kept == before


def test_the_prior_is_asked_for_a_second_face(asset: Asset) -> None:
    (seen,) = [
        event for event in RunFolder.open(asset.run_dir).events() if event["kind"] == "views"
    ]
    assert len(seen["named"]) == 8 and 0.0 <= seen["view_agreement"] <= 1.0
    text = (asset.run_dir / "report.html").read_text(encoding="utf-8")
    assert f"Janus score</dt><dd>{seen['janus']:.2f}<" in text
    far = [k for k, named in enumerate(seen["named"]) if min((named - k) % 8, (k - named) % 8) > 1]
    assert text.count("· recognised as ") == 2 * len(far), "the caption and the alternative text"


def test_cuda_where_there_is_none_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert build.resolve_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="backend=auto"):
        build.resolve_device("cuda")

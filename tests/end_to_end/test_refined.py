"""Runs with a second stage, on tiny models: both methods, two kinds of models, kill and resume."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

from tests.helpers.listening import Listener
from tests.helpers.tiny_run import tiny_config
from vp3d import build, pipeline, refined
from vp3d.config.loader import load_config
from vp3d.config.schema import Config
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.view_classifier import guess_views
from vp3d.errors import UserError
from vp3d.export.read import read_mesh
from vp3d.render.camera import ring
from vp3d.render.raster_soft import SoftRender
from vp3d.runs.events import Done, Stage, Step, Watch, figures_of
from vp3d.runs.folder import RunFolder, save_config
from vp3d.types import Asset
from vp3d.visual_prompt.make import VisualPrompt


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def refined_config(root: Path, method: str, kind: str = "sd") -> Config:
    root.mkdir()
    config = tiny_config(root, kind)
    config.optim.steps, config.optim.preview_every = 4, 100
    refine = config.refine
    refine.method = method  # type: ignore[assignment]
    refine.grid, refine.faces, refine.texture_size, refine.render_size = 24, 400, 64, 64
    refine.strengths, refine.steps, refine.azimuths = [0.4, 0.2], 3, 3
    refine.elevations_deg, refine.denoise_steps = [15.0], 1
    config.export.formats = ["glb"]
    return config


class StopIn:
    """Asks to stop once so many steps of the refine stage were heard."""

    def __init__(self, steps: int) -> None:
        self.steps, self.stages, self.stopped = steps, list[str](), False
        self.done: Done | None = None
        self.watch = Watch(self.hear, self)

    def hear(self, event: object) -> None:
        if isinstance(event, Stage):
            self.stages.append(event.name)
        if isinstance(event, Step) and event.stage == "refine" and event.step == self.steps:
            self.stopped = True
        if isinstance(event, Done):
            self.done = event

    def is_set(self) -> bool:
        return self.stopped


def test_redrawn_views_stop_resume_and_export_bit_for_bit(tmp_path: Path) -> None:
    config = refined_config(tmp_path / "run", "views")
    straight = pipeline.generate(config)
    run = RunFolder.open(straight.run_dir)
    assert len(run.events("guard")) == 2 and run.events("refine_checkpoint")[-1]["step"] == 6
    watch = StopIn(4)
    stopped = pipeline.generate(config, watch=watch.watch)
    half = RunFolder.open(stopped.run_dir)
    done = half.events("done")[-1]
    assert done["stopped"] and "refine" in watch.stages
    assert (done["stage"], done["steps"], done["total_steps"]) == ("refine", 4, 6)
    heard = watch.done
    assert heard is not None and heard.stopped
    assert (heard.stage, heard.steps, heard.total_steps) == ("refine", 4, 6)
    assert figures_of(half.events("done")[-1]) == stopped.figures, (
        "a page of figures has no step among them"
    )
    assert stopped.path("glb").stat().st_size > 1000, "what there is was exported"
    save_config(replace(config, refine=replace(config.refine, views=3)), half.path / "config.yaml")
    with pytest.raises(UserError, match="refine.views"):
        pipeline.resume(stopped.run_dir)
    save_config(config, half.path / "config.yaml")
    spoiled = half.path.with_name("spoiled")
    shutil.copytree(half.path, spoiled)
    assert_stale_meshes_are_not_used(spoiled, config)
    again = pipeline.resume(stopped.run_dir)
    assert again.path("glb").read_bytes() == straight.path("glb").read_bytes()
    before = straight.path("glb").read_bytes()
    pipeline.export_run(straight.run_dir, run.config())
    assert straight.path("glb").read_bytes() == before, "an export takes the refined mesh"
    mesh = trimesh.load(straight.path("glb"), force="mesh")
    assert mesh.visual.material.baseColorTexture.size == (64, 64)


def assert_stale_meshes_are_not_used(folder: Path, config: Config) -> None:
    def fail(event: object) -> None:
        if isinstance(event, Step) and event.stage == "refine":
            raise InterruptedError

    checkpoints = folder / "checkpoints" / "refine"
    assert (checkpoints / "result.safetensors").is_file(), "of the stopped run"
    with pytest.raises(InterruptedError):
        pipeline.resume(folder, watch=Watch(fail))
    assert not (checkpoints / "result.safetensors").exists(), "a new result is on its way"
    for path in checkpoints.glob("0*.safetensors"):
        path.unlink()
    save_config(replace(config, refine=replace(config.refine, grid=25)), folder / "config.yaml")
    with pytest.raises(UserError, match="start.safetensors was made with: refine.grid"):
        pipeline.resume(folder)


def test_the_guard_asks_each_reward_over_its_own_grey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = refined_config(tmp_path / "run", "views")
    config.visual_prompt.ground = 0.9
    models = build.load_models(config)
    picture = torch.full((1, 3, 64, 64), 0.9)
    mask = torch.ones(1, 1, 64, 64)
    visual_prompt = VisualPrompt(picture, mask, picture, [None], 0)
    request = build.refine_request(config, models, visual_prompt)
    brightness = {
        name: replace(reward, score=lambda rgb, target: rgb.mean((1, 2, 3)))
        for name, reward in request.rewards.items()
    }
    asked = list[torch.Tensor]()

    def remembered(prior: Prior, prompt: str, rgb: torch.Tensor, generator: torch.Generator) -> Any:
        asked.append(rgb)
        return guess_views(prior, prompt, rgb, generator)

    monkeypatch.setattr(refined, "guess_views", remembered)
    nothing = torch.zeros(8, 1, 64, 64)
    drawn = SoftRender(nothing.expand(-1, 3, -1, -1), nothing, nothing[:, 0].long() - 1)
    judge = refined.guard_judge(replace(request, rewards=brightness))
    found = judge(drawn, ring(8, 15.0, 2.9, 40.0))
    own = 0.5 * (config.render.background_min + config.render.background_max)
    assert request.rewards["image_image"].background == 0.9 != own
    assert found["image_image"] == pytest.approx(0.9)
    assert found["text_image"] == pytest.approx(own)
    assert len(asked) == 1 and bool((asked[0] == 0.9).all())


@pytest.mark.parametrize("kind", [pytest.param("sd", marks=pytest.mark.slow), "sdxl"])
def test_score_distillation_refines_a_mesh_to_a_glb(kind: str, tmp_path: Path) -> None:
    listener = Listener()
    asset = pipeline.generate(refined_config(tmp_path / "run", "sds", kind), watch=Watch(listener))
    run = RunFolder.open(asset.run_dir)
    steps = [event for event in listener.events if isinstance(event, Step)]
    last = steps[-1]
    assert (last.stage, last.step, last.steps) == ("refine", 6, 6)
    assert {"sds", "text_image", "image_image", "normals", "variation"} <= last.values.keys()
    assert len(run.events("guard")) == 2
    assert len(read_mesh(asset.path("glb")).faces) <= 400


def test_a_run_without_the_stage_has_no_trace_of_it(finished_run: Asset) -> None:
    assert load_config("standard").refine.method == "none"
    assert not (finished_run.run_dir / "checkpoints" / "refine").exists()

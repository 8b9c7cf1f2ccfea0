"""Whole jobs on pipelines in the likeness of Stable Diffusion 1.5 and SDXL: from the prompt to a GLB that is read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.diffusion.test_debias import WORDS, save_bert
from tests.tiny_models import save_pipeline
from tests.tiny_run import tiny_config
from vp3d import pipeline
from vp3d.config import Config, PriorConfig, load_config
from vp3d.diffusion.debias import DIRECTIONS
from vp3d.export.writers import read_mesh
from vp3d.types import UserError


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def short(config: Config) -> Config:
    """As few steps, formats and pictures as there can be."""
    config.optim.steps, config.export.formats, config.export.grid = 3, ["glb"], 16
    return config


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def check(folder: Path) -> None:
    mesh = read_mesh(folder / "model.glb")
    assert len(mesh.faces) > 0 and np.isfinite(mesh.vertices).all()
    losses = [line["sds"] for line in events(folder) if line["kind"] == "step"]
    assert losses and all(torch.tensor(losses).isfinite())


def test_sdxl_with_plus_adapter_and_every_option_to_a_glb(tmp_path: Path) -> None:
    config = short(tiny_config(tmp_path, "sdxl", plus=True))
    config.guidance.perp_neg, config.guidance.rescale = 1.0, 0.5
    config.guidance.debias = str(save_bert(tmp_path / "bert", [*WORDS, "sphere", *DIRECTIONS]))
    config.prior.offload_encoders, config.prior.max_batch = True, 3
    asset = pipeline.generate(config)
    check(asset.run_dir)
    told = next(line["prompts"] for line in events(asset.run_dir) if line["kind"] == "debias")
    assert len(told) == 16
    weights = json.loads((asset.run_dir / "manifest.json").read_text())["weights"]
    assert any(name.endswith("text_encoder_2/model.safetensors") for name in weights)
    assert f"{config.guidance.debias}/model.safetensors" in weights


def test_sdxl_draws_and_stable_diffusion_distils(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = short(tiny_config(tmp_path))
    config.image = ""
    save_pipeline(tmp_path / "sdxl", kind="sdxl", seed=4)
    config.visual_prompt.prior = PriorConfig(str(tmp_path / "sdxl"), "", manifest="", vocabulary="", resolution=64)
    config.visual_prompt.cutout_tolerance = (
        0.02  # random networks draw textures: anything that differs from the border is object
    )
    asset = pipeline.generate(config)
    check(asset.run_dir)
    drawn = pipeline.load_visual_prompt(pipeline.RunFolder.open(asset.run_dir))
    assert drawn.candidates.shape[-2:] == (64, 64)  # the SDXL-like pipeline's size, not the 32 of the one that distils
    monkeypatch.setattr(pipeline, "load_prior", None)  # drawn once, kept: nothing is loaded to draw again
    found = pipeline.find_visual_prompt(config, None, pipeline.RunFolder.open(asset.run_dir), torch.device("cpu"))
    assert torch.equal(found.rgb, drawn.rgb)


def test_a_drawing_prior_that_is_not_there_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    config = Config(prompt="a red sphere", output_dir=str(tmp_path / "out"))
    config.visual_prompt.prior.path = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="visual_prompt.prior.path .* is not a folder"):
        pipeline.generate(config)
    assert not (tmp_path / "out").exists()


def test_the_open_world_configs_say_what_they_promise() -> None:
    def read(*names: str) -> Config:
        return load_config(None, [pipeline.locate(f"configs/{name}.yaml") for name in names], [])

    base, plus, large, small = read("sd15"), read("sd15-plus"), read("sdxl"), read("sd15-low-vram")
    assert plus.prior.ip_adapter_weight == "ip-adapter-plus_sd15.safetensors"
    assert plus.prior.path == base.prior.path == small.prior.path and plus.guidance == base.guidance
    assert large.prior.image_encoder_folder == "models/image_encoder" and "vit-h" in large.prior.ip_adapter_weight
    assert large.prior.resolution == 1024 and not large.visual_prompt.prior.path  # SDXL draws and distils
    mixed = read("sd15", "sdxl-draws")
    assert mixed.prior == base.prior and mixed.visual_prompt.prior.path == large.prior.path
    assert small.prior.vae and small.prior.offload_encoders and small.optim.views < base.optim.views
    for config in (base, plus, large, small, mixed):
        assert not config.prior.manifest and not config.prior.vocabulary and config.prior.dtype == "float16"
        assert config.guidance.perp_neg == 0 and not config.guidance.debias

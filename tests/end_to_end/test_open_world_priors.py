"""Whole jobs on pipelines in the likeness of Stable Diffusion 1.5 and SDXL: from the prompt to a
GLB that is read back.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import pytest
import torch

from tests.diffusion.test_debias import WORDS, save_bert
from tests.helpers.listening import journal_of
from tests.helpers.tiny_models import save_pipeline
from tests.helpers.tiny_run import tiny_config
from vp3d import build, checks, pipeline
from vp3d.cli import machine_checks
from vp3d.config.loader import load_config
from vp3d.config.paths import locate
from vp3d.config.schema import Config, PriorConfig
from vp3d.diffusion.debias import DIRECTIONS
from vp3d.errors import UserError
from vp3d.evaluate import runner
from vp3d.export.read import read_mesh
from vp3d.runs.events import Watch
from vp3d.runs.folder import RunFolder, save_config
from vp3d.system.memory import fit_to_memory, profile_for
from vp3d.visual_prompt.make import load_visual_prompt
from vp3d.weights.catalogue import MODELS
from vp3d.weights.locate import missing_files, weight_locations


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
    weights = json.loads((asset.run_dir / "provenance.json").read_text())["weights"]
    assert any(name.endswith("text_encoder_2/model.safetensors") for name in weights)
    assert f"{config.guidance.debias}/model.safetensors" in weights


def test_sdxl_draws_and_stable_diffusion_distils(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short(tiny_config(tmp_path))
    config.image = ""
    save_pipeline(tmp_path / "sdxl", kind="sdxl", seed=4)
    config.visual_prompt.prior = PriorConfig(
        str(tmp_path / "sdxl"), "", manifest="", vocabulary="", resolution=64
    )
    config.visual_prompt.cutout_tolerance = (
        0.02  # random networks draw textures: what differs from the border is object
    )
    asset = pipeline.generate(config)
    check(asset.run_dir)
    drawn = load_visual_prompt(RunFolder.open(asset.run_dir))
    assert drawn.candidates.shape[-2:] == (
        64,
        64,
    )  # the SDXL-like pipeline's size, not the 32 of the one that distils
    monkeypatch.setattr(
        build, "load_prior", None
    )  # drawn once, kept: nothing is loaded to draw again
    found = build.find_visual_prompt(
        config,
        build.fit_to_device(config, torch.device("cpu")),
        None,
        journal_of(RunFolder.open(asset.run_dir)),
    )
    assert torch.equal(found.rgb, drawn.rgb)


def test_a_drawing_prior_that_is_not_there_is_found_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(prompt="a red sphere", output_dir=str(tmp_path / "out"))
    config.visual_prompt.prior.path = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="visual_prompt.prior.path .* is not a folder"):
        pipeline.generate(config)
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path / "models"))
    config.visual_prompt.prior.path, config.visual_prompt.prior.vae = str(tmp_path), "taesdxl"
    with pytest.raises(UserError, match="visual_prompt.prior.vae: .*models fetch taesdxl$"):
        pipeline.generate(config)
    found = machine_checks.check_weights(config)
    assert found.state == "BROKEN" and found.detail.endswith("models fetch taesdxl")
    config.visual_prompt.prior.vae = ""
    assert machine_checks.check_weights(config).state == "on"
    with pytest.raises(
        UserError, match="^visual_prompt.prior: cannot load the pipeline"
    ):  # the folder holds no pipeline
        build.drawing_prior(
            config,
            build.fit_to_device(config, torch.device("cpu")),
            SimpleNamespace(device=torch.device("cpu")),
            Watch(),
        )
    assert not (tmp_path / "out").exists()


def test_every_place_of_a_run_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(
        None, [locate(f"configs/{name}.yaml") for name in ("sd15", "sdxl-draws")], []
    )
    config.prior.vae, config.guidance.debias = "taesd", "owner/bert"
    places = [
        ("prior.path", "sd15"),
        ("prior.vae", "taesd"),
        ("prior.ip_adapter", "ip-adapter-sd15"),
        ("visual_prompt.prior.path", "sdxl"),
        ("rewards", "imagereward"),
        ("rewards", "dinov2-base"),
        ("guidance.debias", "owner/bert"),
    ]
    assert weight_locations(config) == places
    config.image = "style.png"  # nothing is drawn
    assert [key for key, _ in weight_locations(config)] == [
        key for key, _ in places if not key.startswith("visual_prompt")
    ]
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path))
    names = [name for _, name in places[:3] + places[4:6]]
    for number, name in enumerate(names):  # one command fetches all that is left
        found = machine_checks.check_weights(config)
        assert found.state == "BROKEN" and found.detail.endswith(
            f" models fetch {' '.join(names[number:])}"
        )
        for file in missing_files(name, tmp_path / name):
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).touch()
    found = machine_checks.check_weights(config)
    assert found.state == "off" and found.detail.endswith("from the hub when needed: owner/bert")


@pytest.mark.parametrize("resumed", [False, True])
def test_all_that_is_not_fetched_is_told_before_anything_is_loaded(
    resumed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short(tiny_config(tmp_path))
    run = pipeline.generate(config).run_dir if resumed else None
    config.prior.ip_adapter, config.rewards.image_model, config.rewards.dinov2 = (
        "ip-adapter-sd15",
        "dinov2",
        "dinov2-base",
    )
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path / "nothing"))
    monkeypatch.setattr(build, "_load_models", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match="models fetch ip-adapter-sd15 dinov2-base$"):
        pipeline.generate(config, resume_from=run)


def test_what_draws_is_asked_for_on_resume_until_it_has_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short(tiny_config(tmp_path))
    run = pipeline.generate(config).run_dir
    config.image, config.visual_prompt.prior.path = "", "sdxl"
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path / "nothing"))
    checks.check_request(config, new=False, drawn=checks.is_drawn(RunFolder.open(run)))
    (run / "visual_prompt" / "scores.json").unlink()
    with pytest.raises(
        UserError, match="^visual_prompt.prior.path: the model 'sdxl' is not fetched"
    ):
        pipeline.generate(config, resume_from=run)


def test_a_suite_loads_the_drawing_prior_before_it_makes_anything(tmp_path: Path) -> None:
    config = short(tiny_config(tmp_path))
    config.image, config.visual_prompt.prior.path = "", str(tmp_path)  # a folder, but no pipeline
    save_config(config, tmp_path / "config.yaml")
    settings = runner.Settings(tmp_path / "work", files=(tmp_path / "config.yaml",))
    with pytest.raises(UserError, match="^visual_prompt.prior: cannot load the pipeline"):
        runner.run_tasks(
            [runner.Task("set", config.prompt, 0, "one")],
            settings,
            lambda *_: pytest.fail("it was made"),
        )


def test_a_suite_loads_its_models_within_the_memory_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As each of its runs will: a card of 8 GB does not hold encoders that are not used."""
    config = short(tiny_config(tmp_path))
    save_config(config, tmp_path / "config.yaml")
    seen: list[PriorConfig] = []

    def stop(prior: PriorConfig, device: torch.device, on_oom: object) -> NoReturn:
        seen.append(prior)
        raise UserError("seen")

    fit = build.fit_to_device
    monkeypatch.setattr(
        build,
        "fit_to_device",
        lambda config, device: fit_to_memory(fit(config, device), profile_for(7.5)),
    )
    monkeypatch.setattr(build, "load_prior", stop)
    settings = runner.Settings(tmp_path / "work", files=(tmp_path / "config.yaml",))
    with pytest.raises(UserError, match="seen"):
        runner.run_tasks(
            [runner.Task("set", config.prompt, 0, "one")],
            settings,
            lambda *_: pytest.fail("it was made"),
        )
    assert not config.prior.offload_encoders and seen[0].offload_encoders and seen[0].max_batch == 4


@pytest.mark.parametrize(
    "names",
    [["sd15"], ["sd15-plus"], ["sd15-low-vram"], ["sdxl"], ["sd15", "sdxl-draws"]],
    ids="-".join,
)
def test_configs_say_what_to_fetch(names: list[str]) -> None:
    files = [locate(f"configs/{name}.yaml") for name in names]
    lines = [
        re.findall(r"^#   python launch.py models fetch (.*)$", file.read_text(), re.M)
        for file in files
    ]
    assert [len(found) for found in lines] == [1] * len(names)
    config = load_config(None, files, [])
    told = [name for found in lines for name in found[0].split()]
    assert (
        sorted(told) == sorted(place for _, place in weight_locations(config))
        and set(told) <= MODELS.keys()
    )
    paths = {file.path for file in MODELS[config.prior.ip_adapter].files}
    adapter, encoder = (
        f"{config.prior.ip_adapter_subfolder}/{config.prior.ip_adapter_weight}",
        config.prior.image_encoder_folder,
    )
    encoder = encoder if "/" in encoder else f"{config.prior.ip_adapter_subfolder}/{encoder}"
    assert {adapter, f"{encoder}/config.json", f"{encoder}/model.safetensors"} <= paths
    assert (config.rewards.text_model, config.rewards.image_model) == ("imagereward", "dinov2")


def test_the_open_world_configs_say_what_they_promise() -> None:
    def read(*names: str) -> Config:
        return load_config(None, [locate(f"configs/{name}.yaml") for name in names], [])

    base, plus, large, small = read("sd15"), read("sd15-plus"), read("sdxl"), read("sd15-low-vram")
    assert plus.prior.ip_adapter_weight == "ip-adapter-plus_sd15.safetensors"
    assert plus.prior.path == base.prior.path == small.prior.path and plus.guidance == base.guidance
    assert (
        large.prior.image_encoder_folder == "models/image_encoder"
        and "vit-h" in large.prior.ip_adapter_weight
    )
    assert (
        large.prior.resolution == 1024 and not large.visual_prompt.prior.path
    )  # SDXL draws and distils
    mixed = read("sd15", "sdxl-draws")
    assert mixed.prior == base.prior and mixed.visual_prompt.prior.path == large.prior.path
    assert small.prior.vae and small.prior.offload_encoders and small.optim.views < base.optim.views
    for config in (base, plus, large, small, mixed):
        assert (
            not config.prior.manifest
            and not config.prior.vocabulary
            and config.prior.dtype == "float16"
        )
        assert config.guidance.perp_neg == 0 and not config.guidance.debias

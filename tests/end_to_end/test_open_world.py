"""A run on published layouts by their names: fetched from a local source, then the network is not
needed any more.

Tiny random models of the real classes; the same table entries, fetch, loaders and judges as for
the full-size ones.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import NoReturn

import pytest

from tests.helpers.tiny_models import save_ip_adapter, save_pipeline
from tests.helpers.tiny_rewards import write_aesthetic, write_dino, write_imagereward
from tests.helpers.tiny_run import tiny_config
from vp3d import build, pipeline
from vp3d.config.schema import Config, PriorConfig, RewardConfig
from vp3d.errors import UserError
from vp3d.export.read import read_mesh
from vp3d.runs.events import Event, Stage, Warning, Watch
from vp3d.runs.folder import RunFolder
from vp3d.weights import fetch
from vp3d.weights.catalogue import MODELS, File, Model, Part

NAMES = ("tiny-sd", "tiny-ip", "tiny-imagereward", "tiny-dino", "tiny-aesthetic")


@pytest.fixture(params=[("sd", False)], ids=lambda param: param[0])
def config(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Config:
    """A short run that names its models; they lie in a store, not yet fetched. The parameter: kind
    of pipeline, plus adapter.

    With the base adapters the visual prompt is drawn, with the others it is a picture.
    """
    kind, plus = request.param
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path / "models"))
    store = tmp_path / "store"
    save_pipeline(store / "tiny-sd", vae="kl", kind=kind)
    index = (
        store / "tiny-sd" / "model_index.json"
    )  # SD 1.5's names a safety checker, which is not fetched
    about = json.loads(index.read_text())
    if kind == "sd":
        about["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index.write_text(json.dumps(about))
    save_ip_adapter(store / "tiny-ip", kind=kind, plus=plus)
    write_imagereward(store / "tiny-imagereward")
    write_dino(store / "tiny-dino")
    write_aesthetic(store / "tiny-aesthetic")
    for name in NAMES:
        paths = sorted(path for path in (store / name).rglob("*") if path.is_file())
        files = tuple(File(path.relative_to(store / name).as_posix()) for path in paths)
        monkeypatch.setitem(MODELS, name, Model("for tests", "none", (Part(files, ()),)))
    config = tiny_config(tmp_path)
    config.prior = PriorConfig(
        path="tiny-sd", ip_adapter="tiny-ip", manifest="", vocabulary="", resolution=32
    )
    config.rewards.clip = "not read"
    config.rewards.text_model, config.rewards.imagereward = "imagereward", "tiny-imagereward"
    config.rewards.image_model, config.rewards.dinov2 = "dinov2", "tiny-dino"
    config.rewards.aesthetic_model, config.rewards.aesthetic = (
        "tiny-aesthetic",
        RewardConfig(weight=0.01),
    )
    config.optim.steps, config.export.formats = 3, ["glb"]
    if not plus:
        config.image = ""
    return config


@pytest.mark.parametrize(
    "config", [("sd", False), ("sd", True), ("sdxl", False), ("sdxl", True)], indirect=True
)
def test_fetch_then_run_without_a_network(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        with pytest.raises(
            UserError,
            match=f"the model '{name}' is not fetched; run: python launch.py models fetch {name}$",
        ):
            build.load_models(config)
        fetch.fetch(name, [str(tmp_path / "store")])

    def no_network(*_: object) -> NoReturn:
        raise AssertionError("a fetched model asked for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    asset = pipeline.generate(config)
    assert len(read_mesh(asset.run_dir / "model.glb").faces) > 0
    assert len(list((asset.run_dir / "visual_prompt").glob("candidate_*.png"))) == (
        1 if config.image else 2
    )
    steps = RunFolder.open(asset.run_dir).events("step")
    measured = [key for key in steps[-1] if key.startswith("reward_")]
    assert sorted(measured) == ["reward_aesthetic", "reward_image_image", "reward_text_image"]
    hashes = json.loads((asset.run_dir / "provenance.json").read_text())["weights"]
    assert {place.split("/")[0] for place in hashes} == set(NAMES)
    assert all(len(digest) == 64 for digest in hashes.values())


def test_a_prompt_that_is_too_long_is_cut_with_a_warning_before_anything_is_drawn(
    config: Config, tmp_path: Path
) -> None:
    for name in NAMES:
        fetch.fetch(name, [str(tmp_path / "store")])
    config.prompt = "a red " * 16 + "sphere"
    config.negative_prompt = "dull and low quality " * 8  # 168 characters
    heard: list[Event] = []
    pipeline.generate(config, watch=Watch(heard.append))
    warnings = [(n, event.message) for n, event in enumerate(heard) if isinstance(event, Warning)]
    cut = [(n, text) for n, text in warnings if "does not read the end of" in text]
    assert [text.split(" does")[0] for _, text in cut] == [
        "the text encoder",
        "the text encoder",
        "the text-image reward",
    ]
    assert all(text.endswith('sphere"') or "negative prompt" in text for _, text in cut)
    drawing = next(
        n
        for n, event in enumerate(heard)
        if isinstance(event, Stage) and event.name == "visual_prompt"
    )
    assert max(n for n, _ in cut) < drawing

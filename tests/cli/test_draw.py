"""`draw` as a user meets it: a run folder with a steered picture that `resume` continues."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.tiny_run import tiny_config
from vp3d import pipeline
from vp3d.cli import main
from vp3d.cli.draw import run as run_draw
from vp3d.cli.generate import use_loras
from vp3d.cli.machine_checks import check_weights
from vp3d.config.schema import Config
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.lora import attach, save_lora
from vp3d.errors import UserError
from vp3d.runs.events import Event, Warning, Watch
from vp3d.runs.folder import RunFolder
from vp3d.weights.lora_files import parse_loras


def steered(root: Path, **svdd: object) -> Config:
    config = tiny_config(root)
    config.image = ""
    config.visual_prompt.sampler, config.visual_prompt.steps = "svdd", 3
    config.visual_prompt.cutout_tolerance = 0.05
    for name, value in {"m": 3, **svdd}.items():
        setattr(config.visual_prompt.svdd, name, value)
    return config


def test_a_steered_draw_leaves_a_run_that_resume_continues(tmp_path: Path) -> None:
    heard: list[Event] = []
    config = steered(tmp_path, alpha=1000.0)
    folder = pipeline.draw(config, watch=Watch(heard.append))
    run = RunFolder.open(folder)
    names = {path.name for path in run.visual_prompt.iterdir()}
    assert {"chosen.png", "scores.json", "sheet.png", "steering.png"} <= names
    choices = run.events("svdd")
    assert [choice["step"] for choice in choices] == [0, 1]
    assert all(choice["effective"] > 2.9 for choice in choices)  # alpha is far too large
    warned = [event.message for event in heard if isinstance(event, Warning)]
    assert any("hardly distinguishes the proposals" in message for message in warned)
    before = (run.visual_prompt / "chosen.png").read_bytes()
    asset = pipeline.resume(folder)
    assert asset.run_dir == folder and asset.path("glb").is_file()
    assert (run.visual_prompt / "chosen.png").read_bytes() == before


def test_the_same_seed_draws_the_same_bytes_and_one_proposal_asks_for_no_reward(
    tmp_path: Path,
) -> None:
    config = steered(tmp_path)
    first, second = (pipeline.draw(config) / "visual_prompt" for _ in range(2))
    for name in ("candidate_0.png", "candidate_1.png", "steering.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    config.visual_prompt.svdd.m = 1
    run = RunFolder.open(pipeline.draw(config))
    assert run.events("svdd") == [] and not (run.visual_prompt / "steering.png").exists()


def test_a_picture_and_an_unknown_reward_are_refused_before_a_run_folder(tmp_path: Path) -> None:
    config = steered(tmp_path)
    config.visual_prompt.svdd.reward = "beauty"
    with pytest.raises(UserError, match="there is no reward 'beauty'"):
        pipeline.draw(config)
    with pytest.raises(UserError, match="draw draws a picture"):
        config.image = "disc.png"
        pipeline.draw(config)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["visual_prompt.steps=1"], "svdd has nothing to choose"),
        (["visual_prompt.svdd.m=0"], "visual_prompt.svdd.m"),
        (["visual_prompt.svdd.begin=0.9", "visual_prompt.svdd.finish=0.1"], "is above"),
        (["visual_prompt.svdd.finish=0"], "no step would be steered"),
        (["visual_prompt.svdd.reward=os:system"], "there is no reward 'os:system'"),
        (["--sampler", "best"], "--sampler"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = main.main(["draw", "a red sphere", "--sampler", "svdd", *words,
                       f"output_dir={tmp_path}"])  # fmt: skip
    error = capsys.readouterr().err
    assert found == 2 and line in error and error.count("\n") == 1


def brighter(rgb: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A reward of the user's own, without gradient."""
    asked.extend(prompts)
    return rgb.detach().mean((1, 2, 3))


asked: list[str] = []


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_function_of_the_user_steers_an_sd_and_an_sdxl_pipeline_from_the_command(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path, kind=kind)
    keys = ("path", "ip_adapter", "manifest", "vocabulary", "dtype", "resolution")
    words = [f"prior.{key}={getattr(config.prior, key)}" for key in keys]
    words += [f"rewards.clip={config.rewards.clip}", f"output_dir={config.output_dir}"]
    words += ["visual_prompt.steps=4", "visual_prompt.candidates=1", "visual_prompt.svdd.m=6",
              "visual_prompt.steadiness=0", "visual_prompt.cutout_tolerance=0.05"]  # fmt: skip
    asked.clear()
    found = []
    for reward in ("brighter:1", "brighter:-1"):
        name = f"tests.cli.test_draw:{reward}"
        assert (
            main.main(["draw", "a red sphere", "--sampler", "svdd", "--reward", name, *words]) == 0
        )
        folder = Path(capsys.readouterr().out.strip())
        with Image.open(folder / "visual_prompt" / "candidate_0.png") as picture:
            found.append(np.asarray(picture).mean())
        calls = [choice["reward_calls"] for choice in RunFolder(folder).events("svdd")]
        assert calls == [6, 6, 6]
    assert found[0] > found[1] and set(asked) == {"a red sphere, front view"}


def test_a_config_names_no_function_and_reward_needs_svdd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "tests.cli.test_draw:brighter"
    words = ["draw", "a red sphere", f"output_dir={tmp_path}"]
    for more, line in (
        (["--sampler", "svdd", f"visual_prompt.svdd.reward={name}"], "there is no reward"),
        (["--reward", name], "without --sampler svdd"),
        (["--sampler", "svdd", "--reward", "no_such_module:f"], "write module:function"),
    ):
        assert main.main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_sampler_option_sets_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Config] = []

    def record(config: Config, watch: Watch, scores: object) -> Path:
        asked.append(config)
        return Path("outputs/run")

    monkeypatch.setattr(pipeline, "draw", record)
    arguments = main.build_parser().parse_args(
        ["draw", "a red sphere", "--sampler", "svdd", "visual_prompt.svdd.m=4"]
    )
    assert run_draw(arguments) == 0
    assert asked[0].visual_prompt.sampler == "svdd" and asked[0].visual_prompt.svdd.m == 4


def test_loras_change_the_drawing_and_the_asset_or_one_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Config] = []

    def record(config: Config, watch: Watch, scores: object) -> Path:
        asked.append(config)
        return Path("outputs/run")

    monkeypatch.setattr(pipeline, "draw", record)
    first, second = (tmp_path / f"{name}.safetensors" for name in "ab")
    for path in (first, second):
        path.touch()
    words = ["draw", "a red sphere", "--lora", f"{first}:0.5", "--lora", str(second)]
    for more in ([], ["--lora-for", "draw"], ["--lora-for", "distil"]):
        assert main.main([*words, *more]) == 0
    both, draws, distils = asked
    named = [(str(first), 0.5), (str(second), 1.0)]
    found = [
        [parse_loras(prior.loras) for prior in (config.prior, config.visual_prompt.prior)]
        for config in asked
    ]
    assert found == [[named, []], [[], named], [named, []]]
    assert draws.visual_prompt.prior.path == both.prior.path == distils.visual_prompt.prior.path
    assert both.visual_prompt.prior.path == ""  # one model, with the LoRAs, does both
    capsys.readouterr()
    assert main.main(["draw", "a red sphere", "--lora", str(tmp_path / "none.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "there is no LoRA" in error and error.count("\n") == 1


def test_a_lora_changes_the_drawn_picture_and_scale_zero_does_not(tmp_path: Path) -> None:
    config = steered(tmp_path, m=1)
    prior = load_prior(config.prior)
    tensors = attach({"unet": prior.unet}, "a", 2, torch.Generator().manual_seed(0))
    values = {key: torch.ones_like(value) for key, value in tensors.items()}
    save_lora(tmp_path / "lora.safetensors", values, {})

    def drawn(lora: str) -> bytes:
        use_loras(config, [lora] if lora else [], None)
        found = (pipeline.draw(config) / "visual_prompt" / "candidate_0.png").read_bytes()
        config.prior.loras = ""
        return found

    plain = drawn("")
    assert drawn(f"{tmp_path / 'lora.safetensors'}:0") == plain
    assert drawn(str(tmp_path / "lora.safetensors")) != plain
    use_loras(config, [f"{tmp_path / 'lora.safetensors'}:0.5"], None)
    (newest,) = [
        run for run in map(RunFolder, (tmp_path / "outputs").iterdir()) if run.config().prior.loras
        and not run.config().prior.loras.endswith(":0")
    ]  # fmt: skip
    assert any("lora.safetensors" in name for name in newest.recorded_weights())
    assert f"LoRA {tmp_path / 'lora.safetensors'} at scale 0.5" in check_weights(config).detail
    config.prior.loras = str(tmp_path / "nowhere.safetensors")
    found = check_weights(config)
    assert found.state == "BROKEN" and "there is no LoRA" in found.detail

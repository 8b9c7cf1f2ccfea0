"""The public API: what the README's five lines, a service and a notebook rely on."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.helpers.listening import Listener
from tests.helpers.tiny_run import tiny_config
from vp3d import build, errors, generate, load_config, load_models, pipeline, resume
from vp3d.config.paths import ROOT
from vp3d.config.schema import Config, FieldConfig, RewardConfig
from vp3d.errors import UserError
from vp3d.fields.nerf import Field, build_field
from vp3d.guidance.reward_term import Reward
from vp3d.runs import events
from vp3d.runs.events import Watch
from vp3d.runs.folder import RunFolder
from vp3d.types import Asset


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def quick(folder: Path) -> Config:
    config = tiny_config(folder)
    config.export.formats, config.export.turntable = ["glb"], "gif"
    return config


def again(finished_run: Asset, folder: Path) -> Config:
    """The settings of `finished_run`, for a run in another folder that writes a GLB only."""
    config = RunFolder.open(finished_run.run_dir).config()
    config.output_dir = str(folder)
    config.export.formats, config.export.turntable = ["glb"], "gif"
    return config


def test_import_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, vp3d, vp3d.errors, vp3d.runs.events; from vp3d import load_config, Watch;"
        "from vp3d.cli.main import main; main(['--help']); print(vp3d.__version__);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'PIL', 'scipy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    import vp3d

    assert {getattr(vp3d, name) for name in vp3d.__all__}
    assert set(vp3d.__all__) <= set(dir(vp3d))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vp3d.nothing  # noqa: B018


def test_every_error_has_a_code_of_its_own() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.VP3DError)
    ]
    assert len(kinds) == len({kind.code for kind in kinds}) >= 9
    assert not issubclass(errors.EmptyFieldError, UserError)


def test_settings_by_keyword_are_checked_like_files(tmp_path: Path) -> None:
    config = load_config("draft", prompt="a red ball", optim={"steps": 7}, export={"faces": 50})
    assert (config.prompt, config.optim.steps, config.optim.views) == ("a red ball", 7, 3)
    (tmp_path / "a.yaml").write_text("optim: {steps: 9}\n")
    layered = load_config(files=[str(tmp_path / "a.yaml")], overrides=["optim.views=2"], seed=3)
    assert (layered.optim.steps, layered.optim.views, layered.seed) == (9, 2, 3)
    with pytest.raises(UserError, match="unknown config key 'optim.step'; did you mean"):
        load_config(optim={"step": 7})


def test_events_come_in_order_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = quick(tmp_path)
    capfd.readouterr()
    listener = Listener()
    asset = generate(config, watch=Watch(listener))
    printed = capfd.readouterr()
    assert printed.out == "" and "vp3d" not in printed.err and "coarse" not in printed.err
    stages = [event.name for event in listener.events if isinstance(event, events.Stage)]
    assert stages == ["load", "visual_prompt", "coarse", "export", "views", "report"]
    steps = [event for event in listener.events if isinstance(event, events.Step)]
    assert [event.step for event in steps] == list(range(1, config.optim.steps + 1))
    assert all(0 <= event.values["opacity"] <= 1 and event.values["eta_s"] >= 0 for event in steps)
    measured = {name for name in steps[0].values if not name.startswith("reward_")}
    others = {"loss", "opacity", "samples", "rate_scale", "seconds_a_step", "eta_s"}
    terms = measured - others - {"samples_per_s"}
    assert terms and terms <= set(build.LOSS_NAMES), (
        "a name that a reward of one's own may not take"
    )
    (chosen,) = [event for event in listener.events if isinstance(event, events.Candidates)]
    assert chosen.sheet.is_file() and 0 <= chosen.chosen < len(chosen.scores)
    assert any(isinstance(event, events.Preview) for event in listener.events)
    artifacts = {e.kind: e.path for e in listener.events if isinstance(e, events.Artifact)}
    assert set(artifacts) == {"glb", "preview", "turntable", "report"}
    assert all(path.is_file() for path in artifacts.values())
    last = listener.events[-1]
    assert isinstance(last, events.Done) and last.run_dir == asset.run_dir and not last.stopped
    assert last.steps == last.total_steps == config.optim.steps and last.figures == asset.figures


def test_a_run_is_stopped_from_another_thread_and_resumed(
    tmp_path: Path, finished_run: Asset
) -> None:
    """In a thread that is not the main one, as a server works."""
    config = again(finished_run, tmp_path)
    listener, stop = Listener(), threading.Event()

    def listen(event: events.Event) -> None:
        listener(event)
        if isinstance(event, events.Step) and event.step == 3:
            stop.set()

    assets = []
    worker = threading.Thread(
        target=lambda: assets.append(generate(config, watch=Watch(listen, stop)))
    )
    worker.start()
    worker.join()
    last = listener.events[-1]
    assert isinstance(last, events.Done) and last.stopped and last.steps == 3
    assert assets[0].path("glb").is_file()
    straight = finished_run.path("glb").read_bytes()
    assert resume(assets[0].run_dir).path("glb").read_bytes() == straight


def test_models_are_kept_between_calls_and_give_the_same_bytes(
    tmp_path: Path, finished_run: Asset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = again(finished_run, tmp_path)
    models = load_models(config)
    monkeypatch.setattr(build, "load_prior", lambda *_: pytest.fail("the models were read again"))
    shorter = dataclasses.replace(config, optim=dataclasses.replace(config.optim, steps=2))
    straight = finished_run.path("glb").read_bytes()
    assert generate(shorter, models).path("glb").read_bytes() != straight
    assert generate(config, models).path("glb").read_bytes() == straight
    other = dataclasses.replace(config, prior=dataclasses.replace(config.prior, max_batch=3))
    with pytest.raises(UserError, match=r"other settings \(prior.max_batch\)"):
        generate(other, models)


def test_a_reward_of_ones_own_acts_and_is_needed_on_resume(
    tmp_path: Path, finished_run: Asset
) -> None:
    config = again(finished_run, tmp_path)
    models = load_models(config)
    redness = Reward(
        lambda rgb, target: rgb[:, 0].mean((1, 2)),
        lambda camera: torch.zeros(1, 1),
        RewardConfig(weight=50.0),
    )
    mine = dataclasses.replace(models, extra_rewards={"redness": redness})
    asset = generate(config, mine)
    assert RunFolder.open(asset.run_dir).events("step")[-1]["reward_redness"] > 0
    assert asset.path("glb").read_bytes() != finished_run.path("glb").read_bytes()
    with pytest.raises(UserError, match="made with: extra_rewards"):
        pipeline.resume(asset.run_dir, models)
    assert pipeline.resume(asset.run_dir, mine).path("glb").is_file()
    taken = dataclasses.replace(models, extra_rewards={"sds": redness})
    with pytest.raises(UserError, match="'sds'"):
        generate(config, taken)


def test_a_field_of_ones_own_is_needed_on_resume(tmp_path: Path) -> None:
    config = quick(tmp_path)
    config.optim.steps = 4

    def dense(settings: FieldConfig, generator: torch.Generator) -> Field:
        field = build_field(settings, generator)
        field.get_parameter("raw_density").data.add_(0.1)
        return field

    models = load_models(config)
    mine = dataclasses.replace(models, new_field=dense)
    asset = generate(config, mine)
    with pytest.raises(UserError, match="made with: new_field"):
        resume(asset.run_dir)
    assert resume(asset.run_dir, mine).path("glb").is_file()


def test_an_empty_prompt_is_refused_without_a_folder(tmp_path: Path) -> None:
    config = load_config("draft", prompt=" ", output_dir=str(tmp_path / "runs"))
    with pytest.raises(UserError, match="the prompt is empty"):
        generate(config)
    assert not (tmp_path / "runs").exists()


def test_a_listener_that_fails_ends_the_run(tmp_path: Path) -> None:
    def fail(event: events.Event) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        generate(quick(tmp_path), watch=Watch(fail))

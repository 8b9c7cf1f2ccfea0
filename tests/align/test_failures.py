"""What goes wrong in an alignment, provoked, and the line that the user gets."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from tests.align.test_run import command, the_run
from tests.helpers.tiny_models import tiny_prior_config
from vp3d.align import guard
from vp3d.align.learner import LEAST_NORMS
from vp3d.cli.main import main
from vp3d.config.schema import AlignConfig, PriorConfig, RewardsConfig
from vp3d.diffusion.drawing import Drawing
from vp3d.diffusion.load import load_prior
from vp3d.errors import OutOfMemoryError
from vp3d.runs.folder import RunFolder
from vp3d.tuning import build
from vp3d.tuning.rewards import build_objectives
from vp3d.tuning.run import TILE
from vp3d.tuning.session import Prompts, Training
from vp3d.weights.lora_files import FILE_NAME

PROMPTS = Prompts(("a red cube", "a blue cone"), ("a white ring",))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PriorConfig:
    return tiny_prior_config(tmp_path_factory.mktemp("model"), ip_adapter=False)


def training(model: PriorConfig, **settings: object) -> Training:
    plan = {"reward": "compress", "steps": 3, "batch": 4, "k": "fixed:2", **settings}
    config = AlignConfig(**plan)  # type: ignore[arg-type]
    objectives = build_objectives(config.reward, RewardsConfig(), "", torch.device("cpu"))
    return Training(load_prior(model), config, objectives, PROMPTS, seed=1)


def without_memory_for(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Memory runs out in a denoiser call with a graph for `rows` drawings or more."""
    real: Callable[..., Tensor] = Drawing.__call__

    def fails(self: Drawing, x: Tensor, step: int, owner: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled() and len(x) >= rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, x, step, owner)

    monkeypatch.setattr(Drawing, "__call__", fails)


def falling(start: float = 1.0) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """A held-out score that is lower at each look."""
    looks: list[int] = []

    def score(rgb: Tensor, prompts: Sequence[str]) -> Tensor:
        looks.append(1)
        return torch.full((len(rgb),), start - 0.1 * len(looks))

    return score


def test_a_reward_that_rises_while_pictures_get_worse_stops_with_advice_and_keeps_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "held_out_score", lambda *_: ("clip", falling()))
    words = command(tmp_path, "sd", "--steps", "20", "align.guard_every=1")
    assert main(words) == 0
    error = capsys.readouterr().err
    assert "compress is the only reward" in error and "add a second one to --reward" in error
    assert re.search(
        r"a step takes \d+\.\d s and \d+\.\d GB at its peak; about .* until \d+:", error
    )
    assert "stopped at step 3: clip fell from" in error
    assert "lower align.lr, add a second reward" in error and "align.anchor" in error
    run = the_run(tmp_path)
    checks = RunFolder(run).events("check")
    assert [check["step"] for check in checks] == [0, 1, 2, 3]
    assert all(check["sharpness"] > 0.0 for check in checks)
    assert "sharpness" in (run / "report.html").read_text()
    for folder, step in (("lora", 0), ("last", 3)):
        with safe_open(run / folder / FILE_NAME, "pt") as file:
            notes = json.loads(file.metadata()["vp3d"])
            assert notes["step"] == step and notes["base_licence"] == ""  # not ours to know
    with Image.open(run / "sheets" / "000003.png") as sheet:
        assert sheet.height > 3 * TILE  # base, aligned, and the map of what changed
        assert sheet.width > 5 * TILE  # three trained on, and two of the unseen prompt


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "alignprop", "anchor": 100.0},
        {"method": "alignprop", "anchor": 100.0, "repeat_last": 2},
        {"method": "refl", "anchor": 100.0},
        {"method": "ddpo", "anchor": 100.0},
    ],
)
def test_a_step_without_memory_is_the_same_step_in_smaller_parts(
    model: PriorConfig, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    settings = {"group": 2, **settings}
    trainings = [training(model, **settings) for _ in range(2)]
    for one in trainings:
        changed(one)  # so that there is a drift
    whole = trainings[0].step()
    without_memory_for(monkeypatch, 3 if "repeat_last" in settings else 2)
    small = trainings[1]
    found = small.step()
    assert small.learner.part == 1
    assert found.norm == pytest.approx(whole.norm, rel=1e-3) and whole.norm > 0.0
    assert found.total == pytest.approx(whole.total, rel=1e-4, abs=1e-5)
    assert found.queries == whole.queries == (8 if "repeat_last" in settings else 4)
    assert found.drift == pytest.approx(whole.drift, rel=1e-3) and (whole.drift or 0.0) > 0.0


@pytest.mark.parametrize("method", ["alignprop", "ddpo"])
def test_the_anchor_pulls_towards_the_base(model: PriorConfig, method: str) -> None:
    """With a large weight the step is along the gradient of the drift alone."""
    found = training(model, method=method, group=2, anchor=1e9, lr=1e-3, warmup=0, ema=0.0)
    changed(found)
    found.average = {key: value.detach().clone() for key, value in found.parameters.items()}
    for _ in range(2):
        found.check()
        assert found.step().drift
    found.check()
    drifts = [check.drift for check in found.guard.checks]
    assert drifts[0] > drifts[1] > drifts[2] > 0.0


def changed(found: Training) -> None:
    """Give the LoRA a change of every layer."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in found.parameters.values():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))


def test_memory_that_runs_out_in_the_backward_pass_is_the_same_step_too(
    model: PriorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a checkpoint is computed again, and the prior takes fewer images in one call."""
    whole, small = training(model, anchor=0.0), training(model, anchor=0.0)
    expected = whole.step()
    real, calls = small.prior.unet.forward, []

    def fails(x: Tensor, *arguments: object, **named: object) -> object:
        calls.append(len(x))
        if torch.is_grad_enabled() and len(x) > 2 and len(calls) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(x, *arguments, **named)

    monkeypatch.setattr(small.prior.unet, "forward", fails)
    found = small.step()
    assert small.prior.max_batch == 2 and small.learner.part == 2
    assert found.norm == pytest.approx(expected.norm, rel=1e-3) and expected.norm > 0.0


def test_steps_without_a_gradient_do_not_make_the_next_one_a_jump(model: PriorConfig) -> None:
    found = training(model, method="ddpo", group=4)
    objectives = found.learner.objectives
    alike = dataclasses.replace(objectives[0], score=lambda rgb, _: rgb.new_zeros(len(rgb)))
    found.learner.objectives = [alike]
    assert all(found.step().norm == 0.0 for _ in range(2)) and found.learner.norms == []
    found.learner.objectives = objectives
    assert found.step().skipped == "" and len(found.learner.norms) == 1


def test_the_user_reads_what_fits_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_memory_for(monkeypatch, 2)
    assert main(command(tmp_path, "sd", "--steps", "1", "--k", "fixed:2")) == 0
    error = capsys.readouterr().err
    assert "out of memory with K = 2: the graph of 1 drawings at once fits" in error
    assert "align.batch=1" in error


@pytest.mark.parametrize("method", ["alignprop", "ddpo"])
def test_memory_that_not_even_one_drawing_has_ends_in_one_line(
    model: PriorConfig, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    without_memory_for(monkeypatch, 1)
    with pytest.raises(OutOfMemoryError, match="one drawing at a time: set --k fixed:1"):
        training(model, method=method, group=2).step()


def test_a_gradient_that_jumps_changes_nothing(model: PriorConfig) -> None:
    found = training(model)
    found.learner.norms[:] = [1e-9] * LEAST_NORMS
    before = {key: value.detach().clone() for key, value in found.parameters.items()}
    report = found.step()
    assert report.skipped.startswith("the gradient's norm jumped to") and report.norm > 1e-7
    for key, value in before.items():
        assert torch.equal(value, found.parameters[key]), key
    assert found.learner.norms == [1e-9] * LEAST_NORMS and found.skipped_in_a_row == 1


def test_drawings_that_become_one_picture_stop_the_run(
    model: PriorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = training(model)
    assert found.check() == ""
    alike = found.base_rgb[:1].expand_as(found.base_rgb)
    monkeypatch.setattr(Training, "draw_validation", lambda self: alike)
    found.step()
    reason = found.check()
    assert reason.startswith("stopped at step 1: drawings of one prompt are becoming one picture")
    assert "lower align.lr, or set align.anchor" in reason
    assert found.guard.best().step == 0


def test_a_reward_that_falls_from_the_start_says_what_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The optimiser goes the wrong way, as with a gradient of the wrong sign."""
    monkeypatch.setattr(guard, "WARN_AFTER", 2)
    real = Training.step

    def uphill(self: Training) -> object:
        for group in self.learner.optimizer.param_groups:
            group["maximize"] = True
        return real(self)

    monkeypatch.setattr(Training, "step", uphill)
    words = command(tmp_path, "sd", "--steps", "4", "align.lr=0.1", "align.guard_every=2")
    assert main([*words, "align.ema=0"]) == 0
    error = capsys.readouterr().err
    assert "the reward is below the base's since the start: try --k fixed:1" in error


def test_what_is_judged_and_saved_is_an_average_of_the_weights(model: PriorConfig) -> None:
    found = training(model)
    expected = {key: value.detach().clone() for key, value in found.parameters.items()}
    for number in range(3):
        found.step()
        decay = min(AlignConfig().ema, (1 + number) / (10 + number))
        for key, value in found.parameters.items():
            expected[key] = decay * expected[key] + (1 - decay) * value.detach()
    for key, value in expected.items():
        torch.testing.assert_close(found.average[key], value)
    assert any(not torch.equal(found.average[k], v) for k, v in found.parameters.items())


def test_rewards_that_are_computed_again_give_the_same_step(model: PriorConfig) -> None:
    plain, again = training(model), training(model)
    again.learner.recompute = True
    assert plain.step().norm == again.step().norm
    for key, value in plain.parameters.items():
        assert torch.equal(value, again.parameters[key]), key


def test_looking_at_a_training_does_not_change_it(model: PriorConfig) -> None:
    """Checks and sample sheets draw from seeds of their own, each step from that of its number."""
    alone, watched = training(model), training(model)
    for _ in range(3):
        alone.step()
        watched.check()
        torch.manual_seed(0)
        watched.draw_validation()
        watched.step()
    for key, value in alone.parameters.items():
        assert torch.equal(value, watched.parameters[key]), key


def test_drawings_of_one_batch_have_noise_of_their_own(model: PriorConfig) -> None:
    """Also those of one prompt: the advantage of a group compares them."""
    batch = training(model, group=2)._batch(torch.Generator().manual_seed(0))
    assert len(set(batch.prompts)) == 2
    for i in range(4):
        for j in range(i):
            assert not torch.equal(batch.noise[i], batch.noise[j])


def test_the_lora_of_a_half_precision_model_is_float32_and_trains(model: PriorConfig) -> None:
    found = training(dataclasses.replace(model, dtype="bfloat16"))
    report = found.step()
    assert report.skipped == "" and report.norm > 0.0
    for key, value in found.parameters.items():
        assert value.dtype == torch.float32 and bool(value.isfinite().all()), key

"""A LoRA that also trains the text encoders: its gradient, its base, its file, from the command."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.align.test_run import command, the_run
from tests.helpers.tiny_models import tiny_prior_config
from vp3d.align.alignprop import alignprop_step
from vp3d.align.learner import drift_at
from vp3d.cli.main import main
from vp3d.config.schema import AlignConfig, PriorConfig, RewardsConfig
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.sampling import sample
from vp3d.diffusion.text import TextEmbedding, TextEncoders
from vp3d.tuning.rewards import build_objectives
from vp3d.tuning.session import Prompts, Training
from vp3d.weights.lora_files import FILE_NAME

PROMPTS = Prompts(("a red cube", "a blue cone"), ("a white ring",))
PARTS = {"sd": ("unet", "text_encoder"), "sdxl": ("unet", "text_encoder", "text_encoder_2")}


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, PriorConfig]:
    kind = str(request.param)
    return kind, tiny_prior_config(tmp_path_factory.mktemp(kind), kind=kind, ip_adapter=False)


def training(model: PriorConfig, **settings: object) -> Training:
    plan = {"reward": "compress", "steps": 3, "batch": 2, "k": "fixed:2", "text_encoder": True}
    config = AlignConfig(**plan | settings)  # type: ignore[arg-type]
    objectives = build_objectives(config.reward, RewardsConfig(), "", torch.device("cpu"))
    return Training(load_prior(model), config, objectives, PROMPTS, seed=1)


def changed(found: Training) -> None:
    """Give the LoRA a change of every layer."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in found.parameters.values():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))


def naive_loss(found: Training, prompts: Sequence[str], noise: Tensor) -> Tensor:
    """The loss of a step with K = S, without checkpoints or parts."""
    drawing = found.learner.drawing(prompts)
    rgb = found.prior.decode(sample(drawing, noise, drawing.levels))
    return -found.learner.rewards(rgb, prompts)[0].mean()


def test_the_step_has_the_gradient_of_the_naive_graph_in_every_part(
    model: tuple[str, PriorConfig],
) -> None:
    kind, config = model
    found = training(config, k="fixed:3", batch=2)
    changed(found)
    generator = torch.Generator().manual_seed(3)
    batch = found._batch(torch.Generator().manual_seed(3))
    parameters = list(found.parameters.values())
    loss = naive_loss(found, batch.prompts, batch.noise)
    # SDXL reads the layer before the last one of its first encoder
    wanted = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
    taken: list[Tensor] = []

    def keep(*_: object) -> None:
        taken.extend(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters)

    found.learner.optimizer.register_step_pre_hook(keep)
    found.learner.settings = dataclasses.replace(found.learner.settings, clip=1e9)
    alignprop_step(found.learner, batch, generator)
    for part in PARTS[kind]:
        rows = [i for i, key in enumerate(found.parameters) if key.startswith(f"{part}.")]
        expected = torch.cat([wanted[i].flatten() for i in rows])
        ours = torch.cat([taken[i].flatten() for i in rows])
        assert expected.norm() > 0.0
        assert float((ours - expected).norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("method", ["refl", "ddpo"])
def test_the_other_methods_train_every_part_too(
    model: tuple[str, PriorConfig], method: str
) -> None:
    kind, config = model
    found = training(config, method=method, group=2)
    before = {key: value.detach().clone() for key, value in found.parameters.items()}
    report = found.step()
    assert report.skipped == "" and report.norm > 0.0
    for part in PARTS[kind]:
        keys = [key for key in before if key.startswith(f"{part}.") and ".lora_B." in key]
        assert any(not torch.equal(before[key], found.parameters[key]) for key in keys), part


def test_a_policy_step_in_parts_runs_the_text_encoders_once_and_is_the_same(
    model: tuple[str, PriorConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, config = model
    whole, parts = (training(config, method="ddpo", group=2) for _ in range(2))
    for found in (whole, parts):
        changed(found)
    expected = whole.step()
    parts.learner.part = 1
    real, live = TextEncoders.encode, []

    def counted(self: TextEncoders, prompts: list[str]) -> TextEmbedding:
        live.append(torch.is_grad_enabled())
        return real(self, prompts)

    monkeypatch.setattr(TextEncoders, "encode", counted)
    found = parts.step()
    assert live.count(True) == 2  # the prompts and the negative one
    assert found.norm == pytest.approx(expected.norm, rel=1e-3) and expected.norm > 0.0
    for key, value in whole.parameters.items():
        torch.testing.assert_close(parts.parameters[key], value, atol=2e-4, rtol=1e-3)


def test_a_lora_of_the_text_alone_has_embeddings_with_a_gradient(
    model: tuple[str, PriorConfig],
) -> None:
    _, config = model
    learner = training(config).learner
    parts = {
        part: {key: p for key, p in learner.parameters.items() if key.partition(".")[0] in names}
        for part, names in (("text", ("text_encoder",)), ("denoiser", ("unet",)))
    }
    learner.parameters = parts["text"]
    assert learner.trains_text
    learner.parameters = parts["denoiser"]
    assert not learner.trains_text


def test_the_anchor_and_the_base_are_without_the_change_of_the_text(
    model: tuple[str, PriorConfig],
) -> None:
    _, config = model
    found = training(config)
    prompts = list(PROMPTS.training)
    noise = found.prior.noise(2, torch.Generator().manual_seed(0))

    def drift() -> float:
        with torch.no_grad():
            return float(drift_at(found.learner, found.learner.drawing(prompts), prompts, noise, 1))

    assert drift() == 0.0
    with torch.no_grad():  # of the text alone
        for key, value in found.parameters.items():
            if key.startswith("text_encoder.") and ".lora_B." in key:
                value.fill_(0.5)
    assert drift() > 0.0
    plain = load_prior(config)
    drawing = plain.drawing(prompts, "", 3, 1.0)
    with torch.no_grad():
        base = drawing(noise, 1)
        tuned = found.learner.drawing(prompts)(noise, 1)
    assert drift() == pytest.approx(float((tuned - base).square().mean()), rel=1e-4)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_command_writes_all_parts_and_a_lora_of_both_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        root.mkdir()
    assert main(command(first, kind, "--steps", "2", "--text-encoder")) == 0
    lora = the_run(first) / "last" / FILE_NAME
    assert {key.partition(".")[0] for key in load_file(lora)} == set(PARTS[kind])
    assert main(command(second, kind, "--steps", "1", "--from", str(lora))) == 0
    found = load_file(the_run(second) / "last" / FILE_NAME)
    assert {key.partition(".")[0] for key in found} == set(PARTS[kind])
    capsys.readouterr()


def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        root.mkdir()
    words = ("--steps", "1", "--text-encoder", "prior.offload_encoders=true")
    assert main(command(first, "sd", *words)) == 2
    assert "set prior.offload_encoders=false" in capsys.readouterr().err
    assert main(command(first, "sd", "--steps", "1")) == 0
    lora = the_run(first) / "last"
    capsys.readouterr()
    assert main(command(second, "sd", "--text-encoder", "--from", str(lora))) == 2
    error = capsys.readouterr().err
    assert "has no matrices of text_encoder" in error and "Traceback" not in error

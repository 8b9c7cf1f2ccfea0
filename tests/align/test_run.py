"""The verb `align` on tiny SD-like and SDXL-like pipelines, from the command line."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.tiny_models import tiny_prior_config
from vp3d.cli.align import read_prompts
from vp3d.cli.main import main
from vp3d.config.schema import Config, PriorConfig
from vp3d.diffusion.load import load_prior
from vp3d.runs.folder import RunFolder
from vp3d.train import checkpoint
from vp3d.tuning.session import Training
from vp3d.weights.lora_files import FILE_NAME

PROMPTS = ("a red cube", "a blue cone", "a white ring", "a green ball")


def nothing(rgb: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A reward that breaks after the drawings of the base (32 of them, and the validation)."""
    values = rgb.mean((1, 2, 3))
    return values if len(rgb) > 4 or not rgb.requires_grad else values * float("nan")


def command(root: Path, kind: str, *more: str) -> list[str]:
    config = tiny_prior_config(root, kind=kind)
    (root / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    keys = ("path", "ip_adapter", "manifest", "vocabulary", "dtype", "resolution")
    settings = [f"prior.{key}={getattr(config, key)}" for key in keys]
    settings += ["align.steps=3", "align.batch=2", "align.guard_every=2", "--guard", "none"]
    return ["align", "--reward", "compress", "--prompts", str(root / "prompts.txt"), *settings,
            f"output_dir={root / 'outputs'}", *more]  # fmt: skip


def the_run(root: Path) -> Path:
    (run,) = (root / "outputs").iterdir()
    return run


@pytest.mark.parametrize(
    ("kind", "method"),
    [("sd", "alignprop"), ("sdxl", "alignprop"), ("sd", "refl"), ("sdxl", "ddpo")],
)
def test_run_writes_a_lora_that_changes_the_drawings(
    tmp_path: Path, kind: str, method: str
) -> None:
    assert (
        main(command(tmp_path, kind, "--steps", "2", "--method", method, "align.anchor=0.1")) == 0
    )
    run = the_run(tmp_path)
    for name in ("curves.png", "report.html", "sheets/000002.png", f"lora/{FILE_NAME}"):
        assert (run / name).is_file(), name
    config = RunFolder(run).config().prior
    base = load_prior(config)
    tuned = load_prior(PriorConfig(**{**vars(config), "loras": str(run / "last")}))
    drawn = [
        prior.sample(["a red cube"], "", 2, 1.0, torch.Generator().manual_seed(0))
        for prior in (base, tuned)
    ]
    assert not torch.equal(*drawn)


def test_killed_and_resumed_run_is_the_same_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        root.mkdir()
    assert main(command(whole, "sd", "--steps", "5")) == 0
    real = Training.step

    def dies(training: Training) -> object:
        if training.step_number == 3:
            raise KeyboardInterrupt
        return real(training)

    monkeypatch.setattr(Training, "step", dies)
    assert main(command(killed, "sd", "--steps", "5")) == 130
    monkeypatch.undo()
    run = the_run(killed)
    assert [path.stem for path in checkpoint.list_checkpoints(run / "checkpoints/align")][-1] == (
        "00000002"
    )
    assert main(["resume", str(run)]) == 0
    states = [
        checkpoint.load(checkpoint.list_checkpoints(the_run(root) / "checkpoints/align")[-1])
        for root in (whole, killed)
    ]
    assert states[0].tensors.keys() == states[1].tensors.keys()
    for name, value in states[0].tensors.items():
        assert torch.equal(value, states[1].tensors[name]), name
    settings = (run / "config.yaml").read_text()
    for old, new in (("lr: 0.001", "lr: 0.002"), ("seed: 0", "seed: 1"), ("steps: 3", "steps: 4")):
        (run / "config.yaml").write_text(settings.replace(f"  {old}", f"  {new}").replace(
            f"\n{old}", f"\n{new}"))  # fmt: skip
        assert main(["resume", str(run)]) == 2
        error = capsys.readouterr().err
        assert f"was trained with another {old.partition(':')[0]} until step 5" in error
    (run / "config.yaml").write_text(settings.replace("updates: 5", "updates: 6"))
    assert main(["resume", str(run)]) == 0


@pytest.mark.slow
def test_a_run_that_was_killed_hard_gives_the_same_file(tmp_path: Path) -> None:
    """The process is killed at a random moment after its first checkpoint, and resumed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        root.mkdir()
    steps = ("--steps", "12")
    assert main(command(whole, "sd", *steps)) == 0
    words = command(killed, "sd", *steps)
    code = "import sys; from vp3d.cli.main import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *words])
    deadline = time.monotonic() + 300.0
    while not list(killed.glob("outputs/*/checkpoints/align/*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.random())
    process.kill()
    assert process.wait() in (-signal.SIGKILL, 0)
    assert main(["resume", str(the_run(killed))]) == 0
    for folder in ("lora", "last"):
        found = [load_file(the_run(root) / folder / FILE_NAME) for root in (whole, killed)]
        assert found[0].keys() == found[1].keys()
        for name, value in found[0].items():
            assert torch.equal(value, found[1][name]), name


def test_rewards_that_are_not_finite_skip_and_then_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(tmp_path, "sd", "--steps", "20")
    words[2] = "tests.align.test_run:nothing"
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "changed nothing: a reward is not finite" in error
    assert "5 steps in a row were skipped" in error and "Traceback" not in error
    run = the_run(tmp_path)  # the best LoRA until then is kept
    assert all((run / name / FILE_NAME).is_file() for name in ("lora", "last"))
    assert "5 steps in a row were skipped" in (run / "report.html").read_text()
    assert main(["resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert "code, which a run folder may not choose" in error and words[2] in error
    assert main(["resume", str(run), "--reward", "compress"]) == 2
    assert "is not that of the run" in capsys.readouterr().err
    assert main(["resume", str(run), "--reward", words[2]]) == 2
    assert "5 steps in a row were skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--reward", "jpeg"], "has no gradient"),
        (["--reward", "nothing"], "there is no reward 'nothing'"),
        (["--reward", "tests.align.test_run:broken"], "failed for rgb (1, 3, 64, 64) (ValueError"),
        (["--reward", "tests.align.test_run:flat"], "returned ()"),
        (["--reward", "tests.no_such:f"], "No module named"),
        (["--method", "ddpo", "--k", "fixed:1"], "--k is of --method alignprop only"),
        (["--method", "refl", "--repeat-last", "2"], "--repeat-last is of --method alignprop only"),
        (["--method", "ddpo", "align.batch=1"], "needs align.batch=2 or more"),
        (["align.group=4"], "set align.batch=4 or more"),
        (["--guard", "dino"], "models fetch dinov2-base"),
        (["--from", " "], "--from is empty"),
        (["--k", "often"], "--k often"),
        (["--method", "ddpo", "align.steps=1"], "has no density"),
        (["--from", "nowhere"], "there is no LoRA"),
        (["--prompts", "nowhere.txt"], "is not a file"),
        (["--reward", "clip", "--guard", "clip"], "guards nothing"),
        (["prior.compile=true"], "exclude each other"),
        (["--reward", "clip"], "knows the embedded models' pictures only"),
        (["--guard", "clip"], "rewards.clip=clip-vit-b32"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert main(command(tmp_path, "sd", *more)) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"a red cube\na purple cone\n" + b"a corgi in a ruff\n", "line 3: "),
        ("a red cube\n".encode("utf-16"), "is not UTF-8 text"),
        (b"a\x00b\n", "control character"),
    ],
)
def test_prompts_that_the_embedded_model_cannot_draw_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes, line: str
) -> None:
    (tmp_path / "prompts.txt").write_bytes(text)
    words = ["align", "--reward", "compress", "--prompts", str(tmp_path / "prompts.txt")]
    assert main([*words, f"output_dir={tmp_path / 'outputs'}"]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1 and not (tmp_path / "outputs").exists()


def test_prompts_are_read_as_those_of_generate_and_may_begin_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8-sig")
    assert read_prompts(tmp_path / "prompts.txt", Config()) == [*PROMPTS[:3], "a green sphere"]


def flat(rgb: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return rgb.mean()


def broken(rgb: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    raise ValueError("no such place")


def test_guard_needs_prompts_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(tmp_path, "sd")
    (tmp_path / "prompts.txt").write_text("a cube\na cone\n", encoding="utf-8")
    assert main(words) == 2
    assert "keeps every fourth" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_lora_continues_from_a_file_and_reaches_generate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    assert main(command(first, "sd", "--steps", "2")) == 0
    lora = the_run(first) / "last"
    second = tmp_path / "second"
    shutil.copytree(first / "pipeline", second / "pipeline")
    assert main(command(second, "sd", "--steps", "1", "--from", str(lora))) == 0
    capsys.readouterr()
    assert main(["generate", "a red cube", "--lora", str(tmp_path / "none")]) == 2
    assert "there is no LoRA" in capsys.readouterr().err
    assert main(["generate", "a red cube", "--lora-for", "draw"]) == 2
    assert "without --lora" in capsys.readouterr().err

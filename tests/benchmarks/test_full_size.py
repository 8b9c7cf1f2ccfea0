"""Open-world configurations: the published sizes, and the program runs in tiny."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import full_size, random_weights, recorder
from benchmarks.timing import Bench
from tests.diffusion.test_layouts import SIZES, UNETS, published_text, published_vision, shapes_of
from tests.helpers.tiny_models import tokenizer
from vp3d.config.loader import load_config
from vp3d.config.paths import ROOT
from vp3d.errors import UserError
from vp3d.export.read import read_mesh
from vp3d.rewards.imagereward import ImageRewardNet
from vp3d.weights.catalogue import MODELS

import diffusers  # isort: skip
import transformers  # isort: skip

QUICK = ["--steps", "1", "--threads", "1", "--device", "cpu"]


@pytest.mark.parametrize("name", UNETS)
def test_denoiser_and_text_encoders_are_the_published_ones(name: str) -> None:
    sizes = random_weights.FULL.priors[name]
    with torch.device("meta"):
        unet, texts = random_weights.new_unet(sizes), random_weights.new_texts(sizes, tokenizer())
    assert sum(p.numel() for p in unet.parameters()) == SIZES[name][1]
    published = [published_text(768, 12, False), published_text(1280, 32, True)]
    assert len(texts) == {"sd15": 1, "sdxl": 2}[name]
    for text, expected in zip(
        texts, published, strict=False
    ):  # transformers leaves the prefix out of some classes
        found = {key.removeprefix("text_model."): shape for key, shape in shapes_of(text).items()}
        assert found == {key.removeprefix("text_model."): shape for key, shape in expected.items()}


def test_image_encoder_is_the_published_one() -> None:
    with torch.device("meta"):
        tower = random_weights.new_tower(random_weights.FULL)
    assert shapes_of(tower) == published_vision()
    assert sum(p.numel() for p in tower.parameters()) == 632_076_800


def test_judges_and_small_autoencoder_are_as_large_as_the_published_files() -> None:
    with torch.device("meta"):
        reward = ImageRewardNet(random_weights.FULL.blip)
        dino = transformers.Dinov2Model(transformers.Dinov2Config(**random_weights.FULL.dino))
        taesd = diffusers.AutoencoderTiny(**random_weights.FULL.taesd)
    for net, name in ((reward, "imagereward"), (dino, "dinov2-base")):
        size = next(file.size for file in MODELS[name].files if file.path == "model.safetensors")
        assert 4 * sum(p.numel() for p in net.parameters()) == pytest.approx(size, rel=0.005)
    assert sum(p.numel() for p in taesd.parameters()) == 2_445_063  # 9.8 MB in float32


def check(path: Path, steps: int) -> dict:
    found = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert found["tiny"] and len(found["runs"]) == 1
    made = found["runs"][0]
    assert (
        made["finite_steps"] == len(made["steps"]) == steps
        and made["drawn_finite"]
        and not made["out_of_memory"]
    )
    assert list(made["phases"])[:6] == ["load", "draw", "prompt", "field", "steps", "export"]
    if made["exported"] == "yes":
        assert len(read_mesh(Path(made["glb"])).faces) > 0 and list(made["phases"])[6:] == [
            "views",
            "present",
        ]
    else:
        assert made["exported"] == "nothing to export" and made["message"]
    return made


@pytest.mark.slow
def test_a_tiny_run_goes_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full_size.main([*QUICK, "--work", str(tmp_path), "--write", str(tmp_path / "found.json")])
    made = check(tmp_path / "found.json", 2)
    out = capsys.readouterr().out
    assert (
        "sd15 in tiny" in out
        and "2 of 2" in out
        and made["exported"] in out
        and "No GPU here" in out
    )


@pytest.mark.slow
@pytest.mark.parametrize("model, config", [("sdxl", "sdxl"), ("sd15", "sd15-low-vram")])
def test_the_other_configurations_go_through(model: str, config: str, tmp_path: Path) -> None:
    files = [
        "--config",
        str(ROOT / "configs" / f"{config}.yaml"),
        "--work",
        str(tmp_path),
        "--tiny",
    ]
    full_size.main([*QUICK, "--model", model, *files, "--write", str(tmp_path / "found.json")])
    assert check(tmp_path / "found.json", 2)["configuration"] == config


@pytest.mark.parametrize(
    "argv, problem",
    [
        (["--card-gb", "0"], "0 is not a number of GB above 0"),
        (["--steps", "0"], "0 is not a whole number of 1 or more"),
        (["--model", "sd3"], "invalid choice: 'sd3'"),
        (["--device", "cpu", "--card-gb", "8"], "--card-gb caps the memory of a CUDA device"),
        (["--device", "cpu", "prior.vae=owner/vae"], "prior.vae owner/vae is not written here"),
        (
            ["--device", "cpu", "--config", str(ROOT / "configs" / "sd15-plus.yaml")],
            "not ip-adapter-plus_sd15.safetensors",
        ),
        (
            ["--device", "cpu", "--model", "sdxl", "--config", str(ROOT / "configs" / "sd15.yaml")],
            "--model sdxl is written with",
        ),
    ],
)
def test_what_cannot_work_is_one_line(argv: list[str], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        full_size.main([*argv, "--work", str(tmp_path / "work")])
    assert (
        problem in str(refused.value)
        and "\n" not in str(refused.value)
        and not (tmp_path / "work").exists()
    )


def run_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> dict:
    """What the child writes of a run that ends with `error` while it loads."""
    wrapped = [(module, name) for module, name, _ in recorder.PHASES]
    wrapped += [(recorder.build, "fit_to_device")]
    wrapped += [(recorder.loop, "run"), (recorder.loop, "advance")]
    for module, name in wrapped:  # the child wraps these functions: restore them afterwards
        monkeypatch.setattr(module, name, getattr(module, name))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(recorder.build, "use_models", fail)
    monkeypatch.setattr(
        full_size.pipeline, "generate", lambda config, watch: recorder.build.use_models(config)
    )
    full_size.save_config(load_config(None, [], []), tmp_path / "job.yaml")
    (tmp_path / "job.json").write_text(
        json.dumps({"threads": 1, "device": "cpu", "clock": "wall", "card_gb": 0})
    )
    full_size.child(tmp_path / "job.json")
    return json.loads((tmp_path / "job.found.json").read_text())


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), UserError("out of memory while loading")],
)
def test_memory_that_runs_out_is_a_row(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"configuration": "sd15", "card_gb": 8.0, **run_child(tmp_path, monkeypatch, error)}
    row = full_size.row_of(found, 1)
    assert row[-1] == "out of memory in load" and len(row) == len(full_size.HEADER)
    assert full_size.notes_on(found) == [f"sd15, 8 GB: {error}"]


def test_nothing_to_export_is_a_row_and_other_errors_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        run_child(tmp_path, monkeypatch, full_size.EmptyFieldError("empty"))["exported"]
        == "nothing to export"
    )
    with pytest.raises(UserError, match="something else"):
        run_child(tmp_path, monkeypatch, UserError("something else"))


def test_peaks_are_the_largest_of_the_phases() -> None:
    gib = 2**30
    phases = {
        "load": {"seconds": 2.0, "allocated_bytes": 2 * gib, "reserved_bytes": 6 * gib},
        "draw": {"seconds": 1.0, "allocated_bytes": 5 * gib, "reserved_bytes": 5.5 * gib},
    }
    found = {
        "configuration": "sdxl",
        "card_gb": 0.0,
        "profile": "24 GB",
        "encoder": "triton, float16 table",
        "dtype": "float16",
    }
    found |= {
        "samples": [4096, 2048],
        "images": [4, 4],
        "drawn_finite": False,
        "phases": phases,
        "out_of_memory": "",
    }
    steps = [
        {"seconds": 9.0, "problem": ""},
        {"seconds": 1.0, "problem": "the loss"},
        {"seconds": 2.0, "problem": ""},
    ]
    found |= {"steps": steps, "finite_steps": 2, "exported": "yes"}
    row = full_size.row_of(found, 1)
    assert row[1:6] == ["all", "24 GB", "triton, float16; float16", "4,096 -> 2,048", "4"]
    assert row[6:] == ["2.0", "1.50", "2 of 3", "5.00", "6.00", "draw", "yes"]
    assert full_size.notes_on(found) == [
        "sdxl: peak GiB by phase: load 2.00, draw 5.00",
        "sdxl: the drawn pictures are not finite",
    ]


@pytest.mark.slow
def test_a_child_that_fails_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = full_size.new_options(QUICK)
    config = load_config(None, [], ["prior.path=nowhere"])
    with pytest.raises(UserError, match="ended with code 2"):
        full_size.measure(options, Bench(torch.device("cpu")), config, tmp_path, 0.0)
    assert capfd.readouterr().err.strip()

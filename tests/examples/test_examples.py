"""Every example runs from top to bottom, with its own settings at a tiny size.

The examples are run as they are. Only `vp3d.load_config` is replaced: it reads the settings that
the example gives, and then reduces models and sizes to those of `tiny_config`. The code cells of
the notebook are run in order by `exec`, which needs no Jupyter.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vp3d
from tests.helpers.tiny_run import tiny_config
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.runs.folder import RunFolder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
TINY_GROUPS = ("prior", "field", "render", "optim", "visual_prompt", "export", "output_dir")
STEPS = 4


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the runs of examples whose `load_config` gives tiny settings."""
    return make_tiny(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def own_field(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The globals of `own_field.py` after a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(tmp_path_factory.mktemp("own_field"), patch)
        return run_example("own_field.py", patch)


def make_tiny(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let `load_config` give tiny settings, and work in `folder`: the folder of the runs."""
    import torch

    torch.set_num_threads(1)
    small = tiny_config(folder)
    small.optim.steps = STEPS
    load: Callable[..., Config] = vp3d.load_config

    def load_tiny(*arguments: Any, **settings: Any) -> Config:
        config = load(*arguments, **settings)
        for name in TINY_GROUPS:
            setattr(config, name, getattr(small, name))
        config.rewards.clip = small.rewards.clip
        return config

    monkeypatch.setattr(vp3d, "load_config", load_tiny)
    monkeypatch.chdir(folder)
    return folder / "outputs"


def run_example(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """Run an example as a program; returns its globals."""
    path = str(EXAMPLES / name)
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    return runpy.run_path(path, run_name="__main__")


def events(run: Path) -> list[dict[str, Any]]:
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def code_cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_every_example_has_a_test() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    names = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))
    assert names and all(f'"{name}"' in here for name in names)


def test_minimal(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asset = run_example("minimal.py", monkeypatch)["asset"]
    assert asset.path("glb").stat().st_size > 0
    assert capsys.readouterr().out.splitlines() == [str(asset.path("glb")), str(asset.figures)]
    assert asset.run_dir.parent == tiny


def test_minimal_has_at_most_ten_lines_of_code() -> None:
    lines = (EXAMPLES / "minimal.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 10


def test_batch_loads_the_models_once(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vp3d import build

    loaded: list[object] = []
    load_prior = build.load_prior
    monkeypatch.setattr(
        build, "load_prior", lambda *given, **named: loaded.append(1) or load_prior(*given, **named)
    )
    run_example("batch.py", monkeypatch, "a red sphere", "a blue mug")
    assert len(loaded) == 1
    assert len(list(tiny.glob("*/model.glb"))) == 2
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "a red sphere",
        "a blue mug",
    ]


def test_own_reward_is_optimised(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = run_example("own_reward.py", monkeypatch)["asset"]
    steps = [event for event in events(asset.run_dir) if event["kind"] == "step"]
    assert steps and all(step["reward_colourfulness"] > 0.0 for step in steps)
    assert all("colourfulness" in step for step in steps)


def test_own_field_is_symmetric(own_field: dict[str, Any]) -> None:
    import torch

    field = own_field["MirrorField"](Config().field, torch.Generator().manual_seed(0))
    x = 2.0 * torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) - 1.0
    mirrored = x * torch.tensor([1.0, -1.0, 1.0])
    for value, other in zip(field(x), field(mirrored), strict=True):
        assert torch.equal(value, other)
    vertices = own_field["asset"].mesh.vertices
    low, high = vertices[:, 1].min(), vertices[:, 1].max()
    assert high == pytest.approx(-low, abs=0.1)


def test_run_of_own_field_is_not_exported_as_another(own_field: dict[str, Any]) -> None:
    from vp3d.pipeline import export_run

    run = own_field["asset"].run_dir
    with pytest.raises(UserError, match="holds another field"):
        export_run(run, RunFolder.open(run).config())


def test_notebook_runs_from_top_to_bottom(tiny: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in code_cells():
        exec(compile(cell, "quickstart.ipynb", "exec"), names)
    assert names["asset"].path("glb").is_file()


def test_notebook_is_stored_with_pictures_and_without_traces_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "image/png" in text
    assert not any(word in text for word in ("/home/", "/root/", "/work/", "/tmp/", "Traceback"))
    assert len(text) < 600_000
    assert not any("id" in cell and not cell["id"] for cell in json.loads(text)["cells"])


def test_examples_use_config_groups_that_exist() -> None:
    assert set(TINY_GROUPS) <= {field.name for field in dataclasses.fields(Config)}

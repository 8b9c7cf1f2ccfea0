"""Runs of older versions stay usable: read, exported, rendered, evaluated and resumed.

`tests/fixtures/run_of_b3273e8` was made by version 0.1.0 (commit b3273e8): 8 steps, with the
checkpoints of steps 5 and 8 in the layout, and by the names, of that version.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml

from tests.helpers.listening import Listener
from vp3d import checks, pipeline
from vp3d.config import identity, loader, migrations, schema
from vp3d.config.migrations import CONFIG_VERSION, migrate, move_key, split_known
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.jobs.make_once import found_runs
from vp3d.runs import folder as run_folder
from vp3d.runs.events import Watch
from vp3d.runs.folder import RunFolder
from vp3d.train.checkpoint import list_checkpoints, load

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run_of_b3273e8"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A copy of the old run, to be changed."""
    torch.set_num_threads(1)
    return Path(shutil.copytree(FIXTURE, tmp_path / "old"))


def as_if_killed_after_step_5(run: Path) -> None:
    (run / "checkpoints" / "00000008.safetensors").unlink()
    (run / "model.glb").unlink()
    lines = (run / "events.jsonl").read_text().splitlines()
    last = next(i for i, line in enumerate(lines) if '"00000005.safetensors"' in line)
    (run / "events.jsonl").write_text("\n".join(lines[: last + 1]) + "\n")


def test_it_is_read_with_todays_keys(old_run: Path) -> None:
    config = RunFolder.open(old_run).config()
    assert config.prompt == "a red sphere" and config.optim.steps == 8
    assert (old_run / "config.yaml").read_bytes() == (FIXTURE / "config.yaml").read_bytes()


def test_it_is_resumed_to_the_numbers_it_would_have_had(old_run: Path) -> None:
    before = load(old_run / "checkpoints" / "00000008.safetensors")
    as_if_killed_after_step_5(old_run)
    pipeline.resume(old_run)
    run = RunFolder.open(old_run)
    assert [path.name for path in list_checkpoints(run.checkpoints("coarse"))] == [
        "00000005.safetensors",
        "00000008.safetensors",
    ]
    after = load(list_checkpoints(run.checkpoints("coarse"))[-1])
    assert after.tensors.keys() == before.tensors.keys()
    for name, tensor in before.tensors.items():
        if name.startswith(
            "field."
        ):  # other processors round otherwise; on one machine they are equal
            assert torch.allclose(after.tensors[name], tensor, rtol=1e-3, atol=1e-3), name
    assert run.events("resume")[-1]["step"] == 5 and (old_run / "provenance.json").is_file()
    assert not (old_run / "manifest.json").exists()


def test_export_and_render_of_it(old_run: Path) -> None:
    run = RunFolder.open(old_run)
    config = run.config(overrides=["export.faces=200", "export.formats=stl"])
    asset = pipeline.export_run(old_run, config)
    assert len(asset.mesh.faces) <= 200 and (old_run / "model.stl").is_file()
    assert asset.lit is None and not run.events("light"), "its light stays as it was"
    assert run.config().export.faces == 200
    stored = yaml.safe_load((old_run / "config.yaml").read_text())
    assert "config_version" not in stored, "the rest of the file keeps its version"
    video = pipeline.render_path(old_run, run.config().export)
    assert video.name == "turntable.gif"
    pipeline.resume(old_run)  # its config.yaml still fits the checkpoint of version 1


def test_an_edited_config_is_refused_before_models_are_loaded(
    old_run: Path, finished_run: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.build, "use_models", lambda *_: pytest.fail("models were loaded"))
    text = (old_run / "config.yaml").read_text()
    (old_run / "config.yaml").write_text(text.replace("lr_density: 0.25", "lr_density: 0.5"))
    with pytest.raises(UserError, match=r"config.yaml was changed after .*00000008"):
        pipeline.resume(old_run)
    new_run = Path(shutil.copytree(finished_run.run_dir, tmp_path / "new"))  # type: ignore[attr-defined]
    text = (new_run / "config.yaml").read_text()
    assert f"config_version: {CONFIG_VERSION}\n" in text
    (new_run / "config.yaml").write_text(
        text.replace("lr_density: 0.25", "lr_density: 0.5").replace("seed: ", "seed: 1", 1)
    )
    with pytest.raises(UserError, match=r"made with: seed, optim.lr_density; undo the change"):
        pipeline.resume(new_run)


@dataclass
class Widened:
    """A group that a later version might add."""

    strength: float = 0.5


def later_version(monkeypatch: pytest.MonkeyPatch) -> type:
    """VP3D as it might be one day.

    `widened` and `optim.warmup` are added, `optim.lr_final` is called `optim.final_rate`,
    `guidance.rescale` is removed.
    """
    gone = {"lr_final", "rescale"}

    def rebuilt(kind: type, extra: list[tuple[str, type, object]]) -> type:
        kept = [(f.name, f.type, f) for f in dataclasses.fields(kind) if f.name not in gone]
        return dataclasses.make_dataclass(
            kind.__name__,
            [*kept, *[(name, kind_, field(default=value)) for name, kind_, value in extra]],
            namespace={"__module__": schema.__name__},
        )

    optim = rebuilt(schema.OptimConfig, [("final_rate", float, 0.1), ("warmup", int, 0)])
    guidance = rebuilt(schema.GuidanceConfig, [])
    monkeypatch.setattr(schema, "OptimConfig", optim)
    monkeypatch.setattr(schema, "GuidanceConfig", guidance)
    monkeypatch.setattr(schema, "Widened", Widened, raising=False)
    fields = []
    for item in dataclasses.fields(Config):
        if item.name in ("optim", "guidance"):
            kind = optim if item.name == "optim" else guidance
            fields.append((item.name, kind.__name__, field(default_factory=kind)))
        else:
            fields.append((item.name, item.type, item))
    fields.append(("widened", "Widened", field(default_factory=Widened)))
    later = dataclasses.make_dataclass("Config", fields, namespace={"__module__": schema.__name__})
    step = CONFIG_VERSION

    def rename(tree: migrations.Tree) -> None:
        move_key(tree, "optim.lr_final", "optim.final_rate")

    monkeypatch.setitem(migrations.MIGRATIONS, step, rename)
    monkeypatch.setattr(migrations, "CONFIG_VERSION", step + 1)
    for module in (schema, loader, run_folder, identity, checks):
        monkeypatch.setattr(module, "Config", later, raising=False)
    return later


def test_a_version_with_other_keys_opens_and_exports_it(
    old_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (old_run / "config.yaml").read_text()
    (old_run / "config.yaml").write_text(text.replace("lr_final: 0.1", "lr_final: 0.3"))
    later_version(monkeypatch)
    said: list[str] = []
    config = RunFolder.open(old_run).config(said.append)
    assert config.optim.final_rate == 0.3 and config.optim.warmup == 0  # type: ignore[attr-defined]
    assert config.widened.strength == 0.5  # type: ignore[attr-defined]
    assert len(said) == 1 and said[0].endswith("ignores: guidance.rescale")
    asset = pipeline.export_run(old_run, config)
    assert (asset.run_dir / "model.glb").stat().st_size > 1000
    listener = Listener()
    assert pipeline.stored_config(old_run, Watch(listener)).prompt == "a red sphere"
    assert "guidance.rescale" in listener.lines[0]


def test_settings_that_were_added_since_do_not_refuse_a_checkpoint() -> None:
    now = {"optim": {"steps": 8, "warmup": 0}, "seed": 1}
    stored = {"optim": {"steps": 8, "gone": 5}, "seed": 1}
    assert identity.changed_settings(stored, now, now) == []
    edited = {"optim": {"steps": 9, "warmup": 3}, "seed": 1}
    assert identity.changed_settings(stored, edited, now) == ["optim.steps", "optim.warmup"]


def test_a_folder_that_cannot_be_read_stops_nobody(tmp_path: Path) -> None:
    shutil.copytree(FIXTURE, tmp_path / "b-good")
    (tmp_path / "a-broken").mkdir()
    (tmp_path / "a-broken" / "config.yaml").write_text("optim: {steps: many}\n")
    (tmp_path / "c-torn").mkdir()
    (tmp_path / "c-torn" / "config.yaml").write_bytes(b"prompt: [\xff")
    listener = Listener()
    runs = found_runs(tmp_path, Watch(listener))
    assert [run.path.name for run in runs] == ["b-good"]
    assert [line.partition(":")[0] for line in listener.lines] == ["warning", "warning"]
    assert "a-broken" in listener.lines[0] and "optim.steps" in listener.lines[0]


def test_older_runs_were_optimised_without_fog() -> None:
    older = {"config_version": 2, "loss": {"sparsity": 0.01}}
    off = {"start": 0.0, "end": 0.0, "from_": 0.0, "to": 1.0}
    assert migrate(older) == {"loss": {"sparsity": 0.01, "fog": off}}
    assert migrate({"config_version": 3, "loss": {"fog": 0.3}}) == {"loss": {"fog": 0.3}}
    assert migrate({"config_version": 2, "seed": 1}) == {"seed": 1}
    assert RunFolder.open(FIXTURE).config().loss.fog.at(0.5) == 0.0


def test_older_runs_keep_the_light_in_their_colours() -> None:
    older = {"config_version": 3, "export": {"faces": 9}}
    assert migrate(older) == {"export": {"faces": 9, "light": "baked"}}
    assert migrate({"config_version": 3, "export": {"light": "removed"}}) == {
        "export": {"light": "removed"}
    }
    assert migrate({"config_version": 4, "export": {"faces": 9}}) == {"export": {"faces": 9}}
    assert RunFolder.open(FIXTURE).config().export.light == "baked"
    assert loader.load_config().export.light == "removed", "new runs are without"


def test_a_migration_runs_from_the_version_that_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        migrations,
        "MIGRATIONS",
        {1: lambda tree: move_key(tree, "a.b", "c.d"), 2: lambda tree: tree.update(e=1)},
    )
    assert migrate({"a": {"b": 3}}, version=1) == {"a": {}, "c": {"d": 3}, "e": 1}
    assert migrate({"config_version": 2, "a": {"b": 3}}) == {"a": {"b": 3}, "e": 1}
    assert migrate({"config_version": 3, "a": 0}) == {"a": 0}
    assert migrate({"a": 0}) == {"a": 0}, "a recipe of the user's holds today's keys"


def test_what_a_schema_does_not_know_is_named() -> None:
    known, unknown = split_known({"seed": 3, "optim": {"steps": 5, "no": 1}, "x": {}}, Config)
    assert known == {"seed": 3, "optim": {"steps": 5}} and unknown == ["optim.no", "x"]


def test_a_runs_own_file_can_be_given_as_a_recipe(old_run: Path) -> None:
    new = loader.load_config(None, [old_run / "config.yaml"], ["seed=4"])
    assert new.seed == 4 and new.field.resolution == 12


def test_the_fixture_is_the_old_layout() -> None:
    assert (FIXTURE / "manifest.json").is_file() and not (FIXTURE / "provenance.json").exists()
    assert json.loads((FIXTURE / "manifest.json").read_text())["git"]["commit"].startswith(
        "b3273e8"
    )
    assert "config_version" not in (FIXTURE / "config.yaml").read_text()

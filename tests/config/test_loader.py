"""Layering, strictness and round trips of the configuration."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from vp3d.config.loader import PRESETS, get_value, load_config
from vp3d.config.paths import ROOT, locate
from vp3d.config.reader import keys
from vp3d.config.schema import Config, Range, Schedule, ViewGate
from vp3d.errors import UserError
from vp3d.runs.folder import save_config


def changed(node: Any) -> Any:
    """A copy of a config node in which every leaf differs from its default and is still allowed."""
    kinds = get_type_hints(type(node), include_extras=True)
    values = {
        item.name: other(getattr(node, item.name), kinds[item.name])
        for item in dataclasses.fields(node)
    }
    return type(node)(**values)


def other(value: Any, kind: Any) -> Any:
    limits = None
    if get_origin(kind) is Annotated:
        kind, limits = get_args(kind)
    if dataclasses.is_dataclass(kind):
        return changed(value)
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return value[:1] if value[1:] else [other(value[0], get_args(kind)[0])]
    if isinstance(value, str):
        return value + " 'x': #é"
    if isinstance(value, int):
        return value + 1
    up = value + 0.01 / 3.0
    return up if limits is None or up <= limits.high else value - 0.01 / 3.0


def test_round_trip_of_every_field(tmp_path: Path) -> None:
    config = changed(Config())
    config.camera.elevation_min_deg = -7.0
    config.rewards.text_image.begin = 1.0 / 3.0
    config.render.background_max = config.render.background_min + 1e-9
    for key in (
        key for key in keys(config) if not dataclasses.is_dataclass(get_value(config, key))
    ):
        assert get_value(config, key) != get_value(Config(), key), key
    save_config(config, tmp_path / "config.yaml")
    assert load_config(None, [tmp_path / "config.yaml"], []) == config


@pytest.mark.parametrize(
    "text", ["1e3", "-2.E5", "true", "null", "1_000", "0x1f", "2026-01-01", "# a", "~", "caf\udce9"]
)
def test_text_that_looks_like_something_else_comes_back_as_text(tmp_path: Path, text: str) -> None:
    save_config(Config(output_dir=text), tmp_path / "config.yaml")
    assert load_config(None, [tmp_path / "config.yaml"], []).output_dir == text


def test_numbers_without_end_and_brackets_without_end_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a finite number"):
        load_config(None, [], [f"guidance.weight={'9' * 400}"])
    (tmp_path / "deep.yaml").write_text("[" * 3000)
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(None, [tmp_path / "deep.yaml"], [])


def test_layers_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("optim: {steps: 11, views: 2}\nseed: 5\n")
    second.write_text("optim:\n  steps: 12\n")
    config = load_config("draft", [first, second], ["seed=7", "seed=8"])
    assert (config.optim.steps, config.optim.views, config.seed) == (12, 2, 8)
    assert config.visual_prompt.candidates == PRESETS["draft"]["visual_prompt"]["candidates"]
    assert config.preset == "draft"


def test_defaults_are_standard_and_not_shared() -> None:
    config = load_config(None, [], [])
    assert config == Config()
    config.guidance.lam.start = 0.123
    config.export.formats.append("x")
    assert load_config(None, [], []) == Config()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load_and_differ(preset: str) -> None:
    assert (load_config(preset, [], []) == Config()) == (preset == "standard")
    assert load_config(None, [], [f"preset={preset}"]) == load_config(preset, [], [])


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name
)
def test_committed_configs_load(path: Path) -> None:
    config = load_config(None, [path], [])
    assert config != Config()
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in set(leaves(tree)) - {"extends"}:
        assert get_value(config, key) is not None


def leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of a YAML tree."""
    found = [(f"{prefix}{key}", value) for key, value in tree.items()]
    return [
        k
        for key, value in found
        for k in (leaves(value, f"{key}.") if isinstance(value, dict) else [key])
    ]


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("optim.lr_density=1e-3", "optim.lr_density", 1e-3),
        ("optim.lr_density=1", "optim.lr_density", 1.0),
        ("optim.lr_density=2.e-1", "optim.lr_density", 0.2),
        ("export.formats=glb,obj", "export.formats", ["glb", "obj"]),
        ("export.formats=[ply]", "export.formats", ["ply"]),
        ("prompt=a red ball: 3 = #4", "prompt", "a red ball: 3 = #4"),
        ("prompt=yes", "prompt", "yes"),
        ("negative_prompt=1.5", "negative_prompt", "1.5"),
        ("prior.vocabulary=", "prior.vocabulary", ""),
        ("guidance.lam=0.5", "guidance.lam", Schedule(0.5, 0.5, 0.0, 1.0)),
        ("guidance.lam={start: 1, to: 0.5}", "guidance.lam", Schedule(1.0, 0.0, 0.0, 0.5)),
        ("loss.opacity.end=3", "loss.opacity", Schedule(0.0, 3.0, 0.2, 0.6)),
        ("guidance.lam_gate={floor: 0.25}", "guidance.lam_gate", ViewGate(floor=0.25)),
    ],
)
def test_overrides(word: str, key: str, value: Any) -> None:
    found = get_value(load_config(None, [], [word]), key)
    assert found == value and type(found) is type(value)


def test_bare_number_makes_a_schedule_constant() -> None:
    config = load_config(None, [], ["loss.opacity=0.25"])
    assert [config.loss.opacity.at(progress) for progress in (0.0, 0.3, 1.0)] == [0.25] * 3


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        (
            "guidance.guidance_scal=3",
            ["'guidance.guidance_scal'", "did you mean 'guidance.guidance_scale'?"],
        ),
        (
            "guidence.guidance_scale=3",
            ["'guidence.guidance_scale'", "did you mean 'guidance.guidance_scale'?"],
        ),
        ("texture_size=3", ["'texture_size'", "did you mean 'export.texture_size'?"]),
        ("guidance.lam.begin=0", ["'guidance.lam.begin'"]),
        ("zzzzqqq=1", ["'zzzzqqq'", "config.yaml"]),
        ("optim.steps=many", ["'optim.steps'", "'many'", "whole number"]),
        ("optim.steps=1.5", ["'optim.steps'", "1.5", "whole number"]),
        ("optim.steps=true", ["'optim.steps'", "True", "whole number"]),
        ("optim.lr_density=true", ["'optim.lr_density'", "True", "a number"]),
        ("optim.steps=0", ["'optim.steps'", "0", "1 to 1000000"]),
        ("seed=-1", ["'seed'", "-1", "out of range"]),
        ("optim.lr_density=.nan", ["'optim.lr_density'", "nan", "finite"]),
        ("rewards.text_image.weight=.inf", ["inf", "finite"]),
        ("rewards.text_image.weight=-1", ["-1", "at least 0"]),
        ("guidance.t_max=1.5", ["'guidance.t_max.start'", "1.5", "0 to 1"]),
        ("guidance.mode=both", ["'guidance.mode'", "'both'", "joint, split"]),
        ("preset=ultra", ["'preset'", "'ultra'", "draft, standard, high"]),
        ("export.formats=[fbx]", ["'export.formats'", "'fbx'", "glb, obj, ply, stl, usdz, 3mf"]),
        ("export.formats=3", ["'export.formats'", "3", "list"]),
        ("guidance=3", ["'guidance'", "3", "not a group"]),
        ("guidance.lam=fast", ["'guidance.lam'", "'fast'", "start, end, from_, to"]),
        ("optim.steps=[1", ["'optim.steps'", "cannot read"]),
        ("optim.steps=", ["'optim.steps'", "None"]),
        ("optim.steps", ["'optim.steps'", "key=value"]),
        ("=3", ["key=value"]),
        (
            "camera.elevation_min_deg=60",
            ["'camera.elevation_min_deg' (60.0)", "'camera.elevation_max_deg' (40.0)"],
        ),
        (
            "rewards.aesthetic.gate.full_deg=200",
            ["'rewards.aesthetic.gate.full_deg'", "0 to 180"],
        ),
        (
            "rewards.aesthetic.gate.zero_deg=90",
            ["'rewards.aesthetic.gate.full_deg' (180.0)", "'rewards.aesthetic.gate.zero_deg'"],
        ),
        (
            "rewards.image_image.finish=0.1",
            ["'rewards.image_image.begin' (0.3)", "'rewards.image_image.finish' (0.1)"],
        ),
        ("render.background_min=0.6", ["'render.background_min' (0.6)"]),
        ("guidance.t_min=0.9", ["'guidance.t_min'", "'guidance.t_max'", "0.9"]),
        (
            "guidance.t_min={start: 0.8, end: 0.02, from_: 0.9}",
            ["'guidance.t_min'", "at progress 0.9"],
        ),
    ],
)
def test_mistakes_are_one_clear_line(word: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [], [word])
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("optim: {step: 3}", "did you mean 'optim.steps'?"),
        ("prompt: 3", "not text"),
        ("- a\n- b\n", "key: value"),
        ("a: [", "not valid YAML"),
        ("3: 4", "unknown config key '3'"),
        ("seed: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("optim: &a\n  x: *a\n", "recursive node"),
        ("export: &a\n  formats: &b [glb, *b]\n", "recursive node"),
        ("--- &a\noptim: *a\n", "recursive node"),
        ("seed: 1\nseed: 2\n", "'seed' occurs twice"),
        ("optim: {steps: 10, views: 2, steps: 20}", "'steps' occurs twice"),
        ('output_dir: "/tmp/a\\0b"', "contains a NUL character"),
        ("export: {faces: 3}", "take 4 or more, or 0"),
        (
            "refine: {method: sds, strengths: [0.5, 0.01]}",
            "'refine.strengths': 0.01 is below 'refine.t_min' (0.02)",
        ),
    ],
)
def test_bad_files(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        load_config(None, [tmp_path / "c.yaml"], [])
    assert part in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read config file"):
        load_config(None, [tmp_path / "none.yaml"], [])
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(None, [tmp_path / "b.yaml"], [])
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(None, [tmp_path / "empty.yaml"], []) == Config()


def test_a_pipe_is_refused_and_one_of_the_shell_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "own.yaml")
    with pytest.raises(UserError, match="^cannot read config file [^\n]*pipe, not a file"):
        load_config(None, [tmp_path / "own.yaml"])
    read, write = os.pipe()
    try:
        os.write(write, b"seed: 7\n")
        os.close(write)
        assert load_config(None, [Path(f"/dev/fd/{read}")]).seed == 7
    finally:
        os.close(read)


def test_a_config_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("# " + "x" * 200_000)
    for path in (tmp_path / "own.yaml", Path("/dev/zero")):
        with pytest.raises(UserError, match="^[^\n]*more than 200,000 bytes$"):
            load_config(None, [path])


def test_every_default_and_preset_is_inside_its_own_range(tmp_path: Path) -> None:
    for preset in PRESETS:
        config = load_config(preset, [], [])
        save_config(config, tmp_path / "c.yaml")
        assert load_config(None, [tmp_path / "c.yaml"], []) == config


def test_every_number_is_bounded_or_free_on_purpose() -> None:
    free = {
        "start",
        "end",
        "center_deg",
        "hinge",
    }  # a schedule's are bounded where it is used; angles wrap; any reward value
    for node in nodes(Config()):
        for name, kind in get_type_hints(type(node), include_extras=True).items():
            if kind in (int, float):
                assert name in free, f"{type(node).__name__}.{name} has no Range"
            if get_origin(kind) is Annotated:
                assert isinstance(get_args(kind)[1], Range)


def nodes(node: Any) -> list[Any]:
    """A config node and every group below it."""
    groups = (getattr(node, item.name) for item in dataclasses.fields(node))
    return [node] + [
        found for group in groups if dataclasses.is_dataclass(group) for found in nodes(group)
    ]


@pytest.mark.parametrize(
    ("progress", "value"), [(0.0, 2.0), (0.2, 2.0), (0.4, 3.0), (0.6, 4.0), (1.0, 4.0)]
)
def test_schedule_by_hand(progress: float, value: float) -> None:
    assert Schedule(2.0, 4.0, 0.2, 0.6).at(progress) == pytest.approx(value)


def test_locate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("configs/sds.yaml") == ROOT / "configs" / "sds.yaml"
    assert locate(str(tmp_path)) == tmp_path
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sds.yaml").touch()
    assert locate("configs/sds.yaml").resolve() == tmp_path / "configs" / "sds.yaml"

"""The recipes in configs/: what each one sets, and how a file extends another."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vp3d.config.loader import load_config
from vp3d.config.paths import ROOT
from vp3d.config.schema import Config
from vp3d.errors import UserError

EXPECTED = json.loads((Path(__file__).parent / "recipes.json").read_text(encoding="utf-8"))
BASES = {"open_world"}  # files that only others extend


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested mapping."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        found |= flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return found


@pytest.mark.parametrize("names", EXPECTED)
def test_a_recipe_sets_what_it_always_set(names: str) -> None:
    """recipes.json lists every setting that differs from the defaults, from before `extends`."""
    files = [ROOT / "configs" / f"{name}.yaml" for name in names.split("+")]
    found, default = (flat(dataclasses.asdict(c)) for c in (load_config(None, files, []), Config()))
    assert {key: value for key, value in found.items() if value != default[key]} == EXPECTED[names]


def test_every_recipe_is_listed() -> None:
    listed = {name for names in EXPECTED for name in names.split("+")}
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} - BASES == listed


def test_a_file_extends_another_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.yaml").write_text("seed: 1\noptim: {steps: 11, views: 2}\n")
    (tmp_path / "b.yaml").write_text("extends: below/a.yaml\noptim: {steps: 12}\n")
    (tmp_path / "c.yaml").write_text("optim: {steps: 13}\nextends: b.yaml\n")
    monkeypatch.chdir(tmp_path / "below")
    for file, steps in (("b", 12), ("c", 13)):
        config = load_config(None, [tmp_path / f"{file}.yaml"], [])
        assert (config.seed, config.optim.steps, config.optim.views) == (1, steps, 2)
    config = load_config(None, [Path("../c.yaml"), Path("a.yaml")], ["seed=7"])
    assert (config.seed, config.optim.steps) == (7, 11)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("extends: a.yaml", "'extends: a.yaml' leads back to a.yaml"),
        ("extends: ./b.yaml", "b.yaml: 'extends: a.yaml' leads back to a.yaml"),
        ("extends: none.yaml", "cannot read config file"),
        ("extends: [b.yaml]", "takes the name of one file"),
        ("extends:", "takes the name of one file"),
        ("extends: theirs.yaml", "a.yaml extends a file of threestudio; give both with --config"),
        ("optim: {extends: b.yaml}", "unknown config key 'optim.extends'"),
    ],
)
def test_what_cannot_be_extended_is_one_line(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    (tmp_path / "theirs.yaml").write_text("system_type: dreamfusion-system\nsystem: {}\n")
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        load_config(None, [tmp_path / "a.yaml"], [])
    assert part in str(caught.value)


def test_extends_is_for_files_alone() -> None:
    with pytest.raises(UserError, match="unknown config key 'extends'"):
        load_config(None, [], ["extends=configs/sd15.yaml"])

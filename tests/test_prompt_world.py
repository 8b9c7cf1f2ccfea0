"""The words of a prompt choose between the embedded worlds; the user never does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vp3d import prompt_world
from vp3d.checks import check_request, choose_world, in_world, read_prompts
from vp3d.config import paths
from vp3d.config.loader import load_config
from vp3d.config.migrations import migrate
from vp3d.config.paths import ASSETS
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.prompt_world import known_worlds, read_world
from vp3d.prompts import check_negative_prompt, check_prompt, load_vocabulary
from vp3d.worlds.household import HOUSEHOLD, NOUNS, library_world, vocabulary


def fake_world(folder: Path, name: str, words: dict[str, object]) -> Path:
    """A folder that looks like a trained world: its files are empty but for the two that count."""
    for file in (
        "MANIFEST.json",
        "pipeline/model_index.json",
        f"ip_adapter/models/ip-adapter_{name}.safetensors",
        "clip/open_clip_config.json",
    ):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    (folder / "vocabulary.json").write_text(json.dumps(words))
    (folder / "world.json").write_text(json.dumps({"name": name, "resolution": 128}))
    return folder


@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toybox, a household without weights, and own meshes of one noun."""
    assets = tmp_path / "repository" / "assets"
    assets.mkdir(parents=True)
    (assets / "toybox").symlink_to(ASSETS)
    monkeypatch.setattr(prompt_world, "ASSETS", assets / "toybox")
    for module in (prompt_world, paths):
        monkeypatch.setattr(module, "ROOT", assets.parent)
    known = vocabulary(library_world(HOUSEHOLD, known=NOUNS))
    fake_world(assets / "household", "household", known)
    (tmp_path / "gnome").mkdir()
    (tmp_path / "gnome" / "meshes.csv").write_text("name,noun\ngnome_1,garden gnome\n")
    own = vocabulary(library_world(tmp_path / "gnome", "own"))
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path / "models"))
    fake_world(tmp_path / "models" / "worlds" / "gnomes", "own", own)
    return tmp_path


def test_today_every_prompt_gets_the_models_that_are_there() -> None:
    config = load_config(prompt="a red sphere")
    chosen = choose_world(config)
    assert (chosen.prior, chosen.rewards) == (config.prior, config.rewards)
    assert chosen.embedded == "given" and config.embedded == "by_words"


@pytest.mark.parametrize(
    ("prompt", "folder"),
    [
        ("a red armchair", "household"),
        ("The crimson recliner, back view!", "household"),  # by meaning
        ("a wooden table", "household"),
        ("a cat on a sofa", "household"),
        ("a red mushroom with a white stem", "toybox"),
        ("a red sphere with yellow stripes", "toybox"),
        ("a red car next to a white house", "toybox"),  # the household has no house
        ("a ball", "toybox"),  # a word of "soccer ball", but no object of the household
        ("a blue garden gnome", "gnomes"),
    ],
)
def test_the_words_choose(worlds: Path, prompt: str, folder: str) -> None:
    config, _ = read_prompts(load_config(prompt=prompt))
    assert Path(config.prior.path).parent.name == folder
    assert Path(config.rewards.clip).parent.name == folder
    assert config.prior.resolution == (64 if folder == "toybox" else 128)
    if folder == "gnomes":
        assert config.prior.ip_adapter_weight == "ip-adapter_own.safetensors"
        assert Path(config.prior.path).is_absolute()
    elif folder == "household":
        assert config.prior.path == "assets/household/pipeline"
    assert read_prompts(config)[0] == config, "a run keeps its models"


def test_a_word_that_no_world_knows_is_refused_with_near_ones(worlds: Path) -> None:
    config, _ = read_prompts(load_config(prompt="a red armchare"))
    assert config.prior.path == "assets/household/pipeline"
    with pytest.raises(UserError, match=r'"armchare" \(nearest: armchair'):
        check_request(config, new=False, drawn=True)


def test_models_that_are_named_are_kept(worlds: Path) -> None:
    for words in (["prior.path=x/y"], ["rewards.clip=x"], ["embedded=given"]):
        config = load_config(overrides=words, prompt="a red armchair")
        assert choose_world(config) is config
        assert in_world(config, "household") is config
    assert choose_world(Config()) == Config()


def test_a_world_in_training_or_damaged_is_none(worlds: Path) -> None:
    household = worlds / "repository" / "assets" / "household"
    assert [w.name for w in known_worlds()] == ["own", "household", "toybox"]
    (household / "clip" / "open_clip_config.json").unlink()
    (worlds / "models" / "worlds" / "gnomes" / "world.json").write_text('{"name": "../x"}')
    assert [w.name for w in known_worlds()] == ["toybox"]
    assert read_world(worlds / "nothing") is None
    with pytest.raises(UserError, match="models of the household are not here"):
        in_world(load_config(prompt="a red armchair"), "household")


def test_older_runs_have_the_models_that_they_name() -> None:
    stored = {"config_version": 4, "prior": {"resolution": 64}}
    assert migrate(stored) == {"prior": {"resolution": 64}, "embedded": "given"}
    assert migrate({"config_version": 4, "seed": 3}) == {"seed": 3}


@pytest.mark.parametrize(
    ("prompt", "negative_prompt"),
    [
        ("a red sphere", ""),
        ("a red armchair", "a sofa"),
        ("a red armchair", "a mushroom"),  # the household has no mushroom
        ("a red mushroom", "a white stem"),
        ("a red cube", "an armchair"),
        ("a blue garden gnome", "a mushroom"),
        ("a red zeppelin", ""),
    ],
)
def test_the_service_takes_what_a_run_takes(
    worlds: Path, prompt: str, negative_prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install 'vp3d[serve]'")
    from vp3d.serve import prompt_help
    from vp3d.serve.problems import Problem

    monkeypatch.setattr(prompt_help, "_load", prompt_help._load.__wrapped__)  # other worlds
    asked = load_config(prompt=prompt, negative_prompt=negative_prompt)
    config, _ = read_prompts(asked)
    words = load_vocabulary(paths.locate(config.prior.vocabulary))
    assert prompt_help.vocabularies("toybox", prompt, negative_prompt) == [words]
    try:
        check_prompt(config.prompt, words)
        check_negative_prompt(config.negative_prompt, words)
    except UserError as error:
        with pytest.raises(Problem, match=re.escape(str(error))):
            prompt_help.refuse_unknown(prompt, negative_prompt, "toybox")
    else:
        prompt_help.refuse_unknown(prompt, negative_prompt, "toybox")

"""The held-out score of the guard: what `auto` takes, and the likeness to the base model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vp3d.config.schema import Config
from vp3d.tuning import held_out
from vp3d.tuning.held_out import Likeness, held_out_score
from vp3d.weights.locate import licence_of

CPU = torch.device("cpu")
PROMPTS = ["a cube", "a cube", "a cone"]


def turned(*degrees: float) -> torch.Tensor:
    """Pictures whose features are unit vectors at these angles."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)[:, :, None, None]


def likeness() -> Likeness:
    return Likeness(lambda rgb: F.normalize(rgb.flatten(1), dim=1))


def test_a_model_may_change_what_another_seed_changes_and_no_more() -> None:
    score = likeness()
    level = float(torch.tensor(30.0).deg2rad().cos())  # of the two drawings of the cube
    base = turned(0.0, 30.0, 80.0)
    assert score(base, PROMPTS).tolist() == pytest.approx([level, level, 1.0], abs=1e-6)
    assert score(turned(25.0, 50.0, 80.0), PROMPTS).tolist() == pytest.approx(
        [level, level, 1.0], abs=1e-6
    )
    far = score(turned(60.0, 90.0, 140.0), PROMPTS)
    assert far.tolist() == pytest.approx([0.5, 0.5, 0.5], abs=1e-6)


def test_auto_takes_what_is_here_and_is_no_reward(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here: set[str] = set()
    monkeypatch.setattr(held_out, "_is_here", lambda location, key: location in here)
    config = Config()

    def first(config: Config, optimised: list[str]) -> str:
        return held_out._first(optimised, config.rewards, config.prior)

    assert first(config, ["compress"]) == "clip"
    assert first(config, ["compress", "clip"]) == "tower"  # of the embedded models
    here |= {"dinov2-base"}
    assert first(config, ["clip"]) == "dino"
    here |= {"aesthetic"}
    assert first(config, ["clip"]) == "aesthetic" and first(config, ["clip", "aesthetic"]) == "dino"
    here.clear()
    config.prior.path = str(tmp_path)
    assert first(config, ["compress"]) == "none"  # the embedded CLIP knows the toybox only
    found = held_out_score("auto", ["compress"], config.rewards, config.prior, CPU)
    assert found == ("none", None)
    config.rewards.clip = str(tmp_path / "clip")
    assert first(config, ["compress"]) == "clip"


def test_a_model_of_the_catalogue_that_is_not_fetched_is_not_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path))
    assert not held_out._is_here("dinov2-base", "rewards.dinov2")
    assert held_out._is_here(str(tmp_path), "rewards.dinov2")


def test_the_tower_scores_the_same_pictures_highest() -> None:
    config = Config()
    name, score = held_out_score("tower", [], config.rewards, config.prior, CPU)
    assert name == "tower" and score is not None
    base = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = score(base, PROMPTS)
    after = score(torch.zeros(3, 3, 64, 64), PROMPTS)
    assert bool((after < before).all()) and float(before[2]) == pytest.approx(1.0, abs=1e-5)


def test_the_licence_of_the_base_is_that_of_its_weights(tmp_path: Path) -> None:
    shipped = Config().prior
    assert licence_of(shipped.path, shipped.manifest) == "Apache-2.0"
    assert "OpenRAIL" in licence_of("sd15")
    assert licence_of("sd15", shipped.manifest) == licence_of("sd15")
    assert licence_of(str(tmp_path)) == licence_of(str(tmp_path), str(tmp_path / "none")) == ""
    (tmp_path / "MANIFEST.json").write_text('{"licence": "CC-BY-4.0"}')
    assert licence_of(str(tmp_path), str(tmp_path / "MANIFEST.json")) == "CC-BY-4.0"

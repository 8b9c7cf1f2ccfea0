"""Every part is trained for two steps into an empty folder, and what was written opens in the real loaders."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vp3d.config import PriorConfig
from vp3d.diffusion.prior import load_prior
from vp3d.evaluate.judge import load_judge
from vp3d.manifest import verify_files
from vp3d.rewards.encoders import load_clip
from vp3d.toybox import data, models, train
from vp3d.toybox.scenes import words


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toybox")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SCENES", 24)
        patch.setattr(train, "ASSETS", folder / "assets")
        arguments = ["--steps", "2", "--chunks", "1", "--threads", "1", "--data", str(folder / "data")]
        train.main(arguments)
        train.main(["prior", "clip", "judge", "--more", "1", *arguments[2:]])
    return folder / "assets"


def test_what_was_trained_opens_in_the_real_loaders(trained: Path) -> None:
    verify_files(trained / "MANIFEST.json", trained)
    config = PriorConfig(
        path=str(trained / "pipeline"), ip_adapter=str(trained / "ip_adapter"), manifest=str(trained / "MANIFEST.json")
    )
    prior = load_prior(config)
    image = prior.embed_visual_prompt(torch.rand(1, 3, 64, 64))
    drawn = prior.sample(["a red cube"], "", 2, 3.0, torch.Generator().manual_seed(0), image=image)
    assert drawn.shape == (1, 3, 64, 64) and torch.isfinite(drawn).all()
    clip = load_clip(str(trained / "clip"), str(trained / "MANIFEST.json"))
    assert clip.image(drawn).shape == clip.text(["a red cube"]).shape == (1, 128)
    assert set(load_judge(trained / "judge").values) == set(data.HEADS)


def test_every_toybox_word_is_one_token() -> None:
    tokenizer = models.new_tokenizer(words())
    for word in words():
        assert len(tokenizer(word).input_ids) == 3, word
    assert tokenizer("a red cube").input_ids == models.new_tokenizer(reversed(words()))("a red cube").input_ids
    longest = "an orange snowman next to an orange airplane, front left view from above"
    assert len(tokenizer(longest).input_ids) <= models.TOKENS


def test_merges_are_the_same_in_every_process() -> None:
    code = "from vp3d.toybox import models, scenes; print(models.new_tokenizer(scenes.words())._tokenizer.to_str())"
    seeds = ({**os.environ, "PYTHONHASHSEED": str(seed)} for seed in (1, 2))
    first, second = (subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).stdout for env in seeds)
    assert len(first) > 1000 and first == second


def test_a_tokenizer_that_lies_there_is_kept(tmp_path: Path) -> None:
    assert train.find_tokenizer(tmp_path)("red cube").input_ids == models.new_tokenizer(words())("red cube").input_ids
    models.new_tokenizer(["red", "zebra"]).save_pretrained(tmp_path)
    assert len(train.find_tokenizer(tmp_path)("zebra").input_ids) == 3


def test_whitening_gives_the_latents_the_asked_statistics() -> None:
    torch.manual_seed(0)
    model, rgb = models.new_autoencoder(), torch.rand(16, 3, 64, 64) * 2 - 1
    before = model.decoder(model.encoder(rgb))
    train.whiten(model, rgb, std=0.5)
    latents = model.encoder(rgb)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert (latents.std((0, 2, 3)) - 0.5).abs().max() < 1e-3
    inner = (model.decoder(latents) - before)[..., 24:-24, 24:-24].abs().mean()
    assert inner < 0.05 * before.std()  # only the soft clamp and the border differ


def test_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train.main(["vae"])
    assert "unknown part 'vae'" in capsys.readouterr().err


def test_latents_are_kept_added_to_and_made_anew_for_another_autoencoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "ASSETS", tmp_path)
    rng = np.random.default_rng(0)
    pictures = data.make_pictures(data.draw_specs(rng, 6, reserved=False), 2, rng)
    few = replace(pictures, images=pictures.images[:5], scene_of=pictures.scene_of[:5])
    path = tmp_path / "latents.safetensors"
    models.new_autoencoder().save_pretrained(tmp_path / "pipeline" / "vae")
    first = train.encode_pictures(few, path, "cpu")
    encoded = []
    monkeypatch.setattr(
        train, "to_tensor", lambda images, device: encoded.append(len(images)) or data.to_tensor(images)
    )
    whole = train.encode_pictures(pictures, path, "cpu")
    assert whole.shape == (12, 4, 16, 16) and torch.equal(whole[:5], first) and encoded == [7]
    assert torch.equal(train.encode_pictures(pictures, path, "cpu"), whole) and encoded == [7]
    models.new_autoencoder().save_pretrained(tmp_path / "pipeline" / "vae")
    assert not torch.equal(train.encode_pictures(pictures, path, "cpu"), whole) and encoded == [7, 12]


def test_forgetting_a_training_keeps_the_encoded_pictures(tmp_path: Path) -> None:
    for name in ("prior.safetensors", "latents.safetensors"):
        (tmp_path / name).touch()
    train.forget(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["latents.safetensors"]

"""Every part is trained for two steps into an empty folder, and what was written opens in the real
loaders.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vp3d.config import paths
from vp3d.config.schema import PriorConfig
from vp3d.diffusion.load import load_prior
from vp3d.embedded import (
    architectures,
    latent_reader,
    picture_training,
    prior_training,
    save,
    train,
)
from vp3d.errors import ResourceError, UserError
from vp3d.metrics.attribute_judge import load_judge
from vp3d.rewards.encoders import load_clip
from vp3d.system import files
from vp3d.weights.manifest import verify_files
from vp3d.worlds.toybox import data, images
from vp3d.worlds.toybox.scenes import words


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toybox")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SCENES", 8)
        for module in (train, picture_training, prior_training):
            patch.setattr(module, "ASSETS", folder / "assets")
        small = ["--chunks", "1", "--threads", "1", "--batch", "4", "--data", str(folder / "data")]
        train.main(["--steps", "2", *small])
        train.main(["prior", "clip", "measuring_clip", "judge", "--more", "1", *small])
    return folder / "assets"


def test_what_was_trained_opens_in_the_real_loaders(trained: Path) -> None:
    verify_files(trained / "MANIFEST.json", trained)
    assert files.read_json_object(trained / "MANIFEST.json")["licence"] == "Apache-2.0"
    config = PriorConfig(
        path=str(trained / "pipeline"),
        ip_adapter=str(trained / "ip_adapter"),
        manifest=str(trained / "MANIFEST.json"),
    )
    prior = load_prior(config)
    image = prior.embed_visual_prompt(torch.rand(1, 3, 64, 64))
    drawn = prior.sample(["a red cube"], "", 2, 3.0, torch.Generator().manual_seed(0), image=image)
    assert drawn.shape == (1, 3, 64, 64) and torch.isfinite(drawn).all()
    clip = load_clip(str(trained / "clip"), str(trained / "MANIFEST.json"))
    measuring = load_clip(str(trained / "measuring_clip"), str(trained / "MANIFEST.json"))
    assert not torch.equal(measuring.image(drawn), clip.image(drawn))
    assert clip.image(drawn).shape == clip.text(["a red cube"]).shape == (1, 128)
    assert set(load_judge(trained / "judge").values) == set(data.HEADS)


def test_the_adapters_file_is_the_published_one_of_plus(trained: Path) -> None:
    weights = load_file(trained / "ip_adapter" / "models" / "ip-adapter_toybox.safetensors")
    published = {
        k.removeprefix("image_proj."): v for k, v in weights.items() if k.startswith("image_proj.")
    }
    assert published["layers.3.0.to_kv.weight"].shape == (256, 128) and published[
        "latents"
    ].shape == (1, 20, 128)
    ours = architectures.new_image_projection()
    ours.load_state_dict(save.resampler_state(published))
    theirs = architectures.new_unet()._convert_ip_adapter_image_proj_to_diffusers(
        published, low_cpu_mem_usage=False
    )
    patches = torch.randn(2, 65, 128, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(patches), theirs(patches))
    again = save.published_resampler(ours.state_dict())
    assert set(again) == set(published) and all(torch.equal(again[k], published[k]) for k in again)


def test_every_toybox_word_is_one_token() -> None:
    tokenizer = architectures.new_tokenizer(words())
    for word in words():
        assert len(tokenizer(word).input_ids) == 3, word
    assert (
        tokenizer("a red cube").input_ids
        == architectures.new_tokenizer(reversed(words()))("a red cube").input_ids
    )
    longest = "an orange snowman next to an orange airplane, front left view from above"
    assert len(tokenizer(longest).input_ids) <= architectures.TOKENS


def test_merges_are_the_same_in_every_process() -> None:
    """Sets have another order in the other process, where names are hashed otherwise."""
    code = (
        "from vp3d.embedded.architectures import new_tokenizer;"
        "from vp3d.worlds.toybox.scenes import words;"
        "print(hash('red'));"
        "print(new_tokenizer(words())._tokenizer.to_str())"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8"
    )
    hashed, _, merges = done.stdout.partition("\n")
    assert int(hashed) != hash("red"), done.stderr
    assert merges == architectures.new_tokenizer(words())._tokenizer.to_str() + "\n"


def test_a_tokenizer_that_lies_there_is_kept(tmp_path: Path) -> None:
    assert (
        architectures.load_tokenizer(tmp_path, words())("red cube").input_ids
        == architectures.new_tokenizer(words())("red cube").input_ids
    )
    architectures.new_tokenizer(["red", "zebra"]).save_pretrained(tmp_path)
    assert len(architectures.load_tokenizer(tmp_path, words())("zebra").input_ids) == 3


def test_whitening_gives_the_latents_the_asked_statistics() -> None:
    torch.manual_seed(0)
    model, rgb = architectures.new_autoencoder(), torch.rand(16, 3, 64, 64) * 2 - 1
    before = model.decoder(model.encoder(rgb))
    picture_training.whiten(model, rgb, std=0.5)
    latents = model.encoder(rgb)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert (latents.std((0, 2, 3)) - 0.5).abs().max() < 1e-3
    inner = (model.decoder(latents) - before)[..., 24:-24, 24:-24].abs().mean()
    assert inner < 0.05 * before.std()  # only the soft clamp and the border differ


def test_unknown_part_is_refused() -> None:
    with pytest.raises(UserError, match="unknown part 'vae'; .* --help`"):
        train.main(["vae"])


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="with --data FOLDER"):
        train.main(["judge", "--data", str(tmp_path / "file" / "x")])


def test_latents_are_kept_added_to_and_made_anew_for_another_autoencoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    pictures = data.make_pictures(data.draw_specs(rng, 6, reserved=False), 2, rng)
    few = replace(pictures, images=pictures.images[:5], scene_of=pictures.scene_of[:5])
    path = tmp_path / "latents.safetensors"
    architectures.new_autoencoder().save_pretrained(tmp_path / "pipeline" / "vae")
    first = picture_training.encode_pictures(few, path, "cpu", tmp_path)
    encoded = []
    monkeypatch.setattr(
        picture_training,
        "to_tensor",
        lambda images, device: encoded.append(len(images)) or data.to_tensor(images),
    )
    whole = picture_training.encode_pictures(pictures, path, "cpu", tmp_path)
    assert whole.shape == (12, 4, 16, 16) and torch.equal(whole[:5], first) and encoded == [7]
    assert torch.equal(
        picture_training.encode_pictures(pictures, path, "cpu", tmp_path), whole
    ) and encoded == [7]
    architectures.new_autoencoder().save_pretrained(tmp_path / "pipeline" / "vae")
    assert not torch.equal(
        picture_training.encode_pictures(pictures, path, "cpu", tmp_path), whole
    ) and encoded == [
        7,
        12,
    ]


def test_only_the_same_training_is_taken_up_again(tmp_path: Path) -> None:
    checkpoint, latents = tmp_path / "prior.safetensors", tmp_path / "latents.safetensors"
    for more, fresh, kept in (
        (None, False, True),
        (6000, False, False),
        (6000, False, True),
        (3000, False, False),
        (None, False, False),
        (None, False, True),
        (None, True, False),
    ):
        checkpoint.touch()
        latents.touch()
        train.prepare_folder(tmp_path, more, fresh)
        assert checkpoint.exists() is kept and latents.exists(), (more, fresh)


def test_the_text_is_taught_the_view_before_the_denoiser(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = architectures.new_tokenizer(words())
    parts = {"unet": architectures.new_unet(), "text": architectures.new_text_encoder(tokenizer)}
    architectures.add_image_branch(parts["unet"])
    for name, width in (
        ("aid_pooled", parts["unet"].time_embedding.linear_2.out_features),
        ("aid_tokens", 128),
    ):
        parts[name] = architectures.TextHeads(width, latent_reader.READER_HEADS, 112)
    model = torch.nn.ModuleDict(parts)
    rng = np.random.default_rng(0)
    pictures = data.make_pictures(data.draw_specs(rng, 64, reserved=False), 2, rng)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def missed() -> float:
        index = np.arange(len(pictures))
        texts, targets, thumbnails = latent_reader.caption_batch(pictures, index, "cpu")
        text = model["text"](architectures.tokenize(tokenizer, texts))[0]
        return float(model["aid_tokens"](text.mean(1), targets, thumbnails))

    first = missed()
    prior_training.train_text_encoder(
        model, tokenizer, pictures, train.Plan(steps=16, lr=1e-2, warmup=2), tmp_path, "cpu"
    )
    assert missed() < 0.8 * first
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in moved} == {"unet", "text", "aid_pooled", "aid_tokens"}
    assert all("add_embedding" in k for k in moved if k.startswith("unet"))


def test_thumbnails_show_the_object_and_not_the_ground() -> None:
    specs = [data.Spec("cube", "red"), data.Spec("cube", "blue")]
    cube, other = (
        images.render_spec(s, [0.0], ground=g) for s, g in zip(specs, (0.5, 0.9), strict=True)
    )
    red, blue = data.thumbnails(np.concatenate([cube, other]))
    assert torch.equal(red[:64], blue[:64]) and 0.1 < float(red[:64].mean()) < 0.5
    assert float(red[64:80].mean()) > 3 * float(red[96:].mean()) and float(
        blue[96:].mean()
    ) > 3 * float(blue[64:80].mean())
    assert float(red[:8].max()) == 0.0


@pytest.mark.parametrize(
    "arguments",
    [["vision_tower", "--more", "-5"], ["--steps", "0"], ["--chunks", "0"], ["--threads", "0"]],
)
def test_counts_below_one_are_refused_before_anything_is_made(
    tmp_path: Path, arguments: list[str]
) -> None:
    with pytest.raises(UserError, match="takes a whole number of 1 or more"):
        train.main([*arguments, "--data", str(tmp_path / "data")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", ["0", "nan", "1.5", "-1e-3"])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate: str) -> None:
    with pytest.raises(UserError, match="--lr takes a number between 0 and 1"):
        train.main(["prior", f"--lr={rate}", "--data", str(tmp_path / "data")])
    assert not list(tmp_path.iterdir())


def test_align_keeps_the_mean_of_where_it_began_and_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "align.safetensors").touch()
    saved: list[torch.nn.ModuleDict] = []
    monkeypatch.setattr(prior_training, "prior_losses", lambda *_, **__: None)
    monkeypatch.setattr(
        prior_training,
        "fit",
        lambda _, model, *__: {k: p.detach() + 2.0 for k, p in model.named_parameters()},
    )
    monkeypatch.setattr(prior_training, "save_prior", lambda model, *_: saved.append(model))
    rng = np.random.default_rng(0)
    pictures = data.make_pictures(data.draw_specs(rng, 1, reserved=False), 1, rng)
    prior_training.train_align(pictures, train.PLANS["align"], tmp_path, "cpu")
    tokenizer = architectures.load_tokenizer(paths.ASSETS / "pipeline" / "tokenizer", words())
    committed = prior_training.new_prior_parts(tokenizer, trained=True)
    for part, found in saved[0].items():
        for key, parameter in committed[part].named_parameters():
            torch.testing.assert_close(found.get_parameter(key), parameter + 1.0)
    assert not list(tmp_path.iterdir()), "the next `align` starts without a checkpoint"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize(
    "problem", [UserError("damaged"), FileNotFoundError(2, "No such file or directory", "vae")]
)
def test_what_is_missing_is_one_line_and_no_traceback(
    problem: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr(data, "training_pictures", fail)
    monkeypatch.setattr(files, "write_json", lambda *_: None)  # the run imports it from there
    folders = ["--data", str(tmp_path / "data"), "--models", str(tmp_path / "models")]
    monkeypatch.setattr(sys, "argv", ["train", "autoencoder", *folders])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("vp3d.embedded.train", run_name="__main__")
    assert caught.value.code == 2 and capsys.readouterr().err == f"train: {problem}\n"

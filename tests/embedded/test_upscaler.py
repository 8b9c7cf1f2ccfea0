"""A few steps of the upscaler's training: the real loader opens and draws what it writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vp3d.config.paths import ASSETS
from vp3d.embedded import architectures, train, upscaler_training
from vp3d.embedded.upscaler_training import UpscalerLosses, degraded, large_pictures
from vp3d.errors import DamagedFileError, UserError
from vp3d.upscale import load
from vp3d.upscale.diffusion import DrawSettings
from vp3d.upscale.load import load_diffusion_upscaler, load_embedded_upscaler
from vp3d.upscale.network import enlarge
from vp3d.worlds.toybox import data
from vp3d.worlds.toybox.data import to_tensor
from vp3d.worlds.toybox.scenes import parse_caption

SPECS = [parse_caption("a red cube"), parse_caption("a yellow duck with a red beak")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toybox")
    for name in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(ASSETS / "pipeline" / name, folder / "assets" / "pipeline" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SCENES", 8)
        for module in (train, upscaler_training):
            patch.setattr(module, "ASSETS", folder / "assets")
        words = ["--chunks", "1", "--threads", "1", "--data", str(folder / "data")]
        train.main(["upscaler", "--steps", "2", "--batch", "2", *words])
        train.main(["upscaler", "--more", "1", "--batch", "2", *words])
    return folder / "assets" / "upscaler"


def test_what_was_trained_opens_in_the_real_loader_and_draws(trained: Path) -> None:
    upscaler = load_diffusion_upscaler(trained, DrawSettings(2, noise_level=0))
    assert upscaler.parts.prediction_type == "v_prediction"
    assert upscaler.parts.most_noise == architectures.UPSCALER_NOISE
    small = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    large, _ = enlarge(small, None, upscaler)
    assert large.shape == (3, 128, 128) and torch.isfinite(large).all() and large.std() > 0.01


def test_a_part_of_its_own_comes_before_a_shared_one(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "upscaler"
    shutil.copytree(trained, folder)
    with pytest.raises(UserError, match="cannot load the upscaler"):
        load_diffusion_upscaler(folder, DrawSettings(2))  # nothing beside it
    for name in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(trained.parent / "pipeline" / name, folder / name)
        (tmp_path / "pipeline" / name).mkdir(parents=True)
    found = load_diffusion_upscaler(folder, DrawSettings(2))
    assert found.parts.prediction_type == "v_prediction"


def test_the_committed_upscaler_brings_a_small_picture_nearer_to_the_true_one() -> None:
    rng = np.random.default_rng(5)
    large = large_pictures(SPECS, 6, rng)
    small, truth = to_tensor(np.stack([degraded(one, rng) for one in large])), to_tensor(large)
    plain = F.interpolate(small, scale_factor=4, mode="bicubic").clamp(0.0, 1.0)
    upscaler = load_embedded_upscaler(DrawSettings(10))
    drawn = torch.stack([enlarge(one, None, upscaler)[0] for one in small])
    error, plain_error = [(rgb - truth).square().mean((1, 2, 3)) for rgb in (drawn, plain)]
    assert error.mean() < 0.7 * plain_error.mean()


def test_a_changed_file_of_the_committed_upscaler_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ASSETS / "upscaler", tmp_path / "upscaler")
    shutil.copy2(ASSETS / "MANIFEST.json", tmp_path)
    monkeypatch.setattr(load, "EMBEDDED", tmp_path / "upscaler")
    monkeypatch.setattr(load, "MANIFEST", tmp_path / "MANIFEST.json")
    config = tmp_path / "upscaler" / "unet" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged"):
        load_embedded_upscaler(DrawSettings(2))


def test_its_weights_fit_the_budget(trained: Path) -> None:
    assert (trained / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size < 6e6


def test_the_upscaler_is_trained_only_if_named() -> None:
    assert set(train.PARTS) - set(train.UNASKED) == {"upscaler"}


def test_the_loss_falls_on_one_batch() -> None:
    torch.manual_seed(0)
    unet = architectures.new_upscaler()
    vae = architectures.AutoencoderTiny.from_pretrained(ASSETS / "pipeline" / "vae")
    tokens = torch.zeros(1, architectures.TOKENS, architectures.TEXT_WIDTH)
    losses = UpscalerLosses(unet, vae.requires_grad_(False), tokens, SPECS, 2)
    optimizer = torch.optim.Adam(unet.parameters(), lr=2e-3)
    values = []
    for _ in range(6):
        loss = losses(np.random.default_rng(0), torch.Generator().manual_seed(0))["loss_v"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.7 * values[0]


def test_pictures_are_large_and_degraded_ones_small() -> None:
    rng = np.random.default_rng(0)
    large = large_pictures(SPECS, 3, rng)
    assert large.shape == (3, 128, 128, 3) and large.dtype == np.uint8
    small = degraded(large[0], rng)
    assert small.shape == (32, 32, 3) and small.dtype == np.uint8
    mean = large[0].reshape(32, 4, 32, 4, 3).mean((1, 3))
    error = np.abs(small - mean).mean()
    assert 0.5 < error < 20.0  # changed, but the same picture


def test_without_blur_noise_and_compression_a_plain_picture_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upscaler_training, "NOISE_SD", (0.0, 0.0))
    plain = np.full((16, 24, 3), 128, np.uint8)
    assert (degraded(plain, np.random.default_rng(0)) == 128).all()

"""The CLIP encoder on a tiny random model in the real file layout, offline."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import vp3d.system.torch_compat  # noqa: F401  (before open_clip, which imports torchvision)

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_clip import MEAN, STD, write_tiny_clip
from vp3d.errors import UserError
from vp3d.rewards.encoders import ClipEncoder, load_clip
from vp3d.weights.manifest import file_entry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipEncoder:
    return load_clip(str(folder))


def random_rgb(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def smooth_rgb(side: int) -> torch.Tensor:
    """The same smooth picture at any size: [1, 3, side, side] in [0, 1]."""
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij")
    return torch.stack(
        [
            0.5 + 0.4 * torch.sin(6 * x),
            0.5 + 0.4 * torch.cos(5 * y),
            0.5 + 0.4 * torch.sin(4 * x * y),
        ]
    )[None]


def test_loads_without_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    encoder = load_clip(str(folder))
    assert encoder.tokenizer(["a red sphere"])[0].tolist()[:6] == [2, 3, 5, 8, 18, 0]
    assert encoder.text(["a red sphere"]).shape == (1, 16)


def test_is_frozen_in_eval_mode_with_the_stored_weights(clip: ClipEncoder, folder: Path) -> None:
    assert not clip.model.training
    assert not any(p.requires_grad for p in clip.model.parameters())
    stored = load_file(folder / "open_clip_model.safetensors")
    torch.testing.assert_close(clip.model.visual.proj, stored["visual.proj"], rtol=0, atol=0)


def test_features_have_unit_length_and_depend_on_their_input(clip: ClipEncoder) -> None:
    image, text = (
        clip.image(random_rgb(3, 3, 40, 40)),
        clip.text(["a red sphere", "a blue cube", "a red sphere"]),
    )
    tokens = clip.tokens(random_rgb(2, 3, 40, 40))
    for features in (image, text, tokens):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(features.shape[:-1]))
    assert tokens.shape == (2, 16, 32)
    assert torch.equal(text[0], text[2]) and not torch.allclose(text[0], text[1], atol=1e-3)
    assert not torch.allclose(image[0], image[1], atol=1e-4)
    assert not text.requires_grad


@pytest.mark.parametrize("side", [24, 32, 45, 64])
@pytest.mark.parametrize("name", ["image", "tokens"])
def test_gradients_into_every_part_of_the_picture(clip: ClipEncoder, side: int, name: str) -> None:
    rgb = random_rgb(2, 3, side, side).requires_grad_()
    features = getattr(clip, name)(rgb)
    direction = random_rgb(*features.shape, seed=1)
    (gradient,) = torch.autograd.grad((features * direction).sum(), rgb)
    assert bool(torch.isfinite(gradient).all())
    assert float((gradient != 0).float().mean()) > 0.99


def test_gradient_by_finite_differences(clip: ClipEncoder) -> None:
    rgb, step = random_rgb(1, 3, 40, 40).double(), random_rgb(1, 3, 40, 40, seed=3).double() - 0.5
    exact = ClipEncoder(clip.folder)
    exact.model.double()
    target = exact.image(random_rgb(1, 3, 40, 40, seed=2).double()).detach()

    def value(x: torch.Tensor) -> torch.Tensor:
        return (exact.image(x) * target).sum()

    (gradient,) = torch.autograd.grad(value(rgb.requires_grad_()), rgb)
    numeric = (value(rgb + 1e-5 * step) - value(rgb - 1e-5 * step)) / 2e-5
    torch.testing.assert_close((gradient * step).sum(), numeric, rtol=1e-4, atol=1e-8)


def test_features_hardly_depend_on_the_size_of_the_picture(clip: ClipEncoder) -> None:
    reference = clip.image(smooth_rgb(32))
    other = clip.image(random_rgb(1, 3, 32, 32))
    for side in (48, 64, 96, 128, 256):
        same = float((clip.image(smooth_rgb(side)) * reference).sum())
        assert same > 0.9995, f"{side}: {same}"
    assert float((other * reference).sum()) < 0.99


def test_preprocessing_agrees_with_open_clips_own(clip: ClipEncoder) -> None:
    values = (smooth_rgb(80)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    theirs = open_clip.create_model_and_transforms(f"local-dir:{clip.folder}")[2](
        Image.fromarray(values)
    )
    ours = clip.preprocess(torch.from_numpy(values).permute(2, 0, 1)[None].float() / 255)[0]
    assert float((ours - theirs).abs().max()) < 1.5 / 255 / min(STD)


def test_preprocessing_at_the_models_size_is_only_a_normalisation(clip: ClipEncoder) -> None:
    rgb = random_rgb(2, 3, 32, 32)
    naive = np.stack([(rgb[:, c].numpy() - MEAN[c]) / STD[c] for c in range(3)], axis=1)
    np.testing.assert_allclose(clip.preprocess(rgb).numpy(), naive, rtol=1e-5)


def test_image_features_agree_with_the_plain_model(clip: ClipEncoder) -> None:
    rgb = random_rgb(2, 3, 32, 32)
    plain = clip.model.visual(
        (rgb - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    )
    torch.testing.assert_close(clip.image(rgb), F.normalize(plain, dim=-1))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 32, 40)])
def test_pictures_of_other_shapes_are_refused(clip: ClipEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="square pictures"):
        clip.image(torch.zeros(shape))


def refusal(folder: Path, manifest: str = "") -> str:
    with pytest.raises(UserError) as caught:
        load_clip(str(folder), manifest)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_weights_and_pickles_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "clip")
    weights = tmp_path / "clip" / "open_clip_model.safetensors"
    torch.save(load_file(weights), weights.with_name("open_clip_pytorch_model.bin"))
    weights.unlink()
    assert "open_clip_model.safetensors is missing" in refusal(tmp_path / "clip")
    assert "is not a folder" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "open_clip_config.json is missing" in refusal(tmp_path / "empty")


def test_damaged_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "clip")
    weights = tmp_path / "clip" / "open_clip_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "not a usable open_clip folder" in refusal(tmp_path / "clip")
    weights.write_bytes(whole)
    state = load_file(weights)
    save_file({name: value for name, value in state.items() if name != "visual.proj"}, weights)
    assert "not a usable open_clip folder" in refusal(tmp_path / "clip")


def test_damaged_config_and_missing_tokenizer(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").unlink()
    assert "not a usable open_clip folder" in refusal(tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_config.json").write_text("{")
    assert "not a usable open_clip folder" in refusal(tmp_path / "clip")


def test_manifest_is_checked(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "clip")
    manifest = tmp_path / "MANIFEST.json"
    files = {f"clip/{path.name}": file_entry(path) for path in (tmp_path / "clip").iterdir()}
    manifest.write_text(json.dumps({"files": files}))
    load_clip(str(tmp_path / "clip"), str(manifest))
    weights = tmp_path / "clip" / "open_clip_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "git checkout" in refusal(tmp_path / "clip", str(manifest))

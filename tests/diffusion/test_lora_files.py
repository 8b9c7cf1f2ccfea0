"""LoRA: exactly the base when off, the file format of diffusers, mixing, and refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_models import tiny_prior_config
from vp3d.config.schema import PriorConfig
from vp3d.diffusion import lora
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.prior import Prior
from vp3d.errors import UserError

import diffusers  # isort: skip

KINDS = ("sd", "sdxl")


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PriorConfig]:
    root = tmp_path_factory.mktemp("loras")
    return {kind: tiny_prior_config(root / kind, kind=kind) for kind in KINDS}


def prior_of(config: PriorConfig, *loras: str) -> Prior:
    return load_prior(dataclasses.replace(config, loras=",".join(loras)))


def picture(prior: Prior) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return prior.sample(["a red cube", "a b"], "", 2, 2.0, generator)


def trained(config: PriorConfig, path: Path, seed: int = 0) -> Prior:
    """A prior with a random LoRA that matters, also written to `path`."""
    prior, generator = load_prior(config), torch.Generator().manual_seed(seed)
    found = lora.attach({"unet": prior.unet}, "own", 3, generator)
    with torch.no_grad():
        for key, value in found.items():
            if key.endswith(".lora_B.weight"):
                value.copy_(torch.randn(value.shape, generator=generator))
    lora.save_lora(path, found, {"rewards": "none"})
    return prior


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_lora_changes_no_bit(configs: dict[str, PriorConfig], kind: str) -> None:
    base = picture(load_prior(configs[kind]))
    prior = load_prior(configs[kind])
    lora.attach({"unet": prior.unet}, "own", 4, torch.Generator().manual_seed(0))
    assert torch.equal(picture(prior), base)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_trained_prior_and_scale_0_the_base(
    configs: dict[str, PriorConfig], kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "pytorch_lora_weights.safetensors"
    prior = trained(configs[kind], file)
    base, changed = picture(load_prior(configs[kind])), picture(prior)
    assert (changed - base).abs().max() > 1e-3
    assert torch.equal(picture(prior_of(configs[kind], str(tmp_path))), changed)
    assert torch.equal(picture(prior_of(configs[kind], f"{file}:0")), base)
    with lora.adapters_off({"unet": prior.unet}):
        assert torch.equal(picture(prior), base)
    assert torch.equal(picture(prior), changed)


def test_a_mix_of_1_and_0_is_the_one_and_of_two_halves_the_whole(
    configs: dict[str, PriorConfig], tmp_path: Path
) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    whole = picture(trained(configs["sd"], a))
    trained(configs["sd"], b, seed=5)
    c = tmp_path / "c.safetensors"
    c.write_bytes(a.read_bytes())
    assert torch.equal(picture(prior_of(configs["sd"], str(a), f"{b}:0")), whole)
    halves = picture(prior_of(configs["sd"], f"{a}:0.5", f"{c}:0.5"))
    torch.testing.assert_close(halves, whole, atol=1e-4, rtol=0)
    assert not torch.allclose(picture(prior_of(configs["sd"], str(a), str(b))), whole, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_opens_in_plain_diffusers_with_the_same_weights(
    configs: dict[str, PriorConfig], kind: str, tmp_path: Path
) -> None:
    trained(configs[kind], tmp_path / "pytorch_lora_weights.safetensors")
    name = {"sd": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}[kind]
    pipe = getattr(diffusers, name).from_pretrained(configs[kind].path)
    plain = load_prior(
        PriorConfig(
            configs[kind].path,
            "",
            manifest="",
            vocabulary="",
            dtype="float32",
            resolution=32,
            loras=str(tmp_path),
        )
    )
    pipe.load_lora_weights(str(tmp_path))
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor(500)
    text = plain.encode_text(["a", "b"])
    added = None
    if text.pooled is not None:
        added = {"text_embeds": text.pooled, "time_ids": plain.time_ids.expand(2, -1)}
    with torch.no_grad():
        theirs = pipe.unet(x, t, text.tokens, added_cond_kwargs=added).sample
    ours = plain.predict_noise(x, t.expand(2), text)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_alpha_of_another_program_is_applied(
    configs: dict[str, PriorConfig], tmp_path: Path
) -> None:
    file = tmp_path / "pytorch_lora_weights.safetensors"
    trained(configs["sd"], file)
    tensors = load_file(file)
    doubled = {key: value * (2.0 if "lora_B" in key else 1.0) for key, value in tensors.items()}
    settings = {"unet.r": 3, "unet.lora_alpha": 6}
    save_file(tensors, tmp_path / "alpha.safetensors", {lora.METADATA: json.dumps(settings)})
    save_file(doubled, tmp_path / "doubled.safetensors")
    # alpha / sqrt(rank) = 2 for rank-stabilised LoRA
    settings = {"unet.r": 3, "unet.lora_alpha": 2 * 3**0.5, "unet.use_rslora": True}
    save_file(tensors, tmp_path / "stable.safetensors", {lora.METADATA: json.dumps(settings)})
    by_value = picture(prior_of(configs["sd"], str(tmp_path / "doubled.safetensors")))
    for name in ("alpha", "stable"):
        by_alpha = picture(prior_of(configs["sd"], str(tmp_path / f"{name}.safetensors")))
        torch.testing.assert_close(by_alpha, by_value, atol=1e-5, rtol=1e-5)


def test_a_file_of_kohya_is_read(configs: dict[str, PriorConfig], tmp_path: Path) -> None:
    file = tmp_path / "pytorch_lora_weights.safetensors"
    trained(configs["sd"], file)
    theirs: dict[str, torch.Tensor] = {}
    for key, value in load_file(file).items():
        stem, side = key.removeprefix("unet.").rsplit(".lora_", 1)
        name = "lora_unet_" + stem.replace(".", "_")
        theirs[name + (".lora_down.weight" if side[0] == "A" else ".lora_up.weight")] = value
        theirs[name + ".alpha"] = torch.tensor(3.0)
    save_file(theirs, tmp_path / "kohya.safetensors")
    ours = picture(prior_of(configs["sd"], str(file)))
    assert torch.equal(picture(prior_of(configs["sd"], str(tmp_path / "kohya.safetensors"))), ours)


def test_files_that_do_not_fit_are_refused_with_the_tensor_named(
    configs: dict[str, PriorConfig], tmp_path: Path
) -> None:
    file, bad = tmp_path / "pytorch_lora_weights.safetensors", tmp_path / "bad.safetensors"
    trained(configs["sd"], file)
    tensors = load_file(file)
    first = sorted(tensors)[0]
    rest = {key: value for key, value in tensors.items() if key != first}
    cases = {
        "no place for its tensor": {
            key.replace("attn1.to_k", "attn1.to_x"): tensors[key] for key in tensors
        },
        "lacks one of its two matrices": rest,
        "layer of another size": {**rest, first: torch.zeros(3, 7)},
        "not finite": {**rest, first: tensors[first] * float("nan")},
        "without numbers": {**rest, first: torch.zeros(())},
        "a matrix without": {**rest, first: tensors[first][:0]},
        "has no place ": {key.removeprefix("unet."): value for key, value in tensors.items()},
    }
    for words, content in cases.items():
        save_file(content, bad)
        with pytest.raises(UserError, match=words.strip()):
            prior_of(configs["sd"], str(bad))
    with pytest.raises(UserError, match="trained on this model"):
        prior_of(configs["sdxl"], str(file))
    save_file({key: value.to(torch.float8_e4m3fn) for key, value in rest.items()}, bad)
    with pytest.raises(UserError, match="lacks one of its two matrices"):
        prior_of(configs["sd"], str(bad))
    bad.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="not a readable LoRA"):
        prior_of(configs["sd"], str(bad))
    with pytest.raises(UserError, match="there is no LoRA"):
        prior_of(configs["sd"], str(tmp_path / "none"))

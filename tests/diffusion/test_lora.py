"""LoRA on SD-like and SDXL-like pipelines: exact when off, the same in diffusers, strict files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_models import tiny_prior_config
from vp3d.config.schema import PriorConfig
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.lora import adapters_off, attach, load_loras, save_lora, set_scales
from vp3d.diffusion.prior import Prior
from vp3d.errors import UserError
from vp3d.weights.lora_files import FILE_NAME, parse_loras

import diffusers  # isort: skip

KINDS = {
    "sd": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(prior: Prior) -> torch.Tensor:
    return prior.sample(["a red cube", "a blue cone"], "", 3, 2.0, generator(1))


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, kind: str) -> PriorConfig:
    return tiny_prior_config(tmp_path_factory.mktemp(kind), kind=kind)


def write(config: PriorConfig, path: Path, seed: int, text: bool = False) -> torch.Tensor:
    """Save a LoRA that changes pictures; returns what it draws."""
    prior = load_prior(config)
    networks = prior.networks if text else {"unet": prior.unet}
    parameters = attach(networks, "new", 3, generator(seed))
    with torch.no_grad():
        for key, value in parameters.items():
            if ".lora_B." in key:
                value.add_(torch.randn(value.shape, generator=generator(seed)))
    save_lora(path, parameters, {"reward": "none"})
    return draw(prior)


def with_loras(config: PriorConfig, *loras: str) -> Prior:
    return load_prior(PriorConfig(**{**vars(config), "loras": ",".join(loras)}))


def test_new_disabled_or_zero_lora_is_the_base_bit_for_bit(
    config: PriorConfig, tmp_path: Path
) -> None:
    base = draw(load_prior(config))
    changed = write(config, tmp_path / "a.safetensors", 2)
    assert not torch.equal(base, changed)
    assert torch.equal(base, draw(with_loras(config, f"{tmp_path}/a.safetensors:0")))
    prior = load_prior(config)
    networks = {"unet": prior.unet}
    attach(networks, "new", 3, generator())
    assert torch.equal(base, draw(prior))
    loaded = with_loras(config, f"{tmp_path}/a.safetensors")
    with adapters_off({"unet": loaded.unet}):
        assert torch.equal(base, draw(loaded))


def test_file_draws_what_the_trained_prior_drew(config: PriorConfig, tmp_path: Path) -> None:
    changed = write(config, tmp_path / FILE_NAME, 3, text=True)
    assert torch.equal(changed, draw(with_loras(config, str(tmp_path))))


def test_mixing_adds_the_weighted_changes(config: PriorConfig, tmp_path: Path) -> None:
    one = write(config, tmp_path / "a.safetensors", 4)
    write(config, tmp_path / "b.safetensors", 5)
    a, b = f"{tmp_path}/a.safetensors", f"{tmp_path}/b.safetensors"
    assert torch.equal(one, draw(with_loras(config, f"{a}:1", f"{b}:0")))
    prior = with_loras(config, f"{a}:0.25", f"{b}:-0.5")
    states = [load_file(path) for path in (a, b)]
    for name, layer in prior.unet.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        x = torch.randn(2, layer.in_features, generator=generator())
        change = sum(
            scale * state[f"unet.{name}.lora_B.weight"] @ state[f"unet.{name}.lora_A.weight"]
            for scale, state in zip((0.25, -0.5), states, strict=True)
        )
        expected = layer.base_layer(x) + x @ change.T
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_plain_diffusers_opens_the_file_with_the_same_matrices(
    config: PriorConfig, kind: str, tmp_path: Path
) -> None:
    write(config, tmp_path / FILE_NAME, 6)
    pipe = KINDS[kind].from_pretrained(config.path, local_files_only=True)
    pipe.load_lora_weights(str(tmp_path), adapter_name="ours")
    ours = with_loras(config, str(tmp_path))
    layers = {n: m for n, m in ours.unet.named_modules() if hasattr(m, "lora_A")}
    for name, layer in layers.items():
        theirs = pipe.unet.get_submodule(name)
        assert torch.equal(theirs.lora_B["ours"].weight, layer.lora_B["lora0"].weight)
        assert theirs.scaling["ours"] == layer.scaling["lora0"] == 1.0
    assert layers


def test_file_of_diffusers_with_alpha_is_read_with_its_scale(
    config: PriorConfig, kind: str, tmp_path: Path
) -> None:
    if kind == "sdxl":
        pytest.skip("the metadata are the same")
    write(config, tmp_path / "a.safetensors", 7)
    tensors = load_file(tmp_path / "a.safetensors")
    header = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 6, "unet.r": 3})}
    save_file(tensors, tmp_path / "b.safetensors", metadata=header)
    half = with_loras(config, f"{tmp_path}/b.safetensors:0.5")
    assert torch.equal(draw(half), draw(with_loras(config, f"{tmp_path}/a.safetensors")))


def test_kohya_layout_is_read(config: PriorConfig, kind: str, tmp_path: Path) -> None:
    if kind == "sdxl":
        pytest.skip("SDXL's kohya names are those of another library's blocks")
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    size = load_prior(config).unet.get_submodule(layer).weight.shape
    down = torch.randn(2, size[1], generator=generator())
    up = torch.randn(size[0], 2, generator=generator(1))
    name = "lora_unet_" + layer.replace(".", "_")
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    tensors |= {
        f"{text}.lora_down.weight": torch.ones(4, 32),
        f"{text}.lora_up.weight": torch.ones(32, 4),
        f"{text}.alpha": torch.tensor(2.0),
    }
    save_file(tensors | {f"{name}.alpha": torch.tensor(1.0)}, tmp_path / "k.safetensors")
    prior = with_loras(config, f"{tmp_path}/k.safetensors")
    query = prior.networks["text_encoder"].get_submodule("encoder.layers.0.self_attn.q_proj")
    assert query.scaling["lora0"] == 0.5
    found = prior.unet.get_submodule(layer)
    assert torch.equal(found.lora_A["lora0"].weight, down)
    assert torch.equal(found.lora_B["lora0"].weight, up)
    assert found.scaling["lora0"] == 0.5


def test_file_that_does_not_fit_is_refused_by_the_name_of_its_tensor(
    config: PriorConfig, tmp_path: Path
) -> None:
    write(config, tmp_path / "a.safetensors", 8)
    tensors = load_file(tmp_path / "a.safetensors")
    key = sorted(tensors)[0]
    renamed = {(f"{k}".replace("unet.", "unet.no.") if k == key else k): v
               for k, v in tensors.items()}  # fmt: skip
    no_prefix = {k.removeprefix("unet."): v for k, v in tensors.items()}
    wider = {k: (torch.zeros(3, 7) if k == key else v) for k, v in tensors.items()}
    bad = {k: (v * float("nan") if k == key else v) for k, v in tensors.items()}
    lone = {k: v for k, v in tensors.items() if k != key}
    for broken in (renamed, no_prefix, wider, bad, lone, {"unet.x.weight": torch.zeros(2)}, {}):
        save_file(broken, tmp_path / "broken.safetensors")
        with pytest.raises(UserError, match=r"broken\.safetensors"):
            with_loras(config, f"{tmp_path}/broken.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a file")
    with pytest.raises(UserError, match="not a readable LoRA"):
        with_loras(config, f"{tmp_path}/broken.safetensors")


def test_scales_are_set_again_on_the_same_prior(config: PriorConfig, tmp_path: Path) -> None:
    base = draw(load_prior(config))
    one = write(config, tmp_path / "a.safetensors", 9)
    prior = load_prior(config)
    names = load_loras(prior.networks, [(tmp_path / "a.safetensors", 0.3)])
    set_scales(prior.networks, {names[0]: 1.0})
    assert torch.equal(draw(prior), one)
    set_scales(prior.networks, {})
    assert torch.equal(draw(prior), base)


def test_setting_is_parsed_into_files_and_scales() -> None:
    assert parse_loras("") == []
    assert parse_loras("a/b.safetensors:0.5, c") == [("a/b.safetensors", 0.5), ("c", 1.0)]
    assert parse_loras("a:-1") == [("a", -1.0)]
    assert parse_loras("c:/x.safetensors") == [("c:/x.safetensors", 1.0)]
    for wrong in (":0.5", "a:inf", "a:1,a:2"):
        with pytest.raises(UserError):
            parse_loras(wrong)

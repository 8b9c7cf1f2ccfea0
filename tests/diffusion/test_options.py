"""What a prior may be told at load: another autoencoder, precisions, layouts, compiling, encoders
that wait on the CPU.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor

from tests.helpers.tiny_models import RESOLUTION, autoencoder, save_pipeline, tiny_prior_config
from vp3d.config.schema import PriorConfig
from vp3d.diffusion.autoencoder import decode, encode, safe_dtype
from vp3d.diffusion.image_prompt import GatedImageAttention
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.prior import Prior
from vp3d.errors import UserError

import diffusers  # isort: skip

RGB = torch.nn.functional.interpolate(
    torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)),
    size=(RESOLUTION, RESOLUTION),
    mode="bilinear",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PriorConfig:
    return tiny_prior_config(tmp_path_factory.mktemp("sdxl"), vae="kl", kind="sdxl", plus=True)


@pytest.fixture(scope="module")
def prior(config: PriorConfig) -> Prior:
    return load_prior(config)


def predict(prior: Prior) -> torch.Tensor:
    x, t = prior.noise(2, torch.Generator().manual_seed(0)), torch.tensor([100, 800])
    image = prior.embed_visual_prompt(RGB[:1]).expand(2, -1, -1)
    with torch.no_grad():
        return prior.predict_noise(
            x, t, prior.encode_text(["a", "b"]), image, torch.tensor([0.3, 1.0])
        )


def test_attention_is_torchs_own_everywhere(prior: Prior) -> None:
    theirs = diffusers.models.attention_processor.AttnProcessor2_0
    for name, processor in prior.unet.attn_processors.items():
        assert type(processor) is (
            GatedImageAttention if name.endswith("attn2.processor") else theirs
        )


def test_a_tiny_autoencoder_takes_the_place_of_the_pipelines(
    config: PriorConfig, prior: Prior, tmp_path: Path
) -> None:
    autoencoder("tiny").save_pretrained(tmp_path / "taesd")
    small = load_prior(dataclasses.replace(config, vae=str(tmp_path / "taesd"), manifest=""))
    assert (
        type(prior.vae) is diffusers.AutoencoderKL and type(small.vae) is diffusers.AutoencoderTiny
    )
    assert (prior.latent_side, small.latent_side) == (16, 8)
    assert small.encode_images(RGB).shape == (2, 4, 8, 8)
    assert small.sample(["a"], "", 1, 2.0, torch.Generator().manual_seed(0)).shape == (
        1,
        3,
        RESOLUTION,
        RESOLUTION,
    )
    (tmp_path / "taesd" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load the autoencoder .* check prior.vae"):
        load_prior(dataclasses.replace(config, vae=str(tmp_path / "taesd"), manifest=""))


def test_an_autoencoder_that_does_not_fit_is_refused(config: PriorConfig, tmp_path: Path) -> None:
    diffusers.AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path / "taesd3")
    with pytest.raises(
        UserError, match="prior.vae .* latents of 16 channels, the denoiser takes 4"
    ):
        load_prior(dataclasses.replace(config, vae=str(tmp_path / "taesd3"), manifest=""))
    with pytest.raises(UserError, match="it contains a UNet2DConditionModel"):
        load_prior(dataclasses.replace(config, vae=f"{config.path}/unet", manifest=""))
    with pytest.raises(UserError, match="not covered by"):
        load_prior(dataclasses.replace(config, vae=str(tmp_path / "taesd3")))
    with pytest.raises(UserError, match="not a multiple of 2"):
        load_prior(dataclasses.replace(config, resolution=33))


def test_autoencoder_of_sdxl_is_kept_out_of_float16(config: PriorConfig, tmp_path: Path) -> None:
    half = dataclasses.replace(config, dtype="float16")
    assert (
        load_prior(half).vae.dtype == torch.float32 and load_prior(half).unet.dtype == torch.float16
    )
    assert load_prior(dataclasses.replace(half, vae_dtype="bfloat16")).vae.dtype == torch.bfloat16
    fixed = dataclasses.replace(
        config, path=str(tmp_path / "fixed"), dtype="float16", ip_adapter="", manifest=""
    )
    shutil.copytree(config.path, fixed.path)
    index = tmp_path / "fixed" / "vae" / "config.json"
    index.write_text(index.read_text().replace('"force_upcast": true', '"force_upcast": false'))
    assert (
        load_prior(fixed).vae.dtype == torch.float16
    )  # a repaired one, such as sdxl-vae-fp16-fix, says that it holds
    old = tiny_prior_config(tmp_path / "sd", vae="kl", ip_adapter=False)
    assert (
        load_prior(dataclasses.replace(old, dtype="float16")).vae.dtype == torch.float16
    )  # SD 1.x holds
    assert (
        safe_dtype("auto", torch.bfloat16, True) == torch.bfloat16
        and safe_dtype("auto", torch.float32, True) == torch.float32
    )


@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_small_gradients_survive_float16(kind: str) -> None:
    """A gradient of 1e-9 an element is nothing in float16.

    It must reach the pixels as its large twin does, scaled.
    """
    torch.manual_seed(0)
    fine, half = (
        autoencoder(kind).requires_grad_(False),
        autoencoder(kind).half().requires_grad_(False),
    )
    half.load_state_dict(fine.state_dict())
    seen = {}
    for name, vae, size in (("exact", fine, 1e-9), ("half", half, 1e-9), ("large", half, 1.0)):
        rgb = RGB.clone().requires_grad_()
        latents = encode(vae, rgb)
        weights = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
        (seen[name],) = torch.autograd.grad((latents * weights * size).sum(), rgb)
    assert torch.equal(torch.tensor(1e-9).half(), torch.tensor(0.0).half())
    assert seen["exact"].abs().max() > 0
    assert (seen["half"] - seen["exact"]).abs().mean() < 0.05 * seen["exact"].abs().mean()
    torch.testing.assert_close(
        seen["half"] * 1e9, seen["large"], atol=1e-2 * float(seen["large"].abs().max()), rtol=0.05
    )
    rgb = RGB.clone().requires_grad_()
    (zero,) = torch.autograd.grad((encode(half, rgb) * 0.0).sum(), rgb)
    assert not zero.any()


@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_small_gradients_survive_decoding_in_float16(kind: str) -> None:
    """AlignProp sends the gradient of a mean over pictures back through the decoder."""
    torch.manual_seed(0)
    fine, half = (
        autoencoder(kind).requires_grad_(False),
        autoencoder(kind).half().requires_grad_(False),
    )
    half.load_state_dict(fine.state_dict())
    side = encode(fine, RGB).shape[-1]
    start = 0.1 * torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(2))
    found = []
    for vae in (fine, half):
        z = start.clone().requires_grad_()
        rgb = decode(vae, z)
        weights = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(1))
        found.append(torch.autograd.grad((rgb * weights * 1e-9).sum(), z)[0])
    exact, ours = found
    assert exact.abs().max() > 0
    assert (ours - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_half_precision_is_near_single(
    config: PriorConfig, prior: Prior, dtype: str, tolerance: float
) -> None:
    half = load_prior(dataclasses.replace(config, dtype=dtype))
    fine, coarse = predict(prior), predict(half)
    assert coarse.dtype == torch.float32 and half.null_image.dtype == torch.float32
    assert (fine - coarse).abs().mean() < tolerance * fine.abs().mean()
    drawn = half.sample(["a"], "", 1, 2.0, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32 and drawn.isfinite().all()


def test_channels_last_changes_the_layout_alone(config: PriorConfig, prior: Prior) -> None:
    other = load_prior(dataclasses.replace(config, channels_last=True))
    for module in (other.unet.conv_in, other.vae.encoder.conv_in):
        assert module.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(predict(other), predict(prior), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        other.encode_images(RGB), prior.encode_images(RGB), atol=1e-5, rtol=1e-4
    )


def test_encoders_come_to_the_device_only_while_they_are_used(config: PriorConfig) -> None:
    """The meta device stands for a GPU: what stays there has no values, what comes home does.

    Here the way out is watched.
    """
    waiting = load_prior(dataclasses.replace(config, offload_encoders=True))
    (_, text), *_ = waiting.text_encoders.towers
    places: list[str] = []
    text.register_forward_pre_hook(
        lambda module, _: places.append(next(module.parameters()).device.type)
    )
    waiting.device = torch.device("meta")
    with pytest.raises(
        NotImplementedError, match="meta"
    ):  # a CPU tensor can go to meta, but nothing comes back from it
        waiting.encode_text(["a"])
    assert places == ["meta"]


@pytest.mark.slow
def test_compiled_networks_give_the_same(
    config: PriorConfig, prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced whole by dynamo, without breaks, forward and backward.

    The code generator behind it is left out for time.
    """
    torch.compiler.reset()
    calls: list[object] = []
    monkeypatch.setattr("vp3d.diffusion.prior._check_compiler", calls.append)
    compiled = load_prior(dataclasses.replace(config, compile=True))
    assert calls == [torch.device("cpu")]
    for network in (compiled.unet, compiled.vae.encoder):
        assert network._compiled_call_impl is not None
        network.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(predict(compiled), predict(prior), atol=1e-6, rtol=1e-5)
    encoded = []
    for found in (compiled, prior):
        rgb = RGB.clone().requires_grad_()
        latents = found.encode_images(rgb)
        encoded.append((latents.detach(), *torch.autograd.grad(latents.square().sum(), rgb)))
    for ours, theirs in zip(*encoded, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiler_that_does_not_work_is_found_at_load(
    config: PriorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(
        UserError, match="torch.compile does not work here .* set prior.compile=false"
    ):
        load_prior(dataclasses.replace(config, compile=True))
    torch.compiler.reset()


@pytest.mark.parametrize("vae_dtype", ["float32", "float16"])
def test_encoding_in_parts_gives_the_same_latents_and_gradients(
    config: PriorConfig, vae_dtype: str
) -> None:
    """In float16, too, where the gradient is scaled on its way through the network that is run once
    more.
    """
    whole, parts = (
        load_prior(dataclasses.replace(config, vae_dtype=vae_dtype, vae_batch=n)) for n in (64, 1)
    )
    calls: list[int] = []
    parts.vae.encoder.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    found = []
    for prior in (whole, parts):
        rgb = torch.cat([RGB, RGB.flip(-1)[:1]]).requires_grad_()
        latents = prior.encode_images(rgb)
        (grad,) = torch.autograd.grad(latents.square().mean(), rgb)
        found.append((latents.detach(), grad))
    assert calls == [1] * 6  # once more each, backward
    for ours, theirs in zip(*found, strict=True):
        assert theirs.any() and (ours - theirs).abs().max() <= 1e-2 * theirs.abs().max()
    drawn = [prior.decode(found[0][0]) for prior in (whole, parts)]
    assert (drawn[0] - drawn[1]).abs().max() < 1e-2


def test_fewer_pictures_at_once_after_memory_ran_out(config: PriorConfig) -> None:
    prior = load_prior(config)
    assert [prior.encode_less(5), prior.vae_batch] == [2, 2]
    assert [prior.encode_less(5), prior.vae_batch] == [1, 1]
    assert [prior.encode_less(5), prior.vae_batch] == [0, 1]


def test_variants_of_the_weight_files(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "pipeline", variant="fp16")
    assert not (tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    plain = PriorConfig(
        str(tmp_path / "pipeline"), "", manifest="", vocabulary="", resolution=RESOLUTION
    )
    assert load_prior(dataclasses.replace(plain, variant="fp16")).resolution == RESOLUTION
    with pytest.raises(UserError, match="prior.variant"):
        load_prior(plain)


@pytest.mark.gpu
def test_half_precision_on_a_gpu(config: PriorConfig, prior: Prior) -> None:
    options = {"dtype": "float16", "channels_last": True, "offload_encoders": True, "max_batch": 3}
    fast = load_prior(dataclasses.replace(config, **options), "cuda")
    rgb = RGB.cuda().requires_grad_()
    (grad,) = torch.autograd.grad(fast.encode_images(rgb).sum(), rgb)
    assert grad.isfinite().all() and grad.any()
    image = fast.embed_visual_prompt(RGB[:1])
    drawn = fast.sample(["a", "b"], "", 2, 2.0, torch.Generator().manual_seed(0), image, 0.5)
    exact = prior.sample(
        ["a", "b"],
        "",
        2,
        2.0,
        torch.Generator().manual_seed(0),
        prior.embed_visual_prompt(RGB[:1]),
        0.5,
    )
    assert (drawn.cpu() - exact).abs().mean() < 0.02
    for _, model in fast.text_encoders.towers:
        assert next(model.parameters()).device.type == "cpu"
    assert next(fast.image_encoder.tower.parameters()).device.type == "cpu"

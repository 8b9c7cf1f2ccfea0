"""The prior against diffusers' own pipeline, in value and gradient, and what it refuses to load."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.tiny_models import (
    RESOLUTION,
    save_ip_adapter,
    save_pipeline,
    scheduler,
    tiny_prior_config,
)
from vp3d.config.schema import PriorConfig
from vp3d.diffusion import schedule as S
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.prior import Prior
from vp3d.errors import UserError

import diffusers  # isort: skip
import transformers  # isort: skip

PROMPTS = ["a red cube", "a blue cone, back view"]


def smooth_images(batch: int, side: int, seed: int = 0) -> torch.Tensor:
    noise = torch.rand(batch, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(
        noise, size=(side, side), mode="bilinear", align_corners=False
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PriorConfig:
    return tiny_prior_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prior(config: PriorConfig) -> Prior:
    return load_prior(config)


@pytest.fixture(scope="module")
def pipe(config: PriorConfig) -> diffusers.StableDiffusionPipeline:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(config.path, local_files_only=True)
    pipe.scheduler = scheduler()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def their_sample(
    pipe: diffusers.StableDiffusionPipeline, latents: torch.Tensor, **kwargs: object
) -> torch.Tensor:
    return pipe(
        PROMPTS, negative_prompt=["blurry"] * 2, num_inference_steps=4,
        guidance_scale=3.0, latents=latents,
        output_type="latent", **kwargs,
    ).images  # fmt: skip


def test_sample_agrees_with_diffusers_pipeline(
    prior: Prior, pipe: diffusers.StableDiffusionPipeline
) -> None:
    latents = prior.noise(2, torch.Generator().manual_seed(7))
    seen: list[tuple[int, int]] = []
    rgb = prior.sample(
        PROMPTS,
        "blurry",
        4,
        3.0,
        torch.Generator().manual_seed(7),
        on_step=lambda done, total: seen.append((done, total)),
    )
    torch.testing.assert_close(rgb, prior.decode(their_sample(pipe, latents)), atol=2e-5, rtol=1e-4)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert rgb.shape == (2, 3, RESOLUTION, RESOLUTION) and rgb.std() > 0.01


def test_sample_with_visual_prompt_agrees_with_diffusers_pipeline(
    prior: Prior, config: PriorConfig
) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(config.path, local_files_only=True)
    pipe.scheduler = scheduler()
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(
        config.ip_adapter,
        subfolder="models",
        weight_name=config.ip_adapter_weight,
        local_files_only=True,
    )
    pipe.set_ip_adapter_scale(0.7)
    pixels = (smooth_images(1, RESOLUTION)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    latents = prior.noise(2, torch.Generator().manual_seed(8))
    theirs = their_sample(pipe, latents, ip_adapter_image=Image.fromarray(pixels))
    image = prior.embed_visual_prompt(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255.0)
    rgb = prior.sample(
        PROMPTS, "blurry", 4, 3.0, torch.Generator().manual_seed(8), image=image, gate=0.7
    )
    torch.testing.assert_close(rgb, prior.decode(theirs), atol=5e-5, rtol=1e-4)
    plain = prior.sample(PROMPTS, "blurry", 4, 3.0, torch.Generator().manual_seed(8))
    off = prior.sample(
        PROMPTS, "blurry", 4, 3.0, torch.Generator().manual_seed(8), image=image, gate=0.0
    )
    assert (rgb - plain).abs().max() > 1e-3
    torch.testing.assert_close(off, plain)


def test_text_agrees_with_diffusers_pipeline(
    prior: Prior, pipe: diffusers.StableDiffusionPipeline
) -> None:
    expected, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, False)
    torch.testing.assert_close(prior.encode_text(PROMPTS).tokens, expected)
    words = "a sphere " * 20
    kept, cut = prior.text_encoders.fit(words)
    assert cut and words.split() == f"{kept} {cut}".split()
    torch.testing.assert_close(prior.encode_text([words]).tokens, prior.encode_text([kept]).tokens)
    assert prior.encode_text(["x" * 75]).tokens.shape == (1, 77, 32)


def test_preprocessing_agrees_with_clips_own(prior: Prior) -> None:
    pixels = (smooth_images(1, 90)[0, :, :70].permute(1, 2, 0) * 255).round().byte()
    processor = transformers.CLIPImageProcessor(size=RESOLUTION, crop_size=RESOLUTION)
    expected = processor(Image.fromarray(pixels.numpy()), return_tensors="pt").pixel_values
    ours = prior.image_encoder.normalize(pixels.permute(2, 0, 1)[None] / 255.0)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 0.03  # theirs rounds to 8 bits after the resize


@pytest.mark.parametrize("vae", ["tiny", "kl"])
def test_autoencoders(vae: str, tmp_path: Path) -> None:
    prior = load_prior(tiny_prior_config(tmp_path, vae=vae, ip_adapter=False))
    rgb = smooth_images(2, RESOLUTION).requires_grad_()
    latents = prior.encode_images(rgb)
    raw, config = prior.vae.encode(rgb * 2 - 1), prior.vae.config
    z = raw.latents if vae == "tiny" else raw.latent_dist.mean
    torch.testing.assert_close(latents, (z - (config.shift_factor or 0.0)) * config.scaling_factor)
    assert latents.shape == (2, 4, prior.latent_side, prior.latent_side)
    expected = prior.vae.decode(z).sample * 0.5 + 0.5
    torch.testing.assert_close(prior.decode(latents), expected.clamp(0, 1), atol=1e-5, rtol=1e-4)
    (grad,) = torch.autograd.grad(latents.sum(), rgb)
    assert grad.isfinite().all() and grad.abs().sum() > 0
    assert prior.sample(["a cat"], "", 2, 2.0, torch.Generator().manual_seed(0)).shape == (
        1,
        3,
        RESOLUTION,
        RESOLUTION,
    )


def test_images_of_any_size_are_resized_inside_the_graph(prior: Prior) -> None:
    for side in (20, 50):
        rgb = smooth_images(1, side).requires_grad_()
        latents = prior.encode_images(rgb)
        assert latents.shape == (1, 4, prior.latent_side, prior.latent_side)
        (grad,) = torch.autograd.grad((latents**2).sum(), rgb)
        step = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(1)) * 1e-3
        with torch.no_grad():
            change = (prior.encode_images(rgb + step) ** 2).sum() - (
                prior.encode_images(rgb - step) ** 2
            ).sum()
        torch.testing.assert_close(change / 2, (grad * step).sum(), atol=1e-4, rtol=0.05)
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        prior.encode_images(torch.zeros(1, 32, 32, 3))


def test_epsilon_and_v_prediction_agree_for_the_same_network(tmp_path: Path) -> None:
    """A v network, and the epsilon network that computes e = alpha v + sigma x from it, are the
    same prior.
    """
    v_prior = load_prior(
        tiny_prior_config(tmp_path / "v", prediction_type="v_prediction", ip_adapter=False)
    )
    e_prior = load_prior(tiny_prior_config(tmp_path / "e", ip_adapter=False))
    assert (v_prior.prediction_type, e_prior.prediction_type) == ("v_prediction", "epsilon")
    x = v_prior.noise(3, torch.Generator().manual_seed(0))
    t, text = torch.tensor([30, 400, 950]), v_prior.encode_text(["a", "b", "c"])
    bar = scheduler().alphas_cumprod[t][:, None, None, None]
    with torch.no_grad():
        network_v = e_prior.predict_noise(
            x, t, text
        )  # same seed, same weights: the raw output of the network
        ours = v_prior.predict_noise(x, t, text)
    torch.testing.assert_close(
        ours, bar.sqrt() * network_v + (1 - bar).sqrt() * x, atol=1e-5, rtol=1e-4
    )
    x0 = S.x0_from_epsilon(x, ours, v_prior.alpha_bar[t])
    for i in range(3):
        theirs = scheduler("v_prediction")
        theirs.set_timesteps(10)
        expected = theirs.step(network_v[i], int(t[i]), x[i]).pred_original_sample
        torch.testing.assert_close(x0[i], expected, atol=1e-4, rtol=1e-3)


def test_branches_equal_single_calls(prior: Prior) -> None:
    generator = torch.Generator().manual_seed(0)
    x, t, gate = prior.noise(2, generator), torch.tensor([100, 700]), torch.tensor([0.3, 1.0])
    text, null = prior.encode_text(PROMPTS), prior.encode_null("")
    image = prior.embed_visual_prompt(smooth_images(1, 40))
    with torch.no_grad():
        branches = prior.predict_branches(
            {"null": null, "text": text, "full": text}, x, t, image, gate
        )
        none = prior.null_image.expand(2, -1, -1)
        expected = {
            "null": prior.predict_noise(x, t, null.expand(2), none, gate),
            "text": prior.predict_noise(x, t, text, none, gate),
            "full": prior.predict_noise(x, t, text, image.expand(2, -1, -1), gate),
        }
    for name, value in expected.items():
        torch.testing.assert_close(branches[name], value, atol=1e-5, rtol=1e-4)
    assert (branches["text"] - branches["full"]).abs().max() > 1e-4


def test_without_adapter_a_visual_prompt_is_refused(tmp_path: Path) -> None:
    prior = load_prior(tiny_prior_config(tmp_path, ip_adapter=False))
    with pytest.raises(UserError, match="IP-Adapter"):
        prior.embed_visual_prompt(smooth_images(1, 32))
    with pytest.raises(ValueError, match="IP-Adapter"):
        prior.sample(["a"], "", 1, 2.0, torch.Generator(), image=torch.zeros(1, 4, 32))


def test_weights_are_frozen_and_half_precision_works(config: PriorConfig, prior: Prior) -> None:
    (_, text_encoder), *_ = prior.text_encoders.towers
    modules = (
        text_encoder,
        prior.vae,
        prior.unet,
        prior.image_encoder.tower,
        prior.image_encoder.projection,
    )
    assert not any(p.requires_grad for module in modules for p in module.parameters())
    half = load_prior(dataclasses.replace(config, dtype="bfloat16"))
    args = (
        prior.noise(1, torch.Generator().manual_seed(0)),
        torch.tensor([500]),
        prior.encode_text(["a"]),
    )
    image = half.embed_visual_prompt(smooth_images(1, 32))
    fine, coarse = prior.predict_noise(*args, image), half.predict_noise(*args, image)
    assert coarse.dtype == torch.float32 and image.dtype == torch.float32
    assert (fine - coarse).abs().mean() < 0.05 * fine.abs().mean()


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "file",
    [
        "pipeline/unet/diffusion_pytorch_model.safetensors",
        "pipeline/text_encoder/model.safetensors",
        "ip_adapter/models/ip-adapter_toybox.safetensors",
        "ip_adapter/models/image_encoder/model.safetensors",
    ],
)
def test_damaged_and_missing_weights_are_refused(
    config: PriorConfig, tmp_path: Path, file: str
) -> None:
    shutil.copytree(Path(config.manifest).parent, tmp_path, dirs_exist_ok=True)
    places = {
        "path": tmp_path / "pipeline",
        "ip_adapter": tmp_path / "ip_adapter",
        "manifest": tmp_path / "MANIFEST.json",
    }
    copy = dataclasses.replace(config, **{key: str(place) for key, place in places.items()})
    damage(tmp_path / file)
    with pytest.raises(UserError, match="damaged"):
        load_prior(copy)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match="missing"):
        load_prior(copy)
    with pytest.raises(UserError, match="cannot load"):
        load_prior(dataclasses.replace(copy, manifest=""))


def test_weights_cut_short_are_refused_without_manifest(
    config: PriorConfig, tmp_path: Path
) -> None:
    shutil.copytree(config.path, tmp_path / "pipeline")
    weights = tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot load the pipeline"):
        load_prior(dataclasses.replace(config, path=str(tmp_path / "pipeline"), manifest=""))


def test_wrong_image_encoder_is_named(config: PriorConfig, tmp_path: Path) -> None:
    folder = save_ip_adapter(tmp_path / "ip_adapter", image_width=20)
    with pytest.raises(
        UserError, match=r"models/image_encoder gives vectors of 24 .* trained on 20"
    ):
        load_prior(dataclasses.replace(config, ip_adapter=str(folder), manifest=""))


def test_unfit_sources_are_refused(config: PriorConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        load_prior(dataclasses.replace(config, path=str(tmp_path / "nowhere"), manifest=""))
    for key in ("path", "ip_adapter", "vae"):  # hub ids, without a network
        with pytest.raises(UserError, match="^cannot load the .*owner/none.*check prior") as caught:
            load_prior(dataclasses.replace(config, **{key: "owner/none"}, manifest=""))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="safetensors"):
        load_prior(dataclasses.replace(config, ip_adapter_weight="ip-adapter.bin", manifest=""))
    save_pipeline(tmp_path / "pipeline")
    index = tmp_path / "pipeline" / "unet" / "config.json"
    index.write_text(
        index.read_text().replace('"cross_attention_dim": 32', '"cross_attention_dim": 48')
    )
    with pytest.raises(UserError, match="pipeline"):
        load_prior(dataclasses.replace(config, path=str(tmp_path / "pipeline"), manifest=""))

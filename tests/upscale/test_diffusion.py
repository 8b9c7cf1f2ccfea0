"""The diffusion upscaler against diffusers' own pipeline, and its refusals. Tiny random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.tiny_models import text_encoder, tokenizer
from vp3d.errors import MissingWeightsError, UserError
from vp3d.upscale.diffusion import DrawSettings
from vp3d.upscale.load import load_diffusion_upscaler
from vp3d.upscale.network import enlarge

import diffusers  # isort: skip

STEPS = 3


def tiny_pipeline(class_levels: int | None = 1000) -> diffusers.StableDiffusionUpscalePipeline:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=8,
        in_channels=7,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=class_levels,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.5,
    )
    return diffusers.StableDiffusionUpscalePipeline(
        vae=vae,
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet,
        low_res_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=True,
            timestep_spacing="trailing",
        ),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upscaler")
    tiny_pipeline().save_pretrained(path, safe_serialization=True)
    return path


@pytest.mark.filterwarnings("ignore:The configuration file of the vae")
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_picture_is_that_of_the_pipeline_of_diffusers(folder: Path, guidance: float) -> None:
    settings = DrawSettings(STEPS, 20, guidance, "a red mug", 0)
    ours = load_diffusion_upscaler(folder, settings)
    rgb = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = ours.draw(rgb, noise, latents)[0]
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        "a red mug",
        image=rgb,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        noise_level=20,
        generator=torch.Generator().manual_seed(3),
        latents=latents,
        output_type="np",
    ).images[0]
    assert found.shape == (3, 32, 48)
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() < 2e-3
    assert expected.std() > 0.01


def test_sides_that_do_not_fit_and_tiles_are_drawn_and_a_seed_repeats(folder: Path) -> None:
    rgb = torch.rand(3, 9, 21, generator=torch.Generator().manual_seed(1))
    drawn = [
        enlarge(rgb, None, load_diffusion_upscaler(folder, DrawSettings(2, seed=seed)), tile=16)[0]
        for seed in (0, 0, 1)
    ]
    assert drawn[0].shape == (3, 36, 84)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_the_gradient_reaches_the_denoiser_through_the_last_steps(folder: Path) -> None:
    ours = load_diffusion_upscaler(folder, DrawSettings(STEPS))
    ours.parts.unet.requires_grad_(True)
    rgb = torch.rand(1, 3, 8, 8)
    large = ours.draw(rgb, ours.noise(rgb, 3), ours.noise(rgb, 4), grad_steps=1)
    large.mean().backward()
    gradients = [p.grad for p in ours.parts.unet.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
    assert max(float(g.abs().max()) for g in gradients) > 0.0


def test_noise_levels_and_steps_out_of_range_are_refused(folder: Path) -> None:
    for settings, words in (
        (DrawSettings(noise_level=351), "not in 0 to 350"),
        (DrawSettings(steps=1001), "cannot sample in 1001 steps"),
    ):
        with pytest.raises(UserError, match=words):
            load_diffusion_upscaler(folder, settings)


def edit(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "use a StableDiffusionUp"),
        ("model_index.json", {"unet": ["evil", "Unet"]}, "which VP3D does not load"),
        ("model_index.json", {"low_res_scheduler": ["os", "system"]}, "does not load"),
        ("model_index.json", {"extra": ["evil", "Part"]}, "remove it"),
        ("model_index.json", {"max_noise_level": "x"}, "cannot load the upscaler"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "odd"}, "not supported"),
        ("unet/config.json", {"in_channels": 4}, "cannot load the upscaler"),
        ("unet/config.json", {"num_class_embeds": None}, "cannot load|takes no noise level"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_one_line(
    folder: Path, tmp_path: Path, name: str, values: dict[str, object], words: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    edit(copy, name, **values)
    with pytest.raises(UserError, match=words) as found:
        load_diffusion_upscaler(copy, DrawSettings(2))
    assert "\n" not in str(found.value)


def test_missing_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="no folder of a StableDiffusionUpscalePipeline"):
        load_diffusion_upscaler(tmp_path, DrawSettings())
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot load the upscaler"):
        load_diffusion_upscaler(copy, DrawSettings())

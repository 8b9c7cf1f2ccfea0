"""Training of the embedded upscaler: from 32 to 128 pixels, where details are truly ambiguous.

Between 64 and 128 pixels the toybox has next to nothing to invent. From 32 pixels that were also
blurred, disturbed and compressed, eyes, beaks, wheels and the edges of stripes have to be. The
layout is that of diffusers' StableDiffusionUpscalePipeline (`vp3d.upscale.diffusion`); the
autoencoder and the text encoder are the embedded ones, and the prompt is empty.

    python -m vp3d.embedded.train upscaler

writes `upscaler` next to the other models, whose autoencoder and text encoder it shares, so the
folder is for `vp3d upscale --model`, not for diffusers, which would also set the scaling factor of
the autoencoder to 0.08333.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from vp3d.config.paths import ASSETS
from vp3d.diffusion import autoencoder
from vp3d.diffusion.schedule import add_noise, alpha_bar_from_config, v_from_epsilon
from vp3d.embedded import architectures
from vp3d.embedded.fit import Plan, fit, process_rank, use_ema
from vp3d.system.files import write_json
from vp3d.upscale.network import FACTOR
from vp3d.worlds.toybox.data import DISTANCE, ELEVATION_DEG, FOV_DEG, Pictures, to_tensor
from vp3d.worlds.toybox.images import GROUNDS, render_scenes, view_vectors
from vp3d.worlds.toybox.scenes import Spec, build_scene

SIDE = 128  # pixels of the large picture
FOLDER = "upscaler"  # in the folder of the models
BLUR_SD = (0.5, 1.5)  # of the large picture, pixels
NOISE_SD = (0.0, 0.05)  # of the small picture
JPEG_QUALITY = (40, 96)  # of the small picture, lowest and one above the highest
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionUpscalePipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "low_res_scheduler": ["diffusers", "DDPMScheduler"],
    "max_noise_level": architectures.UPSCALER_NOISE,
}


def train_upscaler(
    pictures: Pictures, plan: Plan, work: Path, device: str, models: Path = ASSETS
) -> None:
    """Train the denoiser; the loss is the squared error of v (Salimans and Ho, arXiv 2202.00512).

    The captions of `pictures` are rendered again at 128 pixels, from new cameras.
    """
    torch.manual_seed(plan.seed)
    model = architectures.new_upscaler()
    if plan.seed:
        folder = models / FOLDER / "unet"
        model = architectures.UNet2DConditionModel.from_pretrained(folder, dtype=torch.float32)
    model.to(device).train()
    vae, text, tokenizer = _frozen(models)
    vae.to(device)
    tokens = text(architectures.tokenize(tokenizer, [""]))[0].detach().to(device)
    losses = UpscalerLosses(model, vae, tokens, pictures.specs, plan.batch)
    use_ema(model, fit("upscaler", model, losses, plan, work))
    if not process_rank():
        save_upscaler(model, models / FOLDER)


class UpscalerLosses:
    """Draws a batch and computes the loss of the denoiser.

    Args:
        unet: the denoiser, trained.
        vae: the autoencoder, frozen.
        tokens: of the empty prompt `[1, L, D]`.
        specs: the captions.
        batch: pictures of a step.
    """

    def __init__(
        self, unet: nn.Module, vae: nn.Module, tokens: Tensor, specs: list[Spec], batch: int
    ) -> None:
        self.unet, self.vae, self.tokens = unet, vae, tokens
        self.specs, self.batch = specs, batch
        schedules = (architectures.new_scheduler(), architectures.new_low_res_scheduler())
        levels = [alpha_bar_from_config(schedule.config) for schedule in schedules]
        self.alpha_bar, self.low_alpha_bar = (level.to(tokens.device) for level in levels)

    def __call__(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        """The losses of one step, by name."""
        large = large_pictures(self.specs, self.batch, rng)
        small = np.stack([degraded(picture, rng) for picture in large])
        device = self.tokens.device
        with torch.no_grad():
            x0 = autoencoder.encode(self.vae, to_tensor(large, device))
        low = to_tensor(small, device) * 2.0 - 1.0

        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, device=device)

        def steps(most: int) -> Tensor:
            return torch.randint(most, (self.batch,), generator=generator, device=device)

        label = steps(architectures.UPSCALER_NOISE + 1)
        low = add_noise(low, normal(low), self.low_alpha_bar[label])
        t, noise = steps(len(self.alpha_bar)), normal(x0)
        level = self.alpha_bar[t]
        x_t = add_noise(x0, noise, level)
        output = self.unet(
            torch.cat([x_t, low], dim=1),
            t,
            encoder_hidden_states=self.tokens.expand(self.batch, -1, -1),
            class_labels=label,
        ).sample
        return {"loss_v": F.mse_loss(output, v_from_epsilon(x_t, noise, level))}


def large_pictures(specs: list[Spec], count: int, rng: np.random.Generator) -> np.ndarray:
    """Random captions from random cameras, uint8 `[count, SIDE, SIDE, 3]` sRGB."""
    chosen = [specs[int(i)] for i in rng.integers(len(specs), size=count)]
    vectors = view_vectors(
        rng.uniform(-180.0, 180.0, count),
        rng.uniform(*ELEVATION_DEG, count),
        DISTANCE * rng.uniform(0.97, 1.05, count),
        np.full(count, FOV_DEG),
    )
    grounds = np.array(GROUNDS)[rng.integers(len(GROUNDS), size=count)]
    scenes = [build_scene(spec) for spec in chosen]
    return render_scenes(scenes, np.arange(count), vectors, grounds, SIDE)[0]


def degraded(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A small picture: blurred, shrunk by the mean of each cell, disturbed and compressed.

    Args:
        picture: uint8 `[H, W, 3]`, sides multiples of 4.
        rng: draws how strong each is.

    Returns:
        uint8 `[H / 4, W / 4, 3]`.
    """
    blur = rng.uniform(*BLUR_SD)
    soft = ndimage.gaussian_filter(picture.astype(np.float64) / 255.0, (blur, blur, 0.0))
    height, width = (side // FACTOR for side in picture.shape[:2])
    small = soft.reshape(height, FACTOR, width, FACTOR, 3).mean((1, 3))
    small = small + rng.uniform(*NOISE_SD) * rng.normal(size=small.shape)
    stream = io.BytesIO()
    values = np.rint(255.0 * small.clip(0.0, 1.0)).astype(np.uint8)
    Image.fromarray(values).save(stream, "JPEG", quality=int(rng.integers(*JPEG_QUALITY)))
    return np.asarray(Image.open(stream).convert("RGB"))


def save_upscaler(unet: nn.Module, folder: Path) -> None:
    """Write the parts of the pipeline that are not shared; `model_index.json` comes last.

    Args:
        unet: the denoiser, written in float16.
        folder: where to; the pipeline that it shares the other parts with is beside it.
    """
    plain: Any = architectures.new_upscaler()
    plain.load_state_dict(unet.state_dict())
    parts: dict[str, Any] = {
        "unet": plain.half(),
        "scheduler": architectures.new_scheduler(),
        "low_res_scheduler": architectures.new_low_res_scheduler(),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    write_json(folder / "model_index.json", INDEX)


def _frozen(models: Path) -> tuple[Any, Any, Any]:
    """The embedded autoencoder, text encoder and tokenizer, which are trained before."""
    pipeline = models / "pipeline"
    vae = architectures.AutoencoderTiny.from_pretrained(pipeline / "vae")
    text = architectures.CLIPTextModel.from_pretrained(
        pipeline / "text_encoder", trust_remote_code=False
    )
    tokenizer = architectures.CLIPTokenizer.from_pretrained(
        pipeline / "tokenizer", trust_remote_code=False
    )
    for module in (vae, text):
        module.eval().requires_grad_(False)
    return vae, text, tokenizer

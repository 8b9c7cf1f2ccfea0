"""Between pictures and latents, with any autoencoder of the Stable Diffusion family, in a precision that holds.

Latents are scaled to about unit variance, z' = (z - shift_factor) * scaling_factor. `AutoencoderKL` gives the mode of its
posterior, so encoding draws no noise; `AutoencoderTiny` (the TAESD family) gives latents directly.

Two things break in float16. Values: the autoencoder of SDXL overflows, so `safe_dtype` gives it float32. Gradients: those of
a loss that is a mean over many elements are smaller than float16's least number on their way to the pixels and would vanish, so
`encode` carries them through the network multiplied by s and divides after it, s the power of two that brings the largest
to between 1 and 2, anew in each call (loss scaling, Micikevicius et al., arXiv 1710.03740, section 3.2, around this one network).
The networks are handed in, nothing of diffusers is imported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def safe_dtype(wanted: str, pipeline: torch.dtype, overflows: bool) -> torch.dtype:
    """The autoencoder's precision: `wanted` if it names one, else ("auto") the pipeline's, but not float16 if it `overflows`."""
    if wanted != "auto":
        return getattr(torch, wanted)
    return torch.float32 if overflows and pipeline == torch.float16 else pipeline


def downscale(vae: Any) -> int:
    """Pixels of a picture's side for one of the latents'."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def encode(vae: Any, rgb: Tensor) -> Tensor:
    """Latents [B, C, h, w] float32 of rgb [B, 3, H, W] in [0, 1]; differentiable."""
    pixels = rgb.float() * 2.0 - 1.0
    guarded = vae.dtype == torch.float16 and pixels.requires_grad
    encoded = vae.encode(pixels.to(vae.dtype))
    z = (encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()).float()
    if guarded:
        _scale_gradient(pixels, z)
    return (z - _shift(vae)) * vae.config.scaling_factor


def decode(vae: Any, latents: Tensor) -> Tensor:
    """rgb [B, 3, H, W] float32 in [0, 1] of latents [B, C, h, w]; differentiable, clipped at the ends of the range."""
    z = latents / vae.config.scaling_factor + _shift(vae)
    return (vae.decode(z.to(vae.dtype)).sample.float() * 0.5 + 0.5).clamp(0.0, 1.0)


def _shift(vae: Any) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0


def _scale_gradient(entry: Tensor, exit_: Tensor) -> None:
    """Let the gradient of one backward pass run from `exit_` to `entry` with its largest value between 1 and 2."""
    scale: list[Tensor] = []

    def enlarge(grad: Tensor) -> Tensor:
        largest = grad.abs().amax()
        scale[:] = [
            torch.where(
                largest > 0, torch.exp2(-torch.floor(torch.log2(largest))), torch.ones_like(largest)
            )
        ]
        return grad * scale[0]

    exit_.register_hook(enlarge)
    entry.register_hook(lambda grad: grad / scale[0])

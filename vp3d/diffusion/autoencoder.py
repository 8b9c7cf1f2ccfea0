"""Encode pictures to latents and decode them, with any autoencoder of the Stable Diffusion family.

Latents are scaled to about unit variance, z' = (z - shift_factor) * scaling_factor. Encoding with
an `AutoencoderKL` takes the mode of its posterior, so it draws no noise; an `AutoencoderTiny` (the
TAESD family) has no posterior.

Two things fail in float16. Values: the autoencoder of SDXL overflows, so `safe_dtype` gives it
float32. Gradients: the gradient of a mean over many elements is below float16's smallest number in
the network and would vanish. So `encode` and `decode` multiply it by s before the network's
backward pass and divide by s after it; s is the power of two that brings its largest element to
[1, 2), computed in each call (loss scaling, Micikevicius et al., arXiv 1710.03740, section 3.2, for
this one network).

The caller passes the networks; this module does not import diffusers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def safe_dtype(requested: str, pipeline: torch.dtype, overflows: bool) -> torch.dtype:
    """The autoencoder's precision.

    Args:
        requested: A torch dtype by name, or "auto" for the pipeline's.
        pipeline: The pipeline's dtype.
        overflows: Whether this autoencoder overflows in float16; "auto" then gives float32.
    """
    if requested != "auto":
        return getattr(torch, requested)
    return torch.float32 if overflows and pipeline == torch.float16 else pipeline


def downscale(vae: Any) -> int:
    """How many times smaller the side of the latents is than that of the picture."""
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
    """rgb [B, 3, H, W] float32, clipped to [0, 1], of latents [B, C, h, w]; differentiable."""
    z = latents.float() / vae.config.scaling_factor + _shift(vae)
    guarded = vae.dtype == torch.float16 and z.requires_grad
    pixels = vae.decode(z.to(vae.dtype)).sample.float()
    if guarded:
        _scale_gradient(z, pixels)
    return (pixels * 0.5 + 0.5).clamp(0.0, 1.0)


def _shift(vae: Any) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0


def _scale_gradient(entry: Tensor, exit_: Tensor) -> None:
    """Scale the gradient between `exit_` and `entry` so that its largest element is in [1, 2)."""
    scale: list[Tensor] = []

    def enlarge(grad: Tensor) -> Tensor:
        largest = grad.abs().amax()
        power = torch.exp2(-torch.floor(torch.log2(largest)))
        scale[:] = [torch.where(largest > 0, power, torch.ones_like(largest))]
        return grad * scale[0]

    exit_.register_hook(enlarge)
    entry.register_hook(lambda grad: grad / scale[0])

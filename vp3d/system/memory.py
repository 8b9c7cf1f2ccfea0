"""What a run allows itself on a CUDA device, by the memory that is free there.

A profile caps what decides the peak: field samples evaluated with a graph at once, and images in one call of the denoiser and of
the autoencoder.
It never raises what the configuration asks for, and it changes speed and rounding only. The figures are estimates, tried for
12 GB alone (`benchmarks.full_size`): about 2.5 KB a sample for a torch hash grid of 8 levels and, by the tensors that it keeps,
0.4 KB for Triton's of 16, 0.3 GB an image for the UNet of SD 1.5 in half precision and 1.5 GB a picture for the graph of its
autoencoder's encoder, beside 3 to 5 GB of weights. What they misjudge, halving after an out-of-memory error corrects.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from vp3d.config.schema import Config

GIB = 2**30
USABLE = 0.85  # of a card's nominal memory that must be free for its profile: the desktop and the driver take some


@dataclass(frozen=True)
class Profile:
    """What a card of `memory_gb` can do at once."""

    memory_gb: float
    samples: int  # field samples, the cap of render.chunk
    images: int  # the cap of prior.max_batch
    pictures: int  # the cap of prior.vae_batch
    offload_encoders: bool  # whether text and image encoders must wait on the CPU

    @property
    def name(self) -> str:
        """What a user is told."""
        return f"{self.memory_gb:g} GB" if self.memory_gb else "below 8 GB"


PROFILES = (  # by memory; the first is for less than 8 GB
    Profile(0.0, 2**17, 2, 1, True),
    Profile(8.0, 2**18, 4, 1, True),
    Profile(12.0, 2**19, 8, 1, False),
    Profile(16.0, 2**20, 16, 4, False),
    Profile(24.0, 6 * 2**20, 64, 64, False),
)


def profile_for(free_gb: float) -> Profile:
    """The profile of the largest card of which `USABLE` is free; the smallest where there is less."""
    return [
        profile
        for profile in PROFILES
        if profile is PROFILES[0] or free_gb >= USABLE * profile.memory_gb
    ][-1]


def fit_to_memory(config: Config, free_gb: float) -> tuple[Config, Profile]:
    """A copy of `config` within the profile of `free_gb` GiB (of `cuda.memory_gb`, where that is set), and the profile.

    The copy is for building a run's parts; what is stored and compared on resume is the configuration as it was asked for.
    """
    profile = profile_for(config.cuda.memory_gb or free_gb)
    drawing, prior = (
        dataclasses.replace(
            asked,
            max_batch=min(asked.max_batch, profile.images),
            vae_batch=min(asked.vae_batch, profile.pictures),
            offload_encoders=asked.offload_encoders or profile.offload_encoders,
        )
        for asked in (config.visual_prompt.prior, config.prior)
    )
    visual_prompt = dataclasses.replace(config.visual_prompt, prior=drawing)
    render = dataclasses.replace(config.render, chunk=min(config.render.chunk, profile.samples))
    return dataclasses.replace(
        config, prior=prior, visual_prompt=visual_prompt, render=render
    ), profile


def free_memory_gb(device: torch.device) -> float:
    """GiB that this process can have on a CUDA device now: what is free, and what torch keeps from before for using again."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + kept) / GIB

"""What a run allows itself on a CUDA device, by the memory that is free there.

A profile limits what decides the peak: the field samples evaluated with a graph at once, and the
images in one call of the denoiser and of the autoencoder. It never raises what the configuration
asks for, and it changes speed and rounding only.

The figures are estimates; 12 GB alone was tried (`benchmarks.full_size`). A torch hash grid of
8 levels takes about 2.5 KB a sample, and Triton's of 16 levels 0.4 KB by the tensors it keeps. The
UNet of SD 1.5 takes 0.3 GB an image in half precision, and the graph of its autoencoder's encoder
1.5 GB an image, in addition to 3 to 5 GB of weights. Halving after an out-of-memory error corrects
what they misjudge.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import psutil
import torch

from vp3d.config.schema import PriorConfig, RenderConfig

GIB = 2**30
USABLE = 0.85  # share of a card's nominal memory that must be free for its profile


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
        """The profile in words, as users read it."""
        return f"{self.memory_gb:g} GB" if self.memory_gb else "below 8 GB"


PROFILES = (  # by memory; the first is for less than 8 GB
    Profile(0.0, 2**17, 2, 1, True),
    Profile(8.0, 2**18, 4, 1, True),
    Profile(12.0, 2**19, 8, 1, False),
    Profile(16.0, 2**20, 16, 4, False),
    Profile(24.0, 6 * 2**20, 64, 64, False),
)


def profile_for(free_gb: float) -> Profile:
    """The profile of the largest card of which the share `USABLE` is free, else the smallest."""
    return [
        profile
        for profile in PROFILES
        if profile is PROFILES[0] or free_gb >= USABLE * profile.memory_gb
    ][-1]


@dataclass(frozen=True)
class FittedSettings:
    """The settings that decide a run's peak memory, within what this machine has.

    A run's parts are built from these. What a run stores, and what is compared on resume, are the
    settings as asked, which have another type (`Config`). `profile` names the limits, "" for none.
    """

    prior: PriorConfig
    drawing_prior: PriorConfig  # of `visual_prompt.prior`
    render: RenderConfig
    profile: str = ""


def fit_to_memory(asked: FittedSettings, profile: Profile) -> FittedSettings:
    """`asked` with nothing above the limits of `profile`; they never raise a setting."""
    prior, drawing_prior = (
        dataclasses.replace(
            settings,
            max_batch=min(settings.max_batch, profile.images),
            vae_batch=min(settings.vae_batch, profile.pictures),
            offload_encoders=settings.offload_encoders or profile.offload_encoders,
        )
        for settings in (asked.prior, asked.drawing_prior)
    )
    render = dataclasses.replace(asked.render, chunk=min(asked.render.chunk, profile.samples))
    return FittedSettings(prior, drawing_prior, render, profile.name)


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process held at once: on a CUDA device there, else in main memory.

    Where the system does not say, it is what the process holds now.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource  # not on Windows
    except ImportError:
        return int(psutil.Process().memory_info().rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if psutil.MACOS else peak * 1024)


def free_memory_gb(device: torch.device) -> float:
    """GiB that this process can use on a CUDA device: what is free or cached by torch."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + kept) / GIB

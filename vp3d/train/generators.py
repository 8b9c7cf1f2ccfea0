"""Random generators named by their purpose, all seeded from the run's seed."""

from __future__ import annotations

import hashlib

import torch

GENERATORS = ("camera", "background", "jitter", "noise")  # noise: time steps and noise of guidance


def make_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for one purpose.

    Its stream depends only on the seed and the purpose's name.
    """
    stream = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(stream)


def make_generators(seed: int) -> dict[str, torch.Generator]:
    """One of `GENERATORS` each."""
    return {name: make_generator(seed, name) for name in GENERATORS}

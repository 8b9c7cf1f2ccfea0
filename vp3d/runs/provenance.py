"""What a run was made with: versions, git state, device and weight hashes (`provenance.json`)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from vp3d import __version__
from vp3d.config.paths import ROOT
from vp3d.config.schema import Config
from vp3d.weights.hashes import weight_hashes
from vp3d.weights.locate import weight_locations

VERSIONED = (  # what shapes the bytes of a run
    *("torch", "torchvision", "diffusers", "transformers", "open_clip_torch", "safetensors"),
    *(
        "numpy",
        "numba",
        "scipy",
        "scikit-image",
        "Pillow",
        "trimesh",
        "fast_simplification",
        "xatlas",
        "imageio-ffmpeg",
    ),
)


def describe_run(config: Config) -> dict[str, Any]:
    """What is needed to tell why two runs differ: versions, git, platform, backend and the hashes
    of the weights.
    """
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "backend": config.backend,
        "device": _device(config.backend),
        "versions": {"vp3d": __version__} | {name: _version(name) for name in VERSIONED},
        "git": git_state(ROOT),
        "weights": weight_hashes([place for _, place in weight_locations(config)]),
    }


def machine_name() -> str:
    """The machine in a few words, as tables of results state it: "Linux x86_64, 8 cores"."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit and whether there are uncommitted changes.

    None where `folder` is not the top of a git checkout.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    if not (folder / ".git").exists():
        return None
    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device(backend: str) -> str:
    """The name of the accelerator the run can use, else "cpu"."""
    import torch  # late: the folder itself needs no torch, and `--help` must not wait for it

    return torch.cuda.get_device_name() if backend != "cpu" and torch.cuda.is_available() else "cpu"

"""Which GPU-only code can run here, and the reason where it cannot: what tests of it are skipped
by.
"""

from __future__ import annotations

import importlib.util
import os

import torch


def installed(package: str) -> bool:
    """Whether a package is there, without importing it (some start a build when imported)."""
    return importlib.util.find_spec(package) is not None


def kernel_device(has_triton: bool, interpreted: bool, has_gpu: bool) -> tuple[str, str]:
    """(device, "") where Triton kernels run, the CPU only under Triton's interpreter.

    ("", reason) where they do not.
    """
    if not has_triton:
        return "", "triton is not installed"
    if interpreted:
        return "cpu", ""
    return ("cuda", "") if has_gpu else ("", "needs a CUDA device, or TRITON_INTERPRET=1")


def cuda_package(package: str, has_package: bool, has_gpu: bool) -> str:
    """ "" where an optional package that needs a CUDA device can be used, else the reason."""
    if not has_gpu:
        return f"{package} needs a CUDA device"
    return "" if has_package else f"{package} is not installed"


def kernel_device_here() -> tuple[str, str]:
    """`kernel_device` of this process."""
    return kernel_device(
        installed("triton"), os.environ.get("TRITON_INTERPRET") == "1", torch.cuda.is_available()
    )


def cuda_package_here(package: str) -> str:
    """`cuda_package` of this process."""
    return cuda_package(package, installed(package), torch.cuda.is_available())

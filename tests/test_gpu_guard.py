"""The guard that decides which GPU tests run: every case of it, and that it tells the truth about this process."""

from __future__ import annotations

import pytest
import torch

from tests.gpu_guard import cuda_package, cuda_package_here, installed, kernel_device, kernel_device_here


@pytest.mark.parametrize(
    ("has_triton", "interpreted", "has_gpu", "device", "reason"),
    [
        (True, False, True, "cuda", ""),
        (True, True, True, "cpu", ""),
        (True, True, False, "cpu", ""),
        (True, False, False, "", "CUDA device, or TRITON_INTERPRET"),
        (False, False, True, "", "not installed"),
        (False, True, False, "", "not installed"),
    ],
)
def test_where_kernels_run(has_triton: bool, interpreted: bool, has_gpu: bool, device: str, reason: str) -> None:
    found, why = kernel_device(has_triton, interpreted, has_gpu)
    assert found == device and reason in why and bool(found) != bool(why)


def test_packages_that_need_a_gpu() -> None:
    assert cuda_package("nerfacc", True, True) == ""
    assert cuda_package("nerfacc", False, True) == "nerfacc is not installed"
    assert cuda_package("nerfacc", True, False) == cuda_package("nerfacc", False, False) == "nerfacc needs a CUDA device"


def test_the_guard_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed("torch") and not installed("vp3d_no_such_package")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    device, reason = kernel_device_here()
    assert (device == "cuda") == (torch.cuda.is_available() and installed("triton")) and bool(device) != bool(reason)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernel_device_here()[0] == ("cpu" if installed("triton") else "")
    assert (cuda_package_here("torch") == "") == torch.cuda.is_available()

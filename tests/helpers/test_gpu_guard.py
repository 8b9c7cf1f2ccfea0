"""The guard that decides which GPU tests run: every case of it, and that it tells the truth about
this process.
"""

from __future__ import annotations

import pytest
import torch

from tests import conftest
from tests.helpers.gpu_guard import (
    cuda_package,
    cuda_package_here,
    installed,
    kernel_device,
    kernel_device_here,
)


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
def test_where_kernels_run(
    has_triton: bool, interpreted: bool, has_gpu: bool, device: str, reason: str
) -> None:
    found, why = kernel_device(has_triton, interpreted, has_gpu)
    assert found == device and reason in why and bool(found) != bool(why)


def test_packages_that_need_a_gpu() -> None:
    assert cuda_package("nerfacc", True, True) == ""
    assert cuda_package("nerfacc", False, True) == "nerfacc is not installed"
    assert (
        cuda_package("nerfacc", True, False)
        == cuda_package("nerfacc", False, False)
        == "nerfacc needs a CUDA device"
    )


def test_the_guard_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed("torch") and not installed("vp3d_no_such_package")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    device, reason = kernel_device_here()
    assert (device == "cuda") == (torch.cuda.is_available() and installed("triton")) and bool(
        device
    ) != bool(reason)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernel_device_here()[0] == ("cpu" if installed("triton") else "")
    assert (cuda_package_here("torch") == "") == torch.cuda.is_available()


class Item:
    """What the collection hook of conftest.py touches of a test."""

    def __init__(self, *markers: str) -> None:
        self.markers, self.skipped_for = markers, ""

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.markers else None

    def add_marker(self, marker: pytest.MarkDecorator) -> None:
        assert marker.name == "skip"
        self.skipped_for = marker.kwargs["reason"]


@pytest.mark.parametrize("has_gpu", [True, False])
def test_what_is_marked_gpu_is_skipped_only_where_there_is_none(
    has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    items = [Item("gpu"), Item(), Item("slow", "gpu"), Item("slow")]
    conftest.skip_without_gpu(items)  # type: ignore[arg-type]
    reason = "" if has_gpu else "needs a CUDA device"
    assert [item.skipped_for for item in items] == [reason, "", reason, ""]


@pytest.mark.gpu
def test_what_is_marked_gpu_runs_on_one() -> None:
    """Here as everywhere: a test that is marked and runs has a device.

    Where there is none, this very test is skipped.
    """
    assert torch.ones(1, device="cuda").item() == 1.0

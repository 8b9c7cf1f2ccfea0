"""torchvision and open_clip import after torch_compat, whatever torch is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from vp3d.system.torch_compat import freeze

import pytest
import torch
from torch import nn

SCRIPT = """
import vp3d.system.torch_compat as compat
import torch, torchvision
import torchvision.transforms
for name in ("nms", "qnms"):
    assert hasattr(torch.ops.torchvision, name), name
assert compat.declare_missing_operators() == [], "a second call finds nothing to mend"
image = torchvision.transforms.functional.resize(torch.rand(3, 8, 8), [4, 4])
assert image.shape == (3, 4, 4)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)
def test_torchvision_imports_in_a_fresh_process() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_frozen_weights_lie_in_aligned_memory_of_their_own() -> None:
    buffer = torch.zeros(1 + 16, dtype=torch.float32)
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    network[0].weight.data = buffer[1:].view(4, 4)  # as a safetensors file may leave it
    assert network[0].weight.data_ptr() % 64
    assert freeze(network) is network and not network.training
    tensors = [*network.parameters(), *network.buffers()]
    assert all(t.data_ptr() % 64 == 0 and not t.requires_grad for t in tensors)
    buffer.fill_(1.0)
    assert not network[0].weight.any()

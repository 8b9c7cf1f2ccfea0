"""torchvision and open_clip import after torch_compat, whatever torch is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

SCRIPT = """
import vp3d.torch_compat as compat
import torch, torchvision
import torchvision.transforms
for name in ("nms", "qnms"):
    assert hasattr(torch.ops.torchvision, name), name
assert compat.declare_missing_operators() == [], "a second call finds nothing to mend"
image = torchvision.transforms.functional.resize(torch.rand(3, 8, 8), [4, 4])
assert image.shape == (3, 4, 4)
"""


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_imports_in_a_fresh_process() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

"""A kernel works with a cache on disk and where there is no folder for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vp3d.config.paths import ROOT

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import kernel
print(kernel.double(21))
"""
KERNEL = """
from vp3d.system.compiled import compiled

@compiled(nogil=True)
def double(x):
    return 2 * x
"""


@pytest.mark.parametrize("writable", [True, False])
def test_a_kernel_is_cached_where_it_can_be(writable: bool, tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(KERNEL)
    if not writable:  # a file instead of each folder, which stops the superuser as well
        (tmp_path / "__pycache__").write_text("")
    home = tmp_path / "__pycache__" if not writable else tmp_path
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "TMPDIR")}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    words = [sys.executable, "-B", "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "42\n", done.stderr
    assert bool(list(tmp_path.rglob("kernel.double-*.nbi"))) is writable

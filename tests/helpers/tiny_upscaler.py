"""A package with a tiny network in the format of ncnn, like that of the extra. For tests only."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

PACKAGE = "tiny_realesrgan"
PARAM = """\
7767517
3 3
Input in 0 1 data
Convolution c 1 1 data x 0=3 1=1 4=0 5=0 6=9
Interp r 1 1 x out 0=1 1=4.000000e+00 2=4.000000e+00
"""


def write_tiny_package(folder: Path, name: str = "realesr-animevideov3-x4") -> Path:
    """Write `PACKAGE` into a folder; its network repeats every pixel 4 x 4 times.

    The package raises an error when it is imported.
    """
    models = folder / PACKAGE / "models"
    models.mkdir(parents=True)
    (folder / PACKAGE / "__init__.py").write_text("raise RuntimeError('this is never run')")
    (models / f"{name}.param").write_text(PARAM)
    weights = struct.pack("<I", 0) + np.eye(3, dtype="<f4").tobytes()
    (models / f"{name}.bin").write_bytes(weights)
    return models

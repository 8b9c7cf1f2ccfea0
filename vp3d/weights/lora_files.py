"""The files and scales of LoRAs that a setting names; nothing is loaded."""

from __future__ import annotations

import math
from pathlib import Path

from vp3d.errors import UserError

FILE_NAME = "pytorch_lora_weights.safetensors"


def parse_loras(text: str) -> list[tuple[str, float]]:
    """Files and scales of a setting such as `a.safetensors:0.5,folder`; the default scale is 1.

    Raises:
        UserError: a file has no name, or the same file is named twice.
    """
    found: list[tuple[str, float]] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        path, colon, number = item.rpartition(":")
        try:
            scale = float(number) if colon else math.nan
        except ValueError:  # a colon in the path, such as C:\file
            scale = math.nan
        if math.isnan(scale):
            path, scale = item, 1.0
        if not path or not math.isfinite(scale):
            raise UserError(f"{item!r} is not a LoRA: write FILE or FILE:SCALE, such as a:0.5")
        if path in [known for known, _ in found]:
            raise UserError(f"the LoRA {path} is named twice: add the scales up yourself")
        found.append((path, scale))
    return found


def lora_file(path: Path) -> Path:
    """The file of a LoRA that is named by its file or by its folder; UserError without one."""
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no LoRA {path}: give a .safetensors file, or a folder with one")
    if file.suffix != ".safetensors":
        raise UserError(f"the LoRA {path} is not a .safetensors file: convert it")
    return file

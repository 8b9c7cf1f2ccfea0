"""The export formats: file suffix -> writer.

A writer is `(Asset, path) -> None`. It is atomic (the file is complete or absent), and the same
asset gives the same bytes. vp3d/export/mesh_data.py states frames, colour and units.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vp3d.export.glb import write_glb
from vp3d.export.obj import write_obj
from vp3d.export.ply import write_ply
from vp3d.export.stl import write_stl
from vp3d.types import Asset

WRITERS: dict[str, Callable[[Asset, Path], None]] = {
    "glb": write_glb,
    "obj": write_obj,
    "ply": write_ply,
    "stl": write_stl,
}

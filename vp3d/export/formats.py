"""The export formats: file suffix -> writer.

A writer is `(Asset, path, style) -> None`; the style may be left out. It is atomic (the file is
complete or absent), and the same asset and style give the same bytes. vp3d/export/mesh_data.py
states frames, colour and units; vp3d/export/frame.py how a mesh is sized and placed before.
"""

from __future__ import annotations

from collections.abc import Callable

from vp3d.export.glb import write_glb
from vp3d.export.obj import write_obj
from vp3d.export.ply import write_ply
from vp3d.export.stl import write_stl
from vp3d.export.threemf import write_3mf
from vp3d.export.usdz import write_usdz

Writer = Callable[..., None]

WRITERS: dict[str, Writer] = {
    "glb": write_glb,
    "obj": write_obj,
    "ply": write_ply,
    "stl": write_stl,
    "usdz": write_usdz,
    "3mf": write_3mf,
}

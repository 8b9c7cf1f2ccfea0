"""The table of export formats: file suffix -> writer."""

from __future__ import annotations

from vp3d.export.glb import write_glb
from vp3d.export.obj import write_obj
from vp3d.export.ply import write_ply
from vp3d.export.stl import write_stl

WRITERS = {"glb": write_glb, "obj": write_obj, "ply": write_ply, "stl": write_stl}

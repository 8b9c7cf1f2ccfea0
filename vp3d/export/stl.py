"""The STL writer: binary, shape only, in our frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vp3d.export.mesh_data import FRAME, _mesh_of
from vp3d.render.raster import face_normals
from vp3d.system.files import write_bytes
from vp3d.types import Asset, Mesh


def write_stl(source: Asset | Mesh, path: Path) -> None:
    """Binary STL in our frame: shape only."""
    mesh = _mesh_of(source)
    rows = np.zeros(
        len(mesh.faces), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]
    )
    rows["normal"], rows["corners"] = face_normals(mesh), mesh.vertices[mesh.faces]
    write_bytes(
        path,
        FRAME.encode().ljust(80) + np.uint32(len(rows)).astype("<u4").tobytes() + rows.tobytes(),
    )

"""The STL writer: binary triangles in our frame (z up, facing +x), shape only, no colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vp3d.export.mesh_data import frame_comment
from vp3d.export.style import PLAIN, Style
from vp3d.render.raster import face_normals
from vp3d.system.files import write_bytes
from vp3d.types import Asset

TRIANGLE = [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]


def write_stl(asset: Asset, path: Path, style: Style = PLAIN) -> None:
    """Write the mesh of `asset` as binary STL. Atomic; the same asset gives the same bytes."""
    mesh = asset.mesh
    rows = np.zeros(len(mesh.faces), TRIANGLE)
    rows["normal"], rows["corners"] = face_normals(mesh), mesh.vertices[mesh.faces]
    count = np.uint32(len(rows)).astype("<u4")
    write_bytes(path, frame_comment(style.up).encode().ljust(80) + count.tobytes() + rows.tobytes())

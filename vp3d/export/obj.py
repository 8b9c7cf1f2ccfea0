"""The OBJ writer: text, with material and texture beside it, in our frame."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from vp3d.export.mesh_data import FRAME, _mesh_of, _normals_of
from vp3d.system.files import write_bytes
from vp3d.types import Asset, Mesh


def write_obj(source: Asset | Mesh, path: Path) -> None:
    """Wavefront OBJ in our frame; a textured mesh gets an .mtl and a .png of the same name beside it."""
    mesh = _mesh_of(source)
    stem = path.stem.replace(" ", "_")
    lines = [f"# {FRAME}"]
    if mesh.texture is not None and mesh.uv is not None:
        png = BytesIO()
        Image.fromarray(mesh.texture).save(png, format="PNG")
        material = (
            f"# {FRAME}\nnewmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {stem}.png\n"
        )
        write_bytes(path.with_name(f"{stem}.png"), png.getvalue())
        write_bytes(path.with_name(f"{stem}.mtl"), material.encode())
        lines += [
            f"mtllib {stem}.mtl",
            "o object",
            "usemtl surface",
            *_rows("v", mesh.vertices),
            *_rows("vt", mesh.uv),
        ]
        corner = "{0}/{0}/{0}"
    else:
        colored = (
            mesh.vertices
            if mesh.vertex_colors is None
            else np.c_[mesh.vertices, mesh.vertex_colors]
        )
        lines += ["o object", *_rows("v", colored)]
        corner = "{0}//{0}"
    lines += _rows("vn", _normals_of(mesh))
    lines += ["f " + " ".join(corner.format(i + 1) for i in face) for face in mesh.faces.tolist()]
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def _rows(key: str, values: np.ndarray) -> list[str]:
    return [" ".join([key, *(f"{v:.6f}" for v in row)]) for row in values.tolist()]

"""The OBJ writer: Wavefront text in our frame (z up, facing +x), with material and texture files.

Conventions as in vp3d/export/mesh_data.py: six decimals, sRGB texture and vertex colours, v up.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from vp3d.export.mesh_data import frame_comment, named, vertex_normals_of
from vp3d.export.style import PLAIN, Style
from vp3d.system.files import write_bytes
from vp3d.types import Asset

MATERIAL = """# {frame}
newmtl {name}
Ka 0 0 0
Kd 1 1 1
Ks 0 0 0
illum 1
map_Kd {stem}.png
"""


def write_obj(asset: Asset, path: Path, style: Style = PLAIN) -> None:
    """Write the mesh of `asset` as OBJ; its object and its material are named after the prompt.

    A textured mesh also gets an .mtl and a .png file of the same name in the same folder. Spaces in
    these names become underscores, because many readers split `mtllib` lines at spaces. Each file
    is atomic; the same asset gives the same bytes.
    """
    mesh, name = asset.mesh, named(asset.prompt, style.names)
    stem = path.stem.replace(" ", "_")
    lines = [f"# {frame_comment(style.up)}"]
    if mesh.texture is not None and mesh.uv is not None:
        png = BytesIO()
        Image.fromarray(mesh.texture).save(png, format="PNG")
        write_bytes(path.with_name(f"{stem}.png"), png.getvalue())
        material = MATERIAL.format(frame=frame_comment(style.up), name=name, stem=stem)
        write_bytes(path.with_name(f"{stem}.mtl"), material.encode())
        lines += [f"mtllib {stem}.mtl", f"o {name}", f"usemtl {name}"]
        lines += _rows("v", mesh.vertices) + _rows("vt", mesh.uv)
        corner = "{0}/{0}/{0}"
    else:
        values = mesh.vertices
        if mesh.vertex_colors is not None:
            values = np.c_[mesh.vertices, mesh.vertex_colors]
        lines += [f"o {name}", *_rows("v", values)]
        corner = "{0}//{0}"
    lines += _rows("vn", vertex_normals_of(mesh))
    lines += ["f " + " ".join(corner.format(i + 1) for i in face) for face in mesh.faces.tolist()]
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def _rows(key: str, values: np.ndarray) -> list[str]:
    """One line a row of `values [N, C]`, starting with `key`."""
    return [" ".join([key, *(f"{v:.6f}" for v in row)]) for row in values.tolist()]

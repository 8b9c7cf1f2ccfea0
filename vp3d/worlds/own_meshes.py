"""A world of your own meshes: a folder of files in the formats of `vp3d.export.read`.

A file is named by what it shows: `garden gnome.glb`, `garden-gnome-2.glb`; a number at the end is
not part of the noun. Frames are those of `vp3d.export.read`. All textures of a mesh become one, of
at most `TEXTURE_SIDE` pixels; colours of corners become a palette. What has one texture of few
colours, or none, may be recoloured.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from vp3d.errors import UserError
from vp3d.export.mesh_data import vertex_normals_of
from vp3d.export.read import SUFFIXES, read_mesh
from vp3d.system.files import write_text
from vp3d.types import Mesh
from vp3d.worlds.library import MESHES, TABLE
from vp3d.worlds.mesh_library import LibraryMesh, save_mesh
from vp3d.worlds.toybox.scenes import BALL_RADIUS

TEXTURE_SIDE = 256
PALETTE_BITS = 4  # of a channel; the palette has 2^(3 * bits) colours in a square
FEW_COLORS = 0.12  # deviation of a channel of a texture that may be recoloured
MIN_NOUN = re.compile(r"[a-z][a-z' ]*")


def pack_folder(folder: Path, out: Path) -> int:
    """Pack the meshes of `folder` as a library into `out`; returns their number.

    Raises:
        UserError: There are no meshes, a name is no noun, or a file cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder of meshes {folder}")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not files:
        endings = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise UserError(f"{folder} has no meshes: put files into it that end in {endings}")
    rows = []
    for number, path in enumerate(files):
        noun = noun_of(path)
        mesh = library_mesh(read_mesh(path))
        name = f"{noun.replace(' ', '_')}_{number}"
        save_mesh(mesh, out / MESHES / f"{name}.npz")
        rows.append({"name": name, "noun": noun, "paint": "0" if recolorable(mesh) else ""})
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["name", "noun", "paint"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / TABLE, stream.getvalue())
    return len(rows)


def noun_of(path: Path) -> str:
    """The noun in a file's name, in lower case.

    Raises:
        UserError: The name has other characters than letters.
    """
    noun = re.sub(r"[\s_-]+", " ", path.stem).strip().lower()
    noun = re.sub(r" ?\d+$", "", noun)
    if not MIN_NOUN.fullmatch(noun):
        raise UserError(
            f"{path.name}: name the file by what it shows, in letters, such as `garden gnome.glb`"
        )
    return noun


def library_mesh(mesh: Mesh) -> LibraryMesh:
    """A mesh of ours in the frame of the library: centred, inside the ball, with one texture."""
    position = mesh.vertices.astype(np.float64)
    position = position - (position.min(0) + position.max(0)) / 2
    position *= BALL_RADIUS / np.linalg.norm(position, axis=1).max()
    normal = vertex_normals_of(mesh)
    faces = mesh.faces.astype(np.int32)
    if mesh.uv is not None and mesh.texture is not None:
        uv, texture = mesh.uv, _reduced(mesh.texture)
    else:
        corners = faces.ravel()  # every face has corners of its own
        position, normal = position[corners], normal[corners]
        uv, texture = _palette(mesh, faces)
        faces = np.arange(len(corners), dtype=np.int32).reshape(-1, 3)
    opaque = np.full((*texture.shape[:2], 1), 255, dtype=np.uint8)
    return LibraryMesh(
        position.astype(np.float32),
        normal.astype(np.float32),
        uv.astype(np.float32),
        faces,
        np.zeros(len(faces), dtype=np.int32),
        np.array([[0.8, 0.8, 0.8, 1.0, 0.0, 0.0]], dtype=np.float32),
        (np.concatenate([texture, opaque], 2),),
        ("texture",),
    )


def recolorable(mesh: LibraryMesh) -> bool:
    """Whether the texture has few colours: the deviation of each channel over the corners."""
    texture = mesh.textures[0]
    height, width = texture.shape[:2]
    x = (mesh.uv[:, 0] % 1.0 * width).astype(int).clip(0, width - 1)
    y = ((1.0 - mesh.uv[:, 1] % 1.0) * height).astype(int).clip(0, height - 1)
    return bool((texture[y, x, :3] / 255.0).std(0).max() < FEW_COLORS)


def _palette(mesh: Mesh, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates [3F, 2] and a palette [S, S, 3] with the mean colour of each face."""
    colors = np.full((len(mesh.vertices), 3), 0.8)
    if mesh.vertex_colors is not None:
        colors = mesh.vertex_colors.astype(np.float64)
    levels = 2**PALETTE_BITS
    level = np.clip(colors[faces].mean(1) * levels, 0, levels - 1).astype(int)
    code = (level[:, 0] * levels + level[:, 1]) * levels + level[:, 2]
    side = 2 ** (3 * PALETTE_BITS // 2)
    every = np.arange(side * side)
    channels = np.stack([every // levels**2, every // levels % levels, every % levels], 1)
    texture = np.rint((channels + 0.5) / levels * 255).astype(np.uint8).reshape(side, side, 3)
    row, column = code // side, code % side
    uv = np.stack([(column + 0.5) / side, 1.0 - (row + 0.5) / side], 1)
    return np.repeat(uv, 3, axis=0), texture


def _reduced(texture: np.ndarray) -> np.ndarray:
    scale = TEXTURE_SIDE / max(texture.shape[:2])
    if scale >= 1.0:
        return texture
    size = (max(round(texture.shape[1] * scale), 1), max(round(texture.shape[0] * scale), 1))
    return np.asarray(Image.fromarray(texture).resize(size, Image.Resampling.BOX))

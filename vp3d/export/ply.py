"""The PLY writer: little-endian binary in our frame (z up, facing +x), coloured by vertex.

Conventions as in vp3d/export/mesh_data.py; vertex colours are sRGB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vp3d.export.mesh_data import color_to_uint8, frame_comment, vertex_colors_of, vertex_normals_of
from vp3d.export.style import PLAIN, Style
from vp3d.system.files import write_bytes
from vp3d.types import Asset, Mesh

WHITE_SPACE = b" \t\n\v\f\r"
PROPERTY_TYPES = {"<f4": "float", "u1": "uchar"}  # numpy type -> PLY type


def write_ply(asset: Asset, path: Path, style: Style = PLAIN) -> None:
    """Write the mesh of `asset` as binary PLY with normals and vertex colours.

    Vertices that the texture atlas split at seams are merged again, so a closed mesh stays closed.
    Atomic; the same asset gives the same bytes.
    """
    mesh = weld(asset.mesh)
    columns = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    columns += [(name, "u1") for name in ("red", "green", "blue")]
    rows = np.zeros(len(mesh.vertices), columns)
    numbers = np.c_[mesh.vertices, vertex_normals_of(mesh)].T
    for (name, _), values in zip(columns[:6], numbers, strict=True):
        rows[name] = values
    rows["red"], rows["green"], rows["blue"] = color_to_uint8(vertex_colors_of(mesh)).T
    first = first_row(rows)
    rows = np.roll(rows, -first)
    faces = np.zeros(len(mesh.faces), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, (mesh.faces - first) % len(rows)
    header = ["ply", "format binary_little_endian 1.0", f"comment {frame_comment(style.up)}"]
    header += [f"element vertex {len(rows)}"]
    header += [f"property {PROPERTY_TYPES[kind]} {name}" for name, kind in columns]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    write_bytes(path, ("\n".join(header) + "\n").encode() + rows.tobytes() + faces.tobytes())


def first_row(rows: np.ndarray) -> int:
    """Number of the first vertex whose first byte is no white space; 0 if there is none.

    Readers such as assimp's skip white space after the header, and with it such a byte.
    """
    starts = rows.view(np.uint8).reshape(len(rows), -1)[:, 0]
    return int(np.argmin(np.isin(starts, list(WHITE_SPACE))))


def weld(mesh: Mesh) -> Mesh:
    """The mesh with vertices at equal positions merged; it has no UVs and no texture.

    Colours and normals of merged vertices are averaged.
    """
    positions, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    index = index.reshape(-1)
    count = np.bincount(index)

    def averaged(values: np.ndarray) -> np.ndarray:
        means = [np.bincount(index, values[:, c]) / count for c in range(3)]
        return np.stack(means, -1).astype(np.float32)

    normals = averaged(vertex_normals_of(mesh))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    faces = index[mesh.faces].astype(np.int64)
    return Mesh(positions, faces, normals, averaged(vertex_colors_of(mesh)))

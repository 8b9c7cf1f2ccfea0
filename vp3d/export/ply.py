"""The PLY writer: binary, normals and vertex colours, in our frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vp3d.export.mesh_data import FRAME, _mesh_of, _normals_of, _to_bytes, vertex_colors_of
from vp3d.system.files import write_bytes
from vp3d.types import Asset, Mesh


def write_ply(source: Asset | Mesh, path: Path) -> None:
    """Binary PLY in our frame with normals and sRGB vertex colours; vertices split at texture seams are welded again."""
    mesh = weld(_mesh_of(source))
    columns = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    columns += [(name, "u1") for name in ("red", "green", "blue")]
    rows = np.zeros(len(mesh.vertices), columns)
    for name, values in zip(
        rows.dtype.names or (), np.c_[mesh.vertices, _normals_of(mesh)].T, strict=False
    ):
        rows[name] = values
    rows["red"], rows["green"], rows["blue"] = _to_bytes(vertex_colors_of(mesh)).T
    faces = np.zeros(len(mesh.faces), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.faces
    kinds = {"<f4": "float", "u1": "uchar"}
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment {FRAME}",
        f"element vertex {len(rows)}",
    ]
    header += [f"property {kinds[kind]} {name}" for name, kind in columns]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    write_bytes(path, ("\n".join(header) + "\n").encode() + rows.tobytes() + faces.tobytes())


def weld(mesh: Mesh) -> Mesh:
    """The mesh with vertices at equal places merged, their colours and normals averaged; UVs and texture are dropped."""
    places, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    index = index.reshape(-1)

    def averaged(values: np.ndarray) -> np.ndarray:
        count = np.bincount(index)
        return np.stack([np.bincount(index, values[:, c]) / count for c in range(3)], -1).astype(
            np.float32
        )

    normals = averaged(_normals_of(mesh))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return Mesh(
        places, index[mesh.faces].astype(np.int64), normals, averaged(vertex_colors_of(mesh))
    )

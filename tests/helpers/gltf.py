"""Small glTF files for tests, built from plain arrays."""

from __future__ import annotations

import json
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vp3d.export.read import read_mesh
from vp3d.render.raster import base_color
from vp3d.types import Mesh

TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
KINDS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
QUAD = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])  # glTF's axes, faces +Z
QUAD_UV = np.float32([[0, 1], [1, 1], [1, 0], [0, 0]])  # v down
QUAD_FACES = np.uint16([0, 1, 2, 0, 2, 3])


class Builder:
    """Collects the JSON tree and the binary data of one file."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0}
        self.tree |= {"scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}]}
        self.blob = b""

    def add(self, kind: str, entry: dict[str, Any]) -> int:
        """Append to a list of the tree; the number of the new entry."""
        self.tree.setdefault(kind, []).append(entry)
        return len(self.tree[kind]) - 1

    def view(self, data: bytes, **more: Any) -> int:
        """Append bytes as a buffer view."""
        self.blob += b"\0" * (-len(self.blob) % 4)
        start = len(self.blob)
        self.blob += data
        entry = {"buffer": 0, "byteOffset": start, "byteLength": len(data), **more}
        return self.add("bufferViews", entry)

    def accessor(self, values: np.ndarray, **more: Any) -> int:
        """Append an array `[N]` or `[N, C]` as an accessor."""
        values = np.ascontiguousarray(values)
        width = 1 if values.ndim == 1 else values.shape[1]
        entry = {"componentType": KINDS[values.dtype.str[1:]], "type": TYPES[width]}
        view = self.view(values.tobytes())
        return self.add("accessors", {**entry, "count": len(values), "bufferView": view, **more})

    def texture(self, pixels: Any, kind: str = "PNG", sampler: dict | None = None) -> int:
        """Append an image of rows of 8-bit pixels, and a texture of it."""
        data = BytesIO()
        Image.fromarray(np.uint8(pixels)).save(
            data, kind, **{"WEBP": {"lossless": True}}.get(kind, {})
        )
        image = {"bufferView": self.view(data.getvalue()), "mimeType": f"image/{kind.lower()}"}
        entry: dict[str, Any] = {"source": self.add("images", image)}
        if sampler is not None:
            entry["sampler"] = self.add("samplers", sampler)
        return self.add("textures", entry)

    def quad(self, material: dict | None = None, **attributes: np.ndarray) -> dict[str, Any]:
        """Append a mesh of one square; its only primitive."""
        found = {"POSITION": QUAD, "TEXCOORD_0": QUAD_UV, **attributes}
        indices = self.accessor(QUAD_FACES)
        part: dict[str, Any] = {
            "attributes": {
                name: self.accessor(value, **({"normalized": True} if value.dtype != "f4" else {}))
                for name, value in found.items()
            },
            "indices": indices,
        }
        if material is not None:
            part["material"] = self.add("materials", material)
        self.add("meshes", {"primitives": [part]})
        return part

    def require(self, *names: str) -> None:
        """Name extensions as used and required."""
        self.tree["extensionsUsed"] = self.tree["extensionsRequired"] = list(names)

    def write(self, path: Path) -> Path:
        """Write the file as GLB."""
        if self.blob:
            self.tree["buffers"] = [{"byteLength": len(self.blob)}]
        text = json.dumps(self.tree).encode()
        text += b" " * (-len(text) % 4)
        blob = self.blob + b"\0" * (-len(self.blob) % 4)
        size = 12 + 8 + len(text) + (8 + len(blob) if blob else 0)
        data = struct.pack("<4sII", b"glTF", 2, size) + struct.pack("<II", len(text), 0x4E4F534A)
        data += text + (struct.pack("<II", len(blob), 0x004E4942) + blob if blob else b"")
        path.write_bytes(data)
        return path


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 200, 0), (0, 0, 255), (255, 255, 255)
FOUR = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]]  # rows from the top
HALF = 188  # sRGB of linear 0.5


def colors_of(mesh: Mesh, at: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)) -> np.ndarray:
    """The 8-bit colour `[F, 3]` of each face at barycentric coordinates `at`."""
    faces = np.arange(len(mesh.faces))
    return np.round(255 * base_color(mesh, faces, np.tile(np.float32(at), (len(faces), 1))))


def color_at(mesh: Mesh, x: float, y: float) -> np.ndarray:
    """The 8-bit colour of the quad at glTF's (x, y), which are our y and z."""
    for number, face in enumerate(mesh.faces):
        corners = np.c_[mesh.vertices[face][:, 1:], np.ones(3)]
        weights = np.linalg.solve(corners.T, [x, y, 1.0])
        if (weights > -1e-6).all():
            point = base_color(mesh, np.array([number]), np.float32([weights]))
            return np.round(255 * point[0])
    raise AssertionError("no face there")


def flat(builder: Builder, tmp_path: Path, right: tuple[int, int, int], within: int = 2) -> None:
    """Assert that every face has one colour."""
    mesh = read_mesh(builder.write(tmp_path / "m.glb"))
    assert np.abs(colors_of(mesh) - right).max() <= within, colors_of(mesh)


def solid(color: tuple[int, ...], side: int = 4) -> np.ndarray:
    return np.tile(np.uint8(color), (side, side, 1))


def of_texture(
    builder: Builder, pixels: object, factor: list | None = None, **info: object
) -> dict:
    rough = {"baseColorTexture": {"index": builder.texture(pixels), **info}}
    return {"pbrMetallicRoughness": rough | ({"baseColorFactor": factor} if factor else {})}

"""Small glTF files for tests, built from plain arrays."""

from __future__ import annotations

import json
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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

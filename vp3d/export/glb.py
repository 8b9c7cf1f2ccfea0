"""The GLB writer: binary glTF 2.0, one self-contained file, Y up, facing +Z.

Conventions as in vp3d/export/mesh_data.py. The texture is the sRGB base colour of a dielectric,
rough material; its sampler clamps, so that the border does not mix with the opposite one. Vertex
colours, which glTF stores in linear light, are written only if there is no texture. Colours that
contain light become an unlit material (KHR_materials_unlit), without the maps that only a lit one
reads. Tangents are written with a normal map only; nothing else reads them.

Metallic and roughness are constants: nothing in a field of colours measures them.
"""

from __future__ import annotations

import json
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vp3d.export.draco import encode
from vp3d.export.mesh_data import TO_GLTF, color_to_uint8, named, vertex_normals_of
from vp3d.export.quantize import Attributes, quantized
from vp3d.export.style import METALLIC, PLAIN, ROUGHNESS, Style
from vp3d.system.files import plain, write_bytes
from vp3d.system.srgb import srgb_to_linear
from vp3d.types import Asset, Mesh

GENERATOR = "VP3D"
CLAMP_TO_EDGE, LINEAR, LINEAR_MIPMAP_LINEAR = 33071, 9729, 9987
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
JSON_CHUNK, BINARY_CHUNK = 0x4E4F534A, 0x004E4942
COMPONENT = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
WIDTH = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
WEBP_QUALITY = 90  # of the base colour; maps are compressed without loss


def write_glb(asset: Asset, path: Path, style: Style = PLAIN) -> None:
    """Write the mesh of `asset` as GLB. Atomic; the same asset and style give the same bytes.

    Raises:
        UserError: Draco was asked for and is not installed.
    """
    write_bytes(path, glb_bytes(asset, style))


def glb_bytes(asset: Asset, style: Style = PLAIN) -> bytes:
    """The GLB of `asset` as bytes."""
    mesh, name = asset.mesh, named(asset.prompt, style.names)
    file = _File(
        {
            "asset": {"version": "2.0", "generator": GENERATOR},
            "scene": 0,
            "scenes": [{"name": name, "nodes": [0]}],
        }
    )
    if style.extras:
        file.tree["asset"]["extras"] = plain(dict(style.extras))
    node: dict[str, Any] = {"name": name, "mesh": 0}
    file.tree["nodes"] = [node]
    material = _material(file, mesh, name, style)
    attributes = attributes_of(mesh, "normalTexture" in material)
    if style.compress == "quantize":
        attributes, placing = quantized(attributes)
        node |= placing
        file.extension("KHR_mesh_quantization", required=True)
    elif style.compress == "none" and "COLOR_0" in attributes:
        attributes["COLOR_0"] = color_to_uint8(attributes["COLOR_0"])
    primitive = _primitive(file, attributes, mesh.faces, style.compress == "draco")
    primitive["material"] = 0
    file.tree["materials"] = [material]
    file.tree["meshes"] = [{"name": name, "primitives": [primitive]}]
    return file.packed()


def attributes_of(mesh: Mesh, with_tangents: bool) -> Attributes:
    """The vertex attributes of `mesh` by glTF's names, float32, with glTF's axes and v down."""
    found = {
        "POSITION": mesh.vertices[:, TO_GLTF],
        "NORMAL": unit(vertex_normals_of(mesh)[:, TO_GLTF].astype(np.float64)),
    }
    if with_tangents and mesh.tangents is not None:
        axes = unit(mesh.tangents[:, TO_GLTF].astype(np.float64))
        found["TANGENT"] = np.c_[axes, mesh.tangents[:, 3]]
    if mesh.texture is not None and mesh.uv is not None:
        found["TEXCOORD_0"] = np.c_[mesh.uv[:, 0], 1.0 - mesh.uv[:, 1]]
    elif mesh.vertex_colors is not None:
        linear = srgb_to_linear(np.clip(mesh.vertex_colors, 0.0, 1.0))
        found["COLOR_0"] = np.c_[linear, np.ones(len(linear))]  # some readers expect an opacity
    return {key: np.ascontiguousarray(value, np.float32) for key, value in found.items()}


def unit(vectors: np.ndarray) -> np.ndarray:
    """`vectors [N, 3]` with length 1; (0, 0, 1) for those without a direction."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    flat = length[:, 0] < 1e-9
    result = vectors / np.maximum(length, 1e-9)
    result[flat] = (0.0, 0.0, 1.0)
    return result


class _File:
    """The JSON tree and the binary buffer of a GLB that is being written."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree, self.data = tree, bytearray()

    def add(self, key: str, entry: dict[str, Any]) -> int:
        """Append `entry` to the list `key`; its index."""
        entries = self.tree.setdefault(key, [])
        entries.append(entry)
        return len(entries) - 1

    def extension(self, name: str, required: bool) -> None:
        """Name an extension as used, and perhaps as required."""
        for key in ("extensionsUsed", "extensionsRequired")[: 1 + required]:
            if name not in self.tree.setdefault(key, []):
                self.tree[key].append(name)

    def view(self, data: bytes, **entry: int) -> int:
        """A buffer view of `data`, which starts at a multiple of four bytes; its index."""
        self.data += b"\0" * (-len(self.data) % 4)
        start = len(self.data)
        self.data += data
        return self.add(
            "bufferViews", {"buffer": 0, "byteOffset": start, "byteLength": len(data), **entry}
        )

    def accessor(self, values: np.ndarray, target: int, stored: bool, bounds: bool) -> int:
        """An accessor of `values [N, C]`; its index.

        Args:
            values: The numbers; integers of less than 4 bytes stand for [0, 1] or [-1, 1], but
                for indices.
            target: What the buffer view is for.
            stored: Whether the numbers are written; if not, an extension has them.
            bounds: Whether the smallest and the largest values are named.
        """
        kind = values.dtype.str[1:]
        entry: dict[str, Any] = {
            "componentType": COMPONENT[kind],
            "count": len(values),
            "type": WIDTH[values.shape[1]],
        }
        if target == ARRAY_BUFFER and kind != "f4":
            entry["normalized"] = True
        if bounds:
            entry |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        if stored:
            row = values.dtype.itemsize * values.shape[1]
            padding = -row % 4 if target == ARRAY_BUFFER else 0
            rows = np.zeros((len(values), row + padding), np.uint8)
            rows[:, :row] = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), row)
            stride = {"byteStride": row + padding} if padding else {}
            entry["bufferView"] = self.view(rows.tobytes(), target=target, **stride)
        return self.add("accessors", entry)

    def packed(self) -> bytes:
        """The GLB: a header, the JSON chunk and the binary chunk."""
        self.data += b"\0" * (-len(self.data) % 4)
        self.tree["buffers"] = [{"byteLength": len(self.data)}]
        text = json.dumps(self.tree, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        encoded = text.encode()
        encoded += b" " * (-len(encoded) % 4)
        chunks = struct.pack("<II", len(encoded), JSON_CHUNK) + encoded
        chunks += struct.pack("<II", len(self.data), BINARY_CHUNK) + bytes(self.data)
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _primitive(
    file: _File, attributes: Attributes, faces: np.ndarray, compressed: bool
) -> dict[str, Any]:
    """The primitive of a mesh; with Draco, its numbers are in the extension's buffer view only."""
    small = len(attributes["POSITION"]) < 2**16 - 1
    indices = faces.reshape(-1, 1).astype("<u2" if small else "<u4")
    extensions = {}
    if compressed:
        data, ids, indices, attributes = encode(attributes, faces)
        draco = {"bufferView": file.view(data), "attributes": ids}
        extensions = {"extensions": {"KHR_draco_mesh_compression": draco}}
        file.extension("KHR_draco_mesh_compression", required=True)
    stored = not compressed
    entries = {
        key: file.accessor(values, ARRAY_BUFFER, stored, key == "POSITION")
        for key, values in attributes.items()
    }
    index = file.accessor(indices, ELEMENT_ARRAY_BUFFER, stored, False)
    return {"attributes": entries, "indices": index, "mode": 4, **extensions}


def _material(file: _File, mesh: Mesh, name: str, style: Style) -> dict[str, Any]:
    """The material: base colour, and for a lit one the maps that the mesh has."""
    factors: dict[str, Any] = {"metallicFactor": METALLIC, "roughnessFactor": ROUGHNESS}
    material: dict[str, Any] = {"name": name, "pbrMetallicRoughness": factors}
    textured = mesh.texture is not None and mesh.uv is not None
    if textured and mesh.texture is not None:
        factors["baseColorTexture"] = {"index": _texture(file, mesh.texture, "base", style.image)}
    if style.unlit:
        material["extensions"] = {"KHR_materials_unlit": {}}
        file.extension("KHR_materials_unlit", required=False)
        return material
    if textured and "normal" in mesh.maps and mesh.tangents is not None:
        normal = _texture(file, mesh.maps["normal"], "normal", style.image)
        material["normalTexture"] = {"index": normal}
    if textured and "occlusion" in mesh.maps:
        occlusion = _texture(file, mesh.maps["occlusion"], "occlusion", style.image)
        material["occlusionTexture"] = {"index": occlusion}
    return material


def _texture(file: _File, pixels: np.ndarray, name: str, image: str) -> int:
    """A texture of `pixels` (uint8) with a clamping sampler; its index."""
    if "samplers" not in file.tree:
        filters = {"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP_LINEAR}
        file.add("samplers", {**filters, "wrapS": CLAMP_TO_EDGE, "wrapT": CLAMP_TO_EDGE})
    data, mime = encode_image(pixels, image, lossless=name != "base")
    source = file.add("images", {"name": name, "mimeType": mime, "bufferView": file.view(data)})
    entry: dict[str, Any] = {"sampler": 0}
    if image == "webp":
        entry["extensions"] = {"EXT_texture_webp": {"source": source}}
        file.extension("EXT_texture_webp", required=True)
    else:
        entry["source"] = source
    return file.add("textures", entry)


def encode_image(pixels: np.ndarray, image: str, lossless: bool) -> tuple[bytes, str]:
    """`pixels [H, W]` or `[H, W, 3]` uint8 as PNG or WebP, and its MIME type."""
    stream, picture = BytesIO(), Image.fromarray(pixels)
    if image == "webp":
        picture.convert("RGB").save(
            stream, format="WEBP", quality=WEBP_QUALITY, lossless=lossless, method=6
        )
    else:
        picture.save(stream, format="PNG", optimize=False)
    return stream.getvalue(), f"image/{image}"

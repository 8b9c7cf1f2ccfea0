"""Draco compression of a GLB (KHR_draco_mesh_compression), by the optional package DracoPy."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from vp3d.errors import UserError
from vp3d.export.gltf import GltfError, as_dict, as_list, extensions_of, whole

NAME = "KHR_draco_mesh_compression"
POSITION_BITS, NORMAL_BITS, UV_BITS = 14, 10, 12
KINDS = {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2, "TEXCOORD_0": 3}  # Draco's attribute types
Attributes = dict[str, np.ndarray]


def draco() -> ModuleType:
    """The package, or one line that says how to install it."""
    try:
        import DracoPy
    except ImportError as error:
        raise UserError(
            "export.compress=draco needs the package DracoPy: pip install 'vp3d[draco]', "
            "or use export.compress=quantize"
        ) from error
    return DracoPy


def has_draco() -> bool:
    """Whether the package is installed."""
    try:
        draco()
    except UserError:
        return False
    return True


def encode(
    attributes: Attributes, faces: np.ndarray
) -> tuple[bytes, dict[str, int], np.ndarray, Attributes]:
    """A mesh in Draco's form.

    Args:
        attributes: float32 values `[V, C]` by glTF's names.
        faces: Triangles `[F, 3]`.

    Returns:
        The bytes; Draco's id of each attribute; and indices `[3 F, 1]` and attributes as a reader
        decodes them, which the accessors describe.
    """
    generic = {0: attributes["TANGENT"]} if "TANGENT" in attributes else None
    data = draco().encode(
        attributes["POSITION"],
        faces.astype(np.uint32),
        quantization_bits=POSITION_BITS,
        compression_level=7,
        preserve_order=True,
        tex_coord=_doubles(attributes.get("TEXCOORD_0")),
        normals=_doubles(attributes["NORMAL"]),
        colors=_bytes(attributes.get("COLOR_0")),
        tex_coord_quantization_bits=UV_BITS,
        normal_quantization_bits=NORMAL_BITS,
        generic_attributes=generic,
    )
    ids, indices, found = decode(data)
    if len(found["POSITION"]) != len(attributes["POSITION"]) or len(indices) != 3 * len(faces):
        raise GltfError("Draco changed the number of vertices or triangles")
    return data, {name: ids[name] for name in attributes}, indices, found


def _doubles(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else np.ascontiguousarray(values, np.float64)


def _bytes(colors: np.ndarray | None) -> np.ndarray | None:
    return None if colors is None else np.round(colors * 255.0).astype(np.uint8)


def decode(data: bytes) -> tuple[dict[str, int], np.ndarray, Attributes]:
    """Draco's ids, indices `[3 F, 1]` and attributes by glTF's names."""
    mesh = draco().decode(data)
    ids, found = {}, {}
    names = {kind: name for name, kind in KINDS.items()} | {4: "TANGENT"}
    for entry in mesh.attributes:
        name = names.get(int(entry["attribute_type"]))
        if name is not None and entry.get("data") is not None:
            ids[name], found[name] = int(entry["unique_id"]), np.asarray(entry["data"])
    count = len(found["POSITION"])
    kind = "<u2" if count < 2**16 - 1 else "<u4"
    return ids, np.asarray(mesh.faces).reshape(-1, 1).astype(kind), found


def expand(tree: dict[str, Any], view_bytes: Any) -> list[tuple[int, bytes]]:
    """Replace Draco's form by ordinary accessors in place.

    Args:
        tree: The JSON tree of a glTF file.
        view_bytes: Gives the bytes of a buffer view by its index.

    Returns:
        New buffers as (index, bytes), which the tree now refers to.

    Raises:
        GltfError: The extension's data are damaged.
    """
    buffers: list[tuple[int, bytes]] = []
    for mesh in as_list(tree.get("meshes", []), "meshes"):
        for primitive in as_list(as_dict(mesh, "a mesh").get("primitives"), "primitives"):
            entry = extensions_of(as_dict(primitive, "a primitive")).get(NAME)
            if entry is None:
                continue
            entry = as_dict(entry, NAME)
            try:
                _, indices, found = decode(bytes(view_bytes(entry.get("bufferView"))))
            except Exception as error:  # DracoPy raises many kinds of errors
                raise GltfError("damaged Draco data") from error
            parts = [(primitive.get("indices"), indices)]
            attributes = as_dict(primitive.get("attributes"), "attributes")
            parts += [(attributes[name], found[name]) for name in found if name in attributes]
            for accessor, values in parts:
                _store(tree, buffers, accessor, values)
            del primitive["extensions"][NAME]
    return buffers


def _store(
    tree: dict[str, Any], buffers: list[tuple[int, bytes]], accessor: object, values: np.ndarray
) -> None:
    """Give an accessor a buffer view and a buffer of its own."""
    accessors = as_list(tree.get("accessors"), "accessors")
    index = whole({"accessor": accessor}, "accessor")
    if index >= len(accessors):
        raise GltfError("an accessor that does not exist")
    entry = as_dict(accessors[index], "an accessor")
    if whole(entry, "count") != len(values):
        raise GltfError("Draco data of another size than their accessor")
    data = np.ascontiguousarray(values).tobytes()
    all_buffers, views = tree.setdefault("buffers", []), tree.setdefault("bufferViews", [])
    buffers.append((len(all_buffers), data))
    all_buffers.append({"byteLength": len(data)})
    views.append({"buffer": len(all_buffers) - 1, "byteLength": len(data)})
    entry.pop("byteOffset", None)
    entry["bufferView"] = len(views) - 1

"""The triangles of a glTF scene: nodes, instances, skins, morph targets and primitives.

Every primitive of the default scene becomes a `Mesh` in our frame, in the rest pose: a skin by the
joints where the nodes put them, morph targets by their default weights. Points and lines are left
out. Matrices are `[4, 4]` float64 for column vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vp3d.export.draco import expand, has_draco
from vp3d.export.gltf import (
    GltfError,
    GltfFile,
    UnsupportedError,
    as_dict,
    as_list,
    extensions_of,
    number,
    numbers,
    open_gltf,
)
from vp3d.export.gltf_color import material_layers
from vp3d.export.layers import colored
from vp3d.export.mesh_data import FROM_GLTF, computed_normals
from vp3d.types import Mesh

TRIANGLES, STRIP, FAN = 4, 5, 6
MAX_FACES = 20_000_000  # of all primitives, instances counted
FAINT = 1 / 255  # opacity below which a part that is blended shows nothing
MIN_LENGTH = 1e-12  # of a normal that has a direction


@dataclass(frozen=True)
class Placed:
    """A node of the scene, its matrix in the scene's frame, and whether it shows its mesh."""

    index: int
    node: dict[str, Any]
    matrix: np.ndarray
    visible: bool = True


def read_gltf(path: Path) -> list[Mesh]:
    """The primitives of a .glb or .gltf file, in our frame, with normals and sRGB colours.

    Raises:
        GltfError: The file is damaged.
        UnsupportedError: It needs an extension that is not read.
    """
    file = open_gltf(path)
    if has_draco():
        for index, data in expand(file.tree, file.view_bytes):
            file.cache["buffer", index] = data
    placed = list(placed_nodes(file))
    worlds = {one.index: one.matrix for one in placed}
    parts: list[Mesh] = []
    total = 0
    for one in placed:
        if "mesh" not in one.node or not one.visible:
            continue
        entry = file.item("meshes", one.node["mesh"])
        for primitive in as_list(entry.get("primitives"), "primitives"):
            primitive = as_dict(primitive, "a primitive")
            if is_invisible(file, primitive):
                continue
            faces = primitive_faces(file, primitive)
            matrices = _instances(file, one)
            total += len(faces) * len(matrices)
            if total > MAX_FACES:
                raise GltfError(f"more than {MAX_FACES:,} triangles")
            if len(faces):
                shape = _primitive(file, primitive, faces, one, entry, worlds)
                parts += [_moved(shape, matrix) for matrix in matrices]
    return parts


def placed_nodes(file: GltfFile) -> Iterator[Placed]:
    """The nodes of the default scene, parents before children.

    Without a scene, all nodes that no other node contains are its roots.
    """
    tree = file.tree
    if tree.get("scenes"):
        scene = file.item("scenes", tree.get("scene", 0))
        roots = as_list(scene.get("nodes", []), "a scene")
    else:
        nodes = [as_dict(node, "a node") for node in as_list(tree.get("nodes", []), "nodes")]
        inner = {str(child) for node in nodes for child in node.get("children") or []}
        roots = [index for index in range(len(nodes)) if str(index) not in inner]
    waiting = [(root, np.eye(4), True) for root in reversed(roots)]
    visited: set[int] = set()
    while waiting:
        index, parent, shown = waiting.pop()
        node = file.item("nodes", index)
        if index in visited:
            raise GltfError("a node that is contained twice")
        visited.add(index)
        matrix = parent @ node_matrix(node)
        visibility = as_dict(extensions_of(node).get("KHR_node_visibility", {}), "visibility")
        shown = shown and visibility.get("visible") is not False
        yield Placed(index, node, matrix, shown)
        children = as_list(node.get("children", []), "a node")
        waiting += [(child, matrix, shown) for child in reversed(children)]


def node_matrix(node: dict[str, Any]) -> np.ndarray:
    """The matrix of a node: its own, or translation x rotation x scale."""
    if "matrix" in node:
        return numbers(node["matrix"], [0.0] * 16, "matrix").reshape(4, 4).T
    return trs_matrix(
        numbers(node.get("translation"), [0.0] * 3, "translation"),
        numbers(node.get("rotation"), [0.0, 0.0, 0.0, 1.0], "rotation"),
        numbers(node.get("scale"), [1.0] * 3, "scale"),
    )


def trs_matrix(translation: np.ndarray, rotation: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Translation `[3]` x rotation (a quaternion `[4]`, x y z w, any length > 0) x scale `[3]`."""
    length = float(np.linalg.norm(rotation))
    x, y, z, w = rotation / length if length > MIN_LENGTH else (0.0, 0.0, 0.0, 1.0)
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn * scale, translation
    return matrix


def primitive_faces(file: GltfFile, primitive: dict[str, Any]) -> np.ndarray:
    """The triangles `[F, 3]` of a primitive: a list, a strip or a fan; none for points or lines.

    Raises:
        GltfError: A triangle uses a vertex that does not exist.
    """
    mode = primitive.get("mode", TRIANGLES)
    attributes = as_dict(primitive.get("attributes"), "attributes")
    if mode not in (TRIANGLES, STRIP, FAN) or "POSITION" not in attributes:
        return np.zeros((0, 3), np.int64)
    _refuse_compressed(file, primitive, attributes)
    count = len(file.accessor(attributes["POSITION"]))
    if "indices" in primitive:
        indices = file.accessor(primitive["indices"])
        if indices.dtype.kind != "u" or indices.shape[1] != 1:
            raise GltfError("indices of a wrong type")
        order = indices[:, 0].astype(np.int64)
    else:
        order = np.arange(count)
    if len(order) and order.max() >= count:
        raise GltfError("faces that use vertices that do not exist")
    if mode == TRIANGLES:
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    if len(order) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == FAN:
        return np.stack([order[1:-1], order[2:], np.full(len(order) - 2, order[0])], -1)
    faces = np.stack([order[:-2], order[1:-1], order[2:]], -1)
    faces[1::2] = faces[1::2][:, [0, 2, 1]]
    return faces


def is_invisible(file: GltfFile, primitive: dict[str, Any]) -> bool:
    """Whether the material's factor alone makes a primitive transparent, as a helper's shape is."""
    if "material" not in primitive:
        return False
    material = file.item("materials", primitive["material"])
    rough = as_dict(material.get("pbrMetallicRoughness", {}), "a material")
    opacity = numbers(rough.get("baseColorFactor"), [1.0] * 4, "baseColorFactor")[3]
    least = {"MASK": number(material.get("alphaCutoff"), 0.5, "alphaCutoff"), "BLEND": FAINT}
    return bool(opacity < least.get(str(material.get("alphaMode")), -1.0))


def _refuse_compressed(
    file: GltfFile, primitive: dict[str, Any], attributes: dict[str, Any]
) -> None:
    """Raise UnsupportedError if the primitive's data exist only in Draco's form."""
    draco = "KHR_draco_mesh_compression"
    if draco in extensions_of(primitive):
        position = file.item("accessors", attributes["POSITION"])
        if "bufferView" not in position:
            raise UnsupportedError(draco)


def _primitive(
    file: GltfFile,
    primitive: dict[str, Any],
    faces: np.ndarray,
    one: Placed,
    entry: dict[str, Any],
    worlds: dict[int, np.ndarray],
) -> Mesh:
    """A primitive with its colours, in the node's frame and with glTF's axes.

    Args:
        file: The file.
        primitive: The entry of the primitive.
        faces: Its triangles `[F, 3]`.
        one: The node.
        entry: The entry of the mesh.
        worlds: The matrix of each node of the scene.
    """
    attributes = as_dict(primitive.get("attributes"), "attributes")
    vertices = file.accessor(attributes["POSITION"])
    if vertices.shape[1] != 3:
        raise GltfError("positions that do not have three components")
    vertices = vertices.astype(np.float64)
    targets = as_list(primitive.get("targets", []), "targets")
    weights = one.node.get("weights", entry.get("weights"))
    shares = numbers(weights, [0.0] * len(targets), "weights") if targets else np.zeros(0)
    for target, share in zip(targets, shares, strict=True):
        if share and "POSITION" in as_dict(target, "a morph target"):
            vertices = vertices + share * _like(file, target["POSITION"], vertices)
    normals = None
    if "NORMAL" in attributes and not shares.any():
        normals = _like(file, attributes["NORMAL"], vertices)
    if "skin" in one.node and "JOINTS_0" in attributes:
        vertices, normals = _skinned(file, one, attributes, worlds, vertices), None
    mesh = Mesh(vertices, faces, normals)
    layers = material_layers(file, primitive, len(vertices), np.unique(faces))
    return colored(mesh, layers)


def _like(file: GltfFile, accessor: object, vertices: np.ndarray) -> np.ndarray:
    """An accessor of one row of three a vertex, as float64."""
    values = file.accessor(accessor)
    if values.shape != vertices.shape:
        raise GltfError("an attribute that does not fit the vertices")
    return values.astype(np.float64)


def _skinned(
    file: GltfFile,
    one: Placed,
    attributes: dict[str, Any],
    worlds: dict[int, np.ndarray],
    vertices: np.ndarray,
) -> np.ndarray:
    """The vertices moved by their joints, in the node's own frame (which a skin ignores).

    Args:
        file: The file.
        one: The node.
        attributes: The attributes of the primitive.
        worlds: The matrix of each node of the scene.
        vertices: Positions `[V, 3]` before.
    """
    skin = file.item("skins", one.node["skin"])
    joints = as_list(skin.get("joints"), "joints")
    bind = [np.eye(4)] * len(joints)
    if "inverseBindMatrices" in skin:
        stored = file.accessor(skin["inverseBindMatrices"]).astype(np.float64)
        if len(stored) < len(joints) or stored.shape[1] != 16:
            raise GltfError("a skin with too few matrices")
        bind = [m.reshape(4, 4).T for m in stored]
    moves = np.stack([worlds.get(j, np.eye(4)) @ bind[k] for k, j in enumerate(joints)])
    points = np.c_[vertices, np.ones(len(vertices))]
    result, total = np.zeros_like(vertices), np.zeros((len(vertices), 1))
    for group in range(8):
        names = (f"JOINTS_{group}", f"WEIGHTS_{group}")
        if any(name not in attributes for name in names):
            break
        index, weight = (file.accessor(attributes[name]) for name in names)
        if index.shape != (len(vertices), 4) or weight.shape != index.shape:
            raise GltfError("a skin that does not fit the vertices")
        if index.dtype.kind != "u" or index.max(initial=0) >= len(joints):
            raise GltfError("a skin with joints that do not exist")
        for k in range(4):
            moved = np.einsum("vij,vj->vi", moves[index[:, k]], points)[:, :3]
            result += weight[:, k : k + 1] * moved
            total += weight[:, k : k + 1]
    result = np.where(total > MIN_LENGTH, result / np.maximum(total, MIN_LENGTH), vertices)
    return (np.c_[result, np.ones(len(result))] @ np.linalg.pinv(one.matrix).T)[:, :3]


def _instances(file: GltfFile, one: Placed) -> list[np.ndarray]:
    """The matrices at which a node shows its mesh: one, or those of EXT_mesh_gpu_instancing."""
    extension = extensions_of(one.node).get("EXT_mesh_gpu_instancing")
    if extension is None:
        return [one.matrix]
    attributes = as_dict(as_dict(extension, "instances").get("attributes"), "instances")
    found = {name: file.accessor(attributes[name]).astype(np.float64) for name in attributes}
    count = max((len(values) for values in found.values()), default=0)
    defaults = {"TRANSLATION": [0.0] * 3, "ROTATION": [0.0, 0.0, 0.0, 1.0], "SCALE": [1.0] * 3}
    columns = []
    for name, default in defaults.items():
        values = found.get(name, np.tile(default, (count, 1)))
        if values.shape != (count, len(default)):
            raise GltfError("instances that do not fit each other")
        columns.append(values)
    return [one.matrix @ trs_matrix(*row) for row in zip(*columns, strict=True)]


def _moved(mesh: Mesh, matrix: np.ndarray) -> Mesh:
    """The mesh moved by a matrix, brought into our frame; a mirrored one keeps its outside."""
    linear = matrix[:3, :3]
    vertices = mesh.vertices @ linear.T + matrix[:3, 3]
    mirrored = float(np.linalg.det(linear)) < 0
    faces = mesh.faces[:, ::-1] if mirrored else mesh.faces
    result = replace(
        mesh,
        vertices=vertices[:, FROM_GLTF].astype(np.float32),
        faces=np.ascontiguousarray(faces, np.int64),
        normals=None,
    )
    if mesh.normals is not None:
        # The cofactor matrix moves normals also where the matrix has no inverse.
        cofactor = np.stack([np.cross(linear[(k + 1) % 3], linear[(k + 2) % 3]) for k in range(3)])
        normals = mesh.normals @ cofactor.T * (-1.0 if mirrored else 1.0)
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        if np.isfinite(length).all() and (length[np.unique(faces)] > MIN_LENGTH).all():
            unit = normals / np.maximum(length, MIN_LENGTH)
            return replace(result, normals=unit[:, FROM_GLTF].astype(np.float32))
    in_range = np.isfinite(result.vertices).all()
    return replace(result, normals=computed_normals(result)) if in_range else result

"""A library of named meshes: what a mesh is to the renderer, and how it is kept.

A packed mesh is one compressed `.npz` file: positions in 16 bits, normals in 8, texture coordinates
in steps of 1/2048, textures of at most 128 pixels a side as PNG or JPEG. Frame and units are those
of `vp3d.types`: z up, the object faces +x, everything is inside the ball of radius `BALL_RADIUS`.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vp3d.system.files import parse_json, write_bytes
from vp3d.worlds.obj_reader import ObjModel
from vp3d.worlds.toybox.scenes import BALL_RADIUS

_UV_STEPS = 2048
# Columns of a row of `LibraryMesh.materials`
RED, GREEN, BLUE, ALPHA, TEXTURE, PAINT = range(6)


@dataclass(frozen=True)
class LibraryMesh:
    """A mesh for the renderer.

    Attributes:
        position: Corners [V, 3] float32, world frame.
        normal: Unit normals of the corners [V, 3] float32.
        uv: Texture coordinates [V, 2] float32, v upwards; they repeat with period 1.
        triangles: [T, 3] int32.
        material: Material of each triangle [T] int32.
        materials: [M, 6] float32: sRGB colour (3) in [0, 1], opacity, number of the texture or -1,
            and 1 if the material is paint, which may be recoloured.
        textures: The textures, each [H, W, 4] uint8.
        names: Names of the M materials and their textures, in lower case.
    """

    position: np.ndarray
    normal: np.ndarray
    uv: np.ndarray
    triangles: np.ndarray
    material: np.ndarray
    materials: np.ndarray
    textures: tuple[np.ndarray, ...]
    names: tuple[str, ...]


def from_obj(
    model: ObjModel, rotation: np.ndarray | None = None, size: np.ndarray | None = None
) -> LibraryMesh:
    """A model in the frame and scale of the world.

    Args:
        model: The model, y up, its front along +z.
        rotation: Matrix [3, 3] that is applied first; None for none.
        size: Width, height and depth [3] that the rotated model is stretched to; None for its own.
    """
    turn = np.eye(3) if rotation is None else rotation
    position = model.position.astype(np.float64) @ turn.T
    normal = model.normal.astype(np.float64) @ turn.T
    used = np.unique(model.triangles)
    low, high = position[used].min(0), position[used].max(0)
    if size is not None:
        stretch = np.where(high - low > 1e-6, size / np.maximum(high - low, 1e-6), 1.0)
        position, normal = position * stretch, normal / stretch
        low, high = low * stretch, high * stretch
    position = (position - (low + high) / 2)[:, [2, 0, 1]]
    normal = normal[:, [2, 0, 1]]
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    position *= BALL_RADIUS / np.linalg.norm(position[used], axis=1).max()
    textures: list[np.ndarray] = []
    numbers: dict[str, int] = {}
    rows = []
    for material in model.materials:
        number = -1
        if material.texture is not None:
            if material.texture_name not in numbers:
                numbers[material.texture_name] = len(textures)
                textures.append(material.texture)
            number = numbers[material.texture_name]
        rows.append([*material.rgb, material.alpha, number, 0.0])
    return LibraryMesh(
        position.astype(np.float32),
        normal.astype(np.float32),
        model.uv,
        model.triangles,
        model.material,
        np.array(rows, dtype=np.float32),
        tuple(textures),
        tuple(f"{m.name} {m.texture_name}".lower() for m in model.materials),
    )


def save_mesh(mesh: LibraryMesh, path: Path) -> None:
    """Write a packed mesh."""
    shift = np.floor(np.median(mesh.uv, axis=0)) if len(mesh.uv) else 0.0
    uv = np.clip(np.rint((mesh.uv - shift) * _UV_STEPS), -32767, 32767)
    index = np.uint16 if len(mesh.position) < 65536 else np.uint32
    arrays = {
        "position": np.rint(mesh.position / BALL_RADIUS * 32767).clip(-32767, 32767).astype("<i2"),
        "normal": np.rint(mesh.normal * 127).astype(np.int8),
        "uv": uv.astype("<i2"),
        "triangles": mesh.triangles.astype(index),
        "material": mesh.material.astype(np.uint16),
        "materials": mesh.materials.astype("<f4"),
        "names": np.frombuffer(json.dumps(mesh.names).encode(), dtype=np.uint8),
    }
    for number, texture in enumerate(mesh.textures):
        arrays[f"texture{number}"] = np.frombuffer(_encoded(texture), dtype=np.uint8)
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, stream.getvalue())


def load_mesh(path: Path) -> LibraryMesh:
    """A packed mesh.

    Raises:
        ValueError: The file is not a packed mesh.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        textures: list[np.ndarray] = []
        while f"texture{len(textures)}" in arrays:
            data = arrays[f"texture{len(textures)}"].tobytes()
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                textures.append(np.asarray(image.convert("RGBA"), dtype=np.uint8))
        names = parse_json(arrays["names"].tobytes())
        normal = arrays["normal"].astype(np.float32)
        mesh = LibraryMesh(
            arrays["position"].astype(np.float32) * (BALL_RADIUS / 32767),
            normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6),
            arrays["uv"].astype(np.float32) / _UV_STEPS,
            arrays["triangles"].astype(np.int32),
            arrays["material"].astype(np.int32),
            arrays["materials"],
            tuple(textures),
            tuple(names) if isinstance(names, list) else (),
        )
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a packed mesh: {error}") from error
    if len(mesh.triangles) == 0 or mesh.triangles.max() >= len(mesh.position):
        raise ValueError(f"{path} is not a packed mesh: its triangles name missing corners")
    return mesh


def _encoded(texture: np.ndarray) -> bytes:
    """PNG if the texture has transparent pixels; else the shorter of PNG and JPEG."""
    opaque = bool((texture[..., 3] == 255).all())
    png, jpeg = io.BytesIO(), io.BytesIO()
    Image.fromarray(texture[..., :3] if opaque else texture).save(png, "PNG", optimize=True)
    if not opaque:
        return png.getvalue()
    Image.fromarray(texture[..., :3]).save(jpeg, "JPEG", quality=85)
    return min(png.getvalue(), jpeg.getvalue(), key=len)

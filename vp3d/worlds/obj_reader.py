"""Reads Wavefront OBJ models with their materials and textures into arrays.

Only what a picture needs is read: positions, texture coordinates, normals, faces, and of a material
its diffuse colour, opacity and diffuse texture. Faces with more than three corners become fans.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

Reader = Callable[[str], bytes | None]
"""Content of a file by its name with forward slashes, None if there is no such file."""


@dataclass(frozen=True)
class Material:
    """One material; `texture` is [H, W, 4] uint8 or None."""

    name: str
    rgb: tuple[float, float, float] = (0.8, 0.8, 0.8)
    alpha: float = 1.0
    texture: np.ndarray | None = None
    texture_name: str = ""


@dataclass(frozen=True)
class ObjModel:
    """A triangulated model, y up.

    Attributes:
        position: Corners [V, 3] float32.
        normal: Unit normals of the corners [V, 3] float32.
        uv: Texture coordinates [V, 2] float32, v upwards.
        triangles: Corners of T triangles [T, 3] int32.
        material: Number of each triangle's material [T] int32.
        materials: The materials.
    """

    position: np.ndarray
    normal: np.ndarray
    uv: np.ndarray
    triangles: np.ndarray
    material: np.ndarray
    materials: list[Material]


def read_obj(name: str, read: Reader, texture_side: int = 128) -> ObjModel:
    """The model `name`; its materials and textures are looked for next to it.

    Args:
        name: Name of the OBJ file.
        read: Gives the content of files.
        texture_side: Textures are scaled down to at most this many pixels a side.

    Raises:
        ValueError: The file has no faces or names corners that it does not have.
    """
    data = read(name)
    if data is None:
        raise ValueError(f"no such file: {name}")
    lines = data.decode("latin-1").replace("\\\n", " ").splitlines()
    columns = {
        key: _numbers(lines, f"{key} ", size) for key, size in (("v", 3), ("vt", 2), ("vn", 3))
    }
    corners, sizes, material, names, libraries = _faces(lines, columns)
    if not len(sizes):
        raise ValueError(f"{name}: no faces")
    folder = posixpath.dirname(name)
    known: dict[str, Material] = {}
    for library in libraries:
        known |= read_mtl(posixpath.join(folder, library), read, texture_side)
    materials = [known.get(n, Material(n)) for n in names]
    triangles, of_face = _fans(sizes)
    position = columns["v"][corners[:, 0]]
    uv = _chosen(columns["vt"], corners[:, 1], 2)
    normal = _chosen(columns["vn"], corners[:, 2], 3)
    normal = _complete_normals(position, triangles, normal)
    return _merged(ObjModel(position, normal, uv, triangles, material[of_face], materials))


def _numbers(lines: list[str], prefix: str, size: int) -> np.ndarray:
    rows = [line.split()[1 : size + 1] for line in lines if line.startswith(prefix)]
    rows = [row + ["0"] * (size - len(row)) for row in rows]
    return np.array(rows, dtype=np.float32).reshape(-1, size)


def _faces(
    lines: list[str], columns: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str], list[str]]:
    """Corners [C, 3] (position, uv, normal; -1 for none), corners of each face, its material."""
    counts = [len(columns[k]) for k in ("v", "vt", "vn")]
    corners: list[list[int]] = []
    sizes: list[int] = []
    material: list[int] = []
    names: dict[str, int] = {}
    libraries: list[str] = []
    current, seen = "", [0, 0, 0]
    for line in lines:
        if line.startswith("v "):
            seen[0] += 1
        elif line.startswith("vt "):
            seen[1] += 1
        elif line.startswith("vn "):
            seen[2] += 1
        elif line.startswith("usemtl"):
            current = line[6:].strip()
        elif line.startswith("mtllib"):
            libraries.append(line[6:].strip())
        elif line.startswith("f "):
            words = line.split()[1:]
            if len(words) < 3:
                continue
            for word in words:
                parts = word.split("/")
                row = [-1, -1, -1]
                for i, part in enumerate(parts[:3]):
                    if part:
                        number = int(part)
                        row[i] = number - 1 if number > 0 else seen[i] + number
                        if not 0 <= row[i] < counts[i]:
                            raise ValueError(f"a face names corner {part}, which does not exist")
                corners.append(row)
            sizes.append(len(words))
            material.append(names.setdefault(current, len(names)))
    return (
        np.array(corners, dtype=np.int64).reshape(-1, 3),
        np.array(sizes, dtype=np.int64),
        np.array(material, dtype=np.int32),
        list(names),
        libraries,
    )


def _fans(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [T, 3] of faces with these numbers of corners, and the face of each."""
    starts = np.cumsum(sizes) - sizes
    count = sizes - 2
    of_face = np.repeat(np.arange(len(sizes)), count)
    step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    first = starts[of_face]
    return np.stack([first, first + step + 1, first + step + 2], 1).astype(np.int32), of_face


def _chosen(values: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    found = np.zeros((len(index), size), dtype=np.float32)
    if len(values):
        found[index >= 0] = values[index[index >= 0]]
    return found


def _complete_normals(
    position: np.ndarray, triangles: np.ndarray, normal: np.ndarray
) -> np.ndarray:
    """Unit normals; corners without one get that of their face."""
    a, b, c = (position[triangles[:, i]] for i in range(3))
    face = np.cross(b - a, c - a)
    flat = np.zeros_like(normal)
    for i in range(3):
        flat[triangles[:, i]] = face
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    normal = np.where(length > 1e-6, normal, flat)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    return (normal / np.maximum(length, 1e-12)).astype(np.float32)


def _merged(model: ObjModel) -> ObjModel:
    """The model with equal corners merged."""
    rows = np.concatenate([model.position, model.normal, model.uv], 1)
    _, first, inverse = np.unique(
        np.ascontiguousarray(rows).view(f"V{rows.itemsize * rows.shape[1]}").ravel(),
        return_index=True,
        return_inverse=True,
    )
    return ObjModel(
        model.position[first],
        model.normal[first],
        model.uv[first],
        inverse.ravel()[model.triangles].astype(np.int32),
        model.material,
        model.materials,
    )


def read_mtl(name: str, read: Reader, texture_side: int) -> dict[str, Material]:
    """The materials of a library by name; empty if there is no such file."""
    data = read(name)
    if data is None:
        return {}
    folder, found = posixpath.dirname(name), dict[str, Material]()
    current: dict[str, object] = {}
    for line in [*data.decode("latin-1").splitlines(), "newmtl"]:
        words = line.split()
        if not words:
            continue
        key = words[0].lower()
        if key == "newmtl":
            if current:
                found[str(current["name"])] = Material(**current)  # type: ignore[arg-type]
            current = {"name": line.strip()[6:].strip()}
        elif not current:
            continue
        elif key == "kd" and len(words) >= 4:
            current["rgb"] = tuple(min(max(float(w), 0.0), 1.0) for w in words[1:4])
        elif key == "d":
            current["alpha"] = min(max(float(words[-1]), 0.0), 1.0)
        elif key == "map_kd":
            file = line.strip()[6:].strip().replace("\\", "/")
            texture = read_texture(posixpath.join(folder, file), read, texture_side)
            if texture is None:
                file = words[-1]
                texture = read_texture(posixpath.join(folder, file), read, texture_side)
            current |= {"texture": texture, "texture_name": file}
    return found


def read_texture(name: str, read: Reader, side: int) -> np.ndarray | None:
    """A texture [H, W, 4] uint8 of at most `side` pixels a side; None if it cannot be read."""
    data = read(posixpath.normpath(name))
    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP", "GIF", "TIFF")) as image:
            rgba = image.convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError):
        return None
    scale = side / max(rgba.size)
    if scale < 1.0:
        size = (max(round(rgba.width * scale), 1), max(round(rgba.height * scale), 1))
        rgba = rgba.resize(size, Image.Resampling.BOX)
    return np.asarray(rgba, dtype=np.uint8)

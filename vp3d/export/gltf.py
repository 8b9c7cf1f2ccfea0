"""glTF 2.0 files as data: the JSON tree, its buffers, accessors and images.

Written after the specification of glTF 2.0 (Khronos Group); vp3d/export/gltf_scene.py makes meshes
of it. Nothing in a file is trusted: every number is checked before it is used, files next to it
are read only from its own folder, and sizes are limited.

Accessors are numpy arrays `[count, components]`; normalised integers become floats in [0, 1] or
[-1, 1]. Images are `[H, W, 3]` uint8, sRGB-encoded, row 0 at the top (glTF's v = 0).
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from PIL import Image

from vp3d.system.files import JsonError, parse_json

MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
MAX_BYTES = 2**30  # of the file, of each file next to it and of each data URI
MAX_VALUES = 2**28  # numbers of one accessor
MAX_PIXELS = 2**26  # of one image
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF")
COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
URL_SAFE = str.maketrans("-_", "+/")  # the alphabet of base64 in addresses
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
# Extensions that this reader follows, and kinds whose absence changes neither shape nor colour
# more than a viewer without them would.
FOLLOWED = frozenset(
    (
        "KHR_texture_transform",
        "KHR_draco_mesh_compression",  # vp3d/export/gltf_scene.py refuses it without DracoPy
        "KHR_mesh_quantization",
        "EXT_texture_webp",
        "EXT_texture_avif",
        "EXT_mesh_gpu_instancing",
    )
)
HARMLESS = (
    "KHR_materials_",
    "KHR_lights_",
    "KHR_xmp",
    "KHR_animation_",
    "KHR_node_",
    "EXT_lights_",
)
NAMES = {
    "KHR_draco_mesh_compression": "Draco compression",
    "EXT_meshopt_compression": "meshopt compression",
    "KHR_meshopt_compression": "meshopt compression",
    "KHR_texture_basisu": "Basis Universal (KTX2) textures",
    "MSFT_texture_dds": "DDS textures",
    "KHR_gaussian_splatting": "Gaussian splats",
}


class GltfError(ValueError):
    """The file is damaged; the message is a clause in one line."""


class UnsupportedError(ValueError):
    """The file needs an extension that is not read; the message is a clause that says so."""

    def __init__(self, extension: str) -> None:
        words = NAMES.get(extension)
        name = f"{words} ({extension})" if words else f"the extension {extension[:60]!r}"
        super().__init__(f"it uses {name}, which is not read; export it without it")


@dataclass(frozen=True)
class GltfFile:
    """One file: its JSON tree, the folder for files next to it, and its binary chunk."""

    tree: dict[str, Any]
    folder: Path
    binary: bytes = b""
    cache: dict[tuple[str, Any], Any] = field(default_factory=dict)

    def item(self, kind: str, index: object) -> dict[str, Any]:
        """Entry `index` of the list `kind`, such as "nodes".

        Raises:
            GltfError: It does not exist.
        """
        items = self.tree.get(kind)
        if not isinstance(items, list) or not isinstance(index, int) or isinstance(index, bool):
            raise GltfError(f"{kind} has no entry {str(index)[:20]}")
        if not 0 <= index < len(items):
            raise GltfError(f"{kind} has no entry {index}")
        return as_dict(items[index], kind)

    def accessor(self, index: object) -> np.ndarray:
        """The values `[count, components]` of an accessor, sparse entries included."""
        if ("accessor", index) not in self.cache:
            entry = self.item("accessors", index)
            values = self._values(entry)
            if entry.get("normalized") is True and values.dtype.kind != "f":
                values = normalised(values)
            self.cache["accessor", index] = values
        return self.cache["accessor", index]

    def image(self, index: object) -> np.ndarray:
        """The image `[H, W, 3]` uint8; the same array at each call."""
        if ("image", index) not in self.cache:
            entry = self.item("images", index)
            raw = self._view(entry["bufferView"])[0] if "bufferView" in entry else None
            data = self._uri(entry.get("uri")) if raw is None else bytes(raw)
            self.cache["image", index] = decode_image(data)
        return self.cache["image", index]

    def _values(self, entry: dict[str, Any]) -> np.ndarray:
        """The stored values `[count, components]` of an accessor, before normalisation."""
        kind = COMPONENTS.get(entry.get("componentType"))  # type: ignore[arg-type]
        width = WIDTHS.get(str(entry.get("type")))
        if kind is None or width is None:
            raise GltfError("an accessor of an unknown type")
        count = whole(entry, "count")
        if count * width > MAX_VALUES:
            raise GltfError("an accessor that is too large")
        if "bufferView" in entry:
            offset = whole(entry, "byteOffset", 0)
            values = self._strided(entry["bufferView"], offset, kind, (count, width))
        else:
            values = np.zeros((count, width), kind)
        if "sparse" in entry:
            sparse = as_dict(entry["sparse"], "sparse")
            at, new = (
                as_dict(sparse.get("indices"), "sparse"),
                as_dict(sparse.get("values"), "sparse"),
            )
            changed = whole(sparse, "count")
            index_kind = COMPONENTS.get(at.get("componentType"))  # type: ignore[arg-type]
            if index_kind not in ("u1", "<u2", "<u4"):
                raise GltfError("a sparse accessor with indices of an unknown type")
            start, begin = whole(at, "byteOffset", 0), whole(new, "byteOffset", 0)
            rows = self._strided(at.get("bufferView"), start, index_kind, (changed, 1))[:, 0]
            if changed and rows.max() >= count:
                raise GltfError("a sparse accessor that changes values that do not exist")
            values[rows] = self._strided(new.get("bufferView"), begin, kind, (changed, width))
        return values

    def _strided(self, view: object, offset: int, kind: str, shape: tuple[int, int]) -> np.ndarray:
        """A copy of values of type `kind` in `shape`, `offset` bytes into a buffer view."""
        data, stride = self._view(view)
        dtype = np.dtype(kind)
        row = dtype.itemsize * shape[1]
        step = stride or row
        if shape[0] and offset + (shape[0] - 1) * step + row > len(data):
            raise GltfError("an accessor that reaches beyond its data")
        return np.ndarray(shape, dtype, data, offset, (step, dtype.itemsize)).copy()

    def view_bytes(self, index: object) -> bytes:
        """The bytes of a buffer view."""
        return bytes(self._view(index)[0])

    def _view(self, index: object) -> tuple[memoryview, int]:
        """The bytes of a buffer view and its stride, 0 for none."""
        view = self.item("bufferViews", index)
        start, size = whole(view, "byteOffset", 0), whole(view, "byteLength")
        buffer = self._buffer(view.get("buffer"), view)
        if start + size > len(buffer):
            raise GltfError("a buffer view that reaches beyond its buffer; the file may be cut off")
        return memoryview(buffer)[start : start + size], whole(view, "byteStride", 0)

    def _buffer(self, index: object, view: dict[str, Any]) -> bytes:
        """The bytes of a buffer."""
        if ("buffer", index) not in self.cache:
            entry = self.item("buffers", index)
            if "uri" in entry:
                self.cache["buffer", index] = self._uri(entry["uri"])
            elif index == 0 and self.binary:
                self.cache["buffer", index] = self.binary
            else:
                compressed = [name for name in NAMES if name in extensions_of(view)]
                if compressed:
                    raise UnsupportedError(compressed[0])
                raise GltfError("a buffer without data")
        return self.cache["buffer", index]

    def _uri(self, uri: object) -> bytes:
        """The bytes that a URI names: inside it, or in a file in the folder of this one."""
        if not isinstance(uri, str):
            raise GltfError("a buffer or an image without data")
        if uri[:5].lower() == "data:":
            return data_uri(uri)
        name = unquote(uri)
        folder = self.folder.resolve()
        if "\0" in name or ":" in name or "\\" in name:
            raise GltfError(f"it names {name[:60]!r}, which is no file in its folder")
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            raise GltfError(f"it names {name[:60]!r}, which is outside its folder")
        if not path.is_file():
            raise GltfError(f"the file {name[:60]!r}, which belongs to it, is missing")
        return read_limited(path)


def open_gltf(path: Path) -> GltfFile:
    """Read a .glb or .gltf file and check that every extension it requires is followed.

    Raises:
        GltfError: It is damaged, or not glTF 2.0.
        UnsupportedError: It requires an extension that is not read.
    """
    data = read_limited(path)
    text, binary = split_chunks(data) if data[:4] == b"glTF" else (data, b"")
    try:
        tree = parse_json(text.decode("utf-8-sig"), allow_nan=True)
    except (JsonError, ValueError) as error:
        raise GltfError("its text is not JSON") from error
    tree = as_dict(tree, "the file")
    version = str(as_dict(tree.get("asset"), "asset").get("version"))
    if not version.startswith("2"):
        raise GltfError(f"it is glTF {version[:10]}, and only glTF 2 is read")
    for name in as_list(tree.get("extensionsRequired", []), "extensionsRequired"):
        if name not in FOLLOWED and not str(name).startswith(HARMLESS):
            raise UnsupportedError(str(name))
    return GltfFile(tree, path.parent, binary)


def split_chunks(data: bytes) -> tuple[bytes, bytes]:
    """The JSON text and the binary chunk of a GLB."""
    if len(data) < 20:
        raise GltfError("it is cut off")
    _, version, length = struct.unpack_from("<III", data)
    if version != 2:
        raise GltfError(f"it is glTF {version}, and only glTF 2 is read")
    if length > len(data):
        raise GltfError("it is cut off")
    chunks: dict[int, bytes] = {}
    at = 12
    while at + 8 <= length:
        size, kind = struct.unpack_from("<II", data, at)
        if at + 8 + size > length:
            raise GltfError("it is cut off")
        chunks.setdefault(kind, data[at + 8 : at + 8 + size])
        at += 8 + size
    if JSON_CHUNK not in chunks:
        raise GltfError("it has no JSON chunk")
    return chunks[JSON_CHUNK].rstrip(b"\0 "), chunks.get(BINARY_CHUNK, b"")


def data_uri(uri: str) -> bytes:
    """The bytes inside a data URI."""
    head, comma, body = uri.partition(",")
    if not comma or len(body) > MAX_BYTES:
        raise GltfError("a data URI that is damaged or too large")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        plain = "".join(unquote(body).split()).translate(URL_SAFE).rstrip("=")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise GltfError("a data URI that is damaged") from error


def decode_image(data: bytes) -> np.ndarray:
    """An image file as `[H, W, 3]` uint8; its opacity and colour profile are left out (as glTF)."""
    try:
        with Image.open(BytesIO(data), formats=IMAGE_FORMATS) as image:
            if image.width * image.height <= MAX_PIXELS:
                return pixels_of(image)
            size = f"{image.width} x {image.height}"
    except (OSError, SyntaxError, ValueError) as error:
        raise GltfError("a texture that is damaged or no picture") from error
    raise GltfError(f"a texture of {size} pixels is too large")


def pixels_of(image: Image.Image) -> np.ndarray:
    """The pixels of an opened picture `[H, W, 3]` uint8, 16-bit grey by the range of its type."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float64) / 257.0
        return np.repeat(np.round(grey.clip(0, 255)).astype(np.uint8)[..., None], 3, -1)
    return np.array(image.convert("RGB"), np.uint8)


def normalised(values: np.ndarray) -> np.ndarray:
    """Integers of any shape as float32: unsigned ones in [0, 1], signed ones in [-1, 1]."""
    largest = float(np.iinfo(values.dtype).max)
    return np.maximum(values / largest, -1.0).astype(np.float32)


def read_limited(path: Path) -> bytes:
    """The bytes of a file of at most MAX_BYTES."""
    if path.stat().st_size > MAX_BYTES:
        raise GltfError(f"{path.name} is larger than {MAX_BYTES // 2**20} MiB")
    return path.read_bytes()


def whole(entry: dict[str, Any], key: str, default: int | None = None) -> int:
    """The whole number >= 0 at `key`.

    Raises:
        GltfError: It is no such number, or it is missing and there is no default.
    """
    value = entry.get(key, default)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise GltfError(f"{key} is {str(value)[:20]}, not a whole number")
    return value


def numbers(value: object, default: Sequence[float], what: str) -> np.ndarray:
    """`value` as a float64 vector as long as `default`, which None stands for.

    Raises:
        GltfError: It is something else, or not finite.
    """
    if value is None:
        return np.array(default, np.float64)
    items = as_list(value, what)
    plain = all(isinstance(v, int | float) and not isinstance(v, bool) for v in items)
    if len(items) != len(default) or not plain or not np.isfinite(np.array(items, float)).all():
        raise GltfError(f"{what} needs {len(default)} finite numbers")
    return np.array(items, np.float64)


def number(value: object, default: float, what: str) -> float:
    """`value` as a float, or `default` for None (see `numbers`)."""
    return float(numbers(None if value is None else [value], [default], what)[0])


def extensions_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The extensions of an entry, {} if it has none."""
    return as_dict(entry.get("extensions", {}), "extensions")


def as_dict(value: object, what: str) -> dict[str, Any]:
    """`value`, which must be an object of JSON."""
    if not isinstance(value, dict):
        raise GltfError(f"{what} is damaged")
    return value


def as_list(value: object, what: str) -> list[Any]:
    """`value`, which must be an array of JSON."""
    if not isinstance(value, list):
        raise GltfError(f"{what} is damaged")
    return value

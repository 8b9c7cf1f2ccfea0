"""A PLY file of any program as one that trimesh reads: triangles alone, and colours by their names.

trimesh reads no binary PLY whose faces have different numbers of corners, which Blender writes.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

import numpy as np

END = re.compile(rb"^end_header[ \t]*\r?\n", re.MULTILINE)
DIFFUSE = re.compile(rb"(?<=[ \t])diffuse_(?=(?:red|green|blue)\b)")
CODES = {
    **{"char": "b", "int8": "b", "uchar": "B", "uint8": "B", "short": "h", "int16": "h"},
    **{"ushort": "H", "uint16": "H", "int": "i", "int32": "i", "uint": "I", "uint32": "I"},
    **{"float": "f", "float32": "f", "double": "d", "float64": "d"},
}
CORNERS = ("vertex_indices", "vertex_index")
LONGEST_HEADER = 100_000  # bytes


@dataclass
class Element:
    """One kind of rows, such as the faces.

    Attributes:
        name: `vertex`, `face` or another one.
        count: Rows.
        lines: Its lines of the header.
        properties: (name, code of the number of items or "", code of a value), one a column.
    """

    name: str
    count: int
    lines: list[bytes]
    properties: list[tuple[str, str, str]] = field(default_factory=list)


def plain_ply(data: bytes) -> bytes:
    """The file with faces of three corners and the usual names of its colours.

    Raises:
        ValueError: It is cut off.
    """
    end = END.search(data, 0, LONGEST_HEADER)
    if end is None:
        return data
    head, body = DIFFUSE.sub(b"", data[: end.end()]), data[end.end() :]
    order = "<" if b"binary_little" in head else ">"
    elements = _elements(head) if b"format binary" in head else []
    names = [element.name for element in elements]
    if names[:2] != ["vertex", "face"] or any(length for _, length, _ in elements[0].properties):
        return head + body
    width = struct.calcsize(order + "".join(code for _, _, code in elements[0].properties))
    start = elements[0].count * width
    faces = _faces(body, start, elements[1], order)
    if faces is None:
        return head + body
    top = [line for line in head.splitlines() if line.split()[:1] in ([b"ply"], [b"format"])]
    top += [line for line in head.splitlines() if line.startswith(b"comment")]
    lines = [*top, *elements[0].lines, b"element face %d" % len(faces)]
    lines += [b"property list uchar int vertex_indices", b"end_header", b""]
    rows = b"".join(struct.pack(f"{order}B3i", 3, *face) for face in faces)
    return b"\n".join(lines) + body[:start] + rows


def _elements(head: bytes) -> list[Element]:
    """The elements of a header; [] if it is damaged."""
    found: list[Element] = []
    for line in head.splitlines():
        words = line.decode("latin-1").split()
        if words[:1] == ["element"] and len(words) == 3 and words[2].isdecimal():
            found.append(Element(words[1], int(words[2]), [line]))
        elif words[:1] == ["property"] and found and len(words) > 2:
            codes = [CODES.get(word) for word in words[1:-1] if word != "list"]
            if None in codes or len(codes) != (2 if words[1] == "list" else 1):
                return []
            length, code = codes if len(codes) == 2 else ("", codes[0])
            if length in ("f", "d"):
                return []
            found[-1].properties.append((words[-1], length or "", code or ""))
            found[-1].lines.append(line)
    return found


def _faces(body: bytes, at: int, element: Element, order: str) -> list[tuple[int, ...]] | None:
    """The faces cut into triangles around their first corner; None if all have as many corners.

    Args:
        body: The file after its header.
        at: Where the faces begin.
        element: The faces' element.
        order: Of the bytes, as in struct.
    """
    if not any(name in CORNERS and length for name, length, _ in element.properties):
        return None
    polygons: list[tuple[int, ...]] = []
    try:
        if _are_alike(body, at, element, order):
            return None
        for _ in range(element.count):
            for name, length, code in element.properties:
                count = 1
                if length:
                    (count,) = struct.unpack_from(order + length, body, at)
                    at += struct.calcsize(order + length)
                values = struct.unpack_from(f"{order}{count}{code}", body, at)
                at += struct.calcsize(f"{order}{count}{code}")
                if name in CORNERS:
                    polygons.append(values)
    except struct.error as error:
        raise ValueError("it is cut off") from error
    if len({len(polygon) for polygon in polygons}) < 2:
        return None
    return [(p[0], p[k], p[k + 1]) for p in polygons for k in range(1, len(p) - 1)]


def _are_alike(body: bytes, at: int, element: Element, order: str) -> bool:
    """Whether the lists of all rows are as long as those of the first; arguments of `_faces`.

    Raises:
        struct.error: The first row is cut off.
    """
    columns: list[tuple[str, str, tuple[int, ...]]] = []
    counts: dict[str, int] = {}
    first = at
    for k, (_, length, code) in enumerate(element.properties):
        count = 1
        if length:
            (count,) = struct.unpack_from(order + length, body, first)
            if count < 0:
                return False
            counts[f"count{k}"] = count
            columns.append((f"count{k}", order + length, ()))
            first += struct.calcsize(order + length)
        columns.append((f"values{k}", order + code, (count,)))
        first += count * struct.calcsize(order + code)
    size = element.count * (first - at)
    if len(body) < at + size or not size:
        return False
    rows = np.frombuffer(body, np.dtype(columns), element.count, at)
    return all(bool((rows[name] == count).all()) for name, count in counts.items())

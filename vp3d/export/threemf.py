"""The 3MF writer and reader: millimetres, z up, welded, one colour a triangle.

3MF Core Specification 1.3 and Materials and Properties Extension 1.2: a zip archive with one XML
model, whose colour group holds the few colours that a printer can use. The reader takes meshes,
their placing in the build, and colours of colour groups and base materials; components and other
properties are not read.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from scipy.cluster.vq import kmeans2

from vp3d.export.archive import deflated, read_members
from vp3d.export.mesh_data import color_to_uint8, computed_normals, named
from vp3d.export.style import PLAIN, Style
from vp3d.render.raster import base_color
from vp3d.system.files import plain, write_bytes
from vp3d.types import Asset, Mesh

CORE = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
MATERIAL = "http://schemas.microsoft.com/3dmanufacturing/material/2015/02"
MODEL = "3D/3dmodel.model"
TYPES = """<?xml version="1.0" encoding="UTF-8"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Default Extension="model" ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/>
</Types>
"""
RELATIONS = f"""<?xml version="1.0" encoding="UTF-8"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
<Relationship Id="rel0" Target="/{MODEL}"
 Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/>
</Relationships>
"""
UNITS = {  # of the attribute `unit` -> millimetres
    "micron": 0.001,
    "millimeter": 1.0,
    "centimeter": 10.0,
    "inch": 25.4,
    "foot": 304.8,
    "meter": 1000.0,
}


class ThreeMfError(ValueError):
    """A 3MF file is damaged or uses what is not read."""


def write_3mf(asset: Asset, path: Path, style: Style = PLAIN) -> None:
    """Write the mesh of `asset`, whose unit is the millimetre, as 3MF.

    Vertices at equal positions are merged and triangles without an area are left out. Atomic; the
    same asset and style give the same bytes.
    """
    positions, faces, kept = _welded(asset.mesh)
    palette, index = palette_of(face_colors(asset.mesh)[kept], style.colors)
    parts = ['<?xml version="1.0" encoding="UTF-8"?>']
    parts.append(f'<model unit="millimeter" xml:lang="en-US" xmlns="{CORE}" xmlns:m="{MATERIAL}">')
    title = named(asset.prompt, style.names)
    notes = {"Title": title, "Application": "VP3D"}
    if style.extras:
        origin = plain(dict(style.extras))
        notes["Description"] = "; ".join(f"{key}: {value}" for key, value in origin.items())
    parts += [
        f"<metadata name={quoteattr(key)}>{escape(_printable(value))}</metadata>"
        for key, value in notes.items()
    ]
    parts += ["<resources>", '<m:colorgroup id="1">']
    parts += [f'<m:color color="#{r:02X}{g:02X}{b:02X}FF"/>' for r, g, b in palette.tolist()]
    parts += ["</m:colorgroup>"]
    name = quoteattr(_printable(title))
    parts += [f'<object id="2" type="model" name={name} pid="1" pindex="0"><mesh><vertices>']
    parts += [f'<vertex x="{x:.6g}" y="{y:.6g}" z="{z:.6g}"/>' for x, y, z in positions.tolist()]
    parts += ["</vertices><triangles>"]
    parts += [
        f'<triangle v1="{a}" v2="{b}" v3="{c}" pid="1" p1="{color}"/>'
        for (a, b, c), color in zip(faces.tolist(), index.tolist(), strict=True)
    ]
    parts += ["</triangles></mesh></object></resources>"]
    parts += ['<build><item objectid="2"/></build></model>', ""]
    model = "\n".join(parts).encode()
    members = [("[Content_Types].xml", TYPES.encode()), ("_rels/.rels", RELATIONS.encode())]
    write_bytes(path, deflated([*members, (MODEL, model)]))


def _printable(text: str) -> str:
    """`text` without the control characters that XML does not allow."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", " ", text)


def _welded(mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions `[V, 3]`, as the file prints them, faces `[F, 3]` and which faces are kept."""
    printed = np.array([[float(f"{x:.6g}") for x in row] for row in mesh.vertices.tolist()])
    positions, index = np.unique(printed, axis=0, return_inverse=True)
    faces = index.reshape(-1)[mesh.faces]
    a, b, c = faces.T
    kept = (a != b) & (b != c) & (c != a)
    used, faces = np.unique(faces[kept], return_inverse=True)
    return positions[used], faces.reshape(-1, 3), kept


def face_colors(mesh: Mesh) -> np.ndarray:
    """sRGB colour `[F, 3]` in [0, 1] of each face: the mean of four points on it."""
    count = len(mesh.faces)
    index = np.arange(count)
    spread = np.array([[1, 1, 1], [4, 1, 1], [1, 4, 1], [1, 1, 4]], np.float32)
    spread /= spread.sum(1, keepdims=True)
    found = [base_color(mesh, index, np.tile(row, (count, 1))) for row in spread]
    return np.mean(found, 0)


def palette_of(colors: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` colours `[K, 3]` uint8 for `colors [N, 3]` in [0, 1], and the index of each.

    k-means from farthest points, without randomness.
    """
    start = [colors[((colors - colors.mean(0)) ** 2).sum(1).argmin()]]
    apart = ((colors - start[0]) ** 2).sum(1)
    while len(start) < most and apart.max() > 1e-4:
        start.append(colors[apart.argmax()])
        apart = np.minimum(apart, ((colors - start[-1]) ** 2).sum(1))
    centres = np.stack(start)
    if len(centres) > 1:
        centres, _ = kmeans2(colors.astype(np.float64), centres, minit="matrix", iter=20)
    palette, index = np.unique(color_to_uint8(centres), axis=0, return_inverse=True)
    index = index.reshape(-1)
    nearest = ((colors[:, None] - palette[None] / 255.0) ** 2).sum(2).argmin(1)
    return palette, nearest


def read_3mf(path: Path) -> list[Mesh]:
    """The objects in the build of a 3MF file, in millimetres, in our frame (z up).

    Raises:
        ThreeMfError: It is damaged, or an object is made of components.
    """
    members = {name.lstrip("/"): data for name, data in read_members(path).items()}
    name = next((n for n in members if n.lower().endswith(".model")), "")
    data = members.get(MODEL, members.get(name, b""))
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # entities can grow without end
        raise ThreeMfError("it declares a document type, which 3MF does not allow")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ThreeMfError(f"its model is no XML ({error})") from error
    scale = UNITS.get(root.get("unit", "millimeter"))
    if scale is None:
        raise ThreeMfError(f"the unit {root.get('unit')!r} is unknown")
    groups = _color_groups(root)
    objects = {one.get("id"): one for one in root.iter(f"{{{CORE}}}object")}
    parts = []
    for item in root.iter(f"{{{CORE}}}item"):
        entry = objects.get(item.get("objectid"))
        if entry is None:
            raise ThreeMfError("the build names an object that does not exist")
        mesh = _object(entry, groups)
        matrix = _transform(item.get("transform"))
        vertices = (mesh.vertices @ matrix[:3] + matrix[3]) * scale
        faces = mesh.faces if np.linalg.det(matrix[:3]) > 0 else mesh.faces[:, ::-1].copy()
        placed = Mesh(vertices.astype(np.float32), faces, vertex_colors=mesh.vertex_colors)
        parts.append(replace(placed, normals=computed_normals(placed)))
    return parts


def _transform(text: str | None) -> np.ndarray:
    """A transform as `[4, 3]` for row vectors."""
    values = [float(v) for v in (text or "1 0 0 0 1 0 0 0 1 0 0 0").split()]
    if len(values) != 12 or not np.isfinite(values).all():
        raise ThreeMfError("a transform needs 12 finite numbers")
    return np.array(values).reshape(4, 3)


def _color_groups(root: ElementTree.Element) -> dict[str, np.ndarray]:
    """sRGB colours `[K, 3]` in [0, 1] by the id of their group."""
    found = {}
    lists = ((f"{{{MATERIAL}}}colorgroup", "color"), (f"{{{CORE}}}basematerials", "displaycolor"))
    for tag, key in lists:
        for group in root.iter(tag):
            texts = [child.get(key, "") for child in group if child.get(key)]
            if any(not re.fullmatch(r"#[0-9a-fA-F]{6}([0-9a-fA-F]{2})?", t) for t in texts):
                raise ThreeMfError("a colour that is not of the form #RRGGBB")
            rows = [[int(t[i : i + 2], 16) for i in (1, 3, 5)] for t in texts]
            found[str(group.get("id"))] = np.array(rows, np.float32).reshape(-1, 3) / 255.0
    return found


def _object(entry: ElementTree.Element, groups: dict[str, np.ndarray]) -> Mesh:
    mesh = entry.find(f"{{{CORE}}}mesh")
    if mesh is None:
        raise ThreeMfError("an object is made of components, which are not read")
    vertices = np.array(
        [[float(v.get(k, "nan")) for k in "xyz"] for v in mesh.iter(f"{{{CORE}}}vertex")]
    ).reshape(-1, 3)
    triangles = list(mesh.iter(f"{{{CORE}}}triangle"))
    corners = [[int(t.get(k, "-1")) for k in ("v1", "v2", "v3")] for t in triangles]
    faces = np.array(corners, np.int64).reshape(-1, 3)
    if len(faces) and not (faces.min() >= 0 and faces.max() < len(vertices)):
        raise ThreeMfError("faces that use vertices that do not exist")
    colors = [_triangle_color(t, entry, groups) for t in triangles]
    if all(color is None for color in colors):
        return Mesh(vertices, faces)
    white = np.ones(3, np.float32)
    rows = np.array([white if color is None else color for color in colors])
    flat = np.arange(3 * len(faces)).reshape(-1, 3)
    return Mesh(vertices[faces.ravel()], flat, vertex_colors=rows.repeat(3, 0).astype(np.float32))


def _triangle_color(
    triangle: ElementTree.Element, entry: ElementTree.Element, groups: dict[str, np.ndarray]
) -> np.ndarray | None:
    """The colour `[3]` of a triangle: its own, else that of its object, else None."""
    group = groups.get(str(triangle.get("pid", entry.get("pid"))))
    index = int(triangle.get("p1", entry.get("pindex", "0")))
    if group is None:
        return None
    if not 0 <= index < len(group):
        raise ThreeMfError("a colour that does not exist")
    return np.asarray(group[index])

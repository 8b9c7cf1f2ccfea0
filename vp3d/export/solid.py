"""Print-ready: one solid with a flat base, by manifold3d, and what a printer has to know of it.

Parts that overlap are united, a slice of the bottom is cut off so that the print stands, and thin
walls are measured: from the middle of each face a ray runs inwards, and the wall is as thick as the
way to the other side. Lengths here are millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from vp3d.errors import UserError
from vp3d.export.mesh_data import vertex_colors_of
from vp3d.export.ply import weld
from vp3d.export.repair import clean, components, select_faces
from vp3d.render.raster import face_normals
from vp3d.types import Mesh

THIN_MM = 0.8  # two lines of a usual nozzle of 0.4 mm
MOST_RAYS = 2000  # faces whose wall is measured, spread evenly
INSIDE_MM = 1e-3  # from the face to the start of its ray


@dataclass(frozen=True)
class Solid:
    """A mesh ready to print.

    Attributes:
        mesh: One closed oriented mesh in millimetres, with vertex colours.
        figures: status, parts, parts_united, genus, volume_cm3, area_cm2, box_mm, thin_share (share
            of the surface with a wall below THIN_MM) and thinnest_mm.
        lowered: How far the mesh was moved down, millimetres.
        factor: What it was scaled by after that, because the cut made it shorter.
    """

    mesh: Mesh
    figures: dict[str, Any]
    lowered: float
    factor: float


def manifold3d() -> ModuleType:
    """The package, or one line that says how to install it."""
    try:
        import manifold3d as package
    except ImportError as error:
        raise UserError(
            "export.print=true needs the package manifold3d: pip install 'vp3d[print]'"
        ) from error
    return package


def print_ready(
    mesh: Mesh, base_mm: float, size_mm: float = 0.0, size_axis: str = "longest"
) -> Solid:
    """`mesh`, in millimetres and z up, as one solid that stands on a flat base at z = 0.

    Args:
        mesh: A closed mesh; open or tangled ones are repaired first.
        base_mm: Height of the slice that is cut off at the bottom; 0 cuts nothing.
        size_mm: Size of the result; 0 keeps the scale.
        size_axis: What `size_mm` measures: "height" or "longest" side.

    Raises:
        UserError: The mesh encloses no volume, manifold3d is missing, or the base takes all.
    """
    package = manifold3d()
    welded = weld(mesh)
    parts = _solids(package, welded)
    whole = package.Manifold.batch_boolean(parts, package.OpType.Add)
    if base_mm > 0.0:
        whole = whole.trim_by_plane((0.0, 0.0, 1.0), whole.bounding_box()[2] + base_mm)
    if whole.is_empty() or not whole.volume() > 0.0:
        raise UserError(
            f"nothing is left above a base of {base_mm:g} mm; lower export.print_base_mm"
        )
    box = whole.bounding_box()
    sides = [box[k + 3] - box[k] for k in range(3)]
    factor = size_mm / (sides[2] if size_axis == "height" else max(sides)) if size_mm else 1.0
    whole = whole.translate((0.0, 0.0, -box[2])).scale((factor,) * 3)
    solid = _mesh_of(whole, welded, box[2], factor)
    figures = {**_figures(whole, len(parts)), **_walls(whole, solid)}
    return Solid(solid, figures, box[2], factor)


def _solids(package: ModuleType, mesh: Mesh) -> list[Any]:
    """A manifold for each connected part of the mesh that encloses a volume."""
    bare = Mesh(mesh.vertices, mesh.faces)
    label = components(bare)
    found = []
    for part in range(int(label.max()) + 1):
        piece = select_faces(bare, label == part)
        solid = _manifold(package, piece)
        if solid is None:
            solid = _manifold(package, clean(piece))
        if solid is not None and solid.volume() > 0.0:
            found.append(solid)
    if not found:
        raise UserError("the mesh encloses no volume, so it cannot be printed; close its holes")
    return found


def _manifold(package: ModuleType, mesh: Mesh) -> Any:
    """The mesh as a manifold, or None if it is not closed and oriented."""
    if not len(mesh.faces):
        return None
    solid = package.Manifold(
        package.Mesh(
            np.ascontiguousarray(mesh.vertices, np.float32),
            np.ascontiguousarray(mesh.faces, np.uint32),
        )
    )
    return solid if solid.status() == package.Error.NoError and not solid.is_empty() else None


def _mesh_of(whole: Any, source: Mesh, lowered: float, factor: float) -> Mesh:
    """The manifold as a mesh, with the colours of the nearest vertices of `source`."""
    raw = whole.to_mesh()
    vertices = np.asarray(raw.vert_properties, np.float32)[:, :3]
    mesh = Mesh(vertices, np.asarray(raw.tri_verts, np.int64))
    back = vertices.astype(np.float64) / factor + [0.0, 0.0, lowered]
    nearest = cKDTree(source.vertices).query(back)[1]
    return replace(mesh, vertex_colors=vertex_colors_of(source)[nearest])


def _figures(whole: Any, united: int) -> dict[str, Any]:
    box = whole.bounding_box()
    return {
        "status": whole.status().name,
        "parts_united": united,
        "parts": len(whole.decompose()),
        "genus": int(whole.genus()),
        "volume_cm3": round(whole.volume() / 1000.0, 3),
        "area_cm2": round(whole.surface_area() / 100.0, 3),
        "box_mm": [round(box[k + 3] - box[k], 3) for k in range(3)],
    }


def _walls(whole: Any, mesh: Mesh) -> dict[str, float]:
    """The share of the surface with a thin wall, and the thinnest wall in millimetres."""
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    doubled = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = 0.5 * np.linalg.norm(doubled, axis=1)
    largest = np.argsort(-area, kind="stable")
    usable = largest[area[largest] > 1e-6 * area.sum() / max(len(area), 1)]
    chosen = usable[:: max(1, len(usable) // MOST_RAYS)]
    start = corners[chosen].mean(1) - INSIDE_MM * face_normals(mesh)[chosen]
    reach = float(np.linalg.norm(np.ptp(mesh.vertices, axis=0)))
    ends = start - reach * face_normals(mesh)[chosen]
    thickness = np.full(len(chosen), np.inf)
    for n, (origin, end) in enumerate(zip(start.tolist(), ends.tolist(), strict=True)):
        hits = whole.ray_cast(tuple(origin), tuple(end))
        if hits:
            thickness[n] = hits[0].distance * reach
    thin = thickness < THIN_MM
    share = float(area[chosen][thin].sum() / max(area[chosen].sum(), 1e-12))
    finite = thickness[np.isfinite(thickness)]
    thinnest = float(finite.min()) if len(finite) else 0.0
    return {"thin_share": round(share, 4), "thinnest_mm": round(thinnest, 3)}

"""Size, origin and axes of a mesh in a file, and the way back.

In memory a mesh is z up, facing +x, inside [-1, 1]^3 world units. Without a size, GLB and USDZ
store one world unit as one metre and OBJ, PLY and STL store world units; 3MF is always in
millimetres. With a size, GLB and USDZ are in metres and the other formats in millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vp3d.export.mesh_data import FROM_GLTF, TO_GLTF
from vp3d.export.style import Up
from vp3d.types import Mesh

IN_METRES = ("glb", "usdz")  # formats whose unit is the metre; they have axes of their own
IN_MILLIMETRES = ("3mf",)  # formats whose unit is the millimetre, and whose up is z
DEFAULT_SIZE_MM = 100.0  # longest side of a mesh in such a format if no size is given


@dataclass(frozen=True)
class Frame:
    """Where a mesh is put in a file.

    Attributes:
        shift: `[3]` world units, added before scaling.
        mm: Millimetres of a world unit; 0 where no size was asked for.
        fallback_mm: The same for formats in millimetres, > 0.
        up: The axis that points up in OBJ, PLY and STL.
        unit: Units of a file in a world unit where no size was asked for.
    """

    shift: np.ndarray
    mm: float
    fallback_mm: float
    up: Up = "z"
    unit: float = 1.0

    def in_units(self, unit: float, centre: np.ndarray, millimetres: bool) -> Frame:
        """The frame that gives a mesh back the units and the place of its own file.

        Args:
            unit: Units of that file in a world unit.
            centre: `[3]`: where that file has the origin of the world; used if the origin is not
                moved.
            millimetres: Whether its unit is the millimetre.
        """
        shift = self.shift if self.shift.any() else centre / unit
        fallback = unit if millimetres else self.fallback_mm
        return replace(self, shift=shift, unit=unit, fallback_mm=fallback)

    def scale(self, kind: str) -> float:
        """Units of a file of the format `kind` in a world unit."""
        if kind in IN_MILLIMETRES:
            return self.mm or self.fallback_mm
        if not self.mm:
            return self.unit
        return self.mm / 1000.0 if kind in IN_METRES else self.mm

    def placed(self, mesh: Mesh, kind: str) -> Mesh:
        """The mesh as a file of the format `kind` has it."""
        vertices = (mesh.vertices.astype(np.float64) + self.shift) * self.scale(kind)
        return self._turned(mesh, vertices, kind, TO_GLTF)

    def restored(self, mesh: Mesh, kind: str) -> Mesh:
        """The mesh of a file of the format `kind` in the frame of memory."""
        turned = self._turned(mesh, mesh.vertices.astype(np.float64), kind, FROM_GLTF)
        vertices = turned.vertices / self.scale(kind) - self.shift
        return replace(turned, vertices=vertices.astype(np.float32))

    def _turned(self, mesh: Mesh, vertices: np.ndarray, kind: str, axes: list[int]) -> Mesh:
        """The mesh at `vertices [V, 3]`, with y up where that was asked for."""
        normals, tangents = mesh.normals, mesh.tangents
        if self.up == "y" and kind not in IN_METRES + IN_MILLIMETRES:
            vertices = vertices[:, axes]
            normals = None if normals is None else normals[:, axes]
            tangents = None if tangents is None else tangents[:, [*axes, 3]]
        vertices = np.ascontiguousarray(vertices, np.float32)
        return replace(mesh, vertices=vertices, normals=normals, tangents=tangents)


def frame_of(
    mesh: Mesh,
    size_mm: float,
    size_axis: Literal["height", "longest"],
    origin: Literal["field", "centre", "bottom"],
    up: Up,
) -> Frame:
    """The frame that gives `mesh` a size and an origin.

    Args:
        mesh: The mesh, in world units.
        size_mm: Millimetres of its height or its longest side; 0 for world units.
        size_axis: Which of the two.
        origin: "field" keeps the origin of the field; "centre" takes the centre of the box,
            "bottom" the centre of its lower side.
        up: The axis that points up in OBJ, PLY and STL.
    """
    used = mesh.vertices[np.unique(mesh.faces)].astype(np.float64)
    low, high = used.min(0), used.max(0)
    extent = float((high - low)[2] if size_axis == "height" else (high - low).max())
    extent = max(extent, 1e-9)
    middle = (low + high) / 2.0
    below = np.array([middle[0], middle[1], low[2]])
    shift = {"field": np.zeros(3), "centre": -middle, "bottom": -below}[origin]
    longest = max(float((high - low).max()), 1e-9)
    return Frame(shift, size_mm / extent, DEFAULT_SIZE_MM / longest, up)

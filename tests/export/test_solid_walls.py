"""Walls of a print-ready solid, measured on slabs whose thickness is known."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from vp3d.export.solid import INSIDE_MM, print_ready
from vp3d.types import Mesh

pytest.importorskip("manifold3d")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("wall", "thin"), [(0.5, True), (0.9, False)])
def test_the_wall_of_a_slab_is_its_thickness(axis: int, wall: float, thin: bool) -> None:
    """Both large faces of 10 by 20 mm count as thin below 0.8 mm, and the small sides do not."""
    sides = np.roll([wall, 10.0, 20.0], axis)
    box = trimesh.creation.box(sides).apply_translation([40.0, -30.0, 7.0])
    mesh = Mesh(np.float32(box.vertices), np.asarray(box.faces, np.int64))
    figures = print_ready(mesh, 0.0).figures
    assert figures["thinnest_mm"] == pytest.approx(wall, abs=2 * INSIDE_MM)
    area = 2 * (10.0 * 20.0 + wall * 10.0 + wall * 20.0)
    assert figures["thin_share"] == pytest.approx(400.0 / area if thin else 0.0, abs=1e-3)
    assert figures["area_cm2"] == pytest.approx(area / 100.0, abs=1e-3)
    assert figures["volume_cm3"] == pytest.approx(wall * 0.2, abs=1e-3)
    assert sorted(figures["box_mm"]) == pytest.approx([wall, 10.0, 20.0], abs=1e-3)

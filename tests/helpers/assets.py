"""Assets for tests that write a mesh file."""

from __future__ import annotations

from pathlib import Path

from vp3d.types import Asset, Mesh


def asset_of(mesh: Mesh) -> Asset:
    """An asset that has no run, with `mesh` as its mesh."""
    return Asset("a test mesh", mesh, Path())

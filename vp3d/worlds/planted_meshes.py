"""Planted hallucinations on named meshes: real objects with textures (`vp3d.worlds.planted`).

A scene is a mesh of a library in its own colours, or painted, from a random side. What the changes
are on a mesh:

    colour     one material moves towards the farthest colour
    part       connected pieces are left out, up to `DROPPED` of the surface
    added      a ball of a random colour beside it
    swapped    the mesh of another noun
    pattern    a texture of another period or, at the last level, the texture of another mesh
    texture    band-limited noise on the object

A mesh of one piece loses no part, and one without a texture has no pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import trimesh

from vp3d.export.repair import components
from vp3d.types import Mesh
from vp3d.worlds.library import Library
from vp3d.worlds.library_captions import LibrarySpec, caption
from vp3d.worlds.mesh_library import BLUE, PAINT, RED, TEXTURE, LibraryMesh
from vp3d.worlds.mesh_render import build_scene, render_scene
from vp3d.worlds.planted import (
    BALL_DISTANCE,
    BALL_RADII,
    BENIGN,
    GROUND,
    LEVELS,
    PERIODS,
    Pair,
    benign_pair,
    every_change,
    harmful_pair,
    textured,
    towards_the_farthest,
)
from vp3d.worlds.toybox.planted import random_view
from vp3d.worlds.toybox.scenes import COLORS

DROPPED = (0.05, 0.12, 0.25)  # most of the surface that is left out
# A mesh and the sRGB colour [3] of its paint, None for its own
Painted = tuple[LibraryMesh, np.ndarray | None]


def planted_mesh_pairs(
    library: Library,
    count: int,
    size: int,
    seed: int = 0,
    held_out: bool = False,
    first: int = 0,
) -> list[Pair]:
    """Every kind and level of change of `count` random meshes, seen from random sides.

    Args:
        library: the meshes.
        count: number of scenes.
        size: side of a picture, pixels, a multiple of 8.
        seed: of the scenes, views and changes.
        held_out: meshes of the other half of the table, by which nothing was chosen.
        first: number of the first scene; a scene depends on its number and the seed alone.

    Returns:
        The pairs, scene by scene; harmful changes that cannot be seen are left out.
    """
    pairs: list[Pair] = []
    rows = library.rows[int(held_out) :: 2]
    for index in range(first, first + count):
        rng = np.random.default_rng([28, seed, index])
        row = rows[int(rng.integers(len(rows)))]
        spec = LibrarySpec(row.noun, mesh=row.name)
        if row.paint and rng.random() < 0.5:
            spec = replace(spec, color=str(rng.choice(list(COLORS))), painted=True)
        pairs += every_change(partial(plant_mesh, library, spec, random_view(rng), size, rng))
    return pairs


def plant_mesh(
    library: Library,
    spec: LibrarySpec,
    view: np.ndarray,
    size: int,
    rng: np.random.Generator,
    kind: str,
    level: int,
) -> Pair | None:
    """One change of one mesh; None if it cannot be made or seen.

    Args:
        library: the meshes.
        spec: one of them.
        view: the camera, [1, 13] (`images.view_vectors`).
        size: side of the pictures, pixels.
        rng: draws what the kind leaves open.
        kind: one of `HARMFUL` or `BENIGN`.
        level: 1 to 3.
    """
    paint = np.array(COLORS[spec.color]) if spec.painted else None
    whole, text = (library.mesh(spec.mesh), paint), f"{caption(spec)} ({spec.mesh})"
    reference = _render([whole], view, size)
    if kind in BENIGN:
        return benign_pair(kind, level, text, reference, rng)
    if kind == "texture":
        dark, bright = (_render([whole], view, size, ground) for ground in (0.2, 0.8))
        mask = (dark == bright).all(axis=-1)  # the ground is what changes with its grey
        return harmful_pair(kind, level, text, reference, textured(reference, mask, level, rng))
    changed: list[Painted] = []
    if kind == "colour":
        changed = _recolored(whole, level, rng)
    elif kind == "part":
        changed = _without_pieces(whole, level, rng)
    elif kind == "added":
        changed = [whole, _ball(level, rng)]
    elif kind == "swapped":
        others = [row.name for row in library.rows if row.noun != spec.noun]
        changed = [(library.mesh(str(rng.choice(others))), paint)]
    elif kind == "pattern":
        changed = _repatterned(library, whole, level, rng)
    if not changed:
        return None
    return harmful_pair(kind, level, text, reference, _render(changed, view, size))


def _render(
    parts: Sequence[Painted], view: np.ndarray, size: int, ground: float = GROUND
) -> np.ndarray:
    """The picture, uint8 `[S, S, 3]`."""
    meshes, paints = zip(*parts, strict=True)
    scene = build_scene(meshes, paints, [1.0] * len(parts), [np.zeros(3)] * len(parts))
    return np.asarray(render_scene(scene, view, np.array([ground]), size)[0][0])


def _recolored(whole: Painted, level: int, rng: np.random.Generator) -> list[Painted]:
    """One material, drawn by its share of the surface, moved towards the farthest colour.

    The colour of a textured material is its mean; the texture's brightness stays.
    """
    mesh, paint = whole
    area = np.bincount(mesh.material, _areas(mesh), len(mesh.materials))
    chosen = int(rng.choice(len(area), p=area / area.sum()))
    row, table = mesh.materials[chosen], mesh.materials.copy()
    rgb = row[RED : BLUE + 1].astype(np.float64)
    if row[PAINT] and paint is not None:
        rgb = paint
    elif row[TEXTURE] >= 0:
        rgb = mesh.textures[int(row[TEXTURE])][..., :3].mean((0, 1)) / 255.0
    table[chosen, PAINT] = 1.0
    here = mesh.material == chosen
    new = _with_triangles(replace(mesh, materials=table), here)
    return [(_with_triangles(mesh, ~here), paint), (new, towards_the_farthest(rgb, COLORS, level))]


def _with_triangles(mesh: LibraryMesh, keep: np.ndarray) -> LibraryMesh:
    """The mesh with the triangles `keep` [T] only."""
    return replace(mesh, triangles=mesh.triangles[keep], material=mesh.material[keep])


def _without_pieces(whole: Painted, level: int, rng: np.random.Generator) -> list[Painted]:
    """Without random connected pieces, `DROPPED` of the surface at most; empty if there is none."""
    mesh, paint = whole
    of_triangle = _pieces(mesh)
    area = np.bincount(of_triangle, _areas(mesh))
    share, dropped = area / area.sum(), np.zeros(len(area), bool)
    for piece in rng.permutation(len(area)):
        if share[dropped].sum() + share[piece] <= DROPPED[level - 1]:
            dropped[piece] = True
    return [(_with_triangles(mesh, ~dropped[of_triangle]), paint)] if dropped.any() else []


def _pieces(mesh: LibraryMesh) -> np.ndarray:
    """The number of each triangle's connected piece [T]; corners at one place are one."""
    place, of_corner = np.unique(np.round(mesh.position, 5), axis=0, return_inverse=True)
    return components(Mesh(place, of_corner.reshape(-1)[mesh.triangles]))


def _areas(mesh: LibraryMesh) -> np.ndarray:
    """Of each triangle [T]."""
    return np.asarray(trimesh.triangles.area(mesh.position[mesh.triangles]))


def _ball(level: int, rng: np.random.Generator) -> Painted:
    """A ball of a random colour beside the object."""
    direction = rng.normal(size=3)
    center = direction / np.linalg.norm(direction) * rng.uniform(*BALL_DISTANCE)
    color = COLORS[str(rng.choice(list(COLORS)))]
    ball = trimesh.creation.icosphere(subdivisions=3)
    normal = np.asarray(ball.vertices, np.float32)
    triangles = np.asarray(ball.faces, np.int32)
    mesh = LibraryMesh(
        position=(normal * BALL_RADII[level - 1] + center).astype(np.float32),
        normal=normal,
        uv=np.zeros((len(normal), 2), np.float32),
        triangles=triangles,
        material=np.zeros(len(triangles), np.int32),
        materials=np.array([[*color, 1.0, -1.0, 0.0]], np.float32),
        textures=(),
        names=("ball",),
    )
    return mesh, None


def _repatterned(
    library: Library, whole: Painted, level: int, rng: np.random.Generator
) -> list[Painted]:
    """Textures of another period or, at the last level, of another mesh; empty without textures."""
    mesh, paint = whole
    if not mesh.textures:
        return []
    if level < LEVELS:
        return [(replace(mesh, uv=mesh.uv / PERIODS[level - 1]), paint)]
    others = [row.name for row in library.rows if library.mesh(row.name).textures]
    textures = library.mesh(str(rng.choice(others))).textures
    chosen = tuple(textures[n % len(textures)] for n in range(len(mesh.textures)))
    return [(replace(mesh, textures=chosen), paint)]

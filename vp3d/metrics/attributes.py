"""Scores a mesh by what the judge names in eight views of it.

Attributes are dicts with the names of the judge's heads (`object_a`, `color_a`, `accent_a`,
`pattern`, `object_b`, `color_b`, `relation`); "none" means that there is no such thing. Meshes are
judged unlit, because their colours contain the light of the pictures they were generated from. A
view is right if both objects and their colours are; an asset passes if `PASS_SHARE` of its views
are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vp3d.config.schema import CameraConfig
from vp3d.metrics.attribute_judge import Judge, judge_views
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.report.pictures import AZIMUTHS, ELEVATION_DEG, VIEWS
from vp3d.types import Mesh

PASS_SHARE = 0.75  # of the views that must be right
JUDGE_BACKGROUND = 0.7  # grey behind a judged mesh: the middle one of the judge's training
OBJECTS, COLORS = ("object_a", "object_b"), ("color_a", "color_b")
DETAILS = ("accent_a", "pattern", "relation")

# "a next to b" is "b next to a", and from behind left and right are swapped.
SYMMETRIC_RELATIONS = ("next to",)
SWAP = {"object_a": "object_b", "object_b": "object_a", "color_a": "color_b", "color_b": "color_a"}


def agrees(named: Mapping[str, str], expected: Mapping[str, str], keys: Sequence[str]) -> bool:
    """Whether the judge's names are the expected ones for `keys`.

    Keys that `expected` lacks are ignored.
    """
    return all(named[key] == expected[key] for key in keys if key in expected)


def check_view(named: Mapping[str, str], expected: Mapping[str, str]) -> dict[str, bool]:
    """Compares what the judge named in one view with the truth.

    The two objects of a symmetric relation may be named in either order, each with its own colour.

    Returns:
        Whether the "objects", the "colors", both ("right") and each of `DETAILS` are right.
    """
    orders = [named]
    if expected.get("relation") in SYMMETRIC_RELATIONS:
        orders.append({key: named[SWAP.get(key, key)] for key in named})
    best = max(
        orders, key=lambda n: (agrees(n, expected, OBJECTS + COLORS), agrees(n, expected, OBJECTS))
    )
    objects, colors = agrees(best, expected, OBJECTS), agrees(best, expected, COLORS)
    return {
        "right": objects and colors,
        "objects": objects,
        "colors": colors,
        **{key: agrees(named, expected, (key,)) for key in DETAILS},
    }


def score_asset(
    judge: Judge,
    mesh: Mesh,
    expected: Mapping[str, str],
    camera: CameraConfig | None = None,
    background: float = JUDGE_BACKGROUND,
    size: int = 128,
) -> dict[str, Any]:
    """Judges eight views of a mesh.

    Args:
        judge: names what the views show.
        mesh: the mesh, in the cube [-1, 1]^3.
        expected: the true attributes.
        camera: distance and field of view; the defaults if None.
        background: grey behind the mesh, in [0, 1].
        size: pixels of a side of a view.

    Returns:
        "views": for each view its azimuth_deg, what the judge "named", and `check_view`. "right",
        "objects", "colors" and those of `DETAILS` that are expected: shares of the views in [0, 1].
        "passed": whether enough views are right. "expected".

    Raises:
        ValueError: the judge does not know an expected value.
    """
    unknown = [f"{k}={v}" for k, v in expected.items() if v not in judge.values.get(k, [])]
    if unknown:
        raise ValueError(f"the judge has no such value: {', '.join(unknown)}")
    camera = camera or CameraConfig()
    cameras = ring(VIEWS, ELEVATION_DEG, camera.distance, camera.fov_deg)
    names = judge_views(judge, render_mesh(mesh, cameras, size, size, background)[0])
    views = [
        {"azimuth_deg": azimuth, "named": named, **check_view(named, expected)}
        for azimuth, named in zip(AZIMUTHS, names, strict=True)
    ]
    keys = ("right", "objects", "colors", *(key for key in DETAILS if key in expected))
    shares = {key: float(np.mean([view[key] for view in views])) for key in keys}
    passed = shares["right"] >= PASS_SHARE
    return {"expected": dict(expected), **shares, "passed": passed, "views": views}


def most_named(score: Mapping[str, Any]) -> str:
    """What the judge names in most views: "red sphere", "red sphere on blue cube"."""
    names = [_phrase(view["named"]) for view in score["views"]]
    return max(names, key=names.count)


def _phrase(named: Mapping[str, str]) -> str:
    first = f"{named['color_a']} {named['object_a']}"
    if named.get("object_b", "none") == "none":
        return first
    relation = named.get("relation", "none")
    joint = "+" if relation == "none" else relation
    return f"{first} {joint} {named['color_b']} {named['object_b']}"

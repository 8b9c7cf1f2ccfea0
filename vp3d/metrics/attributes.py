"""Prompt suites: read the prompts, let the judge look at the exported meshes, and write the table, files and gallery.

Conventions: a suite file has one prompt a line, optionally followed by `seed=N`; `#` starts a comment. Attributes are dicts
with the judge's head names (`object_a`, `color_a`, `accent_a`, `pattern`, `object_b`, `color_b`, `relation`); "none" means
there is no such thing. Meshes are judged unlit, because their colours hold the light of the pictures they were made from.
A view is right when both objects and their colours are; a prompt passes when `PASS_SHARE` of its eight views are right.
"""

from __future__ import annotations

import re
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
JUDGE_GROUND = (
    0.7  # grey behind a mesh while it is judged, the middle one of the judge's training grounds
)
OBJECTS, COLORS = ("object_a", "object_b"), ("color_a", "color_b")
DETAILS = ("accent_a", "pattern", "relation")
SYMMETRIC = (
    "next to",
)  # "a next to b" is "b next to a", and seen from behind left and right are swapped
SWAP = {"object_a": "object_b", "object_b": "object_a", "color_a": "color_b", "color_b": "color_a"}
RIGHT, WRONG = (38, 132, 74), (186, 60, 48)  # sRGB of labels in the gallery
_SEED = re.compile(r"\s+seed=(\S+)\s*$")


def agrees(named: Mapping[str, str], expected: Mapping[str, str], keys: Sequence[str]) -> bool:
    """Whether the judge's names are the expected ones for `keys`; a key that `expected` lacks is not asked."""
    return all(named[key] == expected[key] for key in keys if key in expected)


def check_view(named: Mapping[str, str], expected: Mapping[str, str]) -> dict[str, bool]:
    """Whether the objects, the colours, both (`right`) and the details of one view are right.

    The two objects of a symmetric relation may be named in either order, each with its own colour.
    """
    orders = [named]
    if expected.get("relation") in SYMMETRIC:
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
    ground: float = JUDGE_GROUND,
    size: int = 128,
) -> dict[str, Any]:
    """What the judge sees in eight views of a mesh (rendered `size` x `size`) against the `expected` attributes.

    Returns `views` (one dict each: azimuth_deg, the names, what is right), the share of views where each thing is right
    (`right`, `objects`, `colors`, `accent_a`, `pattern`, `relation`, in [0, 1]) and `passed`.
    """
    unknown = [k for k, v in expected.items() if v not in judge.values.get(k, [])]
    if unknown:
        raise ValueError(
            f"the judge has no such value: {', '.join(f'{k}={expected[k]}' for k in unknown)}"
        )
    camera = camera or CameraConfig()
    cameras = ring(VIEWS, ELEVATION_DEG, camera.distance, camera.fov_deg)
    names = judge_views(judge, render_mesh(mesh, cameras, size, size, ground)[0])
    views = [
        {"azimuth_deg": azimuth, "named": named, **check_view(named, expected)}
        for azimuth, named in zip(AZIMUTHS, names, strict=True)
    ]
    asked = ("right", "objects", "colors", *(key for key in DETAILS if key in expected))
    shares = {key: float(np.mean([view[key] for view in views])) for key in asked}
    return {
        "expected": dict(expected),
        **shares,
        "passed": shares["right"] >= PASS_SHARE,
        "views": views,
    }


def seen_as(score: Mapping[str, Any]) -> str:
    """What the judge takes the asset for, in most views: "red sphere", "red sphere on blue cube"."""
    names = [_phrase(view["named"]) for view in score["views"]]
    return max(names, key=names.count)


def _phrase(named: Mapping[str, str]) -> str:
    first = f"{named['color_a']} {named['object_a']}"
    if named.get("object_b", "none") == "none":
        return first
    relation = named.get("relation", "none")
    return (
        f"{first} {'+' if relation == 'none' else relation} {named['color_b']} {named['object_b']}"
    )

"""Check pictures of an asset against the prompt: the judge over many views, and CLIP R-precision.

The judge is evaluated only on visible attributes. The true scene determines, for each azimuth,
which attributes are visible (`data.attribute_targets`); a handle behind a mug, or an object hidden
by its neighbour, does not count. Each figure is a share of the views where it applies.

* `objects`, `colors`: the nouns and the main colours of all objects.
* `parts`: the pattern, and the colour of pattern or part (only if the prompt names one).
* `relation`: of two objects.
* `all`: all visible attributes, and nothing else is in the picture.
* `r_precision`: share of the views whose own caption scores highest by CLIP among all captions of
  the suite.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vp3d.metrics.attribute_judge import Judge, judge_views
from vp3d.metrics.attributes import COLORS, DETAILS, OBJECTS, check_view
from vp3d.report.pictures import ELEVATION_DEG
from vp3d.rewards.encoders import ClipEncoder
from vp3d.worlds.toybox.data import DISTANCE, FOV_DEG, HEADS, Pictures, attribute_targets, to_tensor
from vp3d.worlds.toybox.images import render_scenes, view_vectors
from vp3d.worlds.toybox.scenes import Spec, build_scene

VIEWS = 24
FIGURES = ("all", "objects", "colors", "parts", "relation")
FIGURE_ATTRIBUTES = {
    "objects": OBJECTS,
    "colors": COLORS,
    "parts": ("accent_a", "pattern"),
    "relation": ("relation",),
}


def azimuths(count: int) -> list[float]:
    """`count` equal steps of azimuth in degrees, the first in front."""
    return [360.0 * i / count for i in range(count)]


def true_pictures(spec: Spec, azimuth_deg: Sequence[float], ground: float, size: int) -> Pictures:
    """Render the true scene of a caption.

    Args:
        spec: The caption.
        azimuth_deg: Azimuths of the N views, degrees.
        ground: Grey level of the background in [0, 1].
        size: Side of a picture, pixels.

    Returns:
        N pictures at the usual elevation, with the share of each that each slot covers.
    """
    azimuth = np.asarray(azimuth_deg, np.float64)
    full = np.ones_like(azimuth)
    vectors = view_vectors(azimuth, full * ELEVATION_DEG, full * DISTANCE, full * FOV_DEG)
    which = np.zeros(len(azimuth), np.int64)
    images, coverage = render_scenes([build_scene(spec)], which, vectors, full * ground, size)
    return Pictures(images, coverage, azimuth, full * ELEVATION_DEG, which, [spec])


def expected_views(pictures: Pictures) -> list[dict[str, str]]:
    """The visible attributes of each picture of true scenes, by the judge's names."""
    heads = list(HEADS.items())
    rows = attribute_targets(pictures)
    return [
        {head: names[a] for a, (head, names) in zip(row, heads, strict=True) if a >= 0}
        for row in rows
    ]


def verdict(
    judge: Judge, rgb: Tensor, spec: Spec, expected: Sequence[dict[str, str]]
) -> dict[str, float | None]:
    """The `FIGURES`, each a share in [0, 1]; None for a figure that the prompt does not name.

    Args:
        judge: The attribute judge.
        rgb: Pictures [B, 3, H, W] in [0, 1].
        spec: The caption.
        expected: The visible attributes of each picture (`expected_views`).
    """
    rows: dict[str, list[bool]] = {name: [] for name in FIGURES}
    for named, visible in zip(judge_views(judge, rgb), expected, strict=True):
        found = check_view(named, visible)
        right = found | {"parts": found["accent_a"] and found["pattern"]}
        for name, keys in FIGURE_ATTRIBUTES.items():
            if any(key in visible for key in keys):
                rows[name].append(right[name])
        if visible:
            rows["all"].append(found["right"] and all(found[key] for key in DETAILS))
    rows["parts"] = rows["parts"] if spec.accent else []
    rows["relation"] = rows["relation"] if spec.relation else []
    return {name: float(np.mean(row)) if row else None for name, row in rows.items()}


@torch.no_grad()
def r_precision(clip: ClipEncoder, rgb: Tensor, prompt: str, texts: dict[str, Tensor]) -> float:
    """Share in [0, 1] of pictures whose nearest caption is `prompt`.

    Args:
        clip: Encodes the pictures.
        rgb: Pictures [B, 3, H, H] in [0, 1].
        prompt: One of the captions.
        texts: Unit features [D] of all captions, by caption.
    """
    scores = clip.image(rgb) @ torch.stack(list(texts.values())).T
    return float((scores.argmax(1) == list(texts).index(prompt)).float().mean())


def true_rgb(pictures: Pictures) -> Tensor:
    """Pictures as rgb [N, 3, H, W] in [0, 1]."""
    return to_tensor(pictures.images)

"""What the prompt alone says of pictures of an asset: the judge over many views, and CLIP R-precision.

The judge is asked only what can be seen: from each azimuth the true scene tells which attributes show (`data.attribute_targets`),
so a handle behind a mug or an object hidden by its neighbour counts for nothing. Shares are over the views that were asked.

* `objects`, `colors`: the nouns and main colours of all objects. `parts`: pattern, and the colour of pattern or part (only where
  the prompt names one). `relation`: only of two objects. `all`: everything that shows, also that there is nothing more.
* `r_precision`: share of views whose own caption scores highest by CLIP among the captions of the whole suite.
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
ASKED = {
    "objects": OBJECTS,
    "colors": COLORS,
    "parts": ("accent_a", "pattern"),
    "relation": ("relation",),
}


def azimuths(count: int) -> list[float]:
    """`count` equal steps of azimuth in degrees, the first in front."""
    return [360.0 * i / count for i in range(count)]


def true_pictures(spec: Spec, azimuth_deg: Sequence[float], ground: float, size: int) -> Pictures:
    """The true scene from these azimuths at the usual elevation, with what can be seen of each attribute."""
    azimuth = np.asarray(azimuth_deg, np.float64)
    full = np.ones_like(azimuth)
    vectors = view_vectors(azimuth, full * ELEVATION_DEG, full * DISTANCE, full * FOV_DEG)
    which = np.zeros(len(azimuth), np.int64)
    images, seen = render_scenes([build_scene(spec)], which, vectors, full * ground, size)
    return Pictures(images, seen, azimuth, full * ELEVATION_DEG, which, [spec])


def expected_views(pictures: Pictures) -> list[dict[str, str]]:
    """For each picture of true scenes the attributes that can be told from it, by the judge's names."""
    heads = list(HEADS.items())
    rows = attribute_targets(pictures)
    return [
        {head: names[a] for a, (head, names) in zip(row, heads, strict=True) if a >= 0}
        for row in rows
    ]


def verdict(
    judge: Judge, rgb: Tensor, spec: Spec, expected: Sequence[dict[str, str]]
) -> dict[str, float | None]:
    """Shares in [0, 1] of the `FIGURES` over pictures rgb [B, 3, H, W] in [0, 1]; None for what the prompt does not name."""
    rows: dict[str, list[bool]] = {name: [] for name in FIGURES}
    for named, told in zip(judge_views(judge, rgb), expected, strict=True):
        found = check_view(named, told)
        right = found | {"parts": found["accent_a"] and found["pattern"]}
        for name, keys in ASKED.items():
            if any(key in told for key in keys):
                rows[name].append(right[name])
        if told:
            rows["all"].append(found["right"] and all(found[key] for key in DETAILS))
    rows["parts"] = rows["parts"] if spec.accent else []
    rows["relation"] = rows["relation"] if spec.relation else []
    return {name: float(np.mean(row)) if row else None for name, row in rows.items()}


@torch.no_grad()
def r_precision(clip: ClipEncoder, rgb: Tensor, prompt: str, texts: dict[str, Tensor]) -> float:
    """Share in [0, 1] of pictures rgb [B, 3, H, H] in [0, 1] nearest to `prompt` among `texts`, unit features [D] by caption."""
    scores = clip.image(rgb) @ torch.stack(list(texts.values())).T
    return float((scores.argmax(1) == list(texts).index(prompt)).float().mean())


def true_rgb(pictures: Pictures) -> Tensor:
    """Pictures as rgb [N, 3, H, W] in [0, 1]."""
    return to_tensor(pictures.images)

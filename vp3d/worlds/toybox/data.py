"""The training pictures of the toybox, rendered once in chunks and kept under `data/toybox/`.

A chunk is `SCENES` random scenes with `VIEWS` views each. Chunk i depends only on i, so that an
interrupted training finds the same pictures again. One caption in ten, chosen by hash, and all
held-out colour-object pairs (`scenes.is_held_out`) are never drawn: the figures are measured on
them.

Cameras: azimuth uniform over the circle, elevation uniform in [-10, 45] degrees, the default field
of view, and the default distance with a jitter of a few per cent. The background is one of
`images.GROUNDS`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file
from torch import Tensor

from vp3d.prompts import view_words
from vp3d.system.files import atomic_write, read_json
from vp3d.worlds.base import Sizes, World
from vp3d.worlds.toybox.images import GROUNDS, render_scenes, view_vectors
from vp3d.worlds.toybox.scenes import (
    COLORS,
    COMPOUNDS,
    NOUNS,
    PATTERNS,
    RELATIONS,
    Spec,
    build_scene,
    caption,
    default_accent,
    kind_of,
    sample_spec,
    without_colors,
    words,
)

SCENES, VIEWS = 4000, 3
DISTANCE, FOV_DEG = 2.9, 40.0
ELEVATION_DEG = (-10.0, 45.0)


@dataclass(frozen=True)
class Pictures:
    """N pictures of S scenes; the views of one scene are consecutive.

    Attributes:
        images: [N, 64, 64, 3] uint8.
        coverage: Share of the picture that each slot covers [N, 5] (`scenes.Scene`).
        azimuth_deg: [N], degrees.
        elevation_deg: [N], degrees.
        scene_of: Index into `specs` [N].
        specs: The S captions.
    """

    images: np.ndarray
    coverage: np.ndarray
    azimuth_deg: np.ndarray
    elevation_deg: np.ndarray
    scene_of: np.ndarray
    specs: list[Spec]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def nouns(self) -> np.ndarray:
        """For each scene [S, 3] int64: its noun, its second noun (or -1), whether "next to"."""
        first = [NOUNS.index(s.noun) for s in self.specs]
        second = [NOUNS.index(s.noun_b) if s.relation else -1 for s in self.specs]
        side_by_side = [s.relation == "next to" for s in self.specs]
        return np.stack([np.array(v, np.int64) for v in (first, second, side_by_side)], 1)

    def caption(self, index: int) -> str:
        """The caption of picture `index` without view words."""
        return caption(self.specs[int(self.scene_of[index])])

    def view(self, index: int) -> str:
        """The view words of picture `index`."""
        return view_words(float(self.azimuth_deg[index]), float(self.elevation_deg[index]))

    # What `vp3d.worlds.base.TrainingPictures` asks for

    @property
    def world(self) -> World:
        """The toybox."""
        return TOYBOX

    @property
    def key(self) -> str:
        """Always "": chunk i depends on i alone."""
        return ""

    def without_colors(self, text: str) -> str:
        """A caption without its colours (`scenes.without_colors`)."""
        return without_colors(text)

    def confused(self, index: int, rng: np.random.Generator) -> str:
        """A nearly right caption of picture `index` (`confuse`)."""
        return caption(confuse(self.specs[self.scene_of[index]], rng))

    def other_views(self, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Numbers [B] of random views of the same scenes."""
        views = len(self) // len(self.specs)
        return np.asarray(index // views * views + rng.integers(views, size=len(index)))

    def quantiles(self, frequency: Mapping[str, float]) -> np.ndarray:
        """Cumulative probabilities [N]; `frequency` of a kind of caption, 1 if missing."""
        weights = np.array([frequency.get(kind_of(s), 1.0) for s in self.specs])
        weights = weights[self.scene_of].cumsum()
        return np.asarray(weights / weights[-1])

    def noun_maps(self, index: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """`noun_maps` of these pictures."""
        return noun_maps(self, index, device)

    def visible_targets(self) -> np.ndarray:
        """`attribute_targets` of all pictures."""
        return attribute_targets(self)

    def stated_targets(self, index: np.ndarray) -> Tensor:
        """`spec_targets` of the captions of B pictures."""
        return spec_targets([self.specs[self.scene_of[i]] for i in index])


def is_reserved(text: str) -> bool:
    """Whether a caption (without view words) is reserved for measuring: one in ten, by hash."""
    return hashlib.sha256(text.encode()).digest()[0] % 10 == 0


def draw_specs(
    rng: np.random.Generator, count: int, reserved: bool, held_out: bool = False
) -> list[Spec]:
    """Random captions.

    Args:
        rng: The source of randomness.
        count: How many.
        reserved: Whether for measuring, not for training (`is_reserved`).
        held_out: Only captions with held-out colour-object pairs, whatever `reserved` is.
    """
    specs: list[Spec] = []
    while len(specs) < count:
        spec = sample_spec(rng, held_out)
        if held_out or is_reserved(caption(spec)) == reserved:
            specs.append(spec)
    return specs


def make_pictures(specs: list[Spec], views: int, rng: np.random.Generator) -> Pictures:
    """Render every caption from `views` random cameras on random backgrounds."""
    count = len(specs) * views
    azimuth = rng.uniform(-180.0, 180.0, count)
    elevation = rng.uniform(*ELEVATION_DEG, count)
    distance = DISTANCE * rng.uniform(0.97, 1.05, count)
    grounds = np.array(GROUNDS)[rng.integers(len(GROUNDS), size=count)]
    scene_of = np.repeat(np.arange(len(specs)), views)
    vectors = view_vectors(azimuth, elevation, distance, np.full(count, FOV_DEG))
    scenes = [build_scene(s) for s in specs]
    images, coverage = render_scenes(scenes, scene_of, vectors, grounds)
    return Pictures(
        images,
        coverage.astype(np.float32),
        azimuth.astype(np.float32),
        elevation.astype(np.float32),
        scene_of,
        specs,
    )


def heldout_pictures(count: int, views: int = 1, pairs: bool = False, seed: int = 1) -> Pictures:
    """Pictures of captions that are never trained on; `pairs`: of held-out colour-object pairs."""
    rng = np.random.default_rng([77, seed, int(pairs)])
    return make_pictures(draw_specs(rng, count, reserved=True, held_out=pairs), views, rng)


def training_pictures(
    folder: Path, chunks: int, report: Callable[[str], None] = lambda _: None, first: int = 0
) -> Pictures:
    """The pictures of `chunks` chunks, from chunk number `first` on.

    Chunks that are not in `folder` are rendered. `report` gets progress lines.
    """
    parts = []
    for index in range(first, first + chunks):
        path = folder / f"chunk{index:03d}.safetensors"
        if not path.exists() or not path.with_suffix(".json").exists():
            report(f"rendering training pictures: chunk {index - first + 1} of {chunks}")
            _write_chunk(path, index)
        parts.append(_read_chunk(path))
    return _join(parts)


def _write_chunk(path: Path, index: int) -> None:
    rng = np.random.default_rng([5, index])
    pictures = make_pictures(draw_specs(rng, SCENES, reserved=False), VIEWS, rng)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "images": pictures.images,
        "seen": pictures.coverage,
        "azimuth_deg": pictures.azimuth_deg,
        "elevation_deg": pictures.elevation_deg,
    }
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps([asdict(s) for s in pictures.specs]))
    with atomic_write(path) as temporary:
        save_file(arrays, temporary)


def _read_chunk(path: Path) -> Pictures:
    arrays = load_file(path)
    rows: Any = read_json(path.with_suffix(".json"))
    specs = [Spec(**row) for row in rows]
    scene_of = np.repeat(np.arange(len(specs)), len(arrays["images"]) // len(specs))
    return Pictures(
        arrays["images"],
        arrays["seen"],
        arrays["azimuth_deg"],
        arrays["elevation_deg"],
        scene_of,
        specs,
    )


def _join(parts: list[Pictures]) -> Pictures:
    starts = np.cumsum([0, *(len(p.specs) for p in parts)])
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("images", "coverage", "azimuth_deg", "elevation_deg")
    }
    scene_of = np.concatenate([p.scene_of + s for p, s in zip(parts, starts, strict=False)])
    return Pictures(**arrays, scene_of=scene_of, specs=[spec for p in parts for spec in p.specs])


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Pictures [N, H, W, 3] uint8 as rgb [N, 3, H, W] float32 in [0, 1]."""
    return (
        torch.from_numpy(np.ascontiguousarray(images))
        .to(device)
        .permute(0, 3, 1, 2)
        .float()
        .div(255.0)
    )


def augment(rgb: Tensor, rng: np.random.Generator, strength: float, most_shift: int = 3) -> Tensor:
    """Augment pictures at random: shift, blur, gain, tint and noise.

    Args:
        rgb: Pictures [B, 3, S, S] in [0, 1].
        rng: The source of randomness.
        strength: Of all but the shift, in [0, 1].
        most_shift: Largest shift in pixels, vertically and horizontally; 0 for none. All pictures
            of the batch are shifted and blurred alike.

    Returns:
        [B, 3, S, S] in [0, 1].
    """
    if most_shift:
        shift, edge = rng.integers(-most_shift, most_shift + 1, 2), most_shift
        padded = F.pad(rgb, (edge,) * 4, mode="replicate")
        rgb = torch.roll(padded, tuple(shift), (2, 3))[:, :, edge:-edge, edge:-edge]
    if rng.random() < 0.6 * strength:
        full = rgb.shape[2:]
        side = int(rng.integers(24, 60)) * full[0] // 64
        small = F.interpolate(
            rgb, (side, side), mode="bilinear", antialias=True, align_corners=False
        )
        rgb = F.interpolate(small, full, mode="bilinear", align_corners=False)
    gain, noise = 1.0 + 0.12 * strength * rng.uniform(-1, 1), 0.05 * strength * rng.random()
    tint = torch.from_numpy(rng.normal(0, 0.02 * strength, (len(rgb), 3, 1, 1))).to(rgb)
    generator = torch.Generator(device=rgb.device).manual_seed(int(rng.integers(2**62)))
    grain = torch.randn(rgb.shape, generator=generator, device=rgb.device)
    return (rgb * gain + tint + noise * grain).clamp(0.0, 1.0)


def thumbnails(images: np.ndarray) -> Tensor:
    """Coarse versions [N, 112] in [0, 1] of pictures [N, S, S, 3] uint8.

    Opacity (`opacity`) on 8 x 8 cells, then colour times opacity on 4 x 4 cells.
    """
    rgb = to_tensor(images)
    opaque = opacity(rgb)
    cell = rgb.shape[2] // 8
    color = F.avg_pool2d(rgb * opaque, 2 * cell)
    return torch.cat([F.avg_pool2d(opaque, cell).flatten(1), color.flatten(1)], 1)


def noun_maps(pictures: Pictures, index: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Which nouns the cells of pictures show.

    The pixels of two objects are separated by a straight cut such that each object has its share
    `coverage`: a row for "on", a column for "next to". If one of two objects next to each other is
    in front of the other (side views), the map is zero.

    Args:
        pictures: The pictures.
        index: Numbers of B of them.
        device: Of the result.

    Returns:
        Share of each of 8 x 8 cells that each noun covers [B, nouns, 8, 8], in [0, 1].
    """
    opaque = opacity(to_tensor(pictures.images[index], device))[:, 0].double()
    facing = np.cos(np.deg2rad(pictures.azimuth_deg[index]))
    first, second, side_by_side = pictures.nouns[pictures.scene_of[index]].T
    coverage = pictures.coverage[index].astype(np.float64)
    share, both = coverage[:, :3].sum(1), coverage.sum(1)
    # from behind, the caption's first object is the right one
    turned = (side_by_side == 1) & (facing < 0)
    first_share = np.where(turned, both - share, share) / np.maximum(both, 1e-6)
    cut = np.where(second < 0, 1.0, first_share)
    known, columns, swap, upto = (
        torch.from_numpy(v).to(device)
        for v in (
            (side_by_side == 0) | (np.abs(facing) >= 0.4),
            side_by_side == 1,
            turned,
            cut,
        )
    )
    # opaque pixels of each column or row, and whether they belong to the first object
    lines = torch.where(columns[:, None], opaque.sum(1), opaque.sum(2))
    cumulative = lines.cumsum(1) / lines.sum(1, keepdim=True).clamp(min=1.0)
    before = (cumulative <= upto[:, None]) != swap[:, None]
    of_first = torch.where(columns[:, None, None], before[:, None, :], before[:, :, None])
    parts = [
        F.avg_pool2d((opaque * side * known[:, None, None]).float()[:, None], 8)[:, 0]
        for side in (of_first, ~of_first)
    ]
    # the last map takes the part of a second object that does not exist (-1)
    maps = torch.zeros(len(index), len(NOUNS) + 1, 8, 8, device=device)
    for nouns, part in zip((first, second), parts, strict=True):
        maps[torch.arange(len(index), device=device), torch.from_numpy(nouns).to(device)] += part
    return maps[:, :-1]


def opacity(rgb: Tensor) -> Tensor:
    """Where pictures [N, 3, H, W] in [0, 1] show no background: [N, 1, H, W], 0 or 1.

    The background has the colour of the first pixel.
    """
    return ((rgb - rgb[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.01).float()


# Smallest shares of the picture from which something counts as visible: an object, the colour of
# a part, each of two objects that are next to each other
OBJECT_VISIBLE = 0.006
PART_COLOR_VISIBLE = 0.012
EACH_VISIBLE = 0.03


def attributes(spec: Spec) -> dict[str, str]:
    """The attributes of a scene by the judge's names; "none" for what it does not have.

    Of a pattern's two colours, `color_a` is the one that comes first in `COLORS`, because the
    picture does not show which of them is the background of the pattern. If a compound's part has
    no colour of its own, it has the object's (or `default_accent`).
    """
    color, accent = spec.color, spec.accent
    if spec.pattern != "plain":
        color, accent = sorted((color, accent), key=list(COLORS).index)
    elif spec.noun in COMPOUNDS and not spec.relation:
        accent = accent or default_accent(spec.noun, color) or color
    return {
        "object_a": spec.noun,
        "color_a": color,
        "accent_a": accent or "none",
        "pattern": spec.pattern,
        "relation": spec.relation or "none",
        "object_b": spec.noun_b or "none",
        "color_b": spec.color_b or "none",
    }


def visible_attributes(spec: Spec, coverage: np.ndarray) -> dict[str, bool]:
    """Which attributes are visible in a picture with the slot shares `coverage` [5]."""
    first = coverage[0] + coverage[1] + coverage[2] > OBJECT_VISIBLE
    second = coverage[3] + coverage[4] > OBJECT_VISIBLE
    both = bool(first and (second or not spec.relation))
    accent = bool(coverage[1] > PART_COLOR_VISIBLE or not spec.accent)
    pattern = spec.pattern == "plain" or bool(min(coverage[0], coverage[1]) > PART_COLOR_VISIBLE)
    return {
        "object_a": bool(first),
        "color_a": bool(coverage[0] > OBJECT_VISIBLE) and pattern,
        "accent_a": accent and pattern,
        "pattern": pattern,
        "relation": both,
        "object_b": both,
        "color_b": bool(both and (coverage[3] > OBJECT_VISIBLE or not spec.relation)),
    }


HEADS: dict[str, list[str]] = {
    "object_a": list(NOUNS),
    "color_a": list(COLORS),
    "accent_a": ["none", *COLORS],
    "pattern": list(PATTERNS),
    "relation": ["none", *RELATIONS],
    "object_b": ["none", *NOUNS],
    "color_b": ["none", *COLORS],
}

TOYBOX = World("toybox", Sizes(), NOUNS, HEADS, tuple(words()), licence="Apache-2.0")


def spec_targets(specs: list[Spec]) -> Tensor:
    """The attributes that captions state, as indices [N, heads] int64 in the order of `HEADS`."""
    rows = [[values.index(attributes(s)[head]) for head, values in HEADS.items()] for s in specs]
    return torch.tensor(rows)


def attribute_targets(pictures: Pictures) -> np.ndarray:
    """Right answers [N, heads] int64 in the order of `HEADS`; -100 if the picture does not show it.

    Of two objects next to each other, a is the left one in the picture; from behind that is the
    caption's second. In side views, where one hides the other, they have no target.
    """
    index = {name: {value: i for i, value in enumerate(values)} for name, values in HEADS.items()}
    answers = np.full((len(pictures), len(HEADS)), -100, dtype=np.int64)
    facing = np.cos(np.deg2rad(pictures.azimuth_deg))
    for n, (scene, coverage) in enumerate(zip(pictures.scene_of, pictures.coverage, strict=True)):
        spec = pictures.specs[scene]
        side_by_side = spec.relation == "next to"
        values = attributes(spec)
        if side_by_side and facing[n] < 0:
            values = swapped(values)
        visible = visible_attributes(spec, coverage)
        hidden = min(coverage[:3].sum(), coverage[3:].sum()) < EACH_VISIBLE or not (
            visible["color_a"] and visible["color_b"]
        )
        if side_by_side and (abs(facing[n]) < 0.4 or hidden):
            visible |= dict.fromkeys(("object_a", "color_a", "object_b", "color_b"), False)
        answers[n] = [index[h][values[h]] if visible[h] else -100 for h in HEADS]
    return answers


def swapped(values: dict[str, str]) -> dict[str, str]:
    """The attributes with objects a and b exchanged."""
    return values | {
        "object_a": values["object_b"],
        "color_a": values["color_b"],
        "object_b": values["object_a"],
        "color_b": values["color_a"],
    }


def confuse(spec: Spec, rng: np.random.Generator) -> Spec:
    """A nearly right caption: colours swapped, or one colour, the pattern or the noun changed."""
    color = list(COLORS)[int(rng.integers(len(COLORS)))]
    kind = rng.random()
    if kind < 0.5 and spec.relation:
        return replace(spec, color=spec.color_b, color_b=spec.color)
    if kind < 0.5 and spec.accent and spec.pattern == "plain":
        return replace(spec, color=spec.accent, accent=spec.color)
    if kind < 0.7:
        return replace(spec, color=color)
    if kind < 0.8 and spec.pattern != "plain":
        return replace(spec, pattern="checks" if spec.pattern == "stripes" else "stripes")
    if kind < 0.9 and spec.relation:
        return replace(spec, color_b=color)
    if kind < 0.9 and spec.accent and color != spec.color:
        return replace(spec, accent=color)
    same = [n for n in NOUNS if (n in COMPOUNDS) == (spec.noun in COMPOUNDS) and n != spec.noun]
    return replace(spec, noun=same[int(rng.integers(len(same)))])

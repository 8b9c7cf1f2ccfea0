"""The training pictures of the toybox, made once in chunks and kept under `data/toybox/`.

A chunk is `SCENES` random scenes seen from `VIEWS` cameras each; chunk i depends on nothing but i, so that a killed
run finds the same pictures again. Captions whose hash ends in 0 (one in ten) and all held-out colour-object pairs
(`scenes.is_held_out`) are never drawn: they are what the figures are measured on.

Cameras: azimuth uniform over the circle, elevation uniform in [-10, 45] degrees, the default distance and field of view
with a few per cent of jitter in distance; ground one of `images.GROUNDS`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file
from torch import Tensor

from vp3d.prompts import view_words
from vp3d.system.files import atomic_write
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
    sample_spec,
)

SCENES, VIEWS = 4000, 3
DISTANCE, FOV_DEG = 2.9, 40.0
ELEVATION_DEG = (-10.0, 45.0)


@dataclass(frozen=True)
class Pictures:
    """N pictures of S scenes.

    images [N, 64, 64, 3] uint8, seen [N, 5] share of the picture by slot (`scenes.Scene`), azimuth_deg and
    elevation_deg [N], scene_of [N] index into `specs`. The views of one scene stand next to each other.
    """

    images: np.ndarray
    seen: np.ndarray
    azimuth_deg: np.ndarray
    elevation_deg: np.ndarray
    scene_of: np.ndarray
    specs: list[Spec]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def nouns(self) -> np.ndarray:
        """Of each scene [S, 3] int64: number of its noun, of its second one (-1: none), and whether they stand side by side."""
        rows = [
            (
                NOUNS.index(s.noun),
                NOUNS.index(s.noun_b) if s.relation else -1,
                s.relation == "next to",
            )
            for s in self.specs
        ]
        return np.array(rows, np.int64)

    def caption(self, index: int) -> str:
        """The caption of picture `index` without view words."""
        return caption(self.specs[int(self.scene_of[index])])

    def view(self, index: int) -> str:
        """The view words of picture `index`."""
        return view_words(float(self.azimuth_deg[index]), float(self.elevation_deg[index]))


def is_reserved(text: str) -> bool:
    """Whether a caption (without view words) is kept for measuring: one in ten, by hash."""
    return hashlib.sha256(text.encode()).digest()[0] % 10 == 0


def draw_specs(
    rng: np.random.Generator, count: int, reserved: bool, held_out: bool = False
) -> list[Spec]:
    """`count` captions for training (`reserved` False) or for measuring; `held_out` asks for held-out pairs."""
    specs: list[Spec] = []
    while len(specs) < count:
        spec = sample_spec(rng, held_out)
        if held_out or is_reserved(caption(spec)) == reserved:
            specs.append(spec)
    return specs


def make_pictures(specs: list[Spec], views: int, rng: np.random.Generator) -> Pictures:
    """Render every caption from `views` random cameras on random grounds."""
    count = len(specs) * views
    azimuth = rng.uniform(-180.0, 180.0, count)
    elevation = rng.uniform(*ELEVATION_DEG, count)
    distance = DISTANCE * rng.uniform(0.97, 1.05, count)
    grounds = np.array(GROUNDS)[rng.integers(len(GROUNDS), size=count)]
    scene_of = np.repeat(np.arange(len(specs)), views)
    vectors = view_vectors(azimuth, elevation, distance, np.full(count, FOV_DEG))
    images, seen = render_scenes([build_scene(s) for s in specs], scene_of, vectors, grounds)
    return Pictures(
        images,
        seen.astype(np.float32),
        azimuth.astype(np.float32),
        elevation.astype(np.float32),
        scene_of,
        specs,
    )


def heldout_pictures(count: int, views: int = 1, pairs: bool = False, seed: int = 1) -> Pictures:
    """Pictures of captions that no training ever saw; `pairs` asks for held-out colour-object pairs."""
    rng = np.random.default_rng([77, seed, int(pairs)])
    return make_pictures(draw_specs(rng, count, reserved=True, held_out=pairs), views, rng)


def training_pictures(
    folder: Path, chunks: int, report: Callable[[str], None] = lambda _: None
) -> Pictures:
    """The first `chunks` chunks, rendered now where they are not on disk yet (about 300 pictures a second and core)."""
    parts = []
    for index in range(chunks):
        path = folder / f"chunk{index:03d}.safetensors"
        if not path.exists() or not path.with_suffix(".json").exists():
            report(f"rendering training pictures: chunk {index + 1} of {chunks}")
            _write_chunk(path, index)
        parts.append(_read_chunk(path))
    return _join(parts)


def _write_chunk(path: Path, index: int) -> None:
    rng = np.random.default_rng([5, index])
    pictures = make_pictures(draw_specs(rng, SCENES, reserved=False), VIEWS, rng)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {k: getattr(pictures, k) for k in ("images", "seen", "azimuth_deg", "elevation_deg")}
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps([asdict(s) for s in pictures.specs]))
    with atomic_write(path) as temporary:
        save_file(arrays, temporary)


def _read_chunk(path: Path) -> Pictures:
    arrays = load_file(path)
    specs = [Spec(**row) for row in json.loads(path.with_suffix(".json").read_text())]
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
        for name in ("images", "seen", "azimuth_deg", "elevation_deg")
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
    """rgb [B, 3, 64, 64] in [0, 1] blurred, made noisy, brighter or darker and flatter, each at random.

    And shifted by up to `most_shift` pixels up or down and to a side, the whole batch alike.
    """
    if most_shift:
        shift, edge = rng.integers(-most_shift, most_shift + 1, 2), most_shift
        rgb = torch.roll(F.pad(rgb, (edge,) * 4, mode="replicate"), tuple(shift), (2, 3))[
            :, :, edge:-edge, edge:-edge
        ]
    if rng.random() < 0.6 * strength:
        side = int(rng.integers(24, 60))
        small = F.interpolate(
            rgb, (side, side), mode="bilinear", antialias=True, align_corners=False
        )
        rgb = F.interpolate(small, (64, 64), mode="bilinear", align_corners=False)
    gain, noise = 1.0 + 0.12 * strength * rng.uniform(-1, 1), 0.05 * strength * rng.random()
    tint = torch.from_numpy(rng.normal(0, 0.02 * strength, (len(rgb), 3, 1, 1))).to(rgb)
    generator = torch.Generator(device=rgb.device).manual_seed(int(rng.integers(2**62)))
    grain = torch.randn(rgb.shape, generator=generator, device=rgb.device)
    return (rgb * gain + tint + noise * grain).clamp(0.0, 1.0)


def thumbnails(images: np.ndarray) -> Tensor:
    """What pictures [N, 64, 64, 3] uint8 look like from afar: [N, 112] in [0, 1].

    Opacity on 8 x 8 cells, then colour times opacity on 4 x 4; the ground is what the first pixel shows.
    """
    rgb = to_tensor(images)
    opaque = opacity(rgb)
    color = F.avg_pool2d(rgb * opaque, 16)
    return torch.cat([F.avg_pool2d(opaque, 8).flatten(1), color.flatten(1)], 1)


def noun_maps(pictures: Pictures, index: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """How much of each of 8 x 8 cells the nouns cover in B pictures: [B, nouns, 8, 8] in [0, 1], on `device`.

    Two objects are told apart by a straight cut that gives each its share `seen`: "on" by a row, "next to" by a column. ViewGuess
    from the side, where one is before the other, nothing is told.
    """
    opaque = opacity(to_tensor(pictures.images[index], device))[:, 0].double()
    facing = np.cos(np.deg2rad(pictures.azimuth_deg[index]))
    first, second, beside = pictures.nouns[pictures.scene_of[index]].T
    seen = pictures.seen[index].astype(np.float64)
    share, both = seen[:, :3].sum(1), seen.sum(1)
    turned = (beside == 1) & (facing < 0)  # the caption's first object is the right one
    cut = np.where(second < 0, 1.0, np.where(turned, both - share, share) / np.maximum(both, 1e-6))
    told, columns, swap, upto = (
        torch.from_numpy(v).to(device)
        for v in ((beside == 0) | (np.abs(facing) >= 0.4), beside == 1, turned, cut)
    )
    lines = torch.where(columns[:, None], opaque.sum(1), opaque.sum(2))
    before = (lines.cumsum(1) / lines.sum(1, keepdim=True).clamp(min=1.0) <= upto[:, None]) != swap[
        :, None
    ]
    mine = torch.where(columns[:, None, None], before[:, None, :], before[:, :, None])
    parts = [
        F.avg_pool2d((opaque * side * told[:, None, None]).float()[:, None], 8)[:, 0]
        for side in (mine, ~mine)
    ]
    maps = torch.zeros(
        len(index), len(NOUNS) + 1, 8, 8, device=device
    )  # the last is of no second object
    for nouns, part in zip((first, second), parts, strict=True):
        maps[torch.arange(len(index), device=device), torch.from_numpy(nouns).to(device)] += part
    return maps[:, :-1]


def opacity(rgb: Tensor) -> Tensor:
    """Where pictures [N, 3, H, W] in [0, 1] show no ground, which is what the first pixel shows: [N, 1, H, W], 0 or 1."""
    return ((rgb - rgb[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.01).float()


VISIBLE = 0.006  # share of the picture below which a thing counts as hidden
TELLABLE = 0.012  # share below which the colour of a part cannot be told
BOTH_VISIBLE = 0.03  # share that each of two objects next to each other must have to be named


def attributes(spec: Spec) -> dict[str, str]:
    """What the judge is asked of a scene: its heads' names with the right answers ("none" where there is no such thing).

    Of a pattern's two colours, a is the one that stands first in `COLORS`: which of them is the ground cannot be seen.
    A compound whose part was given no colour of its own has the part in the object's (`default_accent`).
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


def visible_attributes(spec: Spec, seen: np.ndarray) -> dict[str, bool]:
    """Which attributes can be told from a picture with the slot shares `seen` [5]."""
    first, second = seen[0] + seen[1] + seen[2] > VISIBLE, seen[3] + seen[4] > VISIBLE
    both = bool(first and (second or not spec.relation))
    accent = bool(seen[1] > TELLABLE or not spec.accent)
    pattern = spec.pattern == "plain" or bool(min(seen[0], seen[1]) > TELLABLE)
    return {
        "object_a": bool(first),
        "color_a": bool(seen[0] > VISIBLE) and pattern,
        "accent_a": accent and pattern,
        "pattern": pattern,
        "relation": both,
        "object_b": both,
        "color_b": bool(both and (seen[3] > VISIBLE or not spec.relation)),
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


def spec_targets(specs: list[Spec]) -> Tensor:
    """What the captions say, [N, heads] int64 in the order of `HEADS`: `attributes` as indices."""
    return torch.tensor(
        [[values.index(attributes(s)[head]) for head, values in HEADS.items()] for s in specs]
    )


def attribute_targets(pictures: Pictures) -> np.ndarray:
    """Right answers [N, heads] int64 in the order of `HEADS`; -100 where the picture does not show it.

    Of two objects next to each other, a is the one on the left in the picture: from behind that is the caption's second.
    ViewGuess from the side, where one hides the other, they are not asked for.
    """
    index = {name: {value: i for i, value in enumerate(values)} for name, values in HEADS.items()}
    answers = np.full((len(pictures), len(HEADS)), -100, dtype=np.int64)
    facing = np.cos(np.deg2rad(pictures.azimuth_deg))
    for n, (scene, seen) in enumerate(zip(pictures.scene_of, pictures.seen, strict=True)):
        spec = pictures.specs[scene]
        beside = spec.relation == "next to"
        told = swapped(attributes(spec)) if beside and facing[n] < 0 else attributes(spec)
        shown = visible_attributes(spec, seen)
        hidden = min(seen[:3].sum(), seen[3:].sum()) < BOTH_VISIBLE or not (
            shown["color_a"] and shown["color_b"]
        )
        if beside and (abs(facing[n]) < 0.4 or hidden):
            shown |= dict.fromkeys(("object_a", "color_a", "object_b", "color_b"), False)
        answers[n] = [index[h][told[h]] if shown[h] else -100 for h in HEADS]
    return answers


def swapped(told: dict[str, str]) -> dict[str, str]:
    """The same attributes with objects a and b exchanged."""
    return told | {
        "object_a": told["object_b"],
        "color_a": told["color_b"],
        "object_b": told["object_a"],
        "color_b": told["color_a"],
    }


def confuse(spec: Spec, rng: np.random.Generator) -> Spec:
    """A caption that is nearly right: colours swapped, one colour changed, the pattern or the noun changed."""
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

"""The training pictures of a library of meshes, rendered once in chunks.

Chunk i depends on the nouns, their meshes and i alone. Cameras and backgrounds are those of the
toybox (`vp3d.worlds.toybox.data`). Pictures stay on the disk and are read when they are used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from vp3d.prompts import view_words
from vp3d.system.files import atomic_write, read_json
from vp3d.worlds.arrangement import arrange, drawn_ratio
from vp3d.worlds.base import World
from vp3d.worlds.library import Library
from vp3d.worlds.library_captions import LibrarySpec, caption, joined
from vp3d.worlds.mesh_render import CELLS, Scene, build_scene, render_scene
from vp3d.worlds.toybox.data import (
    DISTANCE,
    EACH_VISIBLE,
    ELEVATION_DEG,
    FOV_DEG,
    OBJECT_VISIBLE,
)
from vp3d.worlds.toybox.images import GROUNDS, view_vectors
from vp3d.worlds.toybox.scenes import COLORS, without_colors

CHUNK = 4000  # pictures
COLOR_JITTER = 0.03  # standard deviation of a channel of the paint


class StackedImages:
    """Pictures of several files [N, S, S, 3] uint8, read from the disk when they are indexed."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0, *(len(p) for p in parts)])
        self.shape = (int(self.starts[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """The pictures of a slice or of an array of numbers; one picture of one number."""
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        numbers = np.atleast_1d(np.asarray(index))
        found = np.empty((len(numbers), *self.shape[1:]), dtype=np.uint8)
        of_part = np.searchsorted(self.starts, numbers, side="right") - 1
        for row, (part, number) in enumerate(zip(of_part, numbers, strict=True)):
            found[row] = self.parts[part][number - self.starts[part]]
        return found if np.ndim(index) else found[0]


@dataclass(frozen=True)
class LibraryPictures:
    """N pictures, each with its caption.

    Attributes:
        images: [N, S, S, 3] uint8.
        coverage: Share of each of 8 x 8 cells that each of two objects covers [N, 2, 8, 8], times
            255, uint8; the second is 0 where a caption names one object.
        azimuth_deg: [N], degrees.
        elevation_deg: [N], degrees.
        specs: The N captions with their meshes.
        world: Names and sizes of the models.
        key: Of the library (`Library.key`).
    """

    images: StackedImages
    coverage: np.ndarray
    azimuth_deg: np.ndarray
    elevation_deg: np.ndarray
    specs: list[LibrarySpec]
    world: World
    key: str

    def __len__(self) -> int:
        return len(self.images)

    def caption(self, index: int) -> str:
        """The caption of picture `index` without view words."""
        return caption(self.specs[index])

    def view(self, index: int) -> str:
        """The view words of picture `index`."""
        return view_words(float(self.azimuth_deg[index]), float(self.elevation_deg[index]))

    def confused(self, index: int, rng: np.random.Generator) -> str:
        """The caption with another colour or, one time in two, another noun.

        Of two objects the colours are exchanged one time in three, or the second is another noun.
        """
        spec, colors, nouns = self.specs[index], list(COLORS), self._present
        if spec.relation and rng.random() < 1 / 3:
            return caption(replace(spec, color=spec.color_b, color_b=spec.color))
        if spec.relation and rng.random() < 0.5:
            return caption(replace(spec, noun_b=nouns[int(rng.integers(len(nouns)))]))
        if spec.color and rng.random() < 0.5:
            return caption(replace(spec, color=colors[int(rng.integers(len(colors)))]))
        return caption(replace(spec, noun=nouns[int(rng.integers(len(nouns)))]))

    def other_views(self, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Numbers [B] of random pictures of the same mesh in the same colours."""
        of = self._alike
        return np.array([rng.choice(of[_look(self.specs[i])]) for i in index], dtype=np.int64)

    def quantiles(self, frequency: Mapping[str, float]) -> np.ndarray:
        """Cumulative probabilities [N]; `frequency` of a relation or "plain", 1 if missing."""
        weights = [frequency.get(s.relation or "plain", 1.0) for s in self.specs]
        total = np.cumsum(weights)
        return np.asarray(total / total[-1])

    def noun_maps(self, index: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Share of each of 8 x 8 cells that each noun covers [B, nouns, 8, 8], in [0, 1]."""
        share = torch.from_numpy(self.coverage[index]).to(device).float() / 255.0
        nouns = self.world.nouns
        maps = torch.zeros(len(index), len(nouns), CELLS, CELLS, device=device)
        rows = torch.arange(len(index), device=device)
        specs = [self.specs[i] for i in index]
        for part, names in enumerate(([s.noun for s in specs], [s.noun_b for s in specs])):
            number = torch.tensor([nouns.index(n) if n else 0 for n in names], device=device)
            maps[rows, number] += share[:, part]
        return maps

    def visible_targets(self) -> np.ndarray:
        """What each picture shows [N, heads] int64: what its caption states (`stated_targets`).

        A picture that hardly shows its object has no targets. Of two objects next to each other, a
        is the left one in the picture; from behind that is the caption's second. In side views,
        where one hides the other, they have no targets.
        """
        seen = self.coverage.mean((2, 3)) / 255.0
        facing = np.cos(np.deg2rad(self.azimuth_deg))
        names = list(self.world.heads)
        pairs = [i for i, name in enumerate(names) if name != "relation"]
        rows = []
        for number, spec in enumerate(self.specs):
            beside = spec.relation == "next to"
            if beside and facing[number] < 0:
                spec = joined(spec.second, spec.relation, replace(spec, relation=""))
            row = self._stated(spec)
            hidden = abs(facing[number]) < 0.4 or seen[number].min() < EACH_VISIBLE
            if beside and hidden:
                row = [-100 if i in pairs else value for i, value in enumerate(row)]
            shown = seen[number].sum() if not spec.relation else seen[number].min()
            rows.append(row if shown >= OBJECT_VISIBLE else [-100] * len(names))
        return np.array(rows, dtype=np.int64)

    def stated_targets(self, index: np.ndarray) -> Tensor:
        """What B captions state [B, heads] int64, -100 where they do not.

        Painted things have no material. Where a world has captions of two objects, a caption of
        one states that there is no second.
        """
        return torch.tensor([self._stated(self.specs[i]) for i in index])

    def _stated(self, spec: LibrarySpec) -> list[int]:
        values = {
            "object_a": spec.noun,
            "color_a": spec.color,
            "material": spec.material or ("none" if spec.painted else ""),
            "relation": spec.relation or "none",
            "object_b": spec.noun_b or "none",
            "color_b": spec.color_b if spec.relation else "none",
        }
        heads = self.world.heads.items()
        return [known.index(v) if (v := values[name]) else -100 for name, known in heads]

    def without_colors(self, text: str) -> str:
        """A caption without its colours (`toybox.scenes.without_colors`)."""
        return without_colors(text)

    @cached_property
    def _present(self) -> list[str]:
        return sorted({s.noun for s in self.specs})

    @cached_property
    def _alike(self) -> dict[LibrarySpec, np.ndarray]:
        found: dict[LibrarySpec, list[int]] = {}
        for number, spec in enumerate(self.specs):
            found.setdefault(_look(spec), []).append(number)
        return {look: np.array(numbers) for look, numbers in found.items()}


def _look(spec: LibrarySpec) -> LibrarySpec:
    """What decides the look of a mesh: the words for its own look do not."""
    if not spec.painted:
        spec = replace(spec, color="", material="")
    return spec if spec.painted_b else replace(spec, color_b="", material_b="")


def scene_of(library: Library, spec: LibrarySpec, rng: np.random.Generator | None = None) -> Scene:
    """The scene of a caption; `rng` varies the paint a little, None leaves its exact colour."""

    def paint(part: LibrarySpec) -> np.ndarray | None:
        if not part.painted:
            return None
        color = np.array(COLORS[part.color])
        if rng is None:
            return color
        return np.asarray(np.clip(color + rng.normal(0.0, COLOR_JITTER, 3), 0.02, 1.0))

    mesh, color = library.mesh(spec.mesh), paint(spec)
    if not spec.relation:
        return build_scene([mesh], [color])
    other, second = library.mesh(spec.mesh_b), spec.second
    ratio = drawn_ratio(spec.noun, spec.relation, spec.noun_b)
    scales, offsets = arrange(mesh, other, spec.relation, ratio)
    return build_scene([mesh, other], [color, paint(second)], scales, offsets)


def render_specs(
    library: Library,
    specs: Sequence[LibrarySpec],
    views: np.ndarray,
    grounds: np.ndarray,
    size: int,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One picture of each of N specs.

    Args:
        library: The meshes.
        specs: What to show.
        views: Cameras [N, 13].
        grounds: Grey levels of the backgrounds [N].
        size: Side of a picture, pixels.
        rng: Varies the paint a little; None for its exact colour.

    Returns:
        [N, size, size, 3] uint8, and the coverage of 8 x 8 cells by both objects [N, 2, 8, 8] in
        [0, 1].
    """
    images = np.empty((len(specs), size, size, 3), dtype=np.uint8)
    coverage = np.empty((len(specs), 2, CELLS, CELLS), dtype=np.float32)
    for n, spec in enumerate(specs):
        scene = scene_of(library, spec, rng)
        image, cells = render_scene(scene, views[n : n + 1], grounds[n : n + 1], size)
        images[n], coverage[n] = image[0], cells[0]
    return images, coverage


def make_pictures(
    library: Library, world: World, count: int, rng: np.random.Generator, unseen: str = ""
) -> LibraryPictures:
    """Pictures of random captions from random cameras; `unseen` as in `Library.sample`."""
    specs = [library.sample(rng, unseen) for _ in range(count)]
    azimuth = rng.uniform(-180.0, 180.0, count)
    elevation = rng.uniform(*ELEVATION_DEG, count)
    distance = DISTANCE * rng.uniform(0.97, 1.05, count)
    grounds = np.array(GROUNDS)[rng.integers(len(GROUNDS), size=count)]
    views = view_vectors(azimuth, elevation, distance, np.full(count, FOV_DEG))
    size = world.sizes.resolution
    images, coverage = render_specs(library, specs, views, grounds, size, rng)
    return LibraryPictures(
        StackedImages([images]),
        np.rint(coverage * 255).astype(np.uint8),
        azimuth.astype(np.float32),
        elevation.astype(np.float32),
        specs,
        world,
        library.key,
    )


def training_pictures(
    library: Library,
    world: World,
    folder: Path,
    chunks: int,
    report: Callable[[str], None] = lambda _: None,
    first: int = 0,
) -> LibraryPictures:
    """The pictures of `chunks` chunks from number `first` on; those not in `folder` are rendered.

    Args:
        library: the meshes.
        world: names and sizes of the models.
        folder: where chunks of these nouns and meshes are kept.
        chunks: how many, of `CHUNK` pictures each.
        report: gets a line for each chunk that is rendered.
        first: number of the first chunk.
    """
    parts = []
    for index in range(first, first + chunks):
        path = folder / f"chunk{index:03d}.safetensors"
        if not path.exists():
            report(f"rendering training pictures: chunk {index - first + 1} of {chunks}")
            _write_chunk(library, world, path, index)
        parts.append(_read_chunk(path, world, library.key))
    return LibraryPictures(
        StackedImages([p.images.parts[0] for p in parts]),
        np.concatenate([p.coverage for p in parts]),
        np.concatenate([p.azimuth_deg for p in parts]),
        np.concatenate([p.elevation_deg for p in parts]),
        [s for p in parts for s in p.specs],
        world,
        library.key,
    )


def _write_chunk(library: Library, world: World, path: Path, index: int) -> None:
    rng = np.random.default_rng([6, index, len(library.nouns)])
    pictures = make_pictures(library, world, CHUNK, rng)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps([asdict(s) for s in pictures.specs]))
    with atomic_write(path.with_suffix(".npy")) as temporary, temporary.open("wb") as file:
        np.save(file, pictures.images.parts[0], allow_pickle=False)
    arrays = {k: getattr(pictures, k) for k in ("coverage", "azimuth_deg", "elevation_deg")}
    with atomic_write(path) as temporary:
        save_file(arrays, temporary)


def _read_chunk(path: Path, world: World, key: str) -> LibraryPictures:
    rows: Any = read_json(path.with_suffix(".json"))
    images = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    return LibraryPictures(
        StackedImages([images]),
        **load_file(path),
        specs=[LibrarySpec(**row) for row in rows],
        world=world,
        key=key,
    )

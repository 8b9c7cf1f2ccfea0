"""The household: a world of named, textured meshes at 128 pixels.

The meshes are those of Debian's package `sweethome3d-furniture` (five libraries of Sweet Home 3D,
CC0 and CC-BY 3.0), curated in `assets/household/meshes.csv`: names and facing were mended, branded
and unsuitable ones left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vp3d.config.paths import ASSETS
from vp3d.errors import UserError
from vp3d.prompts import SECTORS
from vp3d.worlds.arrangement import SUPPORTS, sensible_pairs
from vp3d.worlds.base import Sizes, World
from vp3d.worlds.library import TABLE, Library, read_table
from vp3d.worlds.library_captions import MATERIALS, RELATIONS
from vp3d.worlds.toybox.scenes import COLORS, is_held_out

HOUSEHOLD = ASSETS.parent / "household"
HOUSEHOLD_PART = HOUSEHOLD / "library"  # the small CC0 part of the meshes
SIZES = Sizes(
    resolution=128, widths=(48, 96, 96, 160), layers=(1, 2, 1, 1), time_width=384, patch=16
)
# The nouns that the models know, in the order in which they are trained
NOUNS = (
    "sofa", "armchair", "car", "mug", "teddy bear", "barrel", "hamburger", "vase", "dog",
    "washing machine", "soccer ball", "piano",
    "chair", "table", "bench", "desk", "bed", "wardrobe", "lamp", "bookcase", "potted plant",
    "bicycle", "scooter", "truck", "van", "bus", "forklift", "rowboat", "wheelbarrow", "cat",
    "horse", "rabbit", "bottle", "bowl", "cup", "teapot", "hot dog", "toaster", "microwave",
    "fridge", "trash can", "box", "crate", "sink", "bathtub", "toilet", "brush", "tv", "laptop",
    "phone", "camera", "radio", "guitar", "hat", "jacket", "umbrella", "drill", "basketball",
    "pool table", "fire hydrant",
)  # fmt: skip


def library_world(
    folder: Path, name: str = "household", known: Sequence[str] | None = None
) -> World:
    """The world of the library in `folder`; `known` are the nouns of its models, None for all."""
    rows = read_table(folder / TABLE)
    nouns = list(dict.fromkeys(r.noun for r in rows))
    if not nouns:
        raise UserError(f"{folder / TABLE} has no meshes")
    known = tuple(nouns if known is None else known)
    heads = {
        "object_a": list(known),
        "color_a": list(COLORS),
        "material": ["none", *MATERIALS],
    }
    if sensible_pairs(known):
        heads |= {
            "relation": ["none", *RELATIONS],
            "object_b": ["none", *known],
            "color_b": ["none", *COLORS],
        }
    words = {"a", "an", "with", "on", "next", "to", "from", "above", *COLORS, *MATERIALS}
    for phrase in (*nouns, *SECTORS):
        words |= set(phrase.split())
    return World(name, SIZES, known, heads, tuple(sorted(words)), start=ASSETS)


def vocabulary(world: World) -> dict[str, object]:
    """Content of the `vocabulary.json` next to a library world's models: what they know."""
    nouns = set(world.nouns)
    views = {w for sector in SECTORS for w in sector.split()} | {"from", "above"}
    known = {"a", "an", *views, *COLORS, *MATERIALS}
    if "relation" in world.heads:
        known |= {word for relation in RELATIONS for word in relation.split()}
    for noun in nouns:
        known |= set(noun.split())
    pairs = [[c, n] for n in world.nouns for c in COLORS if is_held_out(c, n)]
    return {
        "words": sorted(known),
        "nouns": list(world.nouns),
        "colors": {k: list(v) for k, v in COLORS.items()},
        "held_out": pairs,
        "supports": [n for n in world.nouns if n in SUPPORTS],
    }


def household(folder: Path, nouns: int | None = None) -> tuple[World, Library]:
    """The household with the packed meshes in `folder`, and its first `nouns` nouns as library.

    The licence of its models names those of the meshes.
    """
    library = Library(folder, NOUNS[:nouns])
    licences = ", ".join(sorted({row.licence for row in library.rows if row.licence}))
    licence = f"Apache-2.0; trained on meshes under {licences}" if licences else ""
    return replace(library_world(folder, known=NOUNS), licence=licence), library

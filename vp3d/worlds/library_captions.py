"""Captions of a library of meshes: what they say, and how they are read.

    an armchair                          a noun
    a red armchair                       painted, or a mesh whose own colour has a name
    a wooden table                       a mesh whose texture shows the material
    a red mug on a wooden table          two objects, the first stands on the second
    a dog next to an armchair            two objects, the first at -y (front view: left)

A caption may end in view words. `caption` and `parse_caption` are inverse to each other, but for
the meshes, which a caption does not name.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from vp3d.prompts import strip_view
from vp3d.worlds.toybox.scenes import COLORS, article

MATERIALS = ("wooden", "leather")
RELATIONS = ("on", "next to")


@dataclass(frozen=True)
class LibrarySpec:
    """What a picture shows: the words of its caption and the meshes, by their names in the table.

    `color` and `material` are "" where the caption does not name them; `painted` says whether the
    mesh is painted in `color`, which otherwise is its own. The second object, if there is a
    `relation`, has the fields that end in `_b`.
    """

    noun: str
    color: str = ""
    material: str = ""
    mesh: str = ""
    painted: bool = False
    relation: str = ""
    noun_b: str = ""
    color_b: str = ""
    material_b: str = ""
    mesh_b: str = ""
    painted_b: bool = False

    @property
    def second(self) -> LibrarySpec:
        """The second object alone; its noun is "" without a relation."""
        return LibrarySpec(self.noun_b, self.color_b, self.material_b, self.mesh_b, self.painted_b)


def joined(first: LibrarySpec, relation: str, second: LibrarySpec) -> LibrarySpec:
    """Two objects in a relation; neither has one of its own."""
    return LibrarySpec(
        first.noun,
        first.color,
        first.material,
        first.mesh,
        first.painted,
        relation,
        second.noun,
        second.color,
        second.material,
        second.mesh,
        second.painted,
    )


def caption(spec: LibrarySpec) -> str:
    """The caption of `spec`, without view words."""
    first = _phrase(spec.color, spec.material, spec.noun)
    if not spec.relation:
        return first
    return f"{first} {spec.relation} {_phrase(spec.color_b, spec.material_b, spec.noun_b)}"


def _phrase(color: str, material: str, noun: str) -> str:
    words = " ".join(w for w in (color, material, noun) if w)
    return f"{article(words)} {words}"


def parse_caption(text: str, nouns: Collection[str]) -> LibrarySpec:
    """The `LibrarySpec` of a caption, with or without view words; it names no meshes.

    Raises:
        ValueError: The text is no such caption.

    Example:
        >>> found = parse_caption("a red mug on a wooden table, back view", ["mug", "table"])
        >>> found.color, found.relation, found.material_b, found.noun_b
        ('red', 'on', 'wooden', 'table')
    """
    body = strip_view(text)
    whole = _parse_phrase(body, nouns)
    if whole is not None:
        return whole
    for relation in RELATIONS:
        first, found, second = body.partition(f" {relation} ")
        a, b = _parse_phrase(first, nouns), _parse_phrase(second, nouns)
        if found and a is not None and b is not None:
            return joined(a, relation, b)
    raise ValueError(
        f"not a caption of this world: {text!r} (a NOUN, a COLOUR NOUN, a wooden NOUN, two of them "
        "with 'on' or 'next to')"
    )


def _parse_phrase(text: str, nouns: Collection[str]) -> LibrarySpec | None:
    words = [w for w in text.split() if w not in ("a", "an")]
    color = words.pop(0) if words and words[0] in COLORS else ""
    material = words.pop(0) if words and words[0] in MATERIALS else ""
    noun = " ".join(words)
    return LibrarySpec(noun, color, material) if noun in nouns else None

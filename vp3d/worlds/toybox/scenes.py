"""The toybox world: a grammar of captions, and the exact scene behind each of them.

A caption is one of

    a red sphere                                   a solid or a compound in one colour
    a red sphere with yellow stripes               a solid with a pattern ("stripes", "checks")
    a purple chair with brown legs                 a compound whose named part has its own colour
    a pink cone on a green cylinder                two objects, the first stands on the second
    a pink cone next to a green cylinder           two objects, the first at -y (front view: left)

and may end in view words (", front view"). `Spec` is the parsed caption, `caption` and
`parse_caption` are inverse to each other, and `build_scene` returns the primitives. The same
caption always gives the same scene, so each prompt has one right answer.

Frame and units are those of `vp3d.types`: z up, the object faces +x, everything is inside the ball
of radius 0.85.

A primitive is a row of `PRIM_COLUMNS` numbers: kind, centre (3), size (3), axis, material. `size`
depends on the kind: ELLIPSOID radii; BOX half sizes; CONE bottom radius, top radius, half height (a
cylinder has equal radii); RING major and minor radius; CAPSULE radius, half length of its segment;
GABLE half width, half length, half height (a triangle in local x-z, extruded along local y). The
local z of CONE, RING and CAPSULE is world x, y or z for `axis` 0, 1, 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

ELLIPSOID, BOX, CONE, RING, CAPSULE, GABLE = range(6)
PRIM_COLUMNS = 9
BALL_RADIUS = 0.85  # every scene is scaled to fill this ball

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.12),
    "orange": (0.98, 0.52, 0.06),
    "yellow": (0.98, 0.88, 0.14),
    "lime": (0.58, 0.86, 0.12),
    "green": (0.08, 0.50, 0.16),
    "cyan": (0.22, 0.80, 0.88),
    "blue": (0.12, 0.24, 0.84),
    "purple": (0.50, 0.16, 0.68),
    "pink": (0.98, 0.56, 0.76),
    "brown": (0.38, 0.20, 0.08),
    "black": (0.09, 0.09, 0.10),
    "white": (0.97, 0.97, 0.96),
}
PATTERNS = ("plain", "stripes", "checks")
RELATIONS = ("on", "next to")
# Side of a check and width of a stripe, in units of the object before it is scaled
PATTERN_PERIOD = 0.40
SUPPORTS = ("cube", "cylinder", "table", "gift")  # what another object can stand on

Primitive = tuple[int, tuple[float, float, float], tuple[float, float, float], int, str]
"""Kind, centre, size, axis, and paint: "main", "part" or the name of a colour."""


def _box(
    x: float, y: float, z: float, a: float, b: float, c: float, paint: str = "main"
) -> Primitive:
    return (BOX, (x, y, z), (a, b, c), 2, paint)


def _ball(
    x: float, y: float, z: float, a: float, b: float, c: float, paint: str = "main"
) -> Primitive:
    return (ELLIPSOID, (x, y, z), (a, b, c), 2, paint)


def _cone(
    x: float, y: float, z: float, r0: float, r1: float, h: float, paint: str = "main", axis: int = 2
) -> Primitive:
    return (CONE, (x, y, z), (r0, r1, h), axis, paint)


def _capsule(
    x: float, y: float, z: float, r: float, h: float, paint: str = "main", axis: int = 2
) -> Primitive:
    return (CAPSULE, (x, y, z), (r, h, 0.0), axis, paint)


def _ring(
    x: float, y: float, z: float, major: float, minor: float, paint: str = "main", axis: int = 2
) -> Primitive:
    return (RING, (x, y, z), (major, minor, 0.0), axis, paint)


def _legs(x: float, y: float, z: float, r: float, h: float) -> list[Primitive]:
    return [_box(sx * x, sy * y, z, r, r, h, "part") for sx in (-1, 1) for sy in (-1, 1)]


def _wheels(x: float, y: float, z: float, r: float, h: float) -> list[Primitive]:
    return [_cone(sx * x, sy * y, z, r, r, h, "part", 1) for sx in (-1, 1) for sy in (-1, 1)]


SOLIDS: dict[str, Callable[[], list[Primitive]]] = {
    "sphere": lambda: [_ball(0, 0, 0, 0.7, 0.7, 0.7)],
    "cube": lambda: [_box(0, 0, 0, 0.55, 0.55, 0.55)],
    "cylinder": lambda: [_cone(0, 0, 0, 0.5, 0.5, 0.6)],
    "cone": lambda: [_cone(0, 0, 0, 0.65, 0.0, 0.68)],
    "ring": lambda: [_ring(0, 0, 0, 0.55, 0.2, axis=0)],
    "capsule": lambda: [_capsule(0, 0, 0, 0.36, 0.42)],
    "egg": lambda: [_ball(0, 0, 0, 0.52, 0.52, 0.72)],
}

COMPOUNDS: dict[str, tuple[str, Callable[[], list[Primitive]]]] = {
    "chair": (
        "legs",
        lambda: [
            _box(0, 0, 0, 0.42, 0.42, 0.09),
            _box(-0.36, 0, 0.48, 0.07, 0.42, 0.42),
            *_legs(0.34, 0.34, -0.4, 0.08, 0.36),
        ],
    ),
    "table": (
        "legs",
        lambda: [_box(0, 0, 0.3, 0.68, 0.55, 0.1), *_legs(0.56, 0.43, -0.2, 0.09, 0.42)],
    ),
    "car": (
        "wheels",
        lambda: [
            _box(0, 0, -0.02, 0.8, 0.38, 0.19),
            _box(-0.18, 0, 0.28, 0.4, 0.32, 0.17),
            _box(0.24, 0, 0.28, 0.03, 0.26, 0.12, "black"),
            _ball(0.8, 0.24, 0.02, 0.07, 0.09, 0.09, "yellow"),
            _ball(0.8, -0.24, 0.02, 0.07, 0.09, 0.09, "yellow"),
            *_wheels(0.46, 0.38, -0.22, 0.2, 0.08),
        ],
    ),
    "house": (
        "roof",
        lambda: [
            _box(0, 0, -0.2, 0.5, 0.5, 0.4),
            (GABLE, (0, 0, 0.44), (0.62, 0.6, 0.26), 2, "part"),
            _box(0.5, 0.0, -0.34, 0.03, 0.14, 0.26, "black"),
        ],
    ),
    "mushroom": (
        "stem",
        lambda: [_ball(0, 0, 0.22, 0.68, 0.68, 0.4), _cone(0, 0, -0.36, 0.24, 0.2, 0.4, "part")],
    ),
    "snowman": (
        "hat",
        lambda: [
            _ball(0, 0, -0.42, 0.42, 0.42, 0.42),
            _ball(0, 0, 0.16, 0.31, 0.31, 0.31),
            _ball(0, 0, 0.56, 0.23, 0.23, 0.23),
            _cone(0, 0, 0.74, 0.3, 0.3, 0.03, "part"),
            _cone(0, 0, 0.88, 0.18, 0.18, 0.16, "part"),
            _cone(0.31, 0, 0.55, 0.07, 0.0, 0.13, "orange", 0),
        ],
    ),
    "tree": (
        "trunk",
        lambda: [
            _cone(0, 0, 0.02, 0.62, 0.12, 0.3),
            _cone(0, 0, 0.48, 0.46, 0.0, 0.34),
            _cone(0, 0, -0.52, 0.16, 0.16, 0.28, "part"),
        ],
    ),
    "rocket": (
        "fins",
        lambda: [
            _cone(0, 0, -0.1, 0.3, 0.3, 0.5),
            _cone(0, 0, 0.62, 0.3, 0.0, 0.24, "part"),
            _box(0, 0, -0.46, 0.58, 0.06, 0.2, "part"),
            _box(0, 0, -0.46, 0.06, 0.58, 0.2, "part"),
        ],
    ),
    "lamp": (
        "base",
        lambda: [
            _cone(0, 0, 0.4, 0.55, 0.3, 0.32),
            _cone(0, 0, -0.26, 0.08, 0.08, 0.4, "part"),
            _cone(0, 0, -0.66, 0.42, 0.36, 0.08, "part"),
        ],
    ),
    "mug": (
        "handle",
        lambda: [_cone(0, 0, 0, 0.45, 0.45, 0.52), _ring(0, 0.5, 0, 0.28, 0.09, "part", 0)],
    ),
    "sofa": (
        "arms",
        lambda: [
            _box(0.05, 0, -0.16, 0.38, 0.6, 0.16),
            _box(-0.3, 0, 0.14, 0.12, 0.6, 0.38),
            _box(0.05, 0.68, -0.06, 0.42, 0.12, 0.28, "part"),
            _box(0.05, -0.68, -0.06, 0.42, 0.12, 0.28, "part"),
        ],
    ),
    "airplane": (
        "wings",
        lambda: [
            _capsule(0, 0, 0, 0.17, 0.6, axis=0),
            _box(0.06, 0, 0, 0.17, 0.8, 0.05, "part"),
            _box(-0.6, 0, 0.06, 0.1, 0.32, 0.04, "part"),
            _box(-0.62, 0, 0.22, 0.12, 0.04, 0.2),
        ],
    ),
    "duck": (
        "beak",
        lambda: [
            _ball(-0.1, 0, -0.2, 0.6, 0.42, 0.38),
            _ball(0.3, 0, 0.34, 0.29, 0.29, 0.29),
            _ball(0.62, 0, 0.28, 0.18, 0.17, 0.09, "part"),
            _ball(0.48, 0.19, 0.42, 0.07, 0.07, 0.07, "black"),
            _ball(0.48, -0.19, 0.42, 0.07, 0.07, 0.07, "black"),
        ],
    ),
    "robot": (
        "arms",
        lambda: [
            _box(0, 0, 0.02, 0.24, 0.34, 0.34),
            _box(0, 0, 0.58, 0.2, 0.24, 0.19),
            _box(0.2, 0, 0.6, 0.03, 0.17, 0.06, "black"),
            _box(0, 0.45, 0.04, 0.1, 0.1, 0.32, "part"),
            _box(0, -0.45, 0.04, 0.1, 0.1, 0.32, "part"),
            _box(0, 0.17, -0.54, 0.13, 0.11, 0.26),
            _box(0, -0.17, -0.54, 0.13, 0.11, 0.26),
        ],
    ),
    "boat": (
        "sail",
        lambda: [
            (GABLE, (0, 0, -0.4), (0.78, 0.32, -0.26), 2, "main"),
            _cone(0.08, 0, 0.2, 0.05, 0.05, 0.6, "black"),
            (GABLE, (-0.02, 0, 0.32), (0.5, 0.04, 0.46), 2, "part"),
        ],
    ),
    "cactus": (
        "pot",
        lambda: [
            _capsule(0, 0, 0.16, 0.2, 0.5),
            _capsule(0, 0.36, 0.1, 0.11, 0.2, axis=1),
            _capsule(0, 0.5, 0.3, 0.11, 0.2),
            _capsule(0, -0.36, -0.06, 0.11, 0.2, axis=1),
            _capsule(0, -0.5, 0.14, 0.11, 0.2),
            _cone(0, 0, -0.58, 0.32, 0.4, 0.24, "part"),
        ],
    ),
    "gift": (
        "ribbon",
        lambda: [
            _box(0, 0, -0.06, 0.52, 0.52, 0.46),
            _box(0, 0, -0.06, 0.535, 0.12, 0.475, "part"),
            _box(0, 0, -0.06, 0.12, 0.535, 0.475, "part"),
        ],
    ),
}
NOUNS = (*SOLIDS, *COMPOUNDS)


@dataclass(frozen=True)
class Spec:
    """A parsed caption; "" for what it does not have.

    `accent` is the colour of the pattern or of the named part. `relation` connects the first object
    to a second one, `noun_b` in `color_b`.
    """

    noun: str
    color: str
    accent: str = ""
    pattern: str = "plain"
    relation: str = ""
    noun_b: str = ""
    color_b: str = ""


@dataclass(frozen=True)
class Scene:
    """The primitives and materials of a caption.

    Attributes:
        prims: [P, 9] float64, see the top of this module.
        materials: [M, 12] float64: rgb (3), second rgb (3), pattern index, pattern origin (3),
            pattern scale, slot. The slot says what the surface belongs to: 0 main colour of object
            a, 1 its part or second colour, 2 a feature with a fixed colour, 3 main colour of object
            b, 4 its part or a feature.
    """

    prims: np.ndarray
    materials: np.ndarray


def caption(spec: Spec) -> str:
    """The caption of `spec`, without view words; `parse_caption` is its inverse."""
    text = f"{article(spec.color)} {spec.color} {spec.noun}"
    if spec.relation:
        return f"{text} {spec.relation} {article(spec.color_b)} {spec.color_b} {spec.noun_b}"
    if spec.pattern != "plain":
        return f"{text} with {spec.accent} {spec.pattern}"
    if not spec.accent:
        return text
    part = COMPOUNDS[spec.noun][0]
    return (
        f"{text} with {spec.accent} {part}"
        if part.endswith("s")
        else f"{text} with {article(spec.accent)} {spec.accent} {part}"
    )


def without_colors(text: str) -> str:
    """A caption without its colours, as a user writes it next to an image.

    "a red chair with blue legs" becomes "a chair with legs".
    """
    kept = [w for w in text.split() if w not in COLORS]
    for i, word in enumerate(kept[:-1]):
        if word in ("a", "an"):
            kept[i] = "" if kept[i + 1].endswith("s") else article(kept[i + 1])
    return " ".join(w for w in kept if w)


def article(word: str) -> str:
    """The article of a word or phrase: "an" before a vowel, else "a"."""
    return "an" if word[0] in "aeiou" else "a"


def parse_caption(text: str) -> Spec:
    """The `Spec` of a caption, with or without view words.

    Raises:
        ValueError: if the text is outside the grammar.

    Example:
        >>> parse_caption("a red mushroom with a white stem").accent
        'white'
    """
    words = [w for w in text.lower().split(",")[0].split() if w not in ("a", "an")]
    if len(words) < 2 or words[0] not in COLORS or words[1] not in NOUNS:
        raise ValueError(f"not a toybox caption: {text!r} (expected 'a COLOUR NOUN ...')")
    spec, rest = Spec(words[1], words[0]), words[2:]
    if not rest:
        return spec
    if rest[0] == "with" and len(rest) == 3 and rest[1] in COLORS:
        return _with_accent(spec, rest[1], rest[2], text)
    relation = "next to" if rest[:2] == ["next", "to"] else rest[0]
    objects = rest[len(relation.split()) :]
    if relation in RELATIONS and len(objects) == 2 and objects[0] in COLORS and objects[1] in NOUNS:
        return replace(spec, relation=relation, color_b=objects[0], noun_b=objects[1])
    raise ValueError(
        f"not a toybox caption: {text!r} (after the noun: 'with a COLOUR PART', 'on' or 'next to')"
    )


def _with_accent(spec: Spec, accent: str, word: str, text: str) -> Spec:
    if word in PATTERNS and spec.noun in SOLIDS:
        return replace(spec, accent=accent, pattern=word)
    if spec.noun in COMPOUNDS and COMPOUNDS[spec.noun][0] == word:
        return replace(spec, accent=accent)
    raise ValueError(f"not a toybox caption: {text!r} ({spec.noun} has no {word})")


def is_held_out(color: str, noun: str) -> bool:
    """Whether this pair is held out of all training: a fixed 10 % of the pairs, chosen by hash."""
    ranked = sorted(COLORS, key=lambda c: hashlib.sha256(f"{noun}/{c}".encode()).digest())
    extra = hashlib.sha256(noun.encode()).digest()[0] % 5 == 0
    return color in ranked[: 2 if extra else 1]


def uses_held_out(spec: Spec) -> bool:
    """Whether any object of `spec` is a held-out colour-object pair."""
    return is_held_out(spec.color, spec.noun) or bool(
        spec.noun_b and is_held_out(spec.color_b, spec.noun_b)
    )


def sample_spec(rng: np.random.Generator, held_out: bool = False) -> Spec:
    """A random caption: trained pairs only, or (`held_out`) one with at least one held-out pair."""
    while True:
        spec = _propose(rng)
        if uses_held_out(spec) == held_out:
            return spec


def kind_of(spec: Spec) -> str:
    """ "on", "next to", "stripes", "checks", "part" or "plain"."""
    return spec.relation or (
        spec.pattern if spec.pattern != "plain" else "part" if spec.accent else "plain"
    )


def _propose(rng: np.random.Generator) -> Spec:
    def pick(values: tuple[str, ...] | list[str]) -> str:
        return values[int(rng.integers(len(values)))]

    colors, kind = list(COLORS), rng.random()
    color, accent = (colors[i] for i in rng.permutation(len(colors))[:2])
    if kind < 0.12:
        return Spec(pick(list(SOLIDS)), color)
    if kind < 0.30:
        return Spec(pick(list(SOLIDS)), color, accent, pick(PATTERNS[1:]))
    if kind < 0.40:
        return Spec(pick(list(COMPOUNDS)), color)
    if kind < 0.70:
        return Spec(pick(list(COMPOUNDS)), color, accent)
    relation = pick(RELATIONS)
    noun_b = pick(SUPPORTS if relation == "on" else NOUNS)
    noun = pick([n for n in NOUNS if n != noun_b])
    return Spec(noun, color, relation=relation, noun_b=noun_b, color_b=accent)


def build_scene(spec: Spec) -> Scene:
    """The exact scene of `spec`, centred and scaled to the ball of radius `BALL_RADIUS`."""
    rows_a = _primitives(spec.noun)
    if not spec.relation:
        accent = spec.accent or default_accent(spec.noun, spec.color)
        return _assemble([(rows_a, np.zeros(3), 1.0, spec.color, accent, spec.pattern)])
    rows_b = _primitives(spec.noun_b)
    (low_a, high_a), (low_b, high_b) = _bounds(rows_a), _bounds(rows_b)
    size = 0.8 if spec.relation == "on" else 1.0
    if spec.relation == "on":
        offset = np.array([0.0, 0.0, high_b[2] - size * low_a[2]])
    else:
        offset = np.array([0.0, low_b[1] - 0.12 - high_a[1], low_b[2] - low_a[2]])
    return _assemble(
        [
            (rows_a, offset, size, spec.color, default_accent(spec.noun, spec.color), "plain"),
            (
                rows_b,
                np.zeros(3),
                1.0,
                spec.color_b,
                default_accent(spec.noun_b, spec.color_b),
                "plain",
            ),
        ]
    )


def default_accent(noun: str, color: str) -> str:
    """The colour of a part if the caption does not name one: "" for the object's own.

    A gift has a ribbon of another colour; without it, it would look like a cube.
    """
    return "" if noun != "gift" else "black" if color == "white" else "white"


def _primitives(noun: str) -> list[Primitive]:
    return SOLIDS[noun]() if noun in SOLIDS else COMPOUNDS[noun][1]()


def _half_extent(primitive: Primitive) -> np.ndarray:
    """Half sizes [3] of the axis-aligned box around a primitive."""
    kind, _, (a, b, c), axis, _ = primitive
    if kind in (ELLIPSOID, BOX, GABLE):
        return np.abs([a, b, c])
    along, across = {CONE: (c, max(a, b)), RING: (b, a + b), CAPSULE: (a + b, a)}[kind]
    return np.array([along if i == axis else across for i in range(3)])


def _bounds(rows: list[Primitive]) -> tuple[np.ndarray, np.ndarray]:
    low = np.min([np.array(p[1]) - _half_extent(p) for p in rows], axis=0)
    high = np.max([np.array(p[1]) + _half_extent(p) for p in rows], axis=0)
    return low, high


def _assemble(objects: list[tuple[list[Primitive], np.ndarray, float, str, str, str]]) -> Scene:
    """Assemble objects (primitives, offset, size, colour, accent, pattern), then fit the ball."""
    placed = [
        (kind, np.array(centre) * size + offset, np.array(extent) * size, axis, paint, index)
        for index, (rows, offset, size, *_) in enumerate(objects)
        for kind, centre, extent, axis, paint in rows
    ]
    boxes = [(c, _half_extent((k, tuple(c), tuple(e), a, p))) for k, c, e, a, p, _ in placed]
    middle = (
        np.min([c - h for c, h in boxes], axis=0) + np.max([c + h for c, h in boxes], axis=0)
    ) / 2
    scale = BALL_RADIUS / max(_reach(k, c - middle, e, a) for k, c, e, a, _, _ in placed)
    prims: list[list[float]] = []
    materials: list[list[float]] = []
    known: dict[tuple[int, str], int] = {}
    for kind, centre, extent, axis, paint, index in placed:
        _, offset, size, color, accent, pattern = objects[index]
        key = (index, paint)
        if key not in known:
            known[key] = len(materials)
            origin = (offset - middle) * scale
            materials.append(_material(paint, color, accent, pattern, origin, size * scale, index))
        prims.append([kind, *((centre - middle) * scale), *(extent * scale), axis, known[key]])
    return Scene(np.array(prims, dtype=np.float64), np.array(materials, dtype=np.float64))


def _reach(kind: int, centre: np.ndarray, extent: np.ndarray, axis: int) -> float:
    """Upper bound of the distance from the origin to any point of the primitive."""
    half = _half_extent((kind, tuple(centre), tuple(extent), axis, ""))
    if kind == ELLIPSOID:
        return float(np.linalg.norm(centre) + half.max())
    if kind in (CONE, RING, CAPSULE):
        along, across = np.delete(np.abs(centre), axis), half[(axis + 1) % 3]
        return float(np.hypot(np.linalg.norm(along) + across, abs(centre[axis]) + half[axis]))
    return float(np.linalg.norm(np.abs(centre) + half))


def _material(
    paint: str, color: str, accent: str, pattern: str, origin: np.ndarray, scale: float, index: int
) -> list[float]:
    first, slot = color, 3 * index
    if paint == "part":
        first, slot = accent or color, 3 * index + bool(accent)
    elif paint != "main":
        first, slot = paint, 2 + 2 * index
    second = accent if pattern != "plain" and paint == "main" else first
    kind = PATTERNS.index(pattern) if paint == "main" else 0
    return [*COLORS[first], *COLORS[second], kind, *origin, scale, slot]


def words() -> list[str]:
    """Every word of the captions and view words, sorted."""
    views = "front back left right side view from above".split()
    parts = {part for part, _ in COMPOUNDS.values()}
    return sorted(
        {"a", "an", "with", "on", "next", "to", *views, *parts, *PATTERNS[1:], *COLORS, *NOUNS}
    )


def vocabulary() -> dict[str, object]:
    """Content of `assets/toybox/vocabulary.json`: words, nouns, colours, parts, held-out pairs."""
    return {
        "words": words(),
        "nouns": list(NOUNS),
        "colors": {k: list(v) for k, v in COLORS.items()},
        "parts": {noun: part for noun, (part, _) in COMPOUNDS.items()},
        "supports": list(SUPPORTS),
        "held_out": [[c, n] for n in NOUNS for c in COLORS if is_held_out(c, n)],
    }

"""A folder of named meshes as a world: its table, its captions and its held-out parts.

The folder has `meshes.csv` and the packed meshes `meshes/NAME.npz`. A row of the table is one mesh:

    name       of its file
    noun       "washing machine"
    library    where it comes from: library, model, licence, creator
    turn       degrees about the vertical by which it is turned to face +x
    paint      numbers of the materials that may be recoloured
    own        the word for its own colour, if there is one
    material   "wooden" or "leather", if its texture shows it

Captions are those of `library_captions`; pairs of objects, those of `arrangement.sensible_pairs`.
One colour in ten is held out of each noun (`toybox.scenes.is_held_out`), and one mesh of every noun
that has three or more.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from vp3d.errors import UserError
from vp3d.system.files import sha256_file
from vp3d.worlds.arrangement import sensible_pairs
from vp3d.worlds.library_captions import LibrarySpec, joined
from vp3d.worlds.mesh_library import PAINT, LibraryMesh, load_mesh
from vp3d.worlds.toybox.scenes import COLORS, is_held_out

TABLE, MESHES = "meshes.csv", "meshes"
MOST_MESHES = 10  # of a noun that are trained on
HELD_OUT_FROM = 3  # meshes of a noun from which one is held out
PAIR_SHARE = 0.04  # of captions that name two objects; they are drawn several times as often


@dataclass(frozen=True)
class Row:
    """One mesh of the table; see the top of this module."""

    name: str
    noun: str
    library: str = ""
    model: str = ""
    licence: str = ""
    creator: str = ""
    turn: float = 0.0
    paint: tuple[int, ...] = ()
    own: str = ""
    material: str = ""


class Library:
    """The meshes of a folder, loaded when they are first used.

    Args:
        folder: The folder.
        nouns: The nouns to use; None for all.
    """

    def __init__(self, folder: Path, nouns: Sequence[str] | None = None) -> None:
        self.folder = folder
        rows = read_table(folder / TABLE)
        known = list(dict.fromkeys(r.noun for r in rows))
        self.nouns = tuple(known if nouns is None else nouns)
        missing = [n for n in self.nouns if n not in known]
        if missing:
            raise UserError(f"{folder / TABLE} has no mesh of: {', '.join(missing)}")
        self.rows = [r for r in rows if r.noun in self.nouns]
        self._meshes: dict[str, LibraryMesh] = {}

    @cached_property
    def key(self) -> str:
        """Digest of the nouns, their rows of the table and their mesh files, 64 hex digits."""
        digest = hashlib.sha256(repr((self.nouns, self.rows)).encode())
        for row in self.rows:
            digest.update(sha256_file(self._file(row.name)).encode())
        return digest.hexdigest()

    @cached_property
    def held_out(self) -> frozenset[str]:
        """Names of the meshes that are not trained on."""
        return held_out_names(self.rows)

    @cached_property
    def trained(self) -> dict[str, list[Row]]:
        """The meshes of each noun that are trained on, at most `MOST_MESHES`."""
        found: dict[str, list[Row]] = {noun: [] for noun in self.nouns}
        for row in self.rows:
            if row.name not in self.held_out:
                found[row.noun].append(row)
        return {
            n: sorted(rows, key=lambda r: _rank(r.name))[-MOST_MESHES:] for n, rows in found.items()
        }

    @cached_property
    def pairs(self) -> list[tuple[str, str, str]]:
        """The (noun, relation, second noun) of captions with two objects."""
        return sensible_pairs([n for n, rows in self.trained.items() if rows])

    @cached_property
    def row(self) -> dict[str, Row]:
        """The rows by name."""
        return {r.name: r for r in self.rows}

    def mesh(self, name: str) -> LibraryMesh:
        """The mesh of a row, turned to face +x, its paint marked."""
        if name not in self._meshes:
            row = self.row[name]
            mesh = load_mesh(self._file(name))
            materials = mesh.materials.copy()
            materials[:, PAINT] = 0.0
            materials[[p for p in row.paint if p < len(materials)], PAINT] = 1.0
            self._meshes[name] = turned(replace(mesh, materials=materials), row.turn)
        return self._meshes[name]

    def _file(self, name: str) -> Path:
        return self.folder / MESHES / f"{name}.npz"

    def sample(self, rng: np.random.Generator, unseen: str = "") -> LibrarySpec:
        """A random caption with its mesh.

        Args:
            rng: The source of randomness.
            unseen: "" for what is trained on; "pair" for a held-out pair of colour and noun;
                "mesh" for a held-out mesh.
        """
        rows = self._choices(unseen)
        if not unseen and self.pairs and rng.random() < PAIR_SHARE:
            a, relation, b = self.pairs[int(rng.integers(len(self.pairs)))]
            return joined(self._draw(a, rows, rng), relation, self._draw(b, rows, rng))
        nouns = list(rows)
        return self._draw(nouns[int(rng.integers(len(nouns)))], rows, rng, unseen == "pair")

    def _draw(
        self, noun: str, rows: dict[str, list[Row]], rng: np.random.Generator, pair: bool = False
    ) -> LibrarySpec:
        """One object; `pair`: of a held-out pair of colour and noun."""
        while True:
            row = rows[noun][int(rng.integers(len(rows[noun])))]
            spec = self._described(row, rng, pair)
            if spec is not None:
                return spec

    def _choices(self, unseen: str) -> dict[str, list[Row]]:
        rows = self.trained
        if unseen == "mesh":
            rows = {r.noun: [r] for r in self.rows if r.name in self.held_out}
        if unseen == "pair":
            rows = {n: [r for r in of_noun if r.paint] for n, of_noun in rows.items()}
            rows = {n: of_noun for n, of_noun in rows.items() if of_noun}
        if not rows:
            raise UserError("the library has no held-out meshes: a noun needs three meshes for one")
        return rows

    @staticmethod
    def _described(row: Row, rng: np.random.Generator, held_out: bool) -> LibrarySpec | None:
        spec = LibrarySpec(row.noun, mesh=row.name)
        if held_out or (row.paint and rng.random() < 0.6):
            color = list(COLORS)[int(rng.integers(len(COLORS)))]
            if is_held_out(color, row.noun) != held_out:
                return None
            return replace(spec, color=color, painted=True)
        kind = rng.random()
        if row.material and kind < 0.5:
            return replace(spec, material=row.material)
        if row.own and kind < 0.5 and not is_held_out(row.own, row.noun):
            return replace(spec, color=row.own)
        return spec


def held_out_names(rows: Sequence[Row]) -> frozenset[str]:
    """Of every noun with `HELD_OUT_FROM` meshes, the name of one, chosen by hash."""
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(row.noun, []).append(row.name)
    return frozenset(min(n, key=_rank) for n in names.values() if len(n) >= HELD_OUT_FROM)


def read_table(path: Path) -> list[Row]:
    """The rows of a table.

    Raises:
        UserError: The file is missing or a row is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_row(values) for values in csv.DictReader(file)]
    except FileNotFoundError as error:
        raise UserError(f"no library of meshes in {path.parent}: {path.name} is missing") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: damaged table of meshes ({error})") from error


def _row(values: dict[str, str]) -> Row:
    turn = float(values.get("turn") or 0.0)
    if not math.isfinite(turn):
        raise ValueError("a turn is not a number of degrees")
    name = values["name"]
    if not name or any(c in name for c in "/\\"):
        raise ValueError(f"{name!r} is not the name of a mesh")
    return Row(
        name,
        values["noun"],
        values.get("library") or "",
        values.get("model") or "",
        values.get("licence") or "",
        values.get("creator") or "",
        turn,
        tuple(int(p) for p in (values.get("paint") or "").split()),
        values.get("own") or "",
        values.get("material") or "",
    )


def turned(mesh: LibraryMesh, degrees: float) -> LibraryMesh:
    """The mesh turned counter-clockwise about the vertical, as viewed from above."""
    if degrees == 0.0:
        return mesh
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=np.float32)
    return replace(mesh, position=mesh.position @ turn.T, normal=mesh.normal @ turn.T)


def _rank(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()

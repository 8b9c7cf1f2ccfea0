"""Get and pack the household's meshes: `python -m vp3d.worlds.household_pack [--deb FILE]`.

Nobody needs them to run VP3D: they are for training and measuring. The meshes are those of Debian's
package `sweethome3d-furniture` 1.8-1. `--deb` names the downloaded package; without it,
`apt-get download` is asked. Its SHA-256 is checked. Of its 820 models, those of
`assets/household/meshes.csv` are turned, scaled and packed into the folder `--out`, together with
the table and ATTRIBUTION.md.

`--small` packs the part that the repository has, `assets/household/library`: `SMALL`, all CC0, with
which tests run and with which assets are compared where nobody has packed the rest.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vp3d.errors import UserError
from vp3d.system.console import Parser, run_program, say
from vp3d.system.files import check_output, sha256_file, write_text
from vp3d.worlds.household import HOUSEHOLD, HOUSEHOLD_PART
from vp3d.worlds.library import MESHES, TABLE, Row, read_table
from vp3d.worlds.mesh_library import from_obj, save_mesh
from vp3d.worlds.obj_reader import Reader, read_obj

PACKAGE = "sweethome3d-furniture"
SHA256 = "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668"
CATALOGUE = "PluginFurnitureCatalog.properties"
LEAST_STRETCH = 0.7  # below this, the catalogue's size is another model's, and is not used
LICENCES = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-3.0-US": "https://creativecommons.org/licenses/by/3.0/us/",
}
# The meshes of the small part, at most 2 MB in all; three nouns have a held-out mesh
SMALL = (
    "sofa_3", "armchair_1", "armchair_2", "armchair_3", "barrel_1", "piano_1", "chair_4", "chair_8",
    "chair_10", "table_1", "table_2", "table_3", "bench_1", "desk_1", "wardrobe_1", "lamp_1",
    "bookcase_1", "potted_plant_3", "forklift_1", "wheelbarrow_1", "horse_1", "bottle_1", "cup_1",
    "hot_dog_1", "fridge_1", "trash_can_1", "box_1", "crate_1", "crate_2", "basketball_1",
)  # fmt: skip
_PROPERTY = re.compile(r"(\w+)#(\d+)=(.*)")


def libraries(deb: Path) -> Iterator[tuple[str, zipfile.ZipFile]]:
    """Name and content of each `.sh3f` library in a Debian package.

    Raises:
        UserError: The file is not such a package.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(member(deb, "data.tar.xz")), mode="r:xz") as archive:
            for entry in archive:
                if entry.isfile() and entry.name.endswith(".sh3f"):
                    file = archive.extractfile(entry)
                    if file is not None:
                        yield Path(entry.name).stem, zipfile.ZipFile(io.BytesIO(file.read()))
    except (tarfile.TarError, zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{deb} is not Debian's {PACKAGE}: {error}") from error


def member(deb: Path, name: str) -> bytes:
    """The content of a member of an `ar` archive, which a Debian package is.

    Raises:
        UserError: There is no such member.
    """
    with deb.open("rb") as file:
        if file.read(8) == b"!<arch>\n":
            while len(header := file.read(60)) == 60:
                size = int(header[48:58]) if header[48:58].strip().isdigit() else -1
                if size < 0:
                    break
                if header[:16].decode("ascii", "replace").strip().rstrip("/") == name:
                    return file.read(size)
                file.seek(size + size % 2, 1)
    raise UserError(f"{deb} is not a Debian package: it has no {name}")


def download(folder: Path) -> Path:
    """The package, downloaded by apt into `folder`.

    Raises:
        UserError: There is no apt, or it does not have the package.
    """
    advice = f"download {PACKAGE} 1.8-1 from Debian and give it with --deb FILE"
    if shutil.which("apt-get") is None:
        raise UserError(f"there is no apt-get here; {advice}")
    done = subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, capture_output=True)
    found = sorted(folder.glob(f"{PACKAGE}_*.deb"))
    if done.returncode or not found:
        raise UserError(f"apt-get could not download {PACKAGE}; {advice}")
    return found[0]


def catalogue(archive: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    """The properties of a library's models, by the path of the model."""
    found: dict[str, dict[str, str]] = {}
    for line in archive.read(CATALOGUE).decode("latin-1").splitlines():
        if matched := _PROPERTY.match(line):
            found.setdefault(matched[2], {})[matched[1]] = matched[3]
    return {v["model"].lstrip("/"): v for v in found.values() if "model" in v}


def reader(archive: zipfile.ZipFile) -> Reader:
    """Reads files of a library; the case of a name does not matter."""
    names = {name.lower(): name for name in archive.namelist()}
    return lambda name: archive.read(names[name.lower()]) if name.lower() in names else None


def pack_model(archive: zipfile.ZipFile, row: Row, properties: dict[str, str], path: Path) -> None:
    """Pack one model: turned by the catalogue's rotation and stretched to the catalogue's size."""
    model = read_obj(row.model, reader(archive))
    turn = np.array(properties.get("modelRotation", "1 0 0 0 1 0 0 0 1").split(), dtype=float)
    turn = turn.reshape(3, 3)
    size = np.array([float(properties[k]) for k in ("width", "height", "depth")])
    turned = model.position @ turn.T
    stretch = size / np.maximum(np.ptp(turned, axis=0), 1e-6)
    kept = stretch.min() / stretch.max() >= LEAST_STRETCH
    save_mesh(from_obj(model, turn, size if kept else None), path)


def attribution(rows: Sequence[Row]) -> str:
    """ATTRIBUTION.md: each creator with the licence and the names of the meshes."""
    lines = [
        "# Credits of the household's meshes",
        "",
        "The meshes come from the additional furniture libraries 1.8 of Sweet Home 3D",
        "(https://www.sweethome3d.com, Debian package `sweethome3d-furniture`). They were turned,",
        "scaled and packed, their textures reduced, and many are recoloured in pictures and in the",
        "training data of the embedded models. CC0 asks for no credit; it is given all the same.",
    ]
    for licence in sorted({r.licence for r in rows}):
        lines += ["", f"## {licence}", "", LICENCES.get(licence, ""), ""]
        creators: dict[str, list[str]] = {}
        for row in rows:
            if row.licence == licence:
                creators.setdefault(row.creator or "not named", []).append(row.name)
        lines += [f"* {creator}: {', '.join(names)}" for creator, names in sorted(creators.items())]
    return "\n".join(lines) + "\n"


def pack(deb: Path, out: Path, rows: Sequence[Row]) -> None:
    """Pack the models of `rows` from the package into the folder `out`."""
    if sha256_file(deb) != SHA256:
        raise UserError(f"{deb} is not {PACKAGE} 1.8-1: its SHA-256 differs; download that version")
    for library, archive in libraries(deb):
        properties = catalogue(archive)
        wanted = [r for r in rows if r.library == library]
        say(f"{library}: {len(wanted)} meshes")
        for row in wanted:
            path = out / MESHES / f"{row.name}.npz"
            if not path.exists():
                pack_model(archive, row, properties[row.model], path)
    write_text(out / "ATTRIBUTION.md", attribution(rows))
    head, *lines = (HOUSEHOLD / TABLE).read_text(encoding="utf-8").splitlines(keepends=True)
    names = {row.name for row in rows}
    write_text(out / TABLE, "".join([head, *(x for x in lines if x.split(",")[0] in names)]))


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and pack the library."""
    parser = Parser(prog="python -m vp3d.worlds.household_pack", description=__doc__)
    parser.add_argument("--deb", type=Path, help=f"the downloaded package {PACKAGE} 1.8-1")
    default = Path("data/household/library")
    parser.add_argument("--out", type=Path, help=f"folder (default {default})")
    small = "pack the small CC0 part of the repository only (default folder: that part's)"
    parser.add_argument("--small", action="store_true", help=small)
    options = parser.parse_args(argv)
    out = options.out or (HOUSEHOLD_PART if options.small else default)
    check_output(out, "--out FOLDER")
    if options.deb is not None and not options.deb.is_file():
        raise UserError(f"there is no file {options.deb}")
    rows = read_table(HOUSEHOLD / TABLE)
    if options.small:
        rows = [row for row in rows if row.name in SMALL]
    with tempfile.TemporaryDirectory() as folder:
        pack(options.deb or download(Path(folder)), out, rows)
    say(f"packed {len(rows)} meshes of {len({r.noun for r in rows})} nouns into {out}")


if __name__ == "__main__":
    run_program("household_pack", main)

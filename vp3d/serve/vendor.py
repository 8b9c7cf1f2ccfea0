"""Fetch the page's optional viewer, which is not in the repository: `make vendor`.

    python -m vp3d.serve.vendor [--tests DIR]

npm packs one pinned version of each package; a file is kept only if its SHA-512 is the one below.
model-viewer (Apache-2.0) goes to static/vendor/, which git ignores and a wheel takes along; the
page then uses it. With --tests, axe-core (MPL-2.0), which the browser tests run, goes to DIR.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vp3d.errors import UserError
from vp3d.system.console import run_program, say
from vp3d.system.files import write_bytes

FOLDER = Path(__file__).parent / "static" / "vendor"
TIMEOUT_S = 300.0
LARGEST_FILE = 8 << 20  # bytes


@dataclass(frozen=True)
class Vendored:
    """One file of an npm package, and the licence that comes with it."""

    package: str
    version: str
    member: str
    sha512: str
    license: str = "LICENSE"

    @property
    def name(self) -> str:
        """The name of the file."""
        return Path(self.member).name

    def is_whole(self, data: bytes) -> bool:
        """Whether these are the bytes of the pinned version."""
        return hashlib.sha512(data).hexdigest() == self.sha512


MODEL_VIEWER = Vendored(
    "@google/model-viewer",
    "4.4.0",
    "dist/model-viewer.min.js",
    "b2a14565ec66e5f18def89b87b1763f4b9d2f24c097fe3100d2214385d862d76"
    "9645c285834b743848e88dfb92833435d30a8b5d1827162264f42efbafad1432",
)
AXE = Vendored(
    "axe-core",
    "4.14.1",
    "axe.min.js",
    "e63e659f9806d7ae5bd40899043b0871a5062c5442b01b3f1a3edf5eaf50bf5c"
    "3a7104a72463293b4ad1b77c661a0d4e40e850dec89de9d6ece70a8c13a9af17",
)


def fetch(wanted: Vendored, folder: Path) -> Path:
    """Write a file and its licence to `folder`, unless it is there.

    Raises UserError where npm is missing or fails, and for a file of another version.
    """
    target = folder / wanted.name
    if target.is_file() and wanted.is_whole(target.read_bytes()):
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed; the page works without it, with its own viewer")
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", "--silent", f"{wanted.package}@{wanted.version}"]
        try:
            done = subprocess.run(
                command, cwd=scratch, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"npm did not fetch {wanted.package} in {TIMEOUT_S:.0f} s") from None
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode != 0 or len(archives) != 1:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise UserError(f"npm could not fetch {wanted.package}: {lines[-1][:200]}")
        unpack(archives[0].read_bytes(), wanted, folder)
    return target


def unpack(archive: bytes, wanted: Vendored, folder: Path) -> None:
    """Write the wanted file of a package to `folder`; UserError if it is another one."""
    found = {name: _member(archive, name) for name in (wanted.member, wanted.license)}
    if not wanted.is_whole(found[wanted.member]):
        raise UserError(
            f"{wanted.package} {wanted.version} is not the file that VP3D was tested with"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / f"{wanted.name}.LICENSE", found[wanted.license])
    write_bytes(folder / wanted.name, found[wanted.member])


def _member(archive: bytes, name: str) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            stream = packed.extractfile(f"package/{name}")
            return b"" if stream is None else stream.read(LARGEST_FILE)
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise UserError(f"the package has no {name}: {error}") from error


def main() -> None:
    """Fetch what the command line asks for."""
    parser = argparse.ArgumentParser(description="Fetch model-viewer for the web page, by npm.")
    parser.add_argument("--tests", type=Path, metavar="DIR", help="fetch axe-core to DIR as well")
    arguments = parser.parse_args(sys.argv[1:])
    say(f"wrote {fetch(MODEL_VIEWER, FOLDER)}")
    if arguments.tests is not None:
        say(f"wrote {fetch(AXE, arguments.tests)}")


if __name__ == "__main__":
    run_program("vendor", main)

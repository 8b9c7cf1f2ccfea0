"""An OBJ file of any program as text that trimesh reads without loss, and the files next to it.

trimesh reads one `mtllib` line with one name, no tabs, no byte order mark, and drops every v of a
file with a `vt u`, where v is 0. Faces count their vertices from 1: a 0 would be taken as the last.
"""

from __future__ import annotations

import re
from pathlib import Path

import trimesh

MATERIALS = "materials.mtl"  # the name by which trimesh asks for all materials of the file
MAX_BYTES = 50_000_000  # of all material files
U_ALONE = re.compile(rb"^([ ]*vt[ ]+[^\s#]+)(?=[ ]*$)", re.MULTILINE)
LIBRARY = re.compile(rb"^[ ]*mtllib[ ]+(.*)$", re.MULTILINE)
ZERO = re.compile(rb"^[ ]*f[^\n]*[ ]0(?=[/ \n]|\Z)", re.MULTILINE)
MARK = re.compile(rb"\A\xef\xbb\xbf")
# Options before the name of a texture, such as -s 1 1 1 and -clamp on.
OPTIONS = re.compile(r"^(?:-[a-z]+[ ]+(?:(?:on|off|[-+.\deE]+|[rgbmlz])[ ]+)*)+", re.IGNORECASE)


class ObjFolder(trimesh.resolvers.FilePathResolver):
    """The material and texture files of an OBJ; only those in its own folder are read."""

    def __init__(self, path: Path, libraries: list[str]) -> None:
        super().__init__(str(path))
        self.libraries = libraries

    def get(self, name: str) -> bytes:
        """The bytes of a texture, or of all material files together for `MATERIALS`."""
        if name == MATERIALS:
            return b"\n".join(self._library(line) for line in self.libraries)[:MAX_BYTES]
        plain = OPTIONS.sub("", name.strip()).strip(" \"'").replace("\\", "/")
        return bytes(super().get(plain))

    def _library(self, line: str) -> bytes:
        """The material files that a line names: one name with blanks, or several."""
        for names in ([line], line.split()):
            found = [data for name in names if (data := self._file(name)) is not None]
            if found:
                return b"\n".join(found)
        return b""

    def _file(self, name: str) -> bytes | None:
        try:
            return self.get(name)
        except (OSError, ValueError):  # missing, or outside the folder
            return None


def open_obj(path: Path) -> tuple[bytes, ObjFolder]:
    """The text of an OBJ file for trimesh, and its other files.

    Raises:
        ValueError: A face uses vertex 0.
    """
    text = path.read_bytes()
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = text.decode("utf-16").encode()
    text = MARK.sub(b"", text).replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\t", b" ")
    text = U_ALONE.sub(rb"\1 0", text)
    if ZERO.search(text):
        raise ValueError("faces that use vertex 0, and the first is 1")
    lines = [line.decode("utf-8", "replace").strip(" \"'") for line in LIBRARY.findall(text)]
    text = LIBRARY.sub(b"", text)
    return (f"mtllib {MATERIALS}\n".encode() if lines else b"") + text, ObjFolder(path, lines)

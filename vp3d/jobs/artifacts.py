"""The files of a job that may be handed out: names from a list, never a path from a request."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vp3d.system.files import sha256_file

MEDIA_TYPES = {
    ".glb": "model/gltf-binary",
    ".obj": "model/obj",
    ".mtl": "model/mtl",
    ".ply": "model/ply",
    ".stl": "model/stl",
    ".usdz": "model/vnd.usdz+zip",
    ".3mf": "model/3mf",
    ".png": "image/png",
    ".mp4": "video/mp4",
    ".gif": "image/gif",
    ".html": "text/html; charset=utf-8",
}
NAMES = re.compile(
    r"model(_lod\d)?\.(glb|obj|mtl|png|ply|stl|usdz|3mf)|preview\.(png|glb)"
    r"|turntable\.(mp4|gif)|report\.html|plots\.png"
)
PICTURES = re.compile(
    r"candidate_\d{1,2}\.png|(chosen|cutout|mask|sheet)\.png|front_(prompt|render|heat)\.png"
)


@dataclass(frozen=True)
class ArtifactFile:
    """A file of a run under the name that clients use."""

    name: str
    path: Path
    bytes: int
    sha256: str
    media_type: str


@dataclass(frozen=True)
class _Stamp:
    path: Path
    inode: int
    size: int
    changed: int


_HASHES: dict[_Stamp, str] = {}
_MOST_HASHES = 4096


def run_folder(data: Path, job_id: str, folder: str = "") -> Path | None:
    """The run folder of a job: the newest complete one of its own, or `folder` below `data`."""
    if folder:
        path = data / folder
        return path if (path / "config.yaml").is_file() else None
    found = sorted((data / "jobs" / job_id).glob("*/config.yaml"))
    return found[-1].parent if found else None


def artifact_paths(run: Path) -> dict[str, Path]:
    """The files of a run that may be handed out, by name."""
    found: dict[str, Path] = {}
    for folder, pattern in ((run, NAMES), (run / "visual_prompt", PICTURES)):
        if folder.is_dir():
            names = sorted(path.name for path in folder.iterdir())
            found |= {name: folder / name for name in names if pattern.fullmatch(name)}
    return {name: path for name, path in found.items() if not path.is_symlink()}


def describe(name: str, path: Path) -> ArtifactFile:
    """The size, hash and media type of a file. Hashes are kept until the file changes."""
    status = path.stat()
    stamp = _Stamp(path, status.st_ino, status.st_size, status.st_mtime_ns)
    if stamp not in _HASHES:
        if len(_HASHES) >= _MOST_HASHES:
            _HASHES.clear()
        _HASHES[stamp] = sha256_file(path)
    media_type = MEDIA_TYPES.get(path.suffix, "application/octet-stream")
    return ArtifactFile(name, path, status.st_size, _HASHES[stamp], media_type)

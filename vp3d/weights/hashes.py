"""SHA-256 of the weight files that a run reads.

The bytes themselves are hashed, not what a receipt says of them. So that gigabytes are read once,
the hash of a file is kept in `models/.hashes.json` with its path, size, times of change and inode;
a file of which any of these differs is read again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vp3d.config.paths import locate
from vp3d.errors import VP3DError
from vp3d.system.files import JsonError, read_json_object, sha256_file, write_json
from vp3d.weights.catalogue import MODELS
from vp3d.weights.download import COMMIT
from vp3d.weights.locate import HUB_ID, models_folder, read_receipt

CACHE_FILE = ".hashes.json"
NOT_LOCAL = "not a local folder"  # a hub id of which the commit is not known
MIN_CACHED_BYTES = 64 << 20  # a smaller file is read again each time, in some 0.1 s
SETTLED_NS = 2_000_000_000  # a file that changed less than this ago may change again unnoticed
Stamp = list[int]  # size, mtime and ctime in nanoseconds, inode, device


def weight_hashes(locations: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of every .safetensors file in the given locations.

    Args:
        locations: names of the catalogue, folders, LoRA files or hub ids; empty ones are skipped.

    Returns:
        "location/path" -> SHA-256; for a hub id, the id -> "commit HASH", the revision that the
        loaders take, or `NOT_LOCAL` if that is not known.
    """
    hashes: dict[str, str] = {}
    cache = HashCache(models_folder() / CACHE_FILE)
    for location in filter(None, locations):
        folder = models_folder() / location if location in MODELS else locate(location)
        if folder.is_dir():
            for path in _weight_files(location, folder):
                hashes[f"{location}/{path}"] = cache.sha256(folder / path)
        elif folder.is_file():  # a LoRA
            hashes[location] = cache.sha256(folder)
        else:
            hashes[location] = hub_revision(location)
    cache.store()
    return hashes


def _weight_files(location: str, folder: Path) -> list[str]:
    """The .safetensors files of a folder; of a model of the catalogue, those that it loads."""
    if location in MODELS:
        names = {*read_receipt(folder), *(file.path for file in MODELS[location].files)}
        found = [name for name in names if name.endswith(".safetensors")]
        return sorted(name for name in found if (folder / name).is_file())
    files = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def is_other(recorded: str | None, now: str | None) -> bool:
    """Whether two values of `weight_hashes` are of different weights.

    Runs of version 0.1.0 recorded no commit of a hub id: there is nothing to compare.
    """
    return recorded != now and not (recorded == NOT_LOCAL and (now or "").startswith("commit "))


def hub_revision(location: str) -> str:
    """The commit of a hub id's default branch that is in the cache of huggingface_hub.

    The loaders write it there, and read it back when they are offline.
    """
    if not HUB_ID.fullmatch(location):
        return NOT_LOCAL
    from huggingface_hub.constants import HF_HUB_CACHE

    name = f"models--{location.replace('/', '--')}"
    try:
        commit = (Path(HF_HUB_CACHE) / name / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return NOT_LOCAL
    return f"commit {commit}" if COMMIT.fullmatch(commit) else NOT_LOCAL


class HashCache:
    """SHA-256 of files that were read before and did not change since.

    Args:
        path: Where it is kept; a damaged file counts as empty.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.fresh = path, False
        try:
            stored = read_json_object(path).get("files", {})
        except JsonError:
            stored = {}
        self.entries: dict[str, Any] = stored if isinstance(stored, dict) else {}

    def sha256(self, path: Path) -> str:
        """The SHA-256 of a file, read again only if it changed."""
        if path.stat().st_size < MIN_CACHED_BYTES:
            return sha256_file(path)
        name, before = str(path.resolve()), _stamp(path)
        entry = self.entries.get(name)
        if isinstance(entry, dict) and entry.get("stamp") == before:
            digest = entry.get("sha256")
            if isinstance(digest, str):
                return digest
        digest = sha256_file(path)
        changed_ns = max(before[1:3])
        if _stamp(path) == before and time.time_ns() - changed_ns > SETTLED_NS:
            self.entries[name], self.fresh = {"stamp": before, "sha256": digest}, True
        return digest

    def store(self) -> None:
        """Write what was added; without a word if the folder cannot be written to."""
        if not self.fresh:
            return
        known = {name: entry for name, entry in self.entries.items() if Path(name).is_file()}
        try:
            write_json(self.path, {"files": known})
        except (VP3DError, OSError):
            return
        self.fresh = False


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    times = [status.st_mtime_ns, status.st_ctime_ns]
    return [status.st_size, *times, status.st_ino, status.st_dev]

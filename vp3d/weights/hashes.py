"""SHA-256 of the weight files that a run reads."""

from __future__ import annotations

from collections.abc import Iterable

from vp3d.config.paths import locate
from vp3d.system.files import sha256_file
from vp3d.weights.catalogue import MODELS
from vp3d.weights.locate import models_folder, read_receipt


def weight_hashes(locations: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of every .safetensors file in the given locations.

    The hashes of a fetched model are those of its receipt, so that gigabytes are not read again for
    every run.

    Args:
        locations: names of the catalogue, folders or hub ids; empty ones are skipped.

    Returns:
        "location/path" -> SHA-256; for a hub id, the id -> "not a local folder".
    """
    hashes: dict[str, str] = {}
    for location in filter(None, locations):
        folder = models_folder() / location if location in MODELS else locate(location)
        recorded = {
            path: str(entry["sha256"])
            for path, entry in read_receipt(folder).items()
            if path.endswith(".safetensors")
        }
        if recorded:
            hashes |= {f"{location}/{path}": digest for path, digest in recorded.items()}
        elif folder.is_dir():
            for file in sorted(folder.rglob("*.safetensors")):
                path = file.relative_to(folder).as_posix()
                hashes[f"{location}/{path}"] = sha256_file(file)
        else:
            hashes[location] = "not a local folder"
    return hashes

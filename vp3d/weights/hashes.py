"""SHA-256 of the weight files that a run reads."""

from __future__ import annotations

from collections.abc import Iterable

from vp3d.config.paths import locate
from vp3d.system.files import sha256_file
from vp3d.weights.catalogue import MODELS
from vp3d.weights.locate import models_folder, read_receipt


def weight_hashes(places: Iterable[str]) -> dict[str, str]:
    """SHA-256 of every .safetensors file in the named folders; any other place (a hub id) is listed as such.

    A fetched model's hashes are those of its receipt: gigabytes are not read again for every run.
    """
    hashes: dict[str, str] = {}
    for place in filter(None, places):
        folder = models_folder() / place if place in MODELS else locate(place)
        noted = {
            path: str(entry["sha256"])
            for path, entry in read_receipt(folder).items()
            if path.endswith(".safetensors")
        }
        if noted:
            hashes |= {f"{place}/{path}": digest for path, digest in noted.items()}
        elif folder.is_dir():
            files = sorted(folder.rglob("*.safetensors"))
            hashes |= {
                f"{place}/{file.relative_to(folder).as_posix()}": sha256_file(file)
                for file in files
            }
        else:
            hashes[place] = "not a local folder"
    return hashes

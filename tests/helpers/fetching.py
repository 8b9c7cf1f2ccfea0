"""A model of two files that tests fetch from several sources."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from vp3d.errors import UserError
from vp3d.weights import download, fetch
from vp3d.weights.catalogue import MODELS, File, Model, Part
from vp3d.weights.locate import read_receipt

WEIGHTS = save({"w": np.arange(50_000, dtype=np.float32)})
CONFIG = b'{"a": 1}'
BODY = {"config.json": CONFIG, "unet/model.safetensors": WEIGHTS}


def sha(data: bytes) -> str:
    """The SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder of fetched models; no mirrors, and no waiting between attempts."""
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("VP3D_MIRRORS", raising=False)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    return tmp_path / "models"


def add(
    monkeypatch: pytest.MonkeyPatch,
    *sources: str,
    known: bool = True,
    pickle: str = "",
    name: str = "tiny",
) -> Model:
    """Add a model of two files to the catalogue."""
    files = (
        File("config.json"),
        File("unet/model.safetensors", sha(WEIGHTS) if known else "", len(WEIGHTS)),
    )
    model = Model("for tests", "MIT", (Part(files, sources, pickle),), (("note.txt", "ours\n"),))
    monkeypatch.setitem(MODELS, name, model)
    return model


def served(prefix: str, files: dict[str, bytes] = BODY) -> dict[str, bytes]:
    """The files as a server has them below `prefix`."""
    return {f"{prefix}/{path}": data for path, data in files.items()}


def write(folder: Path, files: dict[str, bytes] = BODY) -> Path:
    """The files in a folder; returns it."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def refused(name: str, *places: str) -> str:
    """The message of a fetch that fails, one line."""
    with pytest.raises(UserError) as caught:
        fetch.fetch(name, list(places))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_whole(folder: Path) -> None:
    """All three files exist, the receipt has their hashes, and no other file is left."""
    assert {path: (folder / path).read_bytes() for path in BODY} == BODY
    assert (folder / "note.txt").read_text() == "ours\n"
    noted = read_receipt(folder)
    assert {path: noted[path]["sha256"] for path in BODY} == {
        path: sha(data) for path, data in BODY.items()
    }
    assert not list(folder.parent.glob(f".{folder.name}.*")) and not list(folder.rglob("*.partial"))


class Always(dict[str, int]):
    """Cuts that happen every time, not once."""

    def pop(self, key: str, default: int) -> int:
        return self.get(key, default)

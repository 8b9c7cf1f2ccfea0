"""Hashes are of the bytes that are loaded; large files are read once, until they change."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.fetching import WEIGHTS, add, empty_home, sha, write
from vp3d.weights import hashes
from vp3d.weights.fetch import fetch
from vp3d.weights.hashes import HashCache, hub_revision, is_other, weight_hashes

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder of fetched models."""
    return empty_home(tmp_path, monkeypatch)


def test_a_changed_byte_of_a_fetched_model_is_noticed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, str(write(tmp_path / "source")))
    fetch("tiny", [])
    name = "tiny/unet/model.safetensors"
    assert weight_hashes(["tiny"]) == {name: sha(WEIGHTS)}  # the name of version 0.1.0
    path = home / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert weight_hashes(["tiny"]) == {name: sha(bytes(data))}
    path.unlink()
    assert weight_hashes(["tiny"]) == {}


def test_a_receipt_hides_nothing(home: Path, tmp_path: Path) -> None:
    """A folder of the user with a receipt of one file has its other files hashed too."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("a", "b"):
        save_file({"w": np.zeros(3, np.float32)}, folder / f"{name}.safetensors")
    entry = {"source": "x", "size": 1, "sha256": "0" * 64}
    (folder / "SOURCE.json").write_text(json.dumps({"files": {"a.safetensors": entry}}))
    found = weight_hashes([str(folder)])
    assert list(found) == [f"{folder}/a.safetensors", f"{folder}/b.safetensors"]
    assert "0" * 64 not in found.values()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read; even small ones are kept in mind, and at once."""
    read: list[Path] = []
    real = hashes.sha256_file

    def count(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(hashes, "sha256_file", count)
    monkeypatch.setattr(hashes, "MIN_CACHED_BYTES", 0)
    return read


def aged(path: Path, seconds: float) -> None:
    """Set the time of change of a file to `seconds` ago."""
    before = path.stat().st_mtime_ns - int(seconds * 1e9)
    os.utime(path, ns=(before, before))


def test_a_file_is_read_once_until_it_changes(
    home: Path, tmp_path: Path, counted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    path = folder / "a.safetensors"
    path.write_bytes(b"abc")
    weight_hashes([str(folder)])
    weight_hashes([str(folder)])
    assert len(counted) == 2  # too young: it could change again in the same tick of the clock
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)
    first = weight_hashes([str(folder)])
    assert weight_hashes([str(folder)]) == first and len(counted) == 3
    assert (home / ".hashes.json").is_file()
    path.write_bytes(b"abd")  # the same size
    assert weight_hashes([str(folder)]) != first and len(counted) == 4
    times = path.stat()
    other = folder / "b"
    other.write_bytes(b"abe")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)  # the same size and time, another inode
    assert weight_hashes([str(folder)])[f"{path}"] == sha(b"abe") and len(counted) == 5
    path.write_bytes(b"abf")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # a time that was put back
    assert weight_hashes([str(folder)])[f"{path}"] == sha(b"abf")


@pytest.mark.parametrize("text", ["", "[]", '{"files": []}', '{"files": {"NAME": {"stamp": 1}}}'])
def test_a_damaged_cache_counts_as_empty(text: str, tmp_path: Path, counted: list[Path]) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    (tmp_path / "cache.json").write_text(text.replace("NAME", str(path)))
    assert HashCache(tmp_path / "cache.json").sha256(path) == sha(b"abc") and counted


def test_small_files_leave_no_cache(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"abc")
    weight_hashes([str(tmp_path)])
    assert not home.exists()


def test_a_hub_id_is_noted_by_its_commit(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert weight_hashes(["owner/name"]) == {"owner/name": "not a local folder"}
    refs = tmp_path / "hub" / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(f"{COMMIT}\n")
    assert weight_hashes(["owner/name"]) == {"owner/name": f"commit {COMMIT}"}
    (refs / "main").write_text("../../x")
    assert hub_revision("owner/name") == "not a local folder"
    assert hub_revision("../../name") == "not a local folder"


def test_what_counts_as_other_weights() -> None:
    old, new = f"commit {COMMIT}", f"commit {COMMIT[::-1]}"
    assert is_other(old, new) and is_other(old, None) and is_other(None, old)
    assert is_other("1" * 64, "2" * 64) and is_other(old, "not a local folder")
    assert not is_other(old, old)
    assert not is_other("not a local folder", new)  # a run of 0.1.0 recorded no commit

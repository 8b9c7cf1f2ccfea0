"""The manifest check: intact files pass, everything else is one line that says what to do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from vp3d.errors import UserError
from vp3d.weights.manifest import file_entry, verify_files


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A manifest folder with two model folders, all files listed."""
    (tmp_path / "clip").mkdir()
    (tmp_path / "judge" / "deep").mkdir(parents=True)
    contents = {
        "clip/a.safetensors": b"alpha" * 1000,
        "clip/config.json": b"{}",
        "judge/deep/b.safetensors": b"beta",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    files = {
        name: {"sha256": hashlib.sha256(d).hexdigest(), "bytes": len(d)}
        for name, d in contents.items()
    }
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"files": files, "licence": "Apache-2.0"}))
    return tmp_path


def refusal(manifest: Path, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        verify_files(manifest, folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_whole_files_pass(weights: Path) -> None:
    manifest = weights / "MANIFEST.json"
    for folder in (
        weights,
        weights / "clip",
        weights / "judge",
        weights / "clip" / "a.safetensors",
    ):
        verify_files(manifest, folder)


def test_relative_folders_pass(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weights)
    verify_files(Path("MANIFEST.json"), Path("clip"))


def test_entry_is_that_of_the_bytes(weights: Path) -> None:
    path = weights / "clip" / "a.safetensors"
    assert file_entry(path) == {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": 5000,
    }


def test_one_changed_byte_of_the_same_length_is_seen(weights: Path) -> None:
    path = weights / "clip" / "a.safetensors"
    data = bytearray(path.read_bytes())
    data[2500] ^= 1
    path.write_bytes(data)
    message = refusal(weights / "MANIFEST.json", weights / "clip")
    assert "a.safetensors is damaged" in message and f"git checkout -- {path.resolve()}" in message
    verify_files(weights / "MANIFEST.json", weights / "judge")


def test_cut_short_and_missing(weights: Path) -> None:
    path = weights / "judge" / "deep" / "b.safetensors"
    path.write_bytes(b"bet")
    assert "b.safetensors is damaged" in refusal(weights / "MANIFEST.json", weights / "judge")
    path.unlink()
    message = refusal(weights / "MANIFEST.json", weights / "judge")
    assert "b.safetensors is missing" in message and "retrain" in message


def test_changed_config_is_seen(weights: Path) -> None:
    (weights / "clip" / "config.json").write_text('{"a": 1}')
    assert "config.json is damaged" in refusal(weights / "MANIFEST.json", weights / "clip")


def test_unlisted_weights_are_refused_but_notes_are_not(weights: Path) -> None:
    (weights / "clip" / "README.md").write_text("notes")
    verify_files(weights / "MANIFEST.json", weights / "clip")
    (weights / "clip" / "evil.bin").write_bytes(b"x")
    assert "evil.bin is not listed" in refusal(weights / "MANIFEST.json", weights / "clip")


def test_folder_that_is_not_covered(
    weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert 'prior.manifest=""' in refusal(
        weights / "MANIFEST.json", tmp_path_factory.mktemp("other")
    )
    (weights / "empty").mkdir()
    assert "lists no file" in refusal(weights / "MANIFEST.json", weights / "empty")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        '{"files": 3}',
        '{"files": {"a": 1}}',
        '{"files": {"a": {"sha256": 1, "bytes": 1}}}',
        '{"files": {"../a": {"sha256": "0", "bytes": 1}}}',
    ],
)
def test_damaged_manifest(weights: Path, text: str) -> None:
    (weights / "MANIFEST.json").write_text(text)
    assert "MANIFEST.json is damaged" in refusal(weights / "MANIFEST.json", weights / "clip")


def test_missing_manifest(weights: Path) -> None:
    (weights / "MANIFEST.json").unlink()
    assert "MANIFEST.json is missing" in refusal(weights / "MANIFEST.json", weights / "clip")

"""Check weight files against the manifest that was committed with them.

`MANIFEST.json` contains `{"files": {"path/relative/to/its/own/folder": {"sha256": hex, "bytes":
n}}}` with forward slashes, and other keys that are not read here. Only listed files are trusted.
"""

from __future__ import annotations

from pathlib import Path

from vp3d.config.paths import restore_advice
from vp3d.errors import DamagedFileError, UserError
from vp3d.system.files import JsonError, is_inside, read_json_object, sha256_file

WEIGHT_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".msgpack", ".h5", ".onnx"}
)
RETRAIN = "python -m vp3d.embedded.train"


def file_entry(path: Path) -> dict[str, str | int]:
    """The entry of a file in a manifest: `{"sha256": hex, "bytes": n}`."""
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def verify_files(manifest: Path, folder: Path) -> None:
    """Check size and SHA-256 of every file that `manifest` lists under `folder`.

    Args:
        manifest: the manifest file.
        folder: a folder, or one file, below the folder of the manifest.

    Raises:
        DamagedFileError: for a missing or damaged file or manifest.
        UserError: for a weight file that the manifest does not list, and for a folder that it does
            not cover.
    """
    root, folder = manifest.parent.resolve(), folder.resolve()
    if not folder.is_relative_to(root):
        raise UserError(
            f"{folder} is not covered by {manifest}: "
            'to use weights of your own, set prior.manifest=""'
        )
    expected = {root / name: entry for name, entry in read_entries(manifest).items()}
    expected = {path: entry for path, entry in expected.items() if path.is_relative_to(folder)}
    for path, entry in expected.items():
        _verify_one(path, entry)
    present = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    for path in present:
        if path.suffix in WEIGHT_SUFFIXES and path not in expected:
            raise UserError(
                f"{path} is not listed in {manifest}: remove it, or retrain with `{RETRAIN}`"
            )
    if not expected:
        raise UserError(f"{manifest} lists no file under {folder}: {_restore(folder)}")


def read_entries(manifest: Path) -> dict[str, dict[str, str | int]]:
    """The `files` of a manifest; DamagedFileError if it is missing or not of that form."""
    try:
        files = read_json_object(manifest, unique_keys=True).get("files")
    except JsonError as error:
        fault = "is missing" if error.missing else f"is damaged ({error.reason})"
        raise DamagedFileError(f"{manifest} {fault}: {_restore(manifest)}") from error
    if not isinstance(files, dict) or not all(
        is_inside(name)
        and isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("bytes"), int)
        for name, entry in files.items()
    ):
        raise DamagedFileError(f"{manifest} is damaged: {_restore(manifest)}")
    return files


def _verify_one(path: Path, entry: dict[str, str | int]) -> None:
    if not path.is_file():
        raise DamagedFileError(f"{path} is missing: {_restore(path)}")
    if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
        raise DamagedFileError(
            f"{path} is damaged or was changed (its SHA-256 is not that of the manifest): "
            f"{_restore(path)}"
        )


def _restore(path: Path) -> str:
    """What the user can do about a damaged file."""
    return f"{restore_advice(path)} or retrain with `{RETRAIN}`"

"""Checkpoints: one safetensors file each, with everything that is not a tensor as JSON in its
header.

A file is written to a temporary name and renamed, so it is complete or absent whenever the process
dies. The newest `KEEP` are kept. Files are numbered by iterations; a restart by the watchdog sets
the step back, but never this number. The JSON holds a SHA-256 of the tensors and of itself, which
finds a flipped bit as well as a truncated file; a damaged checkpoint is skipped for the one before
it. Nothing is pickled.

Tensor names: `field.*` (parameters and buffers), `optimizer.<parameter>.<slot>` (Adam),
`occupancy.*`, `held.*` (an estimate that still serves steps), `generator.<name>`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from vp3d.errors import DamagedFileError
from vp3d.system.files import MAX_JSON_BYTES, JsonError, atomic_write, parse_json

KEEP = 2
FORMAT = 3  # 2, of version 0.1.0, held a hash of the whole config instead of the stage's settings
READABLE_FORMATS = (2, 3)
HEADER_ERRORS = (  # what a header raises that is cut short or was changed
    *(JsonError, struct.error, KeyError, TypeError, ValueError),
)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: tensors by name (CPU), and the JSON part."""

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def content_digest(tensors: dict[str, Tensor], record: dict[str, Any]) -> str:
    """SHA-256 over the JSON `record` without its own "sha256", then names, types, shapes and bytes
    of CPU tensors of any shape and range, in order of name.
    """
    rest = {name: value for name, value in record.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(folder: Path, iteration: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Write checkpoint number `iteration` (tensors of any shape and range) and drop all but the
    newest `KEEP`.
    """
    path = folder / f"{iteration:08d}.safetensors"
    write(path, iteration, tensors, meta)
    for old in list_checkpoints(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def write(path: Path, iteration: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write one checkpoint (tensors of any shape and range), atomically; others are kept."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    record = {**meta, "format": FORMAT, "iteration": iteration}
    record["sha256"] = content_digest(tensors, record)
    with atomic_write(path) as temporary:
        temporary.write_bytes(
            save_bytes(tensors, metadata={"vp3d": json.dumps(record, sort_keys=True)})
        )


def list_checkpoints(folder: Path) -> list[Path]:
    """All finished checkpoints of a folder, oldest first (half-written files have other names)."""
    return sorted(path for path in folder.glob("*.safetensors") if path.stem.isdigit())


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint; ValueError with the reason when it is damaged.

    Tensors of any shape and range.
    """
    data = path.read_bytes()
    try:
        (length,) = struct.unpack("<Q", data[:8])
        meta = _parse_header(data[8 : 8 + length])
        tensors = load_bytes(data)
    except (*HEADER_ERRORS, SafetensorError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if meta.get("format") not in READABLE_FORMATS:
        raise ValueError("written by another version")
    if content_digest(tensors, meta) != meta.get("sha256"):
        raise ValueError("checksum does not match")
    return Checkpoint(path, tensors, meta)


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint without its tensors, not verified; ValueError if unreadable."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            return _parse_header(stream.read(min(length, MAX_JSON_BYTES)))
    except (*HEADER_ERRORS, OSError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _parse_header(header: bytes) -> dict[str, Any]:
    """The JSON part in the header of a safetensors file; one of `HEADER_ERRORS` without one."""
    outer: Any = parse_json(header, unique_keys=True)
    meta = parse_json(outer["__metadata__"]["vp3d"], unique_keys=True)
    if not isinstance(meta, dict):
        raise ValueError("its header is not a mapping")
    return meta


def load_latest(folder: Path, warn: Callable[[Path, str], None]) -> Checkpoint | None:
    """The newest whole checkpoint, or None where none was ever written.

    `warn(path, reason)` hears of each damaged one.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return load(path)
        except (ValueError, OSError) as error:
            warn(path, str(error))
    if paths:
        raise DamagedFileError(
            f"no usable checkpoint in {folder}: all {len(paths)} are damaged; "
            "delete them to start this run from step 0"
        )
    return None


def adam_tensors(optimizer: torch.optim.Optimizer, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """Adam's moments and counts (any shape and range) as `optimizer.<parameter>.<slot>`.

    `names` maps parameter to name.
    """
    return {
        f"optimizer.{names[parameter]}.{slot}": value
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def load_adam(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str], tensors: dict[str, Tensor]
) -> None:
    """Inverse of `adam_tensors`: replace Adam's state by copies of `tensors` (any shape and range).

    No entries clear it.
    """
    optimizer.state.clear()
    for parameter, name in names.items():
        prefix = f"optimizer.{name}."
        slots = {
            key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)
        }
        if slots:
            optimizer.state[parameter] = {
                slot: value.clone().to("cpu" if slot == "step" else parameter.device)
                for slot, value in slots.items()
            }

"""Bring the folder of an older run to today's layout.

Each change is a rename, so a process that dies in between leaves a folder that the next one
finishes. The config is not rewritten: it is migrated each time it is read (config/migrations.py).
"""

from __future__ import annotations

from pathlib import Path

PROVENANCE = "provenance.json"
OLD_PROVENANCE = "manifest.json"  # its name in version 0.1.0
FIRST_STAGE = "coarse"  # the one stage that version 0.1.0 had


def migrate_folder(run: Path) -> None:
    """Rename what version 0.1.0 named or placed otherwise; a folder of today is left alone."""
    old = run / OLD_PROVENANCE
    if old.is_file() and not (run / PROVENANCE).exists():
        old.rename(run / PROVENANCE)
    flat = sorted((run / "checkpoints").glob("*.safetensors"))
    for path in flat:
        path.parent.joinpath(FIRST_STAGE).mkdir(exist_ok=True)
        path.rename(path.parent / FIRST_STAGE / path.name)


def provenance_file(run: Path) -> Path:
    """The file that says what a run was made with, also in a folder that is not migrated yet."""
    new = run / PROVENANCE
    return new if new.is_file() or not (run / OLD_PROVENANCE).is_file() else run / OLD_PROVENANCE


def checkpoint_folder(run: Path, stage: str) -> Path:
    """The folder of a stage's checkpoints, also in a run that is not migrated yet."""
    flat = run / "checkpoints"
    new = flat / stage
    return flat if stage == FIRST_STAGE and any(flat.glob("*.safetensors")) else new

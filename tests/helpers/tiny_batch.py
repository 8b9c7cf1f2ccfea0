"""Settings of a tiny run as a file, for the verb `batch`. For tests only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.helpers.tiny_run import tiny_config
from vp3d.evaluate.runner import Settings
from vp3d.runs.folder import save_config

LONG = " ".join(["very"] * 5000) + " long"  # a prompt that is always refused


def tiny_settings(root: Path, work: str = "work", steps: int = 4) -> Settings:
    """The settings of a batch of tiny runs below `root`; the same models for every `work`."""
    file = root / "tiny.yaml"
    if not file.is_file():
        config = dataclasses.replace(tiny_config(root), image="", output_dir="outputs")
        config.optim.steps = steps
        save_config(config, file)
    return Settings(root / work, "standard", (file,), light="")


def words_of(settings: Settings, prompts: Path) -> list[str]:
    """The command line after the name of the program."""
    return [
        "batch",
        str(prompts),
        "--config",
        str(settings.files[0]),
        "--work",
        str(settings.folder),
    ]

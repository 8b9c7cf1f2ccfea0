"""A run is a folder, and every file in it is whole.

Layout: `config.yaml`, `manifest.json`, `events.jsonl`, `visual_prompt/`, `checkpoints/`, then exports and report.
Conventions: a file is written under a temporary name in its own folder and renamed, so a reader never sees half of one.
`events.jsonl` is the log: one JSON object a line, appended and flushed; bars and plots are views of it. JSON has no
NaN, so non-finite numbers are stored as "nan", "inf" and "-inf", which `float()` reads back.
Every `OSError` on the way (full disk, no permission) becomes one `UserError` line.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from vp3d.config.loader import load_config
from vp3d.config.paths import expand
from vp3d.config.reader import Dumper, read_file
from vp3d.config.schema import Config, ExportConfig
from vp3d.errors import RunInUseError, UserError
from vp3d.runs.provenance import describe_run
from vp3d.system.files import ELSEWHERE, HERE, TEMPORARY, _disk_errors, plain, write_json

SLUG_LENGTH = 40

try:
    import fcntl
except ImportError:  # Windows has no flock; two processes in one run folder are then not noticed
    fcntl = None  # type: ignore[assignment]


def slug(prompt: str) -> str:
    """`prompt` as a short file name: lower-case letters, digits and single dashes."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return words[:SLUG_LENGTH].rstrip("-") or "asset"


class RunFolder:
    """One run on disk. `create` makes a new one, `open` takes up an existing one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def visual_prompt(self) -> Path:
        """Folder of the visual prompt: candidates, scores, the chosen one."""
        return self.path / "visual_prompt"

    @property
    def events_file(self) -> Path:
        """The log, one JSON object a line."""
        return self.path / "events.jsonl"

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """Make `<output_dir>/<time>-<slug>-s<seed>/` (then -2, -3, ... if taken) with config.yaml and manifest.json."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(config.prompt)}-s{config.seed}"
        run = cls(_claim(expand(config.output_dir), name))
        with _disk_errors(run.path, ELSEWHERE + HERE):
            run.checkpoints.mkdir()
            run.visual_prompt.mkdir()
        write_json(run.path / "manifest.json", describe_run(config))
        save_config(config, run.path / "config.yaml")  # last: it makes the folder a run
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Take up the run in `path`; a log line cut short by a kill is closed so that the next one stands alone."""
        if not (path / "config.yaml").is_file():
            raise UserError(
                f"{path} is not a run folder: it has no config.yaml; give one that `launch.py` made"
            )
        run = cls(path)
        with _disk_errors(run.events_file):
            run.checkpoints.mkdir(exist_ok=True)
            run.visual_prompt.mkdir(exist_ok=True)
            log = run.events_file.read_bytes() if run.events_file.is_file() else b""
            if log and not log.endswith(b"\n"):
                with run.events_file.open("ab") as stream:
                    stream.write(b"\n")
        return run

    def config(self) -> Config:
        """The configuration the run was started with."""
        return load_config(None, [self.path / "config.yaml"], [])

    def keep_export(self, export: ExportConfig) -> None:
        """Note in config.yaml the export settings the run's files were made with; the rest of it stays.

        A file that was cut short is left alone, with a UserError: written anew, it would hold defaults for what is lost.
        """
        there = read_file(self.path / "config.yaml")
        lost = next((field.name for field in fields(Config) if field.name not in there), None)
        if lost is not None:
            raise UserError(
                f"{self.path / 'config.yaml'} is damaged, it lacks '{lost}': restore it, or start a new run"
            )
        save_config(replace(self.config(), export=export), self.path / "config.yaml")

    def noted_weights(self) -> dict[str, str]:
        """The weight files the run began with and their hashes, from manifest.json; UserError where it cannot be read."""
        path = self.path / "manifest.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))["weights"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is missing or damaged ({type(error).__name__}): it notes which weights this run began with; restore "
                f"it, start a new run, or take what there is with `launch.py export {shlex.quote(str(self.path))}`"
            ) from error

    def event(self, kind: str, **data: object) -> None:
        """Append one line to events.jsonl: the time (seconds since 1970), the kind, and `data`."""
        line = json.dumps(
            plain({"time": round(time.time(), 3), "kind": kind, **data}), allow_nan=False
        )
        with _disk_errors(self.events_file), self.events_file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The logged events, oldest first, of one kind or all; a line cut short by a kill is left out."""
        if not self.events_file.is_file():
            return []
        lines = self.events_file.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [event for event in map(_parse_event, lines) if event is not None]
        return [event for event in found if kind is None or event["kind"] == kind]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; a second process is `ResourceError`. The system frees it if the process dies."""
        with _disk_errors(self.path / ".lock"):
            stream = (self.path / ".lock").open("a+")
        with stream:
            if fcntl is not None:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise RunInUseError(
                        f"{self.path} is in use by another process; wait for it or stop it first"
                    ) from None
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Remove what a killed process was about to rename; only the holder of the lock may."""
        for folder in (self.path, self.checkpoints, self.visual_prompt):
            for path in folder.glob(".*"):
                if TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)


def _parse_event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return None
    whole = (
        isinstance(event, dict) and "kind" in event and isinstance(event.get("time"), int | float)
    )
    return event if whole and isinstance(event.get("step", 0), int) else None


def _claim(parent: Path, name: str) -> Path:
    """Make the first free one of `name`, `name-2`, ... in `parent`; mkdir is atomic, so two runs cannot share one."""
    with _disk_errors(parent / name, ELSEWHERE + HERE):
        parent.mkdir(parents=True, exist_ok=True)
        for count in range(1, 1000):
            path = parent / (name if count == 1 else f"{name}-{count}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    raise UserError(
        f"{parent} already holds 999 runs called {name}; remove some or set output_dir=FOLDER"
    )


def save_config(config: Config, path: Path) -> None:
    """Write every field as YAML; `load_config(None, [path], [])` gives an equal Config back."""
    from vp3d.system.files import write_text  # run_folder imports this module

    write_text(
        path,
        yaml.dump(dataclasses.asdict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True),
    )

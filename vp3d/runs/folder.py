"""A run is a folder, and every file in it is complete.

Layout: `config.yaml`, `provenance.json`, `events.jsonl`, `visual_prompt/`,
`checkpoints/<stage>/`, then the exports and the report. `events.jsonl` is the log: one JSON
object a line, appended and flushed; bars and plots are views of it. Folders of version 0.1.0 are
read as they are and renamed inside when the run continues (runs/migrate.py).
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from vp3d.config.identity import version_1_hash
from vp3d.config.loader import build_config
from vp3d.config.migrations import CONFIG_VERSION, VERSION_KEY, migrate, split_known
from vp3d.config.paths import expand, program
from vp3d.config.reader import Dumper, read_file, read_override
from vp3d.config.schema import Config, ExportConfig
from vp3d.errors import DamagedFileError, RunInUseError, UserError
from vp3d.runs.migrate import PROVENANCE, migrate_folder, provenance_file
from vp3d.runs.provenance import describe_run
from vp3d.system.files import (
    OUTPUT_OPTION,
    TEMPORARY,
    JsonError,
    another_folder,
    disk_errors,
    parse_json,
    plain,
    read_json_object,
    write_json,
    write_text,
)

CONFIG = "config.yaml"
ALWAYS_STORED = (  # groups of config version 1: a file that lacks one was cut short
    *("prompt", "seed", "prior", "visual_prompt", "guidance", "rewards", "field", "camera"),
    *("render", "loss", "optim", "export", "cuda"),
)
BEGINNINGS = ("called", "process_started")  # times of a "start" event; none if unknown
SLUG_LENGTH = 40


def slug(prompt: str) -> str:
    """`prompt` as a short file name: lower-case letters, digits and single dashes."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return words[:SLUG_LENGTH].rstrip("-") or "asset"


class RunFolder:
    """One run on disk. `create` makes a new one, `open` opens an existing one.

    Example:
        >>> run = RunFolder.open(Path("outputs/20260101-120000-a-red-ball-s0"))  # doctest: +SKIP
        >>> run.config().prompt  # doctest: +SKIP
        'a red ball'
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def visual_prompt(self) -> Path:
        """Folder of the visual prompt: candidates, scores, the chosen one."""
        return self.path / "visual_prompt"

    @property
    def events_file(self) -> Path:
        """The log, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def preview_file(self) -> Path:
        """The live preview while a stage is optimised, eight labelled views afterwards."""
        return self.path / "preview.png"

    @property
    def live_mesh_file(self) -> Path:
        """The rough mesh that is updated while a stage is optimised, if a caller asks for it."""
        return self.path / "preview.glb"

    def checkpoints(self, stage: str) -> Path:
        """Folder of the checkpoints of a stage, for example "coarse"."""
        return self.path / "checkpoints" / stage

    def model_file(self, kind: str) -> Path:
        """The exported mesh of a format, for example "glb"."""
        return self.path / f"model.{kind}"

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """Make `<output_dir>/<time>-<slug>-s<seed>/` (then -2, -3, ...) with its config and
        provenance.
        """
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(config.prompt)}-s{config.seed}"
        run = cls(_make_free_folder(expand(config.output_dir), name))
        run._make_folders(another_folder(OUTPUT_OPTION))
        write_json(run.path / PROVENANCE, describe_run(config))
        save_config(config, run.path / CONFIG)  # last: it makes the folder a run
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the run in `path`.

        A log line that a kill cut short is closed, so that the next one is whole.
        """
        if not (path / CONFIG).is_file():
            raise UserError(
                f"{path} is not a run folder: it has no {CONFIG}; give a folder that VP3D made"
            )
        run = cls(path)
        run._make_folders()
        with disk_errors(run.events_file):
            log = run.events_file.read_bytes() if run.events_file.is_file() else b""
            if log and not log.endswith(b"\n"):
                with run.events_file.open("ab") as stream:
                    stream.write(b"\n")
        return run

    def _make_folders(self, otherwise: str = "then try again") -> None:
        with disk_errors(self.path, otherwise):
            (self.path / "checkpoints").mkdir(exist_ok=True)
            self.visual_prompt.mkdir(exist_ok=True)

    def stored_config(self) -> dict[str, Any]:
        """The content of config.yaml as it is on disk, of whatever version."""
        return read_file(self.path / CONFIG)

    def config(
        self, warn: Callable[[str], None] | None = None, overrides: Sequence[str] = ()
    ) -> Config:
        """The configuration the run was started with, brought to today's keys.

        Args:
            warn: hears of keys that this version does not know, which are left out.
            overrides: `key=value` settings to change, for example of the export.
        """
        known, unknown = split_known(migrate(self.stored_config(), version=1), Config)
        if unknown and warn is not None:
            warn(
                f"{self.path / CONFIG} has keys that this version of VP3D does not know, "
                f"and ignores: {', '.join(unknown)}"
            )
        return build_config(None, [known, *map(read_override, overrides)])

    def version_1_hash(self) -> str:
        """What the checkpoints of a run of config version 1 hold as the hash of its config."""
        return version_1_hash(self.stored_config())

    def keep_export(self, export: ExportConfig) -> None:
        """Store in config.yaml the export settings that the run's files were made with.

        The rest of the file stays as it is. Raises DamagedFileError for a file that was cut short.
        """
        stored = self.stored_config()
        present = migrate(stored, version=1)
        names = (name for name in ALWAYS_STORED if name in {item.name for item in fields(Config)})
        lost = next((name for name in names if name not in present), None)
        if lost is not None:
            raise DamagedFileError(
                f"{self.path / CONFIG} is damaged, it lacks '{lost}': "
                "restore it, or start a new run"
            )
        _write_yaml({**stored, "export": dataclasses.asdict(export)}, self.path / CONFIG)

    def recorded_weights(self) -> dict[str, str]:
        """The weight files the run began with and their hashes; DamagedFileError if unreadable."""
        path = provenance_file(self.path)
        try:
            return dict(read_json_object(path, unique_keys=True)["weights"])
        except (JsonError, ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(
                f"{path} is missing or damaged ({type(error).__name__}): it records which weights "
                "this run began with; restore it, start a new run, or export what there is: "
                f"`{program()} export {shlex.quote(str(self.path))}`"
            ) from error

    def event(self, kind: str, **data: object) -> None:
        """Append one line to events.jsonl: the time (seconds since 1970), the kind, and `data`."""
        line = json.dumps(
            plain({"time": round(time.time(), 3), "kind": kind, **data}), allow_nan=False
        )
        with disk_errors(self.events_file), self.events_file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The logged events, oldest first, of one kind or all.

        A line that a kill cut short is left out.
        """
        if not self.events_file.is_file():
            return []
        lines = self.events_file.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [event for event in map(_parse_event, lines) if event is not None]
        return [event for event in found if kind is None or event["kind"] == kind]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; RunInUseError if another holds it.

        The system frees the lock if the process dies. A folder of an older version is migrated.
        """
        holder = FileLock(self.path / ".lock")
        with disk_errors(self.path / ".lock"):
            try:
                holder.acquire(timeout=0)
            except Timeout:
                raise RunInUseError(
                    f"{self.path} is in use by another process; wait for it or stop it first"
                ) from None
            try:
                self._sweep()
                migrate_folder(self.path)
            except OSError:
                holder.release()
                raise
        try:
            yield
        finally:
            holder.release()

    def _sweep(self) -> None:
        """Remove temporary files of a killed process; only the holder of the lock may."""
        for path in self.path.rglob(".*"):
            if TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _parse_event(line: str) -> dict[str, Any] | None:
    try:
        event: Any = parse_json(line)
    except JsonError:
        return None
    whole = (
        isinstance(event, dict)
        and isinstance(event.get("kind"), str)
        and isinstance(event.get("time"), int | float)
        and all(isinstance(event.get(name) or 0.0, int | float) for name in BEGINNINGS)
    )
    return event if whole and isinstance(event.get("step", 0), int) else None


def _make_free_folder(parent: Path, name: str) -> Path:
    """Make the first free one of `name`, `name-2`, ...

    in `parent`; mkdir is atomic, so two runs cannot share one.
    """
    with disk_errors(parent / name, another_folder(OUTPUT_OPTION)):
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
    """Write every field and the version of the keys as YAML.

    `RunFolder.config` reads it back equal.
    """
    _write_yaml({VERSION_KEY: CONFIG_VERSION, **dataclasses.asdict(config)}, path)


def _write_yaml(tree: dict[str, Any], path: Path) -> None:
    write_text(path, yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True))

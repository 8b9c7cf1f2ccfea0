"""A run is a folder, and every file in it is whole.

Layout: `config.yaml`, `manifest.json`, `events.jsonl`, `visual_prompt/`, `checkpoints/`, then exports and report.
Conventions: a file is written under a temporary name in its own folder and renamed, so a reader never sees half of one.
`events.jsonl` is the log: one JSON object a line, appended and flushed; bars and plots are views of it. JSON has no
NaN, so non-finite numbers are stored as "nan", "inf" and "-inf", which `float()` reads back.
Every `OSError` on the way (full disk, no permission) becomes one `UserError` line.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from vp3d import __version__
from vp3d.config import (
    ROOT,
    Config,
    ExportConfig,
    expand,
    load_config,
    locate,
    save_config,
    weight_places,
)
from vp3d.errors import Hindered, UserError
from vp3d.strict import read_file
from vp3d.weights import MODELS, models_folder, read_receipt

VERSIONED = (  # what shapes the bytes of a run
    *("torch", "torchvision", "diffusers", "transformers", "open_clip_torch", "safetensors"),
    *(
        "numpy",
        "numba",
        "scipy",
        "scikit-image",
        "Pillow",
        "trimesh",
        "fast_simplification",
        "xatlas",
        "imageio-ffmpeg",
    ),
)
SLUG_LENGTH = 40
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.\w+")  # names that `atomic_write` gives

try:
    import fcntl
except ImportError:  # Windows has no flock; two processes in one run folder are then not noticed
    fcntl = None  # type: ignore[assignment]


ELSEWHERE = "or choose another place with "  # of what is not begun yet; the option that names the place follows
HERE = "output_dir=FOLDER"


@contextmanager
def _disk_errors(
    path: Path, otherwise: str = "try again; `launch.py resume RUN` goes on with a run"
) -> Iterator[None]:
    """Turn any OSError about `path` into one line that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space" if full else "check the path and its permissions"
        raise Hindered(
            f"cannot write {path}: {error.strerror or error}; {advice}, {otherwise}"
        ) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix); rename it to `path` on success, remove it on failure."""
    temporary = path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:8]}{path.suffix}")
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, UTF-8; what of a file's name is not, is escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, data: object) -> None:
    """Write `data` to `path` atomically as indented JSON; tensors, arrays, paths and dataclasses are converted."""
    write_text(path, json.dumps(plain(data), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """`value` made of what JSON has: dict, list, str, int, finite float, bool, None (non-finite floats as strings)."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (str, int)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if hasattr(value, "tolist"):  # a torch tensor, numpy array or numpy scalar
        return plain(value.tolist())
    return str(value)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
        """Hold the run for this process; a second process is `Hindered`. The system frees it if the process dies."""
        with _disk_errors(self.path / ".lock"):
            stream = (self.path / ".lock").open("a+")
        with stream:
            if fcntl is not None:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise Hindered(
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


def check_output(folder: Path, option: str = HERE) -> None:
    """Raise UserError, which names the `option` to change, unless `folder` can be written to; it is made if it is not there."""
    with _disk_errors(folder, ELSEWHERE + option):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


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


def describe_run(config: Config) -> dict[str, Any]:
    """What is needed to tell why two runs differ: versions, git, platform, backend and the hashes of the weights."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "backend": config.backend,
        "device": _device(config.backend),
        "versions": {"vp3d": __version__} | {name: _version(name) for name in VERSIONED},
        "git": git_state(ROOT),
        "weights": weight_hashes([place for _, place in weight_places(config)]),
    }


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


def changed_weights(run: RunFolder, config: Config) -> str:
    """The first weight file that is not what it was when the run began, "" where all are the same.

    A prior that only draws is left out once the visual prompt is there: nothing reads it any more.
    """
    drawn = (run.visual_prompt / "scores.json").is_file()
    places = [
        place
        for key, place in weight_places(config)
        if not (drawn and key.startswith("visual_prompt."))
    ]
    noted, now = run.noted_weights(), weight_hashes(places)
    mine = {
        name
        for name in noted
        if any(name == place or name.startswith(f"{place}/") for place in places)
    }
    return next(
        (name for name in sorted(mine | now.keys()) if noted.get(name) != now.get(name)), ""
    )


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit and whether there are uncommitted changes; None where `folder` is not the top of a git checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    if not (folder / ".git").exists():
        return None
    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device(backend: str) -> str:
    """The name of the accelerator the run can use, else "cpu"."""
    import torch  # late: the folder itself needs no torch, and `--help` must not wait for it

    return torch.cuda.get_device_name() if backend != "cpu" and torch.cuda.is_available() else "cpu"

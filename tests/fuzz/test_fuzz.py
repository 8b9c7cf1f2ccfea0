"""Thousands of damaged files through the functions that the command line calls.

Each input is a valid file with random changes, from a generator named by the target and a number,
so that a failure can be repeated. Allowed are a result or a `VP3DError`; anything else is a bug:
another exception, more than `LIMIT_S` seconds, a file written outside the folder of the input, a
process, or a connection. `make fuzz` runs many more inputs than `make test`.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fuzz.mutate import (
    TOKENS,
    generator,
    mutate_bytes,
    mutate_glb,
    mutate_png,
    mutate_text,
    mutated_json_file,
)
from tests.helpers.assets import asset_of
from vp3d.cli.arguments import read_config
from vp3d.config.paths import ASSETS, ROOT
from vp3d.config.schema import VisualPromptConfig
from vp3d.errors import VP3DError
from vp3d.evaluate.results_folder import lock_folder
from vp3d.evaluate.runner import Settings, Task, read_record
from vp3d.export.formats import WRITERS
from vp3d.export.read import fit_to_cube, read_mesh
from vp3d.prompts import load_vocabulary
from vp3d.report import report
from vp3d.report.plots import curves, grouped
from vp3d.runs.folder import RunFolder
from vp3d.system.files import write_json
from vp3d.types import Asset, Mesh
from vp3d.visual_prompt.make import load_visual_prompt, read_reference
from vp3d.weights.catalogue import File
from vp3d.weights.fetch import _fault as fault_of
from vp3d.weights.locate import read_receipt
from vp3d.weights.manifest import verify_files

LIMIT_S = 10.0
SHARE_BY_DEFAULT = 3  # `make test` reads one of three of the inputs of a target
FACTOR_MORE = 6  # inputs of `make fuzz` for each one of `make test`
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate")
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")

Read = Callable[[Path], object]


class Slow(BaseException):
    """An input took more than `LIMIT_S` seconds."""


@dataclass
class Guard:
    """Notes what is done to files, processes and the network while it is on.

    Audit hooks cannot be removed, so there is one, which looks here.
    """

    root: str = ""
    found: list[str] = field(default_factory=list)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """The audit hook."""
        if not self.root:
            return
        if event in FORBIDDEN:
            self.found.append(f"{event} {args!r}"[:200])
        elif event in CHANGES or (event == "open" and args[2] is not None and args[2] & WRITING):
            names = [name for name in args if isinstance(name, str | bytes)][
                : 1 + ("name" in event)
            ]
            self.found += [f"{event} {name!r}" for name in names if not self._is_inside(name)]

    def _is_inside(self, name: str | bytes) -> bool:
        path = os.path.normpath(Path.cwd() / os.fsdecode(name))
        return path.startswith(self.root) or "__pycache__" in path or path == os.devnull


GUARD = Guard()
sys.addaudithook(GUARD.hear)


@contextmanager
def watched(root: Path) -> Iterator[None]:
    """Let nothing be written outside `root`, and nothing take longer than `LIMIT_S`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Slow

    before = signal.signal(signal.SIGALRM, stop)
    GUARD.root, GUARD.found = f"{root}{os.sep}", []
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        GUARD.root = ""


@dataclass(frozen=True)
class Target:
    """What is damaged, how, and who reads it.

    Attributes:
        file: The valid file below the folder of seeds.
        mutate: (its bytes, generator) -> other bytes.
        read: Reads the damaged file, which is in a copy of the seed's folder.
        count: Inputs of `make test`.
    """

    file: str
    mutate: Callable[[bytes, Any], bytes]
    read: Read
    count: int = 20


def text_file(data: bytes, rng: Any) -> bytes:
    """A text with changed tokens, lines (three of four times) or bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(data, rng)
    return mutate_text(data.decode(), rng).encode("utf-8", "surrogatepass")


def lines_of_json(data: bytes, rng: Any) -> bytes:
    """A file with a JSON object on each line, of which one to five are changed."""
    lines = data.splitlines()
    for at in rng.sample(range(len(lines)), rng.randint(1, 5)):
        lines[at] = mutated_json_file(lines[at], rng)
    return b"\n".join(lines)


def words(data: bytes, rng: Any) -> bytes:
    """`key=value` words, one a line, of which the values or characters are changed."""
    found = [word for word in data.decode().split("\n") if word]
    chosen = rng.sample(found, rng.randint(1, 4))
    changed = []
    for word in chosen:
        key, _, value = word.partition("=")
        value = rng.choice((value, rng.choice(TOKENS), mutate_text(value, rng)))
        changed.append(f"{key}={value}" if rng.random() < 0.8 else mutate_text(word, rng))
    return "\0\0".join(changed).encode("utf-8", "surrogatepass")


def header_of_safetensors(data: bytes, rng: Any) -> bytes:
    """A safetensors file whose header is changed, its length put right half of the time."""
    size = int.from_bytes(data[:8], "little")
    header = mutated_json_file(data[8 : 8 + size], rng)
    length = (
        len(header) if rng.random() < 0.5 else rng.choice((0, size, 2**63 - 1, 2**64 - 1, 10**9))
    )
    return length.to_bytes(8, "little") + header + data[8 + size :]


def read_words(path: Path) -> object:
    """Read the words as the command line does."""
    texts = path.read_bytes().decode("utf-8", "surrogatepass").split("\0\0")
    return read_config(None, [], texts)


def read_run(path: Path) -> object:
    """Read everything of a run folder that `resume`, `export` and the report read."""
    run = RunFolder.open(path if path.is_dir() else path.parent)
    mesh = box()
    asset = Asset("a red sphere", mesh, run.path, {"glb_iou": 0.5})
    events = run.events()
    grouped(curves(events))
    shown = report.notes(events) + report.visual_prompt(run) + report.files(run.path)
    shown.encode("utf-8", "backslashreplace")
    report.progress(10, events)
    report.main_figures(asset, events)
    for read in (run.config, run.recorded_weights, lambda: load_visual_prompt(run)):
        try:
            read()
        except VP3DError:
            continue
    return None


def read_scores(path: Path) -> object:
    """Read a visual prompt as the report and `resume` do."""
    return read_run(path.parents[1])


def read_checkpoint(path: Path) -> object:
    """Read a checkpoint as `resume` does: a ValueError is a damaged one, which is skipped."""
    from vp3d.train import checkpoint

    with suppress(ValueError):
        checkpoint.read_meta(path)
    return checkpoint.load_latest(path.parent, lambda damaged, reason: None)


def read_weights(path: Path) -> object:
    """Check a fetched weight file."""
    return fault_of(File(path.name), path, "", "", "w")


def read_judge(path: Path) -> object:
    """Load a judge by its description."""
    from vp3d.metrics.attribute_judge import load_judge

    return load_judge(path.parent)


def read_suite(path: Path) -> object:
    """Ask for a folder of results."""
    return lock_folder(path.parent, {"suite": "x", "config": {"a": 1}, "weights": {"w": "1"}})


def read_result(path: Path) -> object:
    """Read a finished record."""
    settings = Settings.__new__(Settings)
    object.__setattr__(settings, "folder", path.parents[1])
    task = Task.__new__(Task)
    for name, value in {"key": path.stem, "prompt": "a red ball", "seed": 0}.items():
        object.__setattr__(task, name, value)
    return read_record(settings, task)


def read_pipeline(path: Path) -> object:
    """Load a prior whose pipeline has a damaged file."""
    from vp3d.config.schema import PriorConfig
    from vp3d.diffusion.load import load_prior

    root = path.parent if path.name == "model_index.json" else path.parents[1]
    settings = PriorConfig(path=str(root), ip_adapter="", manifest="", vocabulary="")
    settings.resolution, settings.dtype = 32, "float32"
    return load_prior(settings)


def read_clip(path: Path) -> object:
    """Load an open_clip folder with a damaged file."""
    from vp3d.rewards.encoders import load_clip

    return load_clip(str(path.parent))


def read_picture_file(path: Path) -> object:
    """Read a picture as `--image` does."""
    return read_reference(str(path), "", VisualPromptConfig(), 32)


def read_mesh_file(path: Path) -> object:
    """Read a mesh as `render` and `evaluate --meshes` do."""
    return fit_to_cube(read_mesh(path))


def read_obj(path: Path) -> object:
    """Read the OBJ of a damaged material file."""
    return read_mesh_file(path.with_suffix(".obj"))


TARGETS = {
    "config file": Target("recipe/sds.yaml", text_file, lambda p: read_config(None, [p], []), 60),
    "words": Target("recipe/words.txt", words, read_words, 120),
    "config of a run": Target("run/config.yaml", text_file, read_run, 20),
    "events": Target("run/events.jsonl", lines_of_json, read_run, 40),
    "provenance": Target("run/provenance.json", mutated_json_file, read_run, 20),
    "scores": Target("run/visual_prompt/scores.json", mutated_json_file, read_scores, 30),
    "cut-out": Target("run/visual_prompt/cutout.png", mutate_bytes, read_scores, 10),
    "checkpoint": Target(
        "run/checkpoints/coarse/00000012.safetensors", mutate_bytes, read_checkpoint
    ),
    "header of a checkpoint": Target(
        "run/checkpoints/coarse/00000012.safetensors", header_of_safetensors, read_checkpoint
    ),
    "weights": Target("weights/w.safetensors", mutate_bytes, read_weights, 20),
    "header of weights": Target("weights/w.safetensors", header_of_safetensors, read_weights, 30),
    "manifest": Target(
        "weights/MANIFEST.json",
        mutated_json_file,
        lambda path: verify_files(path, path.parent),
        40,
    ),
    "receipt": Target(
        "weights/SOURCE.json", mutated_json_file, lambda path: read_receipt(path.parent), 40
    ),
    "vocabulary": Target("weights/vocabulary.json", mutated_json_file, load_vocabulary, 30),
    "judge": Target("judge/judge.json", mutated_json_file, read_judge, 20),
    "suite": Target("suite/suite.json", mutated_json_file, read_suite, 30),
    "record": Target("suite/results/x.json", mutated_json_file, read_result, 20),
    "model index": Target("pipeline/model_index.json", mutated_json_file, read_pipeline, 12),
    "text encoder": Target(
        "pipeline/text_encoder/config.json", mutated_json_file, read_pipeline, 8
    ),
    "denoiser": Target("pipeline/unet/config.json", mutated_json_file, read_pipeline, 8),
    "CLIP": Target("clip/open_clip_config.json", mutated_json_file, read_clip, 12),
    **{
        f"{kind} picture": Target(
            f"pictures/a.{kind}",
            mutate_png if kind == "png" else mutate_bytes,
            read_picture_file,
            15,
        )
        for kind in ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm")
    },
    "glb mesh": Target("meshes/model.glb", mutate_glb, read_mesh_file, 60),
    "obj mesh": Target("meshes/model.obj", text_file, read_mesh_file, 40),
    "mtl of a mesh": Target("meshes/model.mtl", text_file, read_obj, 20),
    "ply mesh": Target("meshes/model.ply", mutate_bytes, read_mesh_file, 40),
    "stl mesh": Target("meshes/model.stl", mutate_bytes, read_mesh_file, 30),
}


def box() -> Mesh:
    """A closed box with a texture."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
    faces = np.array(
        [
            *([0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]),
            *([2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]),
        ],
        np.int64,
    )
    uv = (corners[:, :2] * 0.4 + 0.5).astype(np.float32)
    texture = np.full((8, 8, 3), (200, 40, 30), np.uint8)
    normals = (corners / np.sqrt(3.0)).astype(np.float32)
    return Mesh(corners * 0.5, faces, normals, uv=uv, texture=texture)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, finished_run: Asset) -> Path:
    """The valid files."""
    from safetensors.numpy import save_file

    from tests.helpers.tiny_clip import write_tiny_clip
    from tests.helpers.tiny_models import save_pipeline
    from vp3d.metrics.attribute_judge import Judge, save_judge
    from vp3d.weights.manifest import file_entry

    root = tmp_path_factory.mktemp("seeds")
    (root / "recipe").mkdir()
    shutil.copy(ROOT / "configs" / "sds.yaml", root / "recipe" / "sds.yaml")
    shutil.copytree(finished_run.run_dir, root / "run")
    for name in ("model.glb", "report.html", "turntable.mp4", "preview.png"):
        (root / "run" / name).unlink(missing_ok=True)
    (root / "recipe" / "words.txt").write_text("\n".join(known_words()))
    (root / "weights").mkdir()
    weights = root / "weights" / "w.safetensors"
    save_file({"w": np.arange(50, dtype=np.float32), "v": np.zeros((2, 3), np.float16)}, weights)
    entry = file_entry(weights)
    write_json(
        root / "weights" / "MANIFEST.json", {"files": {"w.safetensors": entry}, "figures": {}}
    )
    receipt = {"source": "x", "size": entry["bytes"], "sha256": entry["sha256"]}
    write_json(root / "weights" / "SOURCE.json", {"files": {"w.safetensors": receipt}})
    shutil.copy(ASSETS / "vocabulary.json", root / "weights" / "vocabulary.json")
    save_judge(Judge({"object_a": ["ball", "cube"], "color_a": ["red"]}, (4, 8)), root / "judge")
    (root / "suite" / "results").mkdir(parents=True)
    suite = {"suite": "x", "config": {"a": 1, "b": {"c": 2.5}}, "weights": {"w": "1"}}
    write_json(root / "suite" / "suite.json", suite)
    record = {"prompt": "a red ball", "seed": 0, "figures": {"iou": 0.5}, "failure": ""}
    write_json(root / "suite" / "results" / "x.json", record)
    save_pipeline(root / "pipeline")
    write_tiny_clip(root / "clip")
    write_pictures(root / "pictures")
    (root / "meshes").mkdir()
    for kind, write in WRITERS.items():
        write(asset_of(box()), root / "meshes" / f"model.{kind}")
    return root


def known_words() -> list[str]:
    """A valid `key=value` word for each setting of a single value."""
    from vp3d.config.loader import get_value
    from vp3d.config.reader import keys
    from vp3d.config.schema import Config

    config = Config()
    values = {key: get_value(config, key) for key in keys(config)}
    return [f"{key}={value}" for key, value in values.items() if not hasattr(value, "__dict__")]


def write_pictures(folder: Path) -> None:
    """A disc on white in every format."""
    folder.mkdir()
    y, x = np.mgrid[:48, :48]
    inside = (x - 24) ** 2 + (y - 24) ** 2 < 15**2
    picture = Image.fromarray(np.where(inside[..., None], (200, 40, 30), 255).astype(np.uint8))
    for kind in ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm"):
        picture.save(folder / f"a.{kind}")


def fuzz(name: str, seeds: Path, tmp_path: Path, first: int, count: int) -> None:
    """Read `count` damaged files of a target; fails with the number of the input."""
    target = TARGETS[name]
    top = Path(target.file).parts[0]
    folder = tmp_path / top
    shutil.copytree(seeds / top, folder)
    path = tmp_path / target.file
    data, outcomes = path.read_bytes(), {"read": 0, "refused": 0}
    tempfile.tempdir = str(tmp_path)
    for number in range(first, first + count):
        path.write_bytes(target.mutate(data, generator(name, number)))
        try:
            with watched(tmp_path):
                target.read(path)
            outcomes["read"] += 1
        except VP3DError as error:
            assert str(error).strip(), f"{name} {number}: an empty message"
            outcomes["refused"] += 1
        except (Exception, Slow) as error:  # noqa: BLE001  (any other error is what is looked for)
            kept = Path(tempfile.gettempdir()) / f"input-{number}{path.suffix}"
            shutil.copy(path, kept)
            pytest.fail(f"{name} {number}: {type(error).__name__}: {error} (input kept: {kept})")
        finally:
            tempfile.tempdir = str(tmp_path)
        assert not GUARD.found, f"{name} {number}: {GUARD.found[:3]}"
    assert sum(outcomes.values()) == count


@pytest.fixture(autouse=True)
def own_temporary_folder() -> Iterator[None]:
    """Put the folder of temporary files back."""
    before = tempfile.tempdir
    yield
    tempfile.tempdir = before


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(name: str, seeds: Path, tmp_path: Path) -> None:
    fuzz(name, seeds, tmp_path, 0, max(4, TARGETS[name].count // SHARE_BY_DEFAULT))


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_damaged_files_are_read_or_refused(name: str, seeds: Path, tmp_path: Path) -> None:
    fuzz(name, seeds, tmp_path, 1000, FACTOR_MORE * TARGETS[name].count)


def test_the_inputs_are_as_many_as_promised() -> None:
    counts = [target.count for target in TARGETS.values()]
    assert sum(counts) >= 200 and FACTOR_MORE * sum(counts) >= 3000

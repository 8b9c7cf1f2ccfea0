"""The wheel holds code, models and recipes, and works in an empty folder, without a checkout.

The wheel is built once, from a copy of the sources and without the network, with the setuptools of
this environment. It is unpacked instead of installed; the dependencies are those of this
environment.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from email.message import Message
from pathlib import Path

import pytest

import vp3d

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("vp3d", "assets", "configs")
MAX_BYTES = 100_000_000  # the upload limit of the Python package index for one file
DIST_INFO = f"vp3d-{vp3d.__version__}.dist-info"
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); "  # -I ignores PYTHONPATH

PROGRAM = "from vp3d.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--no-cache-dir", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, as a folder for `sys.path`."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(site: Path) -> Message:
    return email.message_from_string((site / DIST_INFO / "METADATA").read_text(encoding="utf-8"))


def run_installed(site: Path, folder: Path, code: str, *arguments: str) -> str:
    """Run `code` with the unpacked wheel, in `folder`, as a new user would; returns stdout."""
    environment = {key: value for key, value in os.environ.items() if key != "VP3D_MODELS"}
    environment |= {"HOME": str(folder), "XDG_DATA_HOME": str(folder / "data")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-B", "-c", START + code, str(site), *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def installed_files(site: Path) -> list[Path]:
    """The files of the unpacked wheel, without the caches of Python and numba."""
    return sorted(path for path in site.rglob("*") if "__pycache__" not in path.parts)


def source_files() -> dict[str, Path]:
    """Name in the wheel -> file of the repository."""
    found = {}
    for folder in SOURCES:
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and "__pycache__" not in name:
                found[name if folder == "vp3d" else f"vp3d/{name}"] = path
    return found


def test_wheel_holds_every_file_of_the_package_unchanged(wheel: Path) -> None:
    expected = source_files()
    with zipfile.ZipFile(wheel) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    assert {name for name in entries if not name.startswith(f"{DIST_INFO}/")} == set(expected)
    changed = [
        name
        for name, path in expected.items()
        if zlib.crc32(path.read_bytes()) != entries[name].CRC
    ]
    assert not changed


def test_wheel_has_no_tests_and_is_small_enough(wheel: Path) -> None:
    assert wheel.name == f"vp3d-{vp3d.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < MAX_BYTES


def test_metadata(metadata: Message, site: Path) -> None:
    assert metadata["Name"] == "vp3d"
    assert metadata["Version"] == vp3d.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    extras = {
        "cuda",
        "dev",
        "draco",
        "molecules",
        "photo-judge",
        "print",
        "ray",
        "serve",
        "upscale",
    }
    assert set(metadata.get_all("Provides-Extra")) == extras
    assert metadata.get_payload().startswith("# VP3D")
    entry_points = (site / DIST_INFO / "entry_points.txt").read_text(encoding="utf-8")
    assert entry_points.split("\n")[:2] == ["[console_scripts]", "vp3d = vp3d.cli.main:main"]
    assert (site / DIST_INFO / "licenses" / "LICENSE").is_file()


def test_tested_versions_are_in_the_ranges_of_the_metadata(metadata: Message) -> None:
    from packaging.requirements import Requirement

    pinned = {}
    for extra in ("", "-dev", "-serve", "-upscale"):
        name = f"requirements{extra}.txt"
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        for package, version in re.findall(r"^([\w-]+)==(\S+)$", "\n".join(lines), re.MULTILINE):
            pinned[package.lower()] = version
    for text in metadata.get_all("Requires-Dist"):
        wanted = Requirement(text)
        if not re.search(
            r'extra == "(cuda|molecules|photo-judge|ray)"', text
        ):  # not installed where tests run
            assert wanted.specifier.contains(pinned[wanted.name.lower()]), text


def test_import_finds_models_and_recipes_and_loads_nothing_heavy(
    site: Path, tmp_path: Path
) -> None:
    code = """
import vp3d
from vp3d.config import paths
assert vp3d.__file__.startswith(sys.path[0]), vp3d.__file__
assert paths.INSTALLED
assert paths.program() == "vp3d"
assert "pip install" in paths.restore_advice(paths.MANIFEST)
shipped = ("assets/toybox/MANIFEST.json", "assets/prompts/toybench_single.txt", "configs/sds.yaml")
for path in shipped:
    assert paths.locate(path).is_file(), path
    assert paths.locate(path).is_relative_to(sys.path[0]), path
assert not {"torch", "numpy"} & set(sys.modules)
from vp3d.weights.locate import models_folder
print(models_folder())
"""
    found = run_installed(site, tmp_path, code)
    assert Path(found.strip()) == tmp_path / "data" / "vp3d" / "models"


def test_recipes_are_found_from_any_folder(site: Path, tmp_path: Path) -> None:
    code = """
from vp3d import load_config
config = load_config("draft", files=["configs/sds.yaml"], prompt="a red sphere")
print(config.preset, config.guidance.denoise_steps)
"""
    assert run_installed(site, tmp_path, code).split() == ["draft", "1"]


@pytest.mark.slow
def test_asset_without_a_checkout(site: Path, tmp_path: Path) -> None:
    before = installed_files(site)
    tiny = ["optim.steps=4", "visual_prompt.candidates=2", "visual_prompt.steps=2"]
    tiny += ["export.grid=24", "export.texture_size=32", "export.turntable_frames=4"]
    out = run_installed(
        site, tmp_path, PROGRAM, "a red mushroom with a white stem", "--preset", "draft", *tiny
    )
    run = tmp_path / out.strip().splitlines()[-1]
    assert run.parent == tmp_path / "outputs"
    assert (run / "model.glb").stat().st_size > 0
    assert (run / "report.html").is_file()
    assert installed_files(site) == before


@pytest.mark.slow
def test_doctor_without_a_checkout(site: Path, tmp_path: Path) -> None:
    assert "match MANIFEST.json" in run_installed(site, tmp_path, PROGRAM, "doctor")

"""What of VP3D works on this machine, and why the rest does not: `launch.py doctor`.

A check is "on", "off" (optional and not there) or "BROKEN" (needed). GPU-only packages are looked for but never
imported: where there is no GPU, importing some of them starts a build that fails.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from vp3d.config.paths import expand, locate
from vp3d.config.schema import Config
from vp3d.errors import VP3DError
from vp3d.weights.locate import weight_locations

GIB = 2**30
NEEDED_MEMORY_GIB = 1.5  # the default run was measured at 1.1
LICENCE_WIDTH = 32  # characters of a licence's name that are shown
NEEDED_DISK_GIB = 0.5  # a run folder, with room to spare
PACKAGES = {  # distribution -> module, for everything the default run imports
    "torch": "torch",
    "torchvision": "torchvision",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "open_clip_torch": "open_clip",
    "safetensors": "safetensors",
    "numba": "numba",
    "scikit-image": "skimage.measure",
    "trimesh": "trimesh",
    "xatlas": "xatlas",
    "fast_simplification": "fast_simplification",
    "imageio": "imageio",
    "matplotlib": "matplotlib",
}
CUDA_PACKAGES = {  # distribution -> (module, licence, what it is for)
    "nerfacc": ("nerfacc", "MIT", "sampling and compositing with cuda.compositor=nerfacc"),
    "tinycudann": (
        "tinycudann",
        "BSD-3-Clause",
        "look-ups of the hash grid with cuda.encoder=tinycudann",
    ),
    "triton": ("triton", "MIT", "look-ups of the hash grid"),
}


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    state: str  # on | off | BROKEN
    detail: str
    licence: str = ""


def run_checks(config: Config) -> list[Check]:
    """Every finding, in reading order."""
    return [
        check_python(),
        *check_packages(),
        check_cuda(),
        *check_cuda_packages(),
        check_ffmpeg(),
        check_weights(config),
        check_models(),
        check_memory(),
        check_disk(expand(config.output_dir)),
    ]


def report(checks: list[Check]) -> str:
    """The findings as a plain table, one a line."""
    name_width = max(len(check.name) for check in checks)
    licence_width = max(len(check.licence) for check in checks)
    rows = (
        f"{c.name:<{name_width}}  {c.state:<6}  {c.licence:<{licence_width}}  {c.detail}".rstrip()
        for c in checks
    )
    return "\n".join(rows) + "\n"


def healthy(checks: list[Check]) -> bool:
    """Whether the default run can work here."""
    return all(check.state != "BROKEN" for check in checks)


def check_python() -> Check:
    """The interpreter."""
    enough = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} at {sys.executable}" + (
        "" if enough else "; 3.11 or newer is needed"
    )
    return Check("python", "on" if enough else "BROKEN", detail, "PSF-2.0")


def check_packages() -> Iterator[Check]:
    """Import everything the default run imports."""
    import vp3d.system.torch_compat  # noqa: F401  before torchvision

    for name, module in PACKAGES.items():
        try:
            importlib.import_module(module)
            yield Check(name, "on", metadata.version(name), licence_of(name))
        except ImportError as error:
            yield Check(name, "BROKEN", f"{error}; run: pip install -r requirements.txt")
        except (
            OSError,
            RuntimeError,
        ) as error:  # a binary that does not fit this machine or the torch beside it
            yield Check(name, "BROKEN", f"does not load: {' '.join(str(error).split())}")


def licence_of(name: str) -> str:
    """The licence a distribution declares, in a few words."""
    about = metadata.metadata(name)
    classifiers = [
        c.rsplit(" :: ", 1)[-1]
        for c in about.get_all("Classifier") or []
        if c.startswith("License ::")
    ]
    expressions, texts = (about.get_all(field) or [] for field in ("License-Expression", "License"))
    return textwrap.shorten(
        [*expressions, *classifiers, *texts, "not declared"][0], LICENCE_WIDTH, placeholder=" ..."
    )


def check_cuda() -> Check:
    """Whether torch can use a GPU, and what `backend=auto` means here."""
    import torch

    from vp3d.system.memory import profile_for

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        profile = profile_for(free / GIB).name
        memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free (memory profile {profile})"
        return Check(
            "cuda", "on", f"{torch.cuda.get_device_name()}, {memory}; backend=auto means cuda"
        )
    why = "no usable GPU or driver" if torch.version.cuda else "this torch is a CPU build"
    return Check("cuda", "off", f"{why}; backend=auto means cpu")


def check_cuda_packages() -> Iterator[Check]:
    """The optional packages of the CUDA backend."""
    import torch

    for name, (module, licence, purpose) in CUDA_PACKAGES.items():
        installed = importlib.util.find_spec(module) is not None
        if not installed:
            yield Check(name, "off", f"not installed: {purpose}", licence)
        elif not torch.cuda.is_available():
            yield Check(
                name, "off", f"installed, but there is no GPU to use it: {purpose}", licence
            )
        elif name == "triton" and not c_compiler():
            yield Check(
                name,
                "off",
                f"installed, but its launcher needs a C compiler (gcc, clang or CC): {purpose}",
                licence,
            )
        else:
            yield Check(name, "on", purpose, licence)


def c_compiler() -> str:
    """The C compiler that Triton would take, or "": `CC`, gcc or clang."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or ""


def check_ffmpeg() -> Check:
    """The program that encodes turntable.mp4: the system's, or the one imageio-ffmpeg brings."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        program = get_ffmpeg_exe()
        done = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        return Check(
            "ffmpeg", "BROKEN", f"{' '.join(str(error).split())}; run: pip install imageio-ffmpeg"
        )
    licence = "GPL" if "--enable-gpl" in done.stdout else "LGPL-2.1"
    return Check("ffmpeg", "on", f"{done.stdout.split(' Copyright')[0]} at {program}", licence)


def check_weights(config: Config) -> Check:
    """Whether the weights that the configuration names are there, and are the bytes their manifest promises if they have one."""
    from vp3d.prompts import load_vocabulary
    from vp3d.weights.locate import check_fetched, find_weights
    from vp3d.weights.manifest import read_entries, verify_files

    priors = (config.prior, config.visual_prompt.prior)
    manifests = [locate(name) for name in dict.fromkeys(prior.manifest for prior in priors) if name]
    details, licences = [], []
    try:
        for manifest in manifests:
            verify_files(manifest, manifest.parent)
            details.append(
                f"{len(read_entries(manifest))} files under {manifest.parent} match {manifest.name}"
            )
            licences.append(
                str(json.loads(manifest.read_text(encoding="utf-8")).get("licence", "not declared"))
            )
        check_fetched(weight_locations(config))
        found = {place: find_weights(place, key)[1] for key, place in weight_locations(config)}
        for prior in (
            prior for prior in priors if prior.path and prior.manifest
        ):  # as load_prior and load_clip do
            judged = (
                [config.rewards.clip]
                if prior is config.prior and config.rewards.clip in found
                else []
            )
            for place in filter(None, (prior.path, prior.vae, prior.ip_adapter, *judged)):
                verify_files(locate(prior.manifest), locate(place))
        for vocabulary in {prior.vocabulary for prior in priors if prior.path and prior.vocabulary}:
            load_vocabulary(locate(vocabulary))
    except VP3DError as error:
        return Check("weights", "BROKEN", str(error))
    if not manifests:
        details.append(f"{', '.join(found)}: no manifest to check them by")
    remote = [place for place, local in found.items() if not local]
    details += [f"from the hub when needed: {', '.join(remote)}"] if remote else []
    return Check(
        "weights",
        "on" if manifests else "off",
        "; ".join(details),
        ", ".join(dict.fromkeys(licences)),
    )


def check_models() -> Check:
    """Which published models have been fetched."""
    from vp3d.weights.catalogue import MODELS
    from vp3d.weights.locate import missing_files, models_folder

    folder = models_folder()
    here = [name for name in MODELS if not missing_files(name, folder / name)]
    detail = (
        f"{', '.join(here)} in {folder}"
        if here
        else "none fetched; `launch.py models list` shows what there is"
    )
    return Check("models", "on" if here else "off", detail)


def check_memory() -> Check:
    """Free memory and usable cores."""
    free = psutil.virtual_memory().available / GIB
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    state = "on" if free >= NEEDED_MEMORY_GIB else "BROKEN"
    return Check(
        "memory", state, f"{free:.1f} GiB free of the {NEEDED_MEMORY_GIB} needed, {cores} cores"
    )


def check_disk(output_dir: Path) -> Check:
    """Room and permission where runs are written."""
    existing = next(
        path for path in (output_dir.resolve(), *output_dir.resolve().parents) if path.exists()
    )
    free = shutil.disk_usage(existing).free / GIB
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Check(
            "disk",
            "BROKEN",
            f"{existing} is not a folder that can be written to; set output_dir=FOLDER",
        )
    state = "on" if free >= NEEDED_DISK_GIB else "BROKEN"
    return Check(
        "disk", state, f"{free:.1f} GiB free of the {NEEDED_DISK_GIB} needed for {output_dir}"
    )

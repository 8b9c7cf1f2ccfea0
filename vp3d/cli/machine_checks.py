"""The checks of `doctor`: what works on this machine, and why the rest does not.

A check is "on", "off" (optional and missing) or "BROKEN" (needed and missing). GPU-only packages
are searched for but never imported: without a GPU, importing some of them starts a build that
fails.
"""

from __future__ import annotations

import importlib
import importlib.util
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

from vp3d.config.paths import expand, locate, program
from vp3d.config.schema import Config, PriorConfig
from vp3d.errors import VP3DError, in_one_line
from vp3d.system.files import read_json_object
from vp3d.weights.locate import weight_locations
from vp3d.weights.lora_files import parse_loras

GIB = 2**30
NEEDED_MEMORY_GIB = 1.5  # the default run was measured at 1.1
LICENCE_WIDTH = 32  # characters of a licence name in the table
NEEDED_DISK_GIB = 0.5  # more than one run folder takes
PACKAGES = {  # distribution -> module, for all that the default run imports
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
NERFACC_PURPOSE = "sampling and compositing with cuda.compositor=nerfacc"
TINYCUDANN_PURPOSE = "look-ups of the hash grid with cuda.encoder=tinycudann"
CUDA_PACKAGES = {  # distribution -> (module, licence, purpose)
    "nerfacc": ("nerfacc", "MIT", NERFACC_PURPOSE),
    "tinycudann": ("tinycudann", "BSD-3-Clause", TINYCUDANN_PURPOSE),
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
    """Run every check; the findings in the order of the table."""
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
    """The findings as a plain text table, one a line."""
    name_width = max(len(check.name) for check in checks)
    licence_width = max(len(check.licence) for check in checks)
    rows = (
        f"{c.name:<{name_width}}  {c.state:<6}  {c.licence:<{licence_width}}  {c.detail}".rstrip()
        for c in checks
    )
    return "\n".join(rows) + "\n"


def healthy(checks: list[Check]) -> bool:
    """Whether the default run can work on this machine."""
    return all(check.state != "BROKEN" for check in checks)


def check_python() -> Check:
    """Check the version of the interpreter."""
    detail = f"{platform.python_version()} at {sys.executable}"
    enough = sys.version_info >= (3, 11)
    detail += "" if enough else "; 3.11 or newer is needed"
    return Check("python", "on" if enough else "BROKEN", detail, "PSF-2.0")


def check_packages() -> Iterator[Check]:
    """Import all that the default run imports."""
    import vp3d.system.torch_compat  # noqa: F401  must come before torchvision

    for name, module in PACKAGES.items():
        try:
            importlib.import_module(module)
            yield Check(name, "on", metadata.version(name), licence_of(name))
        except ImportError as error:
            yield Check(name, "BROKEN", f"{error}; run: pip install -r requirements.txt")
        except (OSError, RuntimeError) as error:  # a binary for another machine or another torch
            yield Check(name, "BROKEN", f"does not load: {in_one_line(error)}")


def licence_of(name: str) -> str:
    """The licence that the distribution `name` declares, shortened to LICENCE_WIDTH characters."""
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
    """Check whether torch can use a GPU, and what `backend=auto` means on this machine."""
    import torch

    from vp3d.system.memory import profile_for

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        profile = profile_for(free / GIB).name
        memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free (memory profile {profile})"
        detail = f"{torch.cuda.get_device_name()}, {memory}; backend=auto means cuda"
        return Check("cuda", "on", detail)
    reason = "no usable GPU or driver" if torch.version.cuda else "this torch is a CPU build"
    return Check("cuda", "off", f"{reason}; backend=auto means cpu")


def check_cuda_packages() -> Iterator[Check]:
    """Check the optional packages of the CUDA backend."""
    import torch

    for name, (module, licence, purpose) in CUDA_PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            obstacle = "not installed"
        elif not torch.cuda.is_available():
            obstacle = "installed, but there is no GPU to use it"
        elif name == "triton" and not c_compiler():
            obstacle = "installed, but its launcher needs a C compiler (gcc, clang or CC)"
        else:
            yield Check(name, "on", purpose, licence)
            continue
        yield Check(name, "off", f"{obstacle}: {purpose}", licence)


def c_compiler() -> str:
    """The C compiler that Triton uses: `CC`, gcc or clang; "" if there is none."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or ""


def check_ffmpeg() -> Check:
    """Check the ffmpeg that encodes turntable.mp4: the system's, or that of imageio-ffmpeg."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        program = get_ffmpeg_exe()
        done = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        return Check("ffmpeg", "BROKEN", f"{in_one_line(error)}; run: pip install imageio-ffmpeg")
    licence = "GPL" if "--enable-gpl" in done.stdout else "LGPL-2.1"
    return Check("ffmpeg", "on", f"{done.stdout.split(' Copyright')[0]} at {program}", licence)


def check_weights(config: Config) -> Check:
    """Check that the configured weights exist and, with a manifest, that they match it."""
    from vp3d.weights.locate import check_fetched, find_weights

    manifests = list(dict.fromkeys(prior.manifest for prior in _priors(config) if prior.manifest))
    try:
        details, licences = _check_manifests(manifests)
        check_fetched(weight_locations(config))
        found = {name: find_weights(name, key)[1] for key, name in weight_locations(config)}
        _check_priors(config, set(found))
    except VP3DError as error:
        return Check("weights", "BROKEN", str(error))
    details += [
        f"LoRA {path} at scale {scale:g}"
        for prior in _priors(config)
        for path, scale in parse_loras(prior.loras)
    ]
    if not manifests:
        details.append(f"{', '.join(found)}: no manifest to check them by")
    remote = [name for name, is_local in found.items() if not is_local]
    if remote:
        details.append(f"from the hub when needed: {', '.join(remote)}")
    return Check(
        "weights",
        "on" if manifests else "off",
        "; ".join(details),
        ", ".join(dict.fromkeys(licences)),
    )


def _priors(config: Config) -> tuple[PriorConfig, PriorConfig]:
    """The prior that distils and the one that draws the visual prompt."""
    return config.prior, config.visual_prompt.prior


def _check_manifests(names: list[str]) -> tuple[list[str], list[str]]:
    """Check all files of each manifest; returns (findings, licences), one of each a manifest."""
    from vp3d.weights.manifest import read_entries, verify_files

    details, licences = [], []
    for manifest in map(locate, names):
        verify_files(manifest, manifest.parent)
        count = len(read_entries(manifest))
        details.append(f"{count} files under {manifest.parent} match {manifest.name}")
        licence = read_json_object(manifest).get("licence", "not declared")
        licences.append(str(licence))
    return details, licences


def _check_priors(config: Config, used: set[str]) -> None:
    """Check each prior's weights and vocabulary as `load_prior` and `load_clip` do.

    Args:
        config: the configuration of the run.
        used: the names of all weights that the run reads.
    """
    from vp3d.prompts import load_vocabulary
    from vp3d.weights.manifest import verify_files

    for prior in _priors(config):
        if not prior.path:
            continue
        if prior.manifest:
            names = [prior.path, prior.vae, prior.ip_adapter]
            if prior is config.prior and config.rewards.clip in used:
                names.append(config.rewards.clip)
            for name in filter(None, names):
                verify_files(locate(prior.manifest), locate(name))
        if prior.vocabulary:
            load_vocabulary(locate(prior.vocabulary))


def check_models() -> Check:
    """List the published models that are fetched."""
    from vp3d.weights.catalogue import MODELS
    from vp3d.weights.locate import missing_files, models_folder

    folder = models_folder()
    fetched = [name for name in MODELS if not missing_files(name, folder / name)]
    if not fetched:
        return Check("models", "off", f"none fetched; `{program()} models list` shows them all")
    return Check("models", "on", f"{', '.join(fetched)} in {folder}")


def check_memory() -> Check:
    """Check the free memory; report the usable cores."""
    free = psutil.virtual_memory().available / GIB
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    state = "on" if free >= NEEDED_MEMORY_GIB else "BROKEN"
    detail = f"{free:.1f} GiB free of the {NEEDED_MEMORY_GIB} needed, {cores} cores"
    return Check("memory", state, detail)


def check_disk(output_dir: Path) -> Check:
    """Check the free space and the permissions of the folder of runs."""
    existing = next(
        path for path in (output_dir.resolve(), *output_dir.resolve().parents) if path.exists()
    )
    free = shutil.disk_usage(existing).free / GIB
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        detail = f"{existing} is not a folder that can be written to; set output_dir=FOLDER"
        return Check("disk", "BROKEN", detail)
    state = "on" if free >= NEEDED_DISK_GIB else "BROKEN"
    detail = f"{free:.1f} GiB free of the {NEEDED_DISK_GIB} needed for {output_dir}"
    return Check("disk", state, detail)

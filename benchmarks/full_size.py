"""Whether the open-world configurations run and fit: `python -m benchmarks.full_size`.

Nothing is downloaded. Folders in the published layouts and sizes are written once, with random
weights in float16: Stable Diffusion 1.5 or SDXL, the base IP-Adapter with its ViT-H/14,
ImageReward, DINOv2-base and TAESD (5 GB; 12 GB with SDXL). Then a process for each configuration
and each card generates an asset by vp3d.pipeline.generate, with few steps and a small export, and
records each phase:

    load      the models are read and moved to the device
    draw      a visual prompt is drawn: all candidates, 4 denoising steps. Random weights draw
              noise, which cannot be cut out, so the run itself is given a picture
    prompt    that picture is cut out, judged and encoded
    field     the field and the stage are built
    steps     the optimisation, with every reward; the median is over the steps after the first
    export    mesh, texture, GLB
    views     the prior classifies the views of the mesh
    present   preview, turntable, report

`--card-gb N` limits torch to 0.85 N GiB (memory.USABLE: the desktop and the driver take the rest)
and plans for N GB, so a large GPU acts like a smaller card in memory, not in speed. The memory of
the CUDA context is not counted. --config names other files than configs/MODEL.yaml, one run each.
key=value words change settings, as prior.vae=taesd. On a CPU the default is --tiny, the same
classes in a fraction of the width: to try the program. Delete --work to write the folders again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import nn

from benchmarks import sds_step
from benchmarks.random_weights import (
    ADAPTERS,
    ENCODER_FOLDER,
    FULL,
    SMALL_VAES,
    TINY,
    Sizes,
    new_tower,
    new_unet,
    write_folders,
)
from benchmarks.recorder import Recorder, summary
from benchmarks.timing import Bench, Table, new_parser, prepare, report
from vp3d import build, pipeline
from vp3d.config.loader import load_config
from vp3d.config.paths import ROOT
from vp3d.config.schema import Config
from vp3d.errors import EmptyFieldError, UserError, VP3DError
from vp3d.runs.folder import save_config
from vp3d.system import torch_compat  # noqa: F401  (before transformers)
from vp3d.system.console import run_program
from vp3d.system.files import write_json
from vp3d.system.memory import GIB, USABLE
from vp3d.system.out_of_memory import is_out_of_memory

PROMPT = "a red ball"
PICTURE_SIDE = 256
# Every reward acts from the first step; few denoising steps, a small export.
QUICK = (
    "visual_prompt.steps=4",
    "rewards.text_image.begin=0",
    "rewards.image_image.begin=0",
    "export.grid=48",
    "export.faces=2000",
    "export.texture_size=128",
    "export.formats=[glb]",
    "export.turntable=gif",
    "export.turntable_frames=4",
    "export.turntable_size=64",
)
TINY_RUN = (
    *sds_step.TINY_FIELD,
    f"prior.resolution={sds_step.TINY}",
    "render.resolution=32",
    "visual_prompt.candidates=2",
)
HEADER = (
    *("configuration", "card, GB", "profile", "encoder, dtype", "samples at once"),
    *("images at once", "load, s", "step, s", "finite steps", "peak, GiB", "reserved, GiB"),
    *("peak in", "exported"),
)


def draw_disc(path: Path) -> None:
    """A red disc on white, `PICTURE_SIDE` pixels a side."""
    picture = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE), "white")
    margin = PICTURE_SIDE // 5
    ImageDraw.Draw(picture).ellipse(
        (margin, margin, PICTURE_SIDE - margin, PICTURE_SIDE - margin), (200, 40, 30)
    )
    picture.save(path)


def new_config(options: argparse.Namespace, file: Path, work: Path, device: torch.device) -> Config:
    """The configuration of a run, with its models in `work`.

    Args:
        options: the command line.
        file: the configuration file.
        work: the folder of models, picture and runs.
        device: where it runs.

    Returns:
        The configuration.

    Raises:
        UserError: the file names models that this program does not write.
    """
    settings = [f"optim.steps={options.repeats + options.warmup}", *QUICK]
    settings += [*(TINY_RUN if options.tiny else ()), f"backend={device.type}"]
    settings += ["prior.dtype=float32"] if device.type == "cpu" else []
    config = load_config(None, [file], [*settings, *options.overrides])
    check_models(config, options.model, file)
    prior, rewards = config.prior, config.rewards
    config.prompt, config.image = PROMPT, str(work / "disc.png")
    config.output_dir = str(work / "runs")
    prior.path = str(work / options.model)
    prior.vae = str(work / "taesd") if prior.vae else ""
    prior.ip_adapter = str(work / "ip_adapter") if prior.ip_adapter else ""
    rewards.imagereward, rewards.dinov2 = str(work / "imagereward"), str(work / "dinov2-base")
    return config


def check_models(config: Config, model: str, file: Path) -> None:
    """Refuses a configuration with models that this program does not write.

    Raises:
        UserError: it names another adapter, autoencoder or drawing prior than those of `model`.
    """
    prior = config.prior
    subfolder, _, weight = ADAPTERS[model].partition("/")
    encoder = prior.image_encoder_folder
    encoder = encoder if "/" in encoder else f"{prior.ip_adapter_subfolder}/{encoder}"
    named = (prior.ip_adapter_subfolder, prior.ip_adapter_weight, encoder)
    if prior.ip_adapter and named != (subfolder, weight, ENCODER_FOLDER):
        raise UserError(
            f"{file}: --model {model} is written with {ADAPTERS[model]} only, not {named[1]}"
        )
    if prior.vae not in ("", *SMALL_VAES):
        raise UserError(
            f"{file}: prior.vae {prior.vae} is not written here; use {' or '.join(SMALL_VAES)}"
        )
    if config.visual_prompt.prior.path:
        raise UserError(
            f"{file}: visual_prompt.prior is not measured here; "
            "give it as --model and --config of its own"
        )


def child(job: Path) -> None:
    """One run, in its own process: reads the JSON `job` and writes what it found next to it."""
    settings = json.loads(job.read_text(encoding="utf-8"))
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    bench = Bench(torch.device(settings["device"]), settings["clock"])
    on_gpu = bench.device.type == "cuda"
    config = load_config(None, [job.with_suffix(".yaml")], [])
    if settings["card_gb"]:
        total = torch.cuda.get_device_properties(bench.device).total_memory
        torch.cuda.set_per_process_memory_fraction(settings["card_gb"] * GIB * USABLE / total)
    profile = build.fit_to_device(config, bench.device).profile if on_gpu else ""
    recorder = Recorder(bench)
    recorder.install()
    found: dict[str, Any] = {
        "profile": profile,
        "dtype": config.prior.dtype,
        "exported": "",
        "out_of_memory": "",
    }
    try:
        found["glb"] = str(pipeline.generate(config, watch=recorder.watch).run_dir / "model.glb")
        found["exported"] = "yes"
    except EmptyFieldError as error:
        found |= {"exported": "nothing to export", "message": str(error)}
    except (VP3DError, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = " ".join(str(error).split())[:300]
        found |= {"out_of_memory": recorder.phase, "message": message}
    write_json(job.with_suffix(".found.json"), found | summary(recorder))


def measure(
    options: argparse.Namespace, bench: Bench, config: Config, work: Path, card_gb: float
) -> dict[str, Any]:
    """Runs `child` in a process.

    Args:
        options: the command line.
        bench: the device and the clock.
        config: the configuration of the run.
        work: where the files of the job are written.
        card_gb: the size of the card to act like; 0 for all memory of the device.

    Returns:
        What it found.

    Raises:
        UserError: the process failed.
    """
    job = work / "job.json"
    cuda = dataclasses.replace(config.cuda, memory_gb=card_gb or config.cuda.memory_gb)
    save_config(dataclasses.replace(config, cuda=cuda), job.with_suffix(".yaml"))
    found = job.with_suffix(".found.json")
    found.unlink(missing_ok=True)
    settings = {
        "device": str(bench.device),
        "card_gb": card_gb,
        "threads": options.threads,
        "clock": bench.clock,
    }
    write_json(job, settings)
    command = [sys.executable, "-m", "benchmarks.full_size", "--child", str(job)]
    ended = subprocess.run(command, cwd=ROOT, check=False)
    if ended.returncode or not found.is_file():
        raise UserError(
            f"the run ended with code {ended.returncode} and without a result; "
            "see its messages above"
        )
    return json.loads(found.read_text(encoding="utf-8"))


def row_of(found: dict[str, Any], warmup: int) -> list[str]:
    """A row of the table."""
    card = f"{found['card_gb']:g}" if found["card_gb"] else "all"
    encoder = found["encoder"].split(" (")[0].removesuffix(" table")
    head = [found["configuration"], card, found["profile"] or "–", f"{encoder}; {found['dtype']}"]
    for name in ("samples", "images"):
        first, last = found[name]
        head.append(f"{first:,}" if first == last else f"{first:,} -> {last:,}")
    counted = [step["seconds"] for step in found["steps"][warmup:]]
    head.append(f"{found['phases']['load']['seconds']:.1f}" if "load" in found["phases"] else "–")
    head.append(f"{statistics.median(counted):.2f}" if counted else "–")
    head.append(f"{found['finite_steps']} of {len(found['steps'])}")
    peaks = {
        name: phase["allocated_bytes"]
        for name, phase in found["phases"].items()
        if "allocated_bytes" in phase
    }
    if peaks:
        reserved = max(phase["reserved_bytes"] for phase in found["phases"].values())
        worst = max(peaks, key=peaks.__getitem__)
        head += [f"{peaks[worst] / GIB:.2f}", f"{reserved / GIB:.2f}", worst]
    else:
        head += ["–"] * 3
    failure = f"out of memory in {found['out_of_memory']}" if found["out_of_memory"] else ""
    return [*head, failure or found["exported"]]


def notes_on(found: dict[str, Any]) -> list[str]:
    """Lines below the table: the peak memory of each phase, and what went wrong."""
    name = found["configuration"]
    if found["card_gb"]:
        name += f", {found['card_gb']:g} GB"
    peaks = {phase: record.get("allocated_bytes") for phase, record in found["phases"].items()}
    notes = []
    if any(peaks.values()):
        sizes = ", ".join(f"{phase} {size / GIB:.2f}" for phase, size in peaks.items())
        notes.append(f"{name}: peak GiB by phase: {sizes}")
    if "draw" in found["phases"] and found["out_of_memory"] != "draw" and not found["drawn_finite"]:
        notes.append(f"{name}: the drawn pictures are not finite")
    return notes + ([f"{name}: {found['message']}"] if "message" in found else [])


def card_size(text: str) -> float:
    """Gigabytes above 0, as the value of an option."""
    number = float(text)
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of GB above 0")
    return number


def new_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser("full_size", __doc__ or "", repeats=5, warmup=1, count="steps")
    add, models, work = parser.add_argument, tuple(FULL.priors), ROOT / "outputs" / "full_size"
    several: dict[str, Any] = {"nargs": "+"}
    add("overrides", nargs="*", metavar="key=value", help="settings to change")
    add("--model", choices=models, default="sd15", help="sizes of the prior (sd15)")
    add("--config", type=Path, **several, metavar="FILE", help="one run each (configs/MODEL.yaml)")
    add("--card-gb", type=card_size, **several, metavar="N", help="act like cards of these sizes")
    add("--tiny", action=argparse.BooleanOptionalAction, help="small networks (default on a CPU)")
    add("--work", type=Path, default=work, metavar="DIR", help="models, runs and results")
    add("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(argv)


def check_cards(cards: list[float] | None, device: torch.device) -> None:
    """Refuses cards that this machine cannot act like.

    Raises:
        UserError: the device is a CPU, or has less memory.
    """
    if cards and device.type != "cuda":
        raise UserError(
            "--card-gb caps the memory of a CUDA device, and this runs on a CPU; leave it out"
        )
    total = torch.cuda.get_device_properties(device).total_memory / GIB if cards else 0.0
    for card in cards or ():
        if card * USABLE > total:
            raise UserError(
                f"--card-gb {card:g} is more than this GPU has, {total:.1f} GiB; give less"
            )


def main(argv: list[str] | None = None) -> None:
    """Writes missing folders, does every run, prints the table, writes the JSON."""
    options = new_options(argv)
    if options.child:
        child(options.child)
        return
    bench = prepare(options)
    check_cards(options.card_gb, bench.device)
    notes = []
    if options.tiny is None:
        options.tiny = bench.device.type != "cuda"
        notes += [sds_step.TINY_NOTE] if options.tiny else []
    work = options.work.absolute() / ("tiny" if options.tiny else "full")
    default = [ROOT / "configs" / f"{options.model}.yaml"]
    files = [path.absolute() for path in options.config or default]
    configs = [new_config(options, file, work, bench.device) for file in files]
    sizes = TINY if options.tiny else FULL
    write_folders(work, options.model, sizes, bench.device)
    draw_disc(work / "disc.png")
    records: list[dict[str, Any]] = []
    for file, config in zip(files, configs, strict=True):
        for card in options.card_gb or [0.0]:
            found = measure(options, bench, config, work, card)
            records.append({"configuration": file.stem, "card_gb": card, **found})
            notes += notes_on(records[-1])
    rows = [row_of(found, bench.warmup) for found in records]
    tiny = " in tiny" if options.tiny else ""
    title = f"{options.model}{tiny}, random weights: {parameter_counts(sizes, options.model)}"
    results = {"tiny": options.tiny, "runs": records}
    report(options, bench, "full_size", Table(title, HEADER, rows, notes), results)


def parameter_counts(sizes: Sizes, model: str) -> str:
    """The numbers of parameters of denoiser and image encoder, in words."""
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {
            "denoiser": new_unet(sizes.priors[model]),
            "image encoder": new_tower(sizes),
        }
    counts = [
        f"{name} of {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M"
        for name, net in networks.items()
    ]
    return f"{', '.join(counts)} parameters"


if __name__ == "__main__":
    run_program("full_size", main)

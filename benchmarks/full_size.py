"""Whether the open-world configurations run, and fit: `python -m benchmarks.full_size [--model sdxl] [--card-gb 8 12 16]`.

Nothing is fetched. Folders in the published layouts and sizes are written once, with random weights in float16: Stable Diffusion
1.5 or SDXL, the base IP-Adapter with its ViT-H/14, ImageReward, DINOv2-base and TAESD (5 GB, 12 with SDXL). Then, for each
configuration and each card, a process of its own makes an asset the way `launch.py generate` does (vp3d.pipeline.generate),
with few steps and a small export, looked on from outside:

    load      the models read and moved to the device
    draw      a visual prompt drawn, all candidates, 4 steps of denoising. Noise cannot be cut out, so the run is given a picture
    prompt    that picture cut out, judged and encoded, and the field made
    steps     the optimisation, every reward acting; the median is of the steps after the first
    export    mesh, texture, GLB
    views     the prior asked from where it sees the mesh
    present   preview, turntable, report

`--card-gb N` has torch refuse more than 0.85 N GiB (memory.USABLE, for the desktop and the driver take some) and plans for N GB,
so a large GPU stands in for a smaller card, in memory and not in speed. What a CUDA context takes is not in these numbers.
--config names other files than configs/MODEL.yaml, one run each. key=value goes on top, as prior.vae=taesd.
On a CPU the default is --tiny, the same classes in a fraction of the width: for trying the program out. Delete --work to write
the folders again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    new_tower,
    new_unet,
    write_folders,
)
from benchmarks.timing import Bench, new_parser, prepare, tell
from vp3d import build, pipeline
from vp3d.config.loader import load_config
from vp3d.config.paths import ROOT
from vp3d.config.schema import Config
from vp3d.errors import EmptyFieldError, UserError, VP3DError
from vp3d.prompts import strip_view
from vp3d.runs.folder import save_config
from vp3d.system import torch_compat  # noqa: F401  (torch_compat before transformers, which imports torchvision)
from vp3d.system.console import run_program
from vp3d.system.files import write_json
from vp3d.system.memory import GIB, USABLE, fit_to_memory, free_memory_gb
from vp3d.system.out_of_memory import is_out_of_memory
from vp3d.train import loop
from vp3d.train.generators import make_generator
from vp3d.visual_prompt.make import drawing_prompt

PROMPT = "a red ball"
PICTURE_SIDE = 256
QUICK = (  # every reward acts from the first step; few steps of drawing, little to export
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
PHASES = {  # functions of the product, and what the time and memory in them are told as
    "load_models": "load",
    "find_visual_prompt": "prompt",
    "build_coarse": "field",
    "export_field": "export",
    "look_around": "views",
    "present": "present",
}
HEADER = (
    "configuration",
    "card, GB",
    "profile",
    "encoder, dtype",
    "samples at once",
    "images at once",
    "load, s",
    "step, s",
)
HEADER += ("finite steps", "peak, GiB", "reserved, GiB", "peak in", "exported")


def draw_disc(path: Path) -> None:
    """A red disc on white, `PICTURE_SIDE` pixels a side."""
    picture = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE), "white")
    margin = PICTURE_SIDE // 5
    ImageDraw.Draw(picture).ellipse(
        (margin, margin, PICTURE_SIDE - margin, PICTURE_SIDE - margin), (200, 40, 30)
    )
    picture.save(path)


def new_config(options: argparse.Namespace, file: Path, work: Path, device: torch.device) -> Config:
    """The run of a configuration file, with its models in `work`."""
    steps = f"optim.steps={options.repeats + options.warmup}"
    settings = [steps, *QUICK, *(TINY_RUN if options.tiny else ())]
    settings += [f"backend={device.type}"] + (
        ["prior.dtype=float32"] if device.type == "cpu" else []
    )
    config = load_config(None, [file], [*settings, *options.overrides])
    subfolder, _, weight = ADAPTERS[options.model].partition("/")
    encoder = config.prior.image_encoder_folder
    encoder = encoder if "/" in encoder else f"{config.prior.ip_adapter_subfolder}/{encoder}"
    named = (config.prior.ip_adapter_subfolder, config.prior.ip_adapter_weight, encoder)
    if config.prior.ip_adapter and named != (subfolder, weight, ENCODER_FOLDER):
        raise UserError(
            f"{file}: --model {options.model} is written with {ADAPTERS[options.model]} only, not {named[1]}"
        )
    if config.prior.vae not in ("", *SMALL_VAES):
        raise UserError(
            f"{file}: prior.vae {config.prior.vae} is not written here; there is {' and '.join(SMALL_VAES)}"
        )
    if config.visual_prompt.prior.path:
        raise UserError(
            f"{file}: visual_prompt.prior is not measured here; give it as --model and --config of its own"
        )
    config.prompt, config.image, config.output_dir = (
        PROMPT,
        str(work / "disc.png"),
        str(work / "runs"),
    )
    config.prior.path, config.prior.vae = (
        str(work / options.model),
        str(work / "taesd") if config.prior.vae else "",
    )
    config.prior.ip_adapter = str(work / "ip_adapter") if config.prior.ip_adapter else ""
    config.rewards.imagereward, config.rewards.dinov2 = (
        str(work / "imagereward"),
        str(work / "dinov2-base"),
    )
    return config


class Watch:
    """What a run does, looked on from outside: seconds and peak bytes of each of its phases, and every step.

    It stands around functions of `vp3d.pipeline` and `vp3d.train.loop` for the rest of this process.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, self.phase = bench, ""
        self.phases: dict[str, dict[str, float]] = {}
        self.steps: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.results: dict[str, Any] = {}  # of the functions of `PHASES`, and of "fit_to_device"
        self.drawn_finite = False

    def install(self) -> None:
        """Stand around the product's functions."""
        for name, phase in PHASES.items():
            setattr(
                pipeline, name, self._kept(name, self._in_phase(phase, getattr(pipeline, name)))
            )
        build.fit_to_device = self._kept("fit_to_device", build.fit_to_device)
        pipeline.find_visual_prompt = self._drawing(pipeline.find_visual_prompt)
        pipeline.say = self._heard(pipeline.say)
        loop.run = self._in_phase("steps", loop.run)
        loop.advance = self._counted(loop.advance)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count time and memory as `phase`'s."""
        self.phase, device = phase, self.bench.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begin = self.bench.now()
        try:
            yield
        finally:
            found = {"seconds": self.bench.now() - begin}
            if device.type == "cuda":
                found["allocated_bytes"] = torch.cuda.max_memory_allocated(device)
                found["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
            self.phases[phase] = found

    def _in_phase(self, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def watched(*args: Any, **options: Any) -> Any:
            with self.during(phase):
                return work(*args, **options)

        return watched

    def _kept(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def keeping(*args: Any, **options: Any) -> Any:
            self.results[name] = work(*args, **options)
            return self.results[name]

        return keeping

    def _heard(self, say: Callable[[str], None]) -> Callable[[str], None]:
        def hearing(text: str) -> None:
            self.said.append(text)
            say(text)

        return hearing

    def _counted(self, advance: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any) -> Any:
            begin = self.bench.now()
            numbers, problem = advance(*args)
            self.steps.append({"seconds": self.bench.now() - begin, "problem": problem, **numbers})
            return numbers, problem

        return counting

    def _drawing(self, find: Callable[..., Any]) -> Callable[..., Any]:
        """`find_visual_prompt` with the picture drawn first: the run is given one, and that would never be measured."""

        def drawing(config: Config, models: build.Models, *args: Any) -> Any:
            asked = config.visual_prompt
            prompts = [drawing_prompt(config.prompt, asked)] * asked.candidates
            generator = make_generator(config.seed, "visual_prompt")
            with self.during("draw"):
                negative = strip_view(config.negative_prompt)
                drawn = models.prior.sample(
                    prompts, negative, asked.steps, asked.guidance_scale, generator
                )
                self.drawn_finite = bool(drawn.isfinite().all())
                del drawn
            return find(config, models, *args)

        return drawing


def child(job: Path) -> None:
    """One run, in a process of its own: reads the JSON `job`, writes what was found beside it."""
    told = json.loads(job.read_text(encoding="utf-8"))
    if told["threads"]:
        torch.set_num_threads(told["threads"])
    bench = Bench(torch.device(told["device"]), told["clock"])
    on_gpu = bench.device.type == "cuda"
    config = load_config(None, [job.with_suffix(".yaml")], [])
    if told["card_gb"]:
        total = torch.cuda.get_device_properties(bench.device).total_memory
        torch.cuda.set_per_process_memory_fraction(told["card_gb"] * GIB * USABLE / total)
    profile = fit_to_memory(config, free_memory_gb(bench.device))[1].name if on_gpu else ""
    watch = Watch(bench)
    watch.install()
    found: dict[str, Any] = {
        "profile": profile,
        "dtype": config.prior.dtype,
        "exported": "",
        "out_of_memory": "",
    }
    try:
        found["glb"] = str(pipeline.generate(config).run_dir / "model.glb")
        found["exported"] = "yes"
    except EmptyFieldError as nothing:
        found |= {"exported": "nothing to export", "message": str(nothing)}
    except (VP3DError, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found |= {"out_of_memory": watch.phase, "message": " ".join(str(error).split())[:300]}
    write_json(job.with_suffix(".found.json"), found | summary(watch))


def summary(watch: Watch) -> dict[str, Any]:
    """What `watch` saw, for the JSON; memory in bytes, time in seconds."""
    fitted = watch.results.get("fit_to_device", Config())
    models, stage = watch.results.get("load_models"), watch.results.get("build_coarse")
    encoder = next(
        (line for line in watch.said if line.startswith("hash grid by")), "hash grid by torch"
    )
    return {
        "encoder": encoder.removeprefix("hash grid by "),
        "samples": [
            fitted.render.chunk,
            stage.render_config.chunk if stage else fitted.render.chunk,
        ],
        "images": [
            fitted.prior.max_batch,
            models.prior.max_batch if models else fitted.prior.max_batch,
        ],
        "drawn_finite": watch.drawn_finite,
        "finite_steps": sum(not step["problem"] for step in watch.steps),
        "steps": watch.steps,
        "phases": watch.phases,
        "said": watch.said,
    }


def measure(
    options: argparse.Namespace, bench: Bench, config: Config, work: Path, card_gb: float
) -> dict[str, Any]:
    """What a child process found for `config` on a card of `card_gb` (0: all there is)."""
    job = work / "job.json"
    capped = dataclasses.replace(
        config, cuda=dataclasses.replace(config.cuda, memory_gb=card_gb or config.cuda.memory_gb)
    )
    save_config(capped, job.with_suffix(".yaml"))
    found = job.with_suffix(".found.json")
    found.unlink(missing_ok=True)
    told = {
        "device": str(bench.device),
        "card_gb": card_gb,
        "threads": options.threads,
        "clock": bench.clock,
    }
    write_json(job, told)
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.full_size", "--child", str(job)], cwd=ROOT, check=False
    )
    if ended.returncode or not found.is_file():
        raise UserError(
            f"the run ended with code {ended.returncode} and found nothing: what went wrong is told above"
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
    return [
        *head,
        f"out of memory in {found['out_of_memory']}"
        if found["out_of_memory"]
        else found["exported"],
    ]


def notes_on(found: dict[str, Any]) -> list[str]:
    """Lines beneath the table: the peak of each phase, and what was not as it should be."""
    name = (
        f"{found['configuration']}, {found['card_gb']:g} GB"
        if found["card_gb"]
        else found["configuration"]
    )
    peaks = [(phase, seen.get("allocated_bytes")) for phase, seen in found["phases"].items()]
    notes = []
    if any(size for _, size in peaks):
        notes.append(
            f"{name}: peak GiB by phase: "
            + ", ".join(f"{phase} {size / GIB:.2f}" for phase, size in peaks)
        )
    if "draw" in found["phases"] and found["out_of_memory"] != "draw" and not found["drawn_finite"]:
        notes.append(f"{name}: what it drew is not finite")
    return notes + ([f"{name}: {found['message']}"] if "message" in found else [])


def card_size(text: str) -> float:
    """Gigabytes above 0, as an option's value."""
    number = float(text)
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of GB above 0")
    return number


def new_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line; whatever is wrong in it is one line."""
    parser = new_parser("full_size", __doc__ or "", repeats=5, warmup=1, count="steps")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument(
        "--model", choices=tuple(FULL.priors), default="sd15", help="the prior's sizes (sd15)"
    )
    parser.add_argument(
        "--config", type=Path, nargs="+", metavar="FILE", help="one run each (configs/MODEL.yaml)"
    )
    parser.add_argument(
        "--card-gb",
        type=card_size,
        nargs="+",
        metavar="N",
        help="act like cards of these sizes (all there is)",
    )
    parser.add_argument(
        "--tiny",
        action=argparse.BooleanOptionalAction,
        help="small networks (the default on a CPU)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "outputs" / "full_size",
        metavar="DIR",
        help="for all it writes",
    )
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(argv)


def check_cards(cards: list[float] | None, device: torch.device) -> None:
    """Refuse cards that this machine cannot act like."""
    if cards and device.type != "cuda":
        raise UserError(
            "--card-gb caps the memory of a CUDA device, and this runs on a CPU: leave it out"
        )
    total = torch.cuda.get_device_properties(device).total_memory / GIB if cards else 0.0
    for card in cards or ():
        if card * USABLE > total:
            raise UserError(
                f"--card-gb {card:g}: this GPU has {total:.1f} GiB, it cannot act like a larger one"
            )


def main(argv: list[str] | None = None) -> None:
    """Write what is missing, make every run, print the table, write the JSON."""
    options = new_options(argv)
    if options.child:
        child(options.child)
        return
    bench = prepare(options)
    check_cards(options.card_gb, bench.device)
    notes = []
    if options.tiny is None:
        options.tiny = bench.device.type != "cuda"
        if options.tiny:
            notes.append(
                "No GPU here, so this was --tiny: it says nothing of the full size (--no-tiny runs that, slowly)."
            )
    work = options.work.absolute() / ("tiny" if options.tiny else "full")
    files = [
        path.absolute() for path in options.config or [ROOT / "configs" / f"{options.model}.yaml"]
    ]
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
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {
            "denoiser": new_unet(sizes.priors[options.model]),
            "image encoder": new_tower(sizes),
        }
    counted = [
        f"{name} of {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M"
        for name, net in networks.items()
    ]
    title = f"{options.model}{' in tiny' if options.tiny else ''}, random weights: {', '.join(counted)} parameters"
    rows = [row_of(found, bench.warmup) for found in records]
    tell(
        options,
        bench,
        "full_size",
        title,
        HEADER,
        rows,
        {"tiny": options.tiny, "runs": records},
        notes,
    )


if __name__ == "__main__":
    run_program("full_size", main)

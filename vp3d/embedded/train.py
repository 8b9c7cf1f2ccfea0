"""Train the embedded models: `python -m vp3d.embedded.train [PART ...]`.

Parts, in order: `autoencoder`, `clip`, `judge`, `measuring_clip`, `feature_tower` (of the
hallucination score), `vision_tower` (of the IP-Adapter), `prior` (denoiser, text encoder and
adapter together), `adapter` (adapter and vision tower alone, trained from scratch), `align` (all of
them on their own drawings, against the true pictures). Without parts, all of these are trained.
`upscaler` (32 to 128 pixels) is trained only if named. If the training is interrupted, run the same
command again to resume it from the last checkpoint under `data/toybox/`; `--more STEPS` continues
from the committed weights with a new schedule. It runs on the GPU if there is one. On a CPU, one
process for each core is faster than one process with many threads: `torchrun --nproc-per-node 2 -m
vp3d.embedded.train prior --threads 1`.

`--world household` trains the models of named meshes (`vp3d.worlds.household`) instead; the folder
of its packed meshes is `--library`. `--world FOLDER` trains on your own meshes
(`vp3d.worlds.own_meshes`).

`python -m vp3d.embedded.measure` prints the figures of the result and writes them to MANIFEST.json.
Frames, backgrounds and cameras of the pictures: `vp3d.worlds.toybox.data`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from vp3d.config.paths import ASSETS
from vp3d.embedded.fit import Plan, first_process_first, process_rank
from vp3d.embedded.picture_training import (
    train_autoencoder,
    train_clip,
    train_feature_tower,
    train_judge,
    train_measuring_clip,
    train_vision_tower,
)
from vp3d.embedded.prior_training import (
    remove_checkpoints,
    train_adapter,
    train_align,
    train_prior,
)
from vp3d.embedded.save import save_manifest
from vp3d.embedded.upscaler_training import train_upscaler
from vp3d.prompt_world import OWN, WORLD_FILE
from vp3d.runs.folder import slug
from vp3d.system.console import Parser, run_program, say
from vp3d.system.files import check_output, write_json
from vp3d.weights.locate import models_folder
from vp3d.worlds import library_data
from vp3d.worlds.base import TrainingPictures
from vp3d.worlds.household import HOUSEHOLD, household, library_world
from vp3d.worlds.household import vocabulary as library_vocabulary
from vp3d.worlds.library import Library
from vp3d.worlds.own_meshes import pack_folder
from vp3d.worlds.toybox.data import SCENES, VIEWS, training_pictures
from vp3d.worlds.toybox.scenes import vocabulary

# Matrices that Muon trains
INNER = r"unet\.(?!conv_in|conv_out)|projection\.layers|vision_tower\.vision_model\.encoder"
UPSCALER_INNER = r"(?!conv_in|conv_out|class_embedding)"  # the model is the denoiser itself
PLANS = {
    "autoencoder": Plan(steps=6000, lr=2e-3, batch=32, weight_decay=0.0),
    "clip": Plan(steps=4000, lr=1e-3, weight_decay=0.05),
    "judge": Plan(steps=6000, lr=2e-3, weight_decay=0.05),
    "measuring_clip": Plan(steps=4000, lr=1e-3, weight_decay=0.05),
    "feature_tower": Plan(steps=3000, lr=2e-3, weight_decay=0.05),
    "vision_tower": Plan(steps=6000, lr=2e-3, weight_decay=0.05, warmup=300, muon=INNER),
    "prior": Plan(steps=6000, lr=1e-3, batch=32, warmup=300, muon=INNER),
    "adapter": Plan(steps=1500, lr=2e-3, batch=32, warmup=30, muon=INNER),
    "align": Plan(steps=800, lr=3e-4, batch=16, warmup=50, muon=INNER),
    "upscaler": Plan(steps=4000, lr=1e-3, batch=16, warmup=100, muon=UPSCALER_INNER),
}
# What differs for a world at 128 pixels that starts from the toybox's weights
LARGE_PLANS = PLANS | {
    "autoencoder": Plan(
        steps=4000,
        lr=7e-4,
        batch=24,
        weight_decay=0.0,
        muon=r"(encoder|decoder)\.layers\.\d+\.conv",
    ),
    "prior": replace(PLANS["prior"], steps=100_000, hold=0.85, ema_share=0.01, save_every_s=300.0),
    "align": replace(PLANS["align"], save_every_s=300.0),
}
PARTS = tuple(PLANS)
UNASKED = tuple(part for part in PARTS if part != "upscaler")  # trained without parts
MEASURING = ("measuring_clip",)  # parts trained on chunks of pictures that no other part uses
TRAINERS: dict[str, Callable[..., None]] = {
    "autoencoder": train_autoencoder,
    "clip": train_clip,
    "judge": train_judge,
    "measuring_clip": train_measuring_clip,
    "feature_tower": train_feature_tower,
    "vision_tower": train_vision_tower,
    "prior": train_prior,
    "adapter": train_adapter,
    "align": train_align,
    "upscaler": train_upscaler,
}
OWN_WORLD = "own"  # name of a world of the user's own meshes
MORE = "more.txt"  # next to the checkpoints of an unfinished `--more`: its number of steps


def prepare_folder(folder: Path, more: int | None, fresh: bool) -> None:
    """Keep the checkpoints in `folder` only if this training left them when it was interrupted.

    `more` and `fresh` are the options of the command line.
    """
    note, requested = folder / MORE, str(more or "")
    interrupted = note.read_text() if note.exists() else ""
    if fresh or interrupted != requested:
        remove_checkpoints(folder)
        note.unlink(missing_ok=True)
    if more:
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(requested)


def plan_of(part: str, options: argparse.Namespace) -> Plan:
    """The plan of a part with the changes that the command line asks for."""
    plan = (PLANS if options.world == "toybox" else LARGE_PLANS)[part]
    if options.more:
        warmup = min(plan.warmup, options.more // 10)
        plan = replace(plan, steps=options.more, lr=plan.lr / 2, seed=plan.seed + 1, warmup=warmup)
    elif options.steps:
        plan = replace(plan, steps=options.steps)
    return replace(plan, lr=options.lr or plan.lr, batch=options.batch or plan.batch)


def new_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser(prog="python -m vp3d.embedded.train", description=__doc__.split("\n\n")[1])
    parts = f"any of: {', '.join(PARTS)} (default: all but upscaler)"
    parser.add_argument("parts", nargs="*", metavar="PART", help=parts)
    more = "continue from the committed weights for STEPS steps"
    parser.add_argument("--more", type=int, metavar="STEPS", help=more)
    steps = "steps of a full training; align continues from the committed weights"
    parser.add_argument("--steps", type=int, help=steps)
    batch = "pictures per step and process (default: the part's own, for a CPU)"
    parser.add_argument("--batch", type=int, help=batch)
    rate = "peak learning rate (default: the part's own, half of it with --more)"
    parser.add_argument("--lr", type=float, help=rate)
    sizes = f"{SCENES * VIEWS:,} training pictures, {library_data.CHUNK:,} with --world"
    chunks = f"chunks of {sizes} (default 4)"
    parser.add_argument("--chunks", type=int, default=4, help=chunks)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    data = "pictures and checkpoints (default data/WORLD, of your own meshes data/own/NAME)"
    parser.add_argument("--data", type=Path, help=data)
    world = "toybox (default), household, or a folder of your own meshes"
    parser.add_argument("--world", default="toybox", help=world)
    library = "packed meshes of the household (default data/household/library)"
    default = Path("data/household/library")
    parser.add_argument("--library", type=Path, default=default, help=library)
    nouns = "train on the first N nouns of the household only"
    parser.add_argument("--nouns", type=int, metavar="N", help=nouns)
    models = "folder the models are written to (default: that of the shipped ones)"
    parser.add_argument("--models", type=Path, help=models)
    parser.add_argument("--fresh", action="store_true", help="ignore the part's checkpoint")
    return parser


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The options of the command line; UserError for unknown parts and values out of range."""
    parser = new_parser()
    options = parser.parse_args(argv)
    unknown = [p for p in options.parts if p not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if options.more is not None and options.steps is not None:
        parser.error("--more and --steps exclude each other: give one of them")
    for name in ("more", "steps", "batch", "chunks", "threads", "nouns"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} takes a whole number of 1 or more")
    if options.lr is not None and not 0.0 < options.lr < 1.0:
        parser.error("--lr takes a number between 0 and 1")
    named = options.world in ("toybox", "household")
    if not named and not Path(options.world).is_dir():
        parser.error(f"--world takes toybox, household or a folder of meshes: {options.world!r}")
    if "upscaler" in options.parts and options.world != "toybox":
        parser.error("the upscaler is trained on the toybox only: leave out --world")
    if named:
        options.data = options.data or Path("data", options.world)
        options.models = options.models or {"toybox": ASSETS, "household": HOUSEHOLD}[options.world]
    else:
        name = slug(Path(options.world).resolve().name)
        options.data = options.data or Path("data", OWN_WORLD, name)
        options.models = options.models or models_folder() / OWN / name
    check_output(options.data, "--data FOLDER")
    check_output(options.models, "--models FOLDER")
    return options


def pictures_of(options: argparse.Namespace) -> Callable[[int], TrainingPictures]:
    """A function from the number of the first chunk to the pictures that `options` asks for."""
    if options.world == "toybox":
        folder = options.data / "pictures"
        return lambda first: training_pictures(folder, options.chunks, say, first)
    if options.world == "household":
        world, library = household(options.library, options.nouns)
    else:
        packed = options.data / "library"
        say(f"packed {pack_folder(Path(options.world), packed)} meshes into {packed}")
        world, library = library_world(packed, OWN_WORLD), Library(packed)
    folder = options.data / f"pictures-{library.key[:16]}"
    return lambda first: library_data.training_pictures(
        library, world, folder, options.chunks, say, first
    )


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train the parts that it names."""
    options = parse_options(argv)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    work = options.data / "training"
    if "WORLD_SIZE" in os.environ:  # started by torchrun
        torch.distributed.init_process_group()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    models = options.models
    read_pictures = first_process_first(lambda: pictures_of(options))
    read = {0: first_process_first(partial(read_pictures, 0))}  # first chunk -> pictures
    if not process_rank():
        toybox = options.world == "toybox"
        known = vocabulary() if toybox else library_vocabulary(read[0].world)
        write_json(models / "vocabulary.json", known)
        if not toybox:
            size = {"resolution": read[0].world.sizes.resolution}
            write_json(models / WORLD_FILE, {"name": read[0].world.name, **size})
    for part in options.parts or UNASKED:
        first = options.chunks if part in MEASURING else 0
        if first not in read:
            read[first] = first_process_first(partial(read_pictures, first))
        folder = work / part
        first_process_first(partial(prepare_folder, folder, options.more, options.fresh))
        TRAINERS[part](read[first], plan_of(part, options), folder, device, models)
        if torch.distributed.is_initialized():
            # the next part may read what process 0 has just written
            torch.distributed.barrier()
        (folder / MORE).unlink(missing_ok=True)
    if not process_rank():
        save_manifest(models, read[0].world.licence)


if __name__ == "__main__":
    run_program("train", main)

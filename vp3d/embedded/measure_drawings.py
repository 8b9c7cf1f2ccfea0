"""Judge drawings from outside: `python -m vp3d.embedded.measure_drawings`.

For every noun that the outside judge (`vp3d.metrics.photo_judge`) knows, "a NOUN" is drawn from
four views, several times. The ceiling is the same judge on renders of the true meshes from the same
cameras on the same backgrounds. The gate of the training is half of the ceiling. `--checkpoint`
judges a training that is still running, by its averaged weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from vp3d.embedded.prior_training import new_prior_parts, prior_tokenizer
from vp3d.embedded.sample_sheet import decode, draw_latents, grid
from vp3d.errors import UserError
from vp3d.metrics.photo_judge import CLASSES, PhotoJudge, load_photo_judge, verdict
from vp3d.report.pictures import save_image
from vp3d.system.console import Parser, run_program
from vp3d.worlds.base import World
from vp3d.worlds.household import HOUSEHOLD, household
from vp3d.worlds.library import Library
from vp3d.worlds.library_captions import LibrarySpec
from vp3d.worlds.library_data import render_specs
from vp3d.worlds.toybox.data import DISTANCE, FOV_DEG, to_tensor
from vp3d.worlds.toybox.images import GROUNDS, view_vectors
from vp3d.worlds.toybox.scenes import article

# Azimuth in degrees and name of the judged views
VIEWS = (
    (0.0, "front view"),
    (45.0, "front left view"),
    (-45.0, "front right view"),
    (90.0, "left side view"),
)
ELEVATION_DEG = 10.0
SHEET_COLUMNS = 16


def load_model(world: World, models: Path, checkpoint: Path | None) -> tuple[nn.ModuleDict, object]:
    """Denoiser and text encoder of `models`, or the averaged ones of a checkpoint; tokenizer."""
    tokenizer = prior_tokenizer(models, world)
    parts = new_prior_parts(tokenizer, checkpoint is None, world, models)
    model = nn.ModuleDict({k: parts[k] for k in ("unet", "text")})
    if checkpoint is not None:
        with safe_open(checkpoint, framework="pt") as file, torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"ema/{key}"))
            sys.stdout.write(f"checkpoint after {file.metadata()['step']} steps\n")
    return model.eval().requires_grad_(False), tokenizer


def true_views(library: Library, world: World, noun: str, rng: np.random.Generator) -> Tensor:
    """The four views [4, 3, S, S] of a random mesh of `noun`, in its own colours."""
    rows = [*library.trained[noun], *(r for r in library.rows if r.name in library.held_out)]
    rows = [r for r in rows if r.noun == noun]
    row = rows[int(rng.integers(len(rows)))]
    count = len(VIEWS)
    views = view_vectors(
        np.array([v[0] for v in VIEWS]),
        np.full(count, ELEVATION_DEG),
        np.full(count, DISTANCE),
        np.full(count, FOV_DEG),
    )
    grounds = np.array(GROUNDS)[rng.integers(len(GROUNDS), size=count)]
    specs = [LibrarySpec(noun, mesh=row.name)] * count
    images, _ = render_specs(library, specs, views, grounds, world.sizes.resolution)
    return to_tensor(images)


def share(judge: PhotoJudge, rgb: Tensor, nouns: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Top-1 and top-5 rate by noun of pictures [N * 4, 3, S, S]: four views for each of N nouns."""
    found = judge.probabilities(rgb).unflatten(0, (-1, len(VIEWS))).mean(1)
    rows: dict[str, list[tuple[bool, bool]]] = {}
    for noun, probabilities in zip(nouns, found, strict=True):
        said = verdict(probabilities, noun)
        rows.setdefault(noun, []).append((said.top1, said.top5))
    return {n: tuple(np.mean(v, axis=0).tolist()) for n, v in rows.items()}


def main(argv: list[str] | None = None) -> None:
    """Draw, judge and print the table."""
    parser = Parser(prog="python -m vp3d.embedded.measure_drawings", description=__doc__)
    parser.add_argument("--library", type=Path, default=Path("data/household/library"))
    parser.add_argument("--models", type=Path, default=HOUSEHOLD)
    parser.add_argument("--checkpoint", type=Path, help="of a running training of the prior")
    parser.add_argument("--nouns", type=int, metavar="N", help="the first N nouns only")
    parser.add_argument("--count", type=int, default=4, help="drawings of each noun (4)")
    parser.add_argument("--sheet", type=Path, help="a PNG of all drawings")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args(argv)
    if options.count < 1:
        raise UserError("--count takes a whole number of 1 or more")
    torch.set_num_threads(options.threads)
    judge = load_photo_judge()
    world, library = household(options.library, options.nouns)
    nouns = [n for n in library.nouns if n in CLASSES for _ in range(options.count)]
    rng = np.random.default_rng(8)
    true = torch.cat([true_views(library, world, noun, rng) for noun in nouns])
    ceiling = share(judge, true, nouns)
    model, tokenizer = load_model(world, options.models, options.checkpoint)
    texts = [f"{article(n)} {n}, {view}" for n in nouns for _, view in VIEWS]
    latents = draw_latents(
        model, tokenizer, texts, world.sizes.latent, torch.Generator().manual_seed(0)
    )
    rgb = decode(latents, options.models)
    if options.sheet:
        save_image(grid(rgb, SHEET_COLUMNS).reduce(2), options.sheet)
    drawn = share(judge, rgb, nouns)
    for noun in drawn:
        sys.stdout.write(
            f"{noun:18s} drawn {drawn[noun][0]:5.0%} {drawn[noun][1]:5.0%}"
            f"   true {ceiling[noun][0]:5.0%} {ceiling[noun][1]:5.0%}\n"
        )
    means = [np.mean(list(rows.values()), axis=0) for rows in (drawn, ceiling)]
    sys.stdout.write(
        f"{len(drawn)} nouns: top 1 {means[0][0]:.1%}, top 5 {means[0][1]:.1%}; true meshes"
        f" {means[1][0]:.1%}, {means[1][1]:.1%}; share of the ceiling, top 5:"
        f" {means[0][1] / max(means[1][1], 1e-9):.0%}\n"
    )


if __name__ == "__main__":
    run_program("measure_drawings", main)

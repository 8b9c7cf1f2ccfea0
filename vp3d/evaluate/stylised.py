"""Judge finished assets of the toybox: `python -m vp3d.evaluate.stylised suite` and `python -m vp3d.evaluate.stylised stylized`.

`suite` makes every prompt of assets/prompts/smoke.txt, lets the judge look at eight views of each exported mesh, and prints
the table. `stylized` makes three nouns after each of five reference pictures, with the picture and without it, and prints whether
the judge still finds the noun and how far the asset's main colours are from the picture's (mean CIEDE2000, lower is closer).
Both keep their runs, are resumable (a finished run is not made again), and write their figures as JSON and a contact sheet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vp3d.config.loader import load_config
from vp3d.config.paths import ASSETS, MANIFEST
from vp3d.errors import UserError
from vp3d.evaluate.gallery import Result, suite_table, write_gallery, write_suite
from vp3d.evaluate.prompt_file import SuitePrompt, read_suite
from vp3d.evaluate.results_folder import keep_to, run_locations, weights_of
from vp3d.jobs.make_once import make
from vp3d.metrics.attribute_judge import Judge, judge_views, load_judge
from vp3d.metrics.attributes import score_asset
from vp3d.metrics.colors import Palette, dominant_color_distance, dominant_colors
from vp3d.prompts import normalize_prompt
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.report.pictures import save_image, sheet
from vp3d.system.console import Parser, run_program
from vp3d.system.files import write_json
from vp3d.types import Mesh, to_uint8
from vp3d.worlds.toybox.data import attributes
from vp3d.worlds.toybox.images import render_spec
from vp3d.worlds.toybox.scenes import Spec, parse_caption

REFERENCES = (
    "a red sphere with yellow stripes",
    "a blue cube with white checks",
    "a green mushroom with a pink stem",
    "an orange lamp with a purple base",
    "a cyan egg with black stripes",
)
NOUNS = ("chair", "mug", "rocket")


def lock_to_settings(options: argparse.Namespace) -> None:
    """Take --work for the weights that are read now; `make` tells runs of other settings apart, but not of other weights."""
    config = load_config(options.preset, options.config, options.overrides)
    judge = (str(ASSETS / "judge"), str(MANIFEST))
    keep_to(options.work, {"weights": weights_of([*run_locations(config), judge])})


def read_captions(path: Path) -> list[tuple[SuitePrompt, Spec]]:
    """The prompts of a suite with what they ask for; UserError names the line of one that is no caption of the toybox."""
    found = []
    for entry in read_suite(path):
        try:
            found.append((entry, parse_caption(normalize_prompt(entry.prompt))))
        except ValueError as error:
            raise UserError(f"{path}, line {entry.line}: {error}") from error
    return found


def suite(options: argparse.Namespace) -> None:
    """Make and judge every prompt of a suite."""
    prompts = read_captions(options.prompts)[:: options.every]
    lock_to_settings(options)
    judge, results = load_judge(ASSETS / "judge", MANIFEST), []
    for number, (entry, spec) in enumerate(prompts, 1):
        config = load_config(options.preset, options.config, options.overrides)
        config.prompt, config.seed = entry.prompt, entry.seed
        made = make(config, options.work / f"{number:02d}-{entry.prompt.replace(' ', '-')}")
        score = score_asset(judge, made.mesh, attributes(spec))
        prompt_image = np.asarray(
            Image.open(made.folder / "visual_prompt" / "cutout.png").convert("RGB")
        )
        results.append(Result(entry, score, made.mesh, prompt_image, made.seconds))
        sys.stdout.write(
            f"{number}/{len(prompts)} {entry.prompt}: {8 * score['right']:.0f}/8 views\n"
        )
        sys.stdout.flush()
    sys.stdout.write(suite_table(results))
    write_suite(results, options.work, "smoke")
    write_gallery(
        results,
        options.sheet or options.work / "smoke.png",
        f"{options.prompts.stem}, {options.preset}",
    )


def stylized(options: argparse.Namespace) -> None:
    """Make nouns after reference pictures, and the same without, and compare the main colours."""
    lock_to_settings(options)
    judge, tiles = load_judge(ASSETS / "judge", MANIFEST), []
    rows: list[dict[str, Any]] = []
    for number, reference in enumerate(REFERENCES):
        picture = render_spec(parse_caption(reference), [30.0], size=256)[0]
        path = options.work / f"reference{number}.png"
        Image.fromarray(picture).save(path)
        mask = np.abs(picture.astype(int) - picture[0, 0]).max(-1) > 8
        target = dominant_colors(picture / 255.0, mask)
        for noun in NOUNS:
            found = {}
            for name, image in (("with", str(path)), ("without", "")):
                config = load_config(options.preset, options.config, options.overrides)
                config.prompt, config.image = f"a {noun}", image
                made = make(
                    config,
                    options.work / f"{noun}-{number}-{name}"
                    if image
                    else options.work / f"{noun}-{name}",
                )
                found[name] = (made, dominant_color_distance(palette(made.mesh), target))
            kept = noun_share(judge_views_of(judge, found["with"][0].mesh), noun)
            near, far = found["with"][1], found["without"][1]
            rows.append(
                {
                    "noun": noun,
                    "reference": reference,
                    "kept": kept,
                    "color_error": near,
                    "without": far,
                }
            )
            tiles.append(style_row(picture, found["with"][0].mesh, found["without"][0].mesh))
            sys.stdout.write(
                f"{noun:8s} after {reference:36s} noun {kept:4.2f}  dE {near:5.1f}  without {far:5.1f}\n"
            )
            sys.stdout.flush()
    mean = {
        key: float(np.mean([row[key] for row in rows]))
        for key in ("kept", "color_error", "without")
    }
    sys.stdout.write(
        f"\nnoun kept in {mean['kept']:.2f} of views; mean CIEDE2000 of the main colours {mean['color_error']:.1f}, "
        f"without {mean['without']:.1f}\n"
    )
    write_json(options.work / "stylized.json", {"mean": mean, "records": rows})
    save_image(
        sheet(tiles, "reference | with it | without"),
        options.sheet or options.work / "stylized.png",
    )


def views_of(mesh: Mesh, size: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight views [8, 3, S, S] in [0, 1] on the judge's ground, and opacity [8, 1, S, S]."""
    return render_mesh(mesh, ring(8, 15.0, 2.9, 40.0), size, size, 0.7)


def judge_views_of(judge: Judge, mesh: Mesh) -> list[dict[str, str]]:
    """What the judge names in eight views."""
    return judge_views(judge, views_of(mesh)[0])


def noun_share(named: list[dict[str, str]], noun: str) -> float:
    """Share of views in which the judge finds the noun."""
    return float(np.mean([row["object_a"] == noun for row in named]))


def palette(mesh: Mesh) -> Palette:
    """The main colours of a mesh over eight views."""
    rgb, opacity = views_of(mesh)
    return dominant_colors(
        rgb.permute(0, 2, 3, 1).flatten(0, 1).numpy(), opacity[:, 0].flatten(0, 1).numpy() > 0.9
    )


def style_row(picture: np.ndarray, *meshes: Mesh) -> list[Image.Image]:
    """Reference and two views of each mesh as tiles."""
    tiles = [Image.fromarray(picture).resize((128, 128))]
    for mesh in meshes:
        views = to_uint8(views_of(mesh)[0][[0, 1, 3]])
        tiles += [Image.fromarray(view) for view in views]
    return tiles


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run one of the two."""
    parser = Parser(prog="python -m vp3d.evaluate.stylised", description=__doc__.split("\n\n")[1])
    parser.add_argument("what", choices=["suite", "stylized"])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration overrides")
    parser.add_argument("--preset", default="draft", help="draft, standard or high (default draft)")
    parser.add_argument(
        "--config", type=Path, action="append", default=[], help="configuration file"
    )
    parser.add_argument("--prompts", type=Path, default=Path("assets/prompts/smoke.txt"))
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every n-th prompt")
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/smoke"), help="where the runs are kept"
    )
    parser.add_argument("--sheet", type=Path, help="contact sheet (default: in --work)")
    options = parser.parse_intermixed_args(argv)
    if options.every < 1:
        parser.error("--every takes a whole number of 1 or more")
    (suite if options.what == "suite" else stylized)(options)


if __name__ == "__main__":
    run_program("smoke", main)

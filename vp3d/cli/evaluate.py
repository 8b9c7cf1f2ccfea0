"""`evaluate`: measure a suite of prompts, or meshes that exist."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vp3d.cli.arguments import (
    Subparsers,
    add_config,
    add_engine,
    add_preset,
    add_words,
    check_engine,
    config_files,
    read_config,
    read_overrides,
)
from vp3d.config.paths import program
from vp3d.errors import UserError

if TYPE_CHECKING:
    from vp3d.engine.pool import Pool
    from vp3d.evaluate.runner import Settings

LARGEST_VIEW = 4096  # pixels of a side, of `--size`
SUITE_KEYS = ("prompt", "seed", "preset", "output_dir")  # settings that a suite fixes itself
LOWEST = {"seeds": 1, "jobs": 1, "every": 1, "size": 16}  # option -> its lowest value
EPILOG = f"""\
suites:
  toybench   the 72 prompts of the toybox (assets/prompts/toybench_*.txt). Each asset is compared
             with the exact scene of its caption (IoU, Chamfer distance, F-score, colour, Janus
             score) and with its prompt alone (judge, CLIP R-precision).
  gallery    24 prompts (assets/prompts/gallery.txt), judged view by view, with a contact sheet:
             WORK/gallery.png.
  stylised   three nouns with each of five reference pictures, and without; try it with
             --config configs/stylize.yaml.
  household  72 prompts of real things (assets/prompts/household.txt), judged by a network that
             was trained on photographs (extra photo-judge), as a share of what it says of the true
             meshes, and compared with the nearest of them; --library DIR has all of them.
  t3bench    the protocol of T3Bench on your own copy of its prompts, or on any other prompts:
             162 positions x 5 focal lengths, regional means.

claims NAME measures a claim instead of a suite: alignprop, alignprop-few-steps,
alignprop-truncation, alignprop-mix, alignprop-assets, svdd, svdd-framing, svdd-assets, strings,
strings-value, molecules, best-of, hallucination, upscale, teacher. best-of is what choosing among
seeds by the reward gains and costs, teacher whether the refine stage can gain; molecules and
upscale need the extras of their names.
Each is made for 30 minutes on two cores (--jobs 2) and continues where it was interrupted; --pages
DIR is where its page is written (--work).

--assets DIR measures meshes that exist, made by VP3D or not: run folders (the prompt is in their
config.yaml), and .glb, .gltf, .obj, .ply, .stl, .3mf and .usdz files named by their prompt, as
a-red-sphere-on-a-blue-cube.glb, or 03-a-red-sphere-s7.obj with a number and a seed. OBJ, PLY and
STL files are read with z up and the front on +x, GLB files as glTF defines. toybench finds yaw,
size and position itself.

Results are kept in --work: one JSON file an asset, summary.json, index.html (opens offline).
Results that exist are not computed again.

examples:
  {program()} evaluate --subset mini --preset draft
  {program()} evaluate --seeds 3 --jobs 2 --config configs/sds.yaml --work outputs/plain-sds
  {program()} evaluate --suite gallery --preset draft
  {program()} evaluate --assets my_meshes
  {program()} evaluate claims alignprop --jobs 2 --pages docs/results
  {program()} evaluate --suite t3bench --prompts prompt_single.txt --scorer imagereward \\
      --config configs/sd15.yaml
"""


@dataclass(frozen=True)
class Suite:
    """A suite: the function that runs it, and its own options with their defaults."""

    run: Callable[[argparse.Namespace, Settings], str]  # returns the tables as text
    options: dict[str, Any] = field(default_factory=dict)  # no other suite reads them
    world: str = "toybox"  # whose models make the assets, unless others are given


def run_toybench(arguments: argparse.Namespace, settings: Settings) -> str:
    """Run `toybench`; returns its tables."""
    from vp3d.evaluate.command import evaluate_toybench

    return evaluate_toybench(
        settings, arguments.assets, arguments.subset, arguments.seeds, pool_of(arguments)
    )


def run_gallery(arguments: argparse.Namespace, settings: Settings) -> str:
    """Run `gallery`; returns its tables."""
    from vp3d.evaluate.command import evaluate_gallery

    return evaluate_gallery(
        settings, arguments.prompts, arguments.every, arguments.seeds, pool_of(arguments)
    )


def run_stylised(arguments: argparse.Namespace, settings: Settings) -> str:
    """Run `stylised`; returns its tables."""
    from vp3d.evaluate.command import evaluate_stylised

    return evaluate_stylised(settings, arguments.seeds, pool_of(arguments))


def run_household(arguments: argparse.Namespace, settings: Settings) -> str:
    """Run `household`; returns its tables."""
    from vp3d.evaluate.command import evaluate_household

    return evaluate_household(
        settings, arguments.assets, arguments.library, arguments.seeds, pool_of(arguments)
    )


def run_t3bench(arguments: argparse.Namespace, settings: Settings) -> str:
    """Run `t3bench`; returns its tables."""
    from vp3d.evaluate.command import evaluate_t3bench
    from vp3d.evaluate.t3bench import Protocol

    protocol = Protocol(
        arguments.scorer,
        arguments.grader,
        arguments.endpoint,
        arguments.endpoint_model,
        arguments.size,
    )
    return evaluate_t3bench(
        settings, arguments.assets, arguments.prompts, protocol, arguments.seeds, pool_of(arguments)
    )


SUITES = {
    "toybench": Suite(run_toybench, {"subset": "all", "assets": None}),
    "gallery": Suite(run_gallery, {"prompts": [], "every": 1}),
    "stylised": Suite(run_stylised),
    "household": Suite(run_household, {"assets": None, "library": None}, "household"),
    "t3bench": Suite(
        run_t3bench,
        {
            "assets": None,
            "prompts": [],
            "scorer": "clip",
            "grader": "none",
            "endpoint": "",
            "endpoint_model": "",
            "size": 512,
        },
        world="",
    ),
}


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure assets: a suite, or a folder of meshes",
        description="Measure assets: a suite, or a folder of meshes.",
        epilog=EPILOG,
    )
    add_words(
        parser,
        "claims NAME | key=value",
        "a claim to measure, or settings of the runs to change, as guidance.guidance_scale=3",
    )
    parser.add_argument(
        "--pages", metavar="DIR", type=Path, help="claims: folder of the page and its plot"
    )
    parser.add_argument(
        "--suite", choices=tuple(SUITES), default="toybench", help="what to measure (toybench)"
    )
    parser.add_argument(
        "--assets", metavar="DIR", type=Path, help="measure the meshes in this folder; make none"
    )
    parser.add_argument(
        "--subset", choices=("all", "mini"), help="toybench: all 72 prompts, or 6 of each set (all)"
    )
    parser.add_argument(
        "--library",
        metavar="DIR",
        type=Path,
        help="household: the packed true meshes (the small part that ships with VP3D)",
    )
    add_preset(parser, "standard")
    add_config(parser)
    parser.add_argument("--seeds", metavar="N", type=int, default=1, help="assets a prompt (1)")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="processes (1)")
    add_engine(parser)
    parser.add_argument(
        "--work",
        metavar="DIR",
        type=Path,
        help="folder of the runs and results (outputs/SUITE-PRESET)",
    )
    parser.add_argument(
        "--every", metavar="N", type=int, help="gallery: take every n-th prompt (1)"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        action="append",
        help="gallery, t3bench: one prompt a line, repeatable",
    )
    add_t3bench_options(parser.add_argument_group("t3bench"))
    for suite in SUITES.values():
        parser.set_defaults(**suite.options)


def add_t3bench_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that only `t3bench` reads."""
    group.add_argument(
        "--scorer", choices=("clip", "imagereward"), help="the model that scores the quality (clip)"
    )
    group.add_argument(
        "--grader", choices=("none", "judge", "endpoint"), help="what grades the alignment (none)"
    )
    group.add_argument(
        "--endpoint", metavar="URL", help="a server with OpenAI's chat completions, .../v1"
    )
    group.add_argument(
        "--endpoint-model", metavar="NAME", help="its model; the key is VP3D_ENDPOINT_KEY"
    )
    group.add_argument(
        "--size", metavar="PIXELS", type=int, help="side of the scored pictures (512)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Make and judge a suite, judge a folder of meshes, or measure a claim; print the tables."""
    if arguments.words[:1] == ["claims"]:
        return run_claim(arguments)
    if arguments.pages is not None:
        raise UserError("--pages changes nothing without claims NAME; omit it")
    overrides = read_overrides(arguments)
    files = config_files(arguments)
    config = read_config(arguments.preset, files, overrides)
    check_options(arguments, overrides)
    kind = arguments.assets.name if arguments.assets else arguments.preset
    folder = arguments.work or Path("outputs") / f"{arguments.suite}-{kind}"
    from vp3d.evaluate.runner import Settings

    folder = absolute(folder, arguments)
    world = SUITES[arguments.suite].world
    settings = Settings(folder, arguments.preset, tuple(files), tuple(overrides), world)
    pool_of(arguments).check(config.cuda.memory_gb)
    sys.stdout.write(SUITES[arguments.suite].run(arguments, settings))
    return 0


def run_claim(arguments: argparse.Namespace) -> int:
    """Measure the claim that follows the word `claims`; print its answer."""
    from vp3d.evaluate.claims.command import CLAIMS, measure_claim

    if len(arguments.words) != 2:
        raise UserError(f"evaluate claims takes one name: {', '.join(CLAIMS)}")
    name = arguments.words[1]
    check_numbers(arguments, ("jobs",))
    check_engine(arguments)
    work = absolute(arguments.work or Path("outputs") / f"claim-{name}", arguments)
    sys.stdout.write(measure_claim(name, work, arguments.pages, pool=pool_of(arguments)))
    return 0


def pool_of(arguments: argparse.Namespace) -> Pool:
    """What runs the tasks of a suite or the parts of a claim."""
    from vp3d.engine.pool import Pool

    return Pool(arguments.jobs, arguments.engine, arguments.address, arguments.gpus)


def absolute(folder: Path, arguments: argparse.Namespace) -> Path:
    """The folder of results, absolute for Ray, whose processes may run in another folder."""
    return folder.absolute() if arguments.engine == "ray" else folder


def check_options(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Refuse settings that a suite fixes, options of another suite, and numbers out of range."""
    for word in overrides:
        if word.partition("=")[0] in SUITE_KEYS:
            raise UserError(
                f"'{word}' cannot be set: prompts and seeds are those of the suite; "
                "see --preset, --seeds and --work"
            )
    own = SUITES[arguments.suite].options
    for suite in SUITES.values():
        for name, default in suite.options.items():
            if name not in own and getattr(arguments, name) != default:
                raise UserError(
                    f"--{name.replace('_', '-')} changes nothing with --suite {arguments.suite}; "
                    "omit it"
                )
    check_numbers(arguments, tuple(LOWEST))
    check_engine(arguments)
    if arguments.size > LARGEST_VIEW:
        raise UserError(f"--size takes at most {LARGEST_VIEW} pixels, not {arguments.size}")


def check_numbers(arguments: argparse.Namespace, names: tuple[str, ...]) -> None:
    """Refuse numbers below their lowest value."""
    for name in names:
        if getattr(arguments, name) < LOWEST[name]:
            raise UserError(
                f"--{name} takes a whole number of {LOWEST[name]} or more, "
                f"not {getattr(arguments, name)}"
            )

"""The command line: argv -> Config -> one verb. No logic beyond that.

Each verb imports what it needs when it runs, so `--help` and wrong arguments are answered before torch is loaded.
Exit codes: 0 done, or stopped by one Ctrl-C and exported, 1 `doctor` found something broken, 2 a mistake of the user's (one
line on stderr), 130 Ctrl-C that ended it at once.
"""

from __future__ import annotations

import argparse
import difflib
import io
import re
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vp3d import __version__
from vp3d.config.loader import PRESETS, build_config, idle_settings, load_config
from vp3d.config.paths import expand, locate
from vp3d.config.schema import Config
from vp3d.config.threestudio import read_layers
from vp3d.errors import UserError, VP3DError
from vp3d.system.console import Parser
from vp3d.weights.locate import pin_locations

OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
PROMPT_LENGTH = 200  # characters
LARGEST_VIEW = 4096  # pixels of a side that `evaluate --size` takes
SUITES: dict[
    str, dict[str, Any]
] = {  # the options that one suite of `evaluate` alone reads, with their defaults
    "toybench": {"subset": "all"},
    "t3bench": {
        "prompts": [],
        "scorer": "clip",
        "grader": "none",
        "endpoint": "",
        "endpoint_model": "",
        "size": 512,
    },
}
TURNTABLE = (
    "export.turntable",
    "export.turntable_frames",
    "export.turntable_size",
)  # all that `render` reads
EXIT_UNHEALTHY, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130

OVERVIEW = """\
VP3D turns a text prompt into a textured 3D asset.

  launch.py "a red mushroom with a white stem"              make one: GLB, OBJ, PLY, STL, turntable, report
  launch.py "a chair" --image style.png                     in the colours and manner of a picture
  launch.py "a blue mug" --preset draft --seed 7            quicker and rougher, another variant
  launch.py "a tree" guidance.guidance_scale=3 optim.steps=600     change any setting

verbs (launch.py VERB --help says more):
"""

GENERATE_EPILOG = """\
examples:
  launch.py "a red mushroom with a white stem"
  launch.py "a red sphere on a blue cube" --preset draft
  launch.py "a white house with a red roof" --image style.png --negative "a red cube"
  launch.py "a green car" --config configs/sds.yaml optim.steps=300 output_dir=/tmp/runs
  launch.py --config configs/sd15.yaml --config dreamfusion-sd.yaml system.prompt_processor.prompt="a corgi"

Settings are layered: defaults, then --preset, then each --config FILE, then options, then key=value. Every setting
and its default is in vp3d/config/schema.py; the ones a run used are in its config.yaml. A FILE may also be a dreamfusion or
magic3d-coarse YAML of threestudio: what is not understood of it is named on stderr. Ctrl-C once stops and exports what
there is; `launch.py resume RUN` goes on later.
"""

EXPORT_EPILOG = """\
The settings stay with the run: its config.yaml and report have those of the last export, and an `export` or `resume` without
options takes them again. Formats that lie there are made anew as well, or they would show an older mesh.

examples:
  launch.py export outputs/RUN --faces 2000 export.grid=144
  launch.py export outputs/RUN --formats glb export.turntable=gif
"""

MODELS_EPILOG = """\
actions:
  list [NAME ...]        what there is, what is here; with names, files, hashes and sources too
  fetch NAME ...         download, check, and use offline from then on; goes on where it stopped
  verify [NAME ...]      check every byte of what is here
  convert NAME FILE      make safetensors of a pickle that you downloaded (ImageReward, HPSv2, aesthetic)

Models lie in models/ of the repository, or in $VP3D_MODELS. Sources: --from, $VP3D_MIRRORS, then the table's own.
"""


EVALUATE_EPILOG = """\
suites:
  toybench   the toybox's 72 prompts (assets/prompts/toybench_*.txt): every asset against the exact scene of its caption (IoU,
             Chamfer distance, F-score, colour, Janus score) and against its prompt alone (judge, CLIP R-precision)
  t3bench    the protocol of T3Bench on your own copy of its prompts, or any: 162 positions x 5 focal lengths, regional means

--assets DIR judges what lies in a folder, ours or anyone's: run folders (their config.yaml tells the prompt), and .glb, .obj,
.ply, .stl files named by their prompt: a-red-sphere-on-a-blue-cube.glb, or 03-a-red-sphere-s7.obj with a number and a seed.
OBJ, PLY and STL are read with z up and facing +x, GLB as glTF has it. toybench finds yaw, size and place itself.

Results stay in --work: one JSON an asset, summary.json, index.html (opens offline). What is there is not made again.

examples:
  launch.py evaluate --subset mini --preset draft
  launch.py evaluate --seeds 3 --jobs 2 --config configs/sds.yaml --work outputs/plain-sds
  launch.py evaluate --assets my_meshes
  launch.py evaluate --suite t3bench --prompts prompt_single.txt --scorer imagereward --config configs/sd15.yaml
"""


@dataclass(frozen=True)
class Verb:
    """One thing the command line can do."""

    summary: str
    add_arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]
    epilog: str = ""


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    sys.stdout, sys.stderr = (
        sys.stdout or io.StringIO(),
        sys.stderr or io.StringIO(),
    )  # None where the caller closed it
    if isinstance(sys.stdout, io.TextIOWrapper):  # a folder's name need not be text
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        return dispatch(sys.argv[1:] if argv is None else argv)
    except VP3DError as error:
        sys.stderr.write(f"vp3d: {' '.join(str(error).split())}\n")
        return EXIT_USER
    except OSError as error:  # a path too long, a folder that may not be entered: what is written has its own words
        place = f"{str(error.filename)[:80]}: " if error.filename else ""
        sys.stderr.write(
            f"vp3d: {place}{error.strerror or error}; check the path and its permissions\n"
        )
        return EXIT_USER
    except KeyboardInterrupt:
        sys.stderr.write(
            "vp3d: interrupted; `launch.py resume RUN` goes on with a run, the same command with anything else\n"
        )
        return EXIT_INTERRUPTED


def dispatch(argv: list[str]) -> int:
    """Find the verb (`generate` when the first word is none), parse its arguments, run it."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(
            OVERVIEW + "".join(f"  {name:<9} {verb.summary}\n" for name, verb in VERBS.items())
        )
        return 0 if argv else EXIT_USER
    if argv[0] == "--version":
        sys.stdout.write(f"vp3d {__version__}\n")
        return 0
    name, words = (argv[0], argv[1:]) if argv[0] in VERBS else ("generate", argv)
    verb = VERBS[name]
    parser = Parser(
        prog=f"launch.py {name}",
        description=verb.summary[0].upper() + verb.summary[1:] + ".",
        epilog=verb.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.add_arguments(parser)
    try:
        arguments = parser.parse_intermixed_args(words)
    except SystemExit as done:  # --help
        return int(done.code or 0)
    return verb.run(arguments)


def add_words(parser: Parser, metavar: str, help: str) -> None:
    """The words that stand free on the command line, in any number and order."""
    parser.add_argument("words", nargs="*", default=[], metavar=metavar, help=help)


def add_generate_arguments(parser: Parser) -> None:
    """Arguments of `generate`."""
    add_words(parser, "PROMPT | key=value", "the prompt in quotes, and settings to change")
    parser.add_argument(
        "--image", metavar="FILE", help="a picture to take the look from: the visual prompt"
    )
    parser.add_argument(
        "--mask", metavar="FILE", help="a picture that is white on the object of --image"
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        help="another seed is another variant, the same seed the same bytes (0)",
    )
    parser.add_argument("--preset", choices=PRESETS, help="how much work to put in (standard)")
    parser.add_argument("--negative", metavar="TEXT", help="what should not be seen")
    parser.add_argument(
        "--config", metavar="FILE", action="append", default=[], help="YAML settings, repeatable"
    )
    add_mesh_arguments(parser)


def add_mesh_arguments(parser: Parser) -> None:
    """Arguments of everything that makes a mesh."""
    parser.add_argument("--faces", metavar="N", help="at most this many triangles; 0 keeps all")
    parser.add_argument("--texture-size", metavar="PIXELS", help="side of the square texture")
    parser.add_argument("--formats", metavar="LIST", help="comma-separated: glb,obj,ply,stl")


def add_run_argument(parser: Parser) -> None:
    """The run folder of `resume`."""
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="a run folder: outputs/20260101-120000-a-red-ball-s0"
    )


def add_export_arguments(parser: Parser) -> None:
    """Arguments of `export`."""
    add_run_argument(parser)
    add_words(parser, "key=value", "settings to change, for example export.grid=144")
    add_mesh_arguments(parser)


def add_render_arguments(parser: Parser) -> None:
    """Arguments of `render`."""
    parser.add_argument(
        "path",
        metavar="MESH_OR_RUN",
        type=Path,
        help="a .glb, .obj, .ply, .stl file or a run folder",
    )
    add_words(
        parser,
        "key=value",
        "export.turntable=gif, export.turntable_frames=96, export.turntable_size=256; no others",
    )


def add_doctor_arguments(parser: Parser) -> None:
    """Arguments of `doctor`."""
    add_words(parser, "key=value", "settings to check for, for example output_dir=/data")
    parser.add_argument(
        "--config", metavar="FILE", action="append", default=[], help="YAML settings, repeatable"
    )


def add_models_arguments(parser: Parser) -> None:
    """Arguments of `models`."""
    parser.add_argument("action", choices=("list", "fetch", "verify", "convert"), help="see below")
    parser.add_argument(
        "names", nargs="*", default=[], metavar="NAME", help="names of `models list`"
    )
    parser.add_argument(
        "--from",
        dest="places",
        metavar="PLACE",
        action="append",
        default=[],
        help="a folder or http(s) mirror to take it from",
    )


def add_evaluate_arguments(parser: Parser) -> None:
    """Arguments of `evaluate`."""
    add_words(
        parser, "key=value", "settings of the runs to change, for example guidance.guidance_scale=3"
    )
    parser.add_argument(
        "--suite", choices=tuple(SUITES), default="toybench", help="what to measure (toybench)"
    )
    parser.add_argument(
        "--assets",
        metavar="DIR",
        type=Path,
        help="judge the meshes in this folder; nothing is made",
    )
    parser.add_argument(
        "--subset", choices=("all", "mini"), help="toybench: all 72 prompts, or 6 a set (all)"
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="standard", help="how much work to put in (standard)"
    )
    parser.add_argument(
        "--config", metavar="FILE", action="append", default=[], help="YAML settings, repeatable"
    )
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=1, help="assets for each prompt (1)"
    )
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="processes (1)")
    parser.add_argument(
        "--work",
        metavar="DIR",
        type=Path,
        help="where runs and results are kept (outputs/SUITE-PRESET)",
    )
    add_t3bench_arguments(parser.add_argument_group("t3bench"))
    parser.set_defaults(
        **{name: value for options in SUITES.values() for name, value in options.items()}
    )


def add_t3bench_arguments(group: argparse._ArgumentGroup) -> None:
    """Arguments of `evaluate --suite t3bench` alone."""
    group.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        action="append",
        help="one prompt a line, repeatable",
    )
    group.add_argument(
        "--scorer", choices=("clip", "imagereward"), help="who scores the quality (clip)"
    )
    group.add_argument(
        "--grader", choices=("none", "judge", "endpoint"), help="who tells the alignment (none)"
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


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """Positional words as (the prompt or None, the key=value overrides)."""
    overrides = [word for word in words if OVERRIDE.match(word)]
    prompts = [word for word in words if not OVERRIDE.match(word)]
    if len(prompts) > 1:
        near = difflib.get_close_matches(prompts[0].lower(), VERBS, 1)
        meant = (
            f"put the prompt in quotes, or did you mean the verb {near[0]}?"
            if near
            else "put the prompt in quotes"
        )
        raise UserError(f"more than one prompt: {', '.join(map(repr, prompts))}; {meant}")
    return (prompts[0] if prompts else None), overrides


def option_overrides(arguments: argparse.Namespace) -> list[str]:
    """The options that were given, as key=value."""
    options = {
        "image": "image",
        "mask": "mask",
        "seed": "seed",
        "negative": "negative_prompt",
        "faces": "export.faces",
        "texture_size": "export.texture_size",
        "formats": "export.formats",
    }
    given = {key: getattr(arguments, name, None) for name, key in options.items()}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def only_overrides(arguments: argparse.Namespace, read: tuple[str, ...] = ()) -> list[str]:
    """The options and key=value words of a verb that takes no prompt and reads only these settings or groups (() for all)."""
    prompt, overrides = split_words(arguments.words)
    if prompt is not None:
        raise UserError(f"'{prompt}' is not of the form key=value")
    keys = {word: word.partition("=")[0] for word in overrides if read}
    idle = next(
        (
            word
            for word, key in keys.items()
            if not f"{key}.".startswith(tuple(f"{name}." for name in read))
        ),
        None,
    )
    if idle is not None:
        raise UserError(f"'{idle}' changes nothing here; this verb reads {', '.join(read)}")
    return option_overrides(arguments) + overrides


def config_of(arguments: argparse.Namespace) -> Config:
    """The configuration a `generate` command line asks for, its prompt checked."""
    prompt, overrides = split_words(arguments.words)
    named = [] if prompt is None else [f"prompt={prompt}"]
    files = [locate(file) for file in arguments.config]
    overrides = named + option_overrides(arguments) + overrides
    config = read_config(arguments.preset, files, overrides)
    if not config.prompt.strip():
        raise UserError(
            'the prompt is empty; say what to make: launch.py "a red mushroom with a white stem"'
        )
    check_text(config.prompt, "prompt")
    check_text(config.negative_prompt, "negative prompt")
    if arguments.image is not None and not config.image.strip():
        raise UserError("--image is empty: give a picture, or leave the option out")
    if config.image:  # absolute, so that a run can be resumed from any folder
        config.image = str(expand(config.image).absolute())
    if arguments.mask is not None and not config.mask.strip():
        raise UserError("--mask is empty: give a picture, or leave the option out")
    if config.mask:
        config.mask = str(expand(config.mask).absolute())
    pin_locations(config)
    return config


def read_config(preset: str | None, files: list[Path], overrides: list[str]) -> Config:
    """`load_config`; on stderr a line for each idle setting and each group of threestudio's keys that was left out or changed."""
    found = read_layers(files, overrides)
    config = build_config(preset, found.layers)
    for note in [*found.notes, *idle_settings(config)]:
        sys.stderr.write(f"vp3d: {note}\n")
    return config


def check_text(text: str, name: str) -> None:
    """Refuse text that is no prompt: too long, or with control characters. Empty is for the caller."""
    if len(text) > PROMPT_LENGTH:
        raise UserError(
            f"the {name} has {len(text)} characters; {PROMPT_LENGTH} is the limit, so shorten it"
        )
    bad = next(
        (letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")),
        None,
    )
    if bad is not None:
        raise UserError(
            f"the {name} holds the control character {bad!r}; write it on one line of plain text"
        )


def generate(arguments: argparse.Namespace) -> int:
    """A prompt -> a finished asset; prints the run folder."""
    config = config_of(arguments)
    from vp3d import pipeline
    from vp3d.runs.terminal import TerminalDisplay

    with TerminalDisplay() as display:
        asset = pipeline.generate(config, watch=display.watch)
    sys.stdout.write(f"{asset.run_dir}\n")
    return 0


def resume(arguments: argparse.Namespace) -> int:
    """Continue a run that was stopped or killed; prints the run folder."""
    from vp3d.runs.folder import RunFolder
    from vp3d.runs.terminal import TerminalDisplay

    RunFolder.open(arguments.run).config()
    from vp3d import pipeline

    with TerminalDisplay() as display:
        asset = pipeline.resume(arguments.run, watch=display.watch)
    sys.stdout.write(f"{asset.run_dir}\n")
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Write the mesh files of a run again, with other settings; prints the run folder."""
    overrides = only_overrides(arguments, ("export", "backend", "cuda"))
    from vp3d.runs.folder import RunFolder
    from vp3d.runs.terminal import TerminalDisplay

    RunFolder.open(arguments.run).config(overrides=overrides)
    from vp3d import pipeline

    with TerminalDisplay() as display:
        config = pipeline.stored_config(arguments.run, display.watch, overrides)
        asset = pipeline.export_run(arguments.run, config, display.watch)
    sys.stdout.write(f"{asset.run_dir}\n")
    return 0


def render(arguments: argparse.Namespace) -> int:
    """Write a turntable video of a mesh file or a run; prints its path."""
    overrides = only_overrides(arguments, TURNTABLE)
    if not arguments.path.exists():
        raise UserError(f"{arguments.path} does not exist; give a mesh file or a run folder")
    from vp3d.runs.folder import RunFolder
    from vp3d.runs.terminal import TerminalDisplay

    if arguments.path.is_dir():
        config = RunFolder.open(arguments.path).config(overrides=overrides)
    else:
        config = load_config(None, [], overrides)
    from vp3d import pipeline

    with TerminalDisplay() as display:
        video = pipeline.render_path(arguments.path, config.export, display.watch)
    sys.stdout.write(f"{video}\n")
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Make and judge a suite of prompts, or judge a folder of meshes; prints the tables and the page's path."""
    overrides = only_overrides(arguments)
    files = [locate(file) for file in arguments.config]
    read_config(arguments.preset, files, overrides)
    idle = next(
        (
            word
            for word in overrides
            if word.partition("=")[0] in ("prompt", "seed", "preset", "output_dir")
        ),
        None,
    )
    if idle is not None:
        raise UserError(
            f"'{idle}' is not for a suite: prompts and seeds are its own; see --preset, --seeds and --work"
        )
    unread = {
        name: value
        for suite, options in SUITES.items()
        if suite != arguments.suite
        for name, value in options.items()
    }
    given = next(
        (name for name, value in unread.items() if getattr(arguments, name) != value), None
    )
    if given is not None:
        raise UserError(
            f"--{given.replace('_', '-')} changes nothing with --suite {arguments.suite}; leave it out"
        )
    for name, least in (("seeds", 1), ("jobs", 1), ("size", 16)):
        if getattr(arguments, name) < least:
            raise UserError(
                f"--{name} takes a whole number of {least} or more, not {getattr(arguments, name)}"
            )
    if arguments.size > LARGEST_VIEW:
        raise UserError(f"--size takes at most {LARGEST_VIEW} pixels, not {arguments.size}")
    kind = arguments.assets.name if arguments.assets else arguments.preset
    folder = arguments.work or Path("outputs") / f"{arguments.suite}-{kind}"
    from vp3d.evaluate import command
    from vp3d.evaluate.runner import Settings
    from vp3d.evaluate.t3bench import Protocol

    settings = Settings(folder, arguments.preset, tuple(files), tuple(overrides))
    amount = (arguments.seeds, arguments.jobs)
    if arguments.suite == "toybench":
        told = command.evaluate_toybench(settings, arguments.assets, arguments.subset, *amount)
    else:
        protocol = Protocol(
            arguments.scorer,
            arguments.grader,
            arguments.endpoint,
            arguments.endpoint_model,
            arguments.size,
        )
        told = command.evaluate_t3bench(
            settings, arguments.assets, arguments.prompts, protocol, *amount
        )
    sys.stdout.write(told)
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Say what works on this machine."""
    config = read_config(
        None, [locate(file) for file in arguments.config], only_overrides(arguments)
    )
    from vp3d.cli.doctor import healthy, report, run_checks

    checks = run_checks(config)
    sys.stdout.write(report(checks))
    return 0 if healthy(checks) else EXIT_UNHEALTHY


def models(arguments: argparse.Namespace) -> int:
    """List, fetch, check or convert published weights."""
    from vp3d.weights import fetch, verify

    action, names = arguments.action, arguments.names
    if action == "fetch" and not names:
        raise UserError("`models fetch` needs a NAME; `launch.py models list` shows them")
    if action == "convert" and len(names) != 2:
        raise UserError("`models convert` needs a NAME and the FILE to convert")
    if action == "list":
        sys.stdout.write(verify.listing(names))
    elif action == "verify":
        sys.stdout.write(verify.verify(names))
    elif action == "fetch":
        for folder in fetch.fetch_all(names, arguments.places):
            sys.stdout.write(f"{folder}\n")
    else:
        from vp3d.weights.convert_pickle import convert

        sys.stdout.write(f"{convert(names[0], expand(names[1]), arguments.places)}\n")
    return 0


VERBS = {
    "generate": Verb(
        "make a 3D asset from a prompt", add_generate_arguments, generate, GENERATE_EPILOG
    ),
    "resume": Verb("go on with a stopped or killed run", add_run_argument, resume),
    "export": Verb(
        "export a run again, with other settings", add_export_arguments, export, EXPORT_EPILOG
    ),
    "render": Verb("write a turntable of a mesh file or a run", add_render_arguments, render),
    "models": Verb(
        "list, fetch and check published weights", add_models_arguments, models, MODELS_EPILOG
    ),
    "evaluate": Verb(
        "measure assets: a suite, or a folder of meshes",
        add_evaluate_arguments,
        evaluate,
        EVALUATE_EPILOG,
    ),
    "doctor": Verb(
        "say what works on this machine and why the rest does not", add_doctor_arguments, doctor
    ),
}

"""The command line: words -> verb -> exit code. Each verb has a module of its own in this folder.

A verb imports what it needs when it runs, so `--help` and wrong arguments are answered before
torch or numpy is loaded. Exit codes: 0 done, or stopped by one Ctrl-C and exported; 1 `doctor`
found something broken, or an asset of `batch` failed; 2 a mistake of the user (one line on stderr);
130 ended at once by Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import sys

from vp3d import __version__
from vp3d.cli import (
    align,
    batch,
    doctor,
    draw,
    evaluate,
    export,
    generate,
    hallucination,
    models,
    render,
    resume,
    serve,
    upscale,
)
from vp3d.cli.arguments import EXIT_USER, VerbParser
from vp3d.config.paths import program
from vp3d.errors import VP3DError
from vp3d.system.console import Parser

VERBS = {  # in the order of the help
    "generate": generate,
    "draw": draw,
    "resume": resume,
    "export": export,
    "render": render,
    "models": models,
    "align": align,
    "batch": batch,
    "evaluate": evaluate,
    "hallucination": hallucination,
    "upscale": upscale,
    "serve": serve,
    "doctor": doctor,
}
GLOBAL_OPTIONS = ("-h", "--help", "--version")
EXIT_INTERRUPTED = 130
OVERVIEW = f"""\
VP3D turns a text prompt into a textured 3D asset.

  {program()} "a red mushroom with a white stem"
      make one: GLB, OBJ, PLY, STL, turntable, report
  {program()} "a chair" --image style.png
      in the colours and style of a picture
  {program()} "a blue mug" --preset draft --seed 7
      faster and rougher, another variant
  {program()} "a tree" guidance.guidance_scale=3 optim.steps=600
      change any setting
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: the words after the program's name; None takes those of this process.

    Returns:
        The exit code.
    """
    # The streams are None where the caller closed them.
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):  # the name of a folder need not be valid text
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        return dispatch(sys.argv[1:] if argv is None else argv)
    except VP3DError as error:
        message, code = " ".join(str(error).split()), EXIT_USER
    except OSError as error:  # a path that is too long, a folder that may not be entered
        name = f"{str(error.filename)[:80]}: " if error.filename else ""
        message = f"{name}{error.strerror or error}; check the path and its permissions"
        code = EXIT_USER
    except KeyboardInterrupt:
        message = f"interrupted; continue a run with `{program()} resume RUN`, else start again"
        code = EXIT_INTERRUPTED
    sys.stderr.write(f"vp3d: {message}\n")
    return code


def dispatch(argv: list[str]) -> int:
    """Parse the words and run their verb; without a verb, `generate`."""
    parser = build_parser()
    if not argv:
        parser.print_help()
        return EXIT_USER
    if argv[0] not in VERBS and argv[0] not in GLOBAL_OPTIONS:
        argv = ["generate", *argv]
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    return VERBS[arguments.verb].run(arguments)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs. The parsed arguments hold the name of the verb as `verb`."""
    parser = Parser(
        prog=program(),
        usage=f'{program()} [VERB] "PROMPT" [key=value ...] [options]',
        description=OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"vp3d {__version__}", help="print the version"
    )
    subparsers = parser.add_subparsers(
        title=f"verbs ({program()} VERB --help shows more)",
        dest="verb",
        metavar="VERB",
        prog=program(),
        required=True,
        parser_class=VerbParser,
    )
    for verb in VERBS.values():
        verb.add_parser(subparsers)
    return parser

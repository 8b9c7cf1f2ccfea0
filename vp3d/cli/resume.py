"""`resume`: continue a run that was stopped or killed."""

from __future__ import annotations

import argparse
import sys

from vp3d.cli.arguments import Subparsers, add_run
from vp3d.errors import UserError


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `resume`."""
    parser = subparsers.add_parser(
        "resume",
        help="continue a stopped or killed run",
        description="Continue a stopped or killed run, with the settings in its config.yaml.",
    )
    add_run(parser)
    parser.add_argument(
        "--reward",
        metavar="NAME[:WEIGHT],...",
        default="",
        help="of a run of align with a function of your own: its rewards, as you gave them",
    )


def run(arguments: argparse.Namespace) -> int:
    """Continue the run; print its folder."""
    from vp3d.runs.folder import RunFolder

    folder = RunFolder.open(arguments.run)
    aligns = bool(folder.config().align.reward)  # a mistake is answered before torch is loaded
    from vp3d import pipeline
    from vp3d.runs.terminal import TerminalDisplay
    from vp3d.system.process import process_start

    if arguments.reward and not aligns:
        raise UserError("--reward is for a run of align: omit it")
    if aligns:
        from vp3d.tuning.run import align

        with TerminalDisplay(process_start()) as display:
            lora = align(folder, display.watch, arguments.reward)
        sys.stdout.write(f"{lora}\n")
        return 0
    with TerminalDisplay(process_start()) as display:
        asset = pipeline.resume(arguments.run, watch=display.watch)
    sys.stdout.write(f"{asset.run_dir}\n")
    return 0
